"""Reading other programs' checkpoints: which program wrote a file, and what their translations share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from hienet.checkpoint import Checkpoint
from hienet.errors import HIENetError
from hienet.nn.convolution import CouplingPath
from hienet.nn.equivariant import EquivariantLayer
