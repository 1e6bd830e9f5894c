"""What figures share: colours, plain axes, and PNG files without pyplot's global state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hienet.files import atomic_path

BLUE, ORANGE, GREEN, RED, GRAY = "#1f6fb4", "#e08a1e", "#3d9970", "#b8383b", "#9aa5b1"
COLORS = (BLUE, ORANGE, GREEN, RED, "#7a5ba6", "#5f6b76", "#a67c52", "#c76a9b")
"""Of curves, in this order."""

_RESOLUTION = 130


@contextmanager
def own_style() -> Iterator[None]:
    """Within, figures look alike whatever a user's matplotlibrc says: a LaTeX that it asks for may not be there.

    Also a decorator.
    """
    with matplotlib.style.context("default"):
        yield


def as_text(name: str) -> str:
    """A user's name for a title or a label, in which `$` is a dollar sign and begins no formula."""
    return name.replace("$", r"\$")


def tidy(axis: Axes) -> None:
    """No frame above and on the right, a faint grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color="0.93", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", labelsize=9)


def save_figure(figure: Figure, path: Path) -> None:
    """As PNG, without pyplot's global state.

    Raises:
        HIENetError: the file cannot be written.
    """
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_RESOLUTION, format="png")
