"""Functions of a distance as sums of few rows of a table: how radial networks are tabulated for each training step.

A function is a spline of degree 5 with four continuous derivatives between knots that divide [0, cutoff] evenly. At a
distance six B-splines are not zero, so that the function's value and slope are sums of six rows of its table, which
follow each other, and a gradient with respect to the table is collected in the same rows. The rows are a linear map of
samples of the function, as many as there are rows: a network is evaluated at those distances alone, in plain torch, and
is trained through them.

`hienet.ops.spline` writes splines down for inference: with their own coefficients for each interval.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

DEGREE = 5
ROWS = DEGREE + 1
"""Rows that are read at an edge."""


class BasisTable:
    """The knots of a table, and how functions get into it.

    Where a derivative jumps at a `kink`, one knot lies on it and the splines on its two sides are apart: the table then
    has five more rows.

    Attributes:
        n_rows: rows of a table.
        distances: `[n_rows]` (Å), where a function is to be sampled.
        from_samples: `[n_rows, n_rows]`: samples at `distances` to rows.
    """

    def __init__(self, cutoff: float, n_intervals: int, kink: float | None = None) -> None:
        """`cutoff`, `kink`: Å. The kink must be a whole number of intervals from zero.

        Raises:
            ValueError: it is not.
        """
        self.cutoff, self.n_intervals = cutoff, n_intervals
        first = 0 if kink is None else round(kink * n_intervals / cutoff)
        if kink is not None and abs(first * cutoff / n_intervals - kink) > 1e-9 * cutoff:
            raise ValueError(f"the kink at {kink:g} Å is not a knot of {n_intervals} intervals up to {cutoff:g} Å")
        self._split = first
        places, inverses = [], []
        for begin, end in ((0, first), (first, n_intervals)):
            if begin < end:
                place = _sample_places(end - begin)
                places.append(begin + place)
                inverses.append(torch.linalg.inv(_collocation(place, end - begin)))
        self.distances = torch.cat(places) * (cutoff / n_intervals)
        self.from_samples = torch.block_diag(*inverses)
        self.n_rows = len(self.distances)
        self._polynomials = _basis_polynomials()

    def to(self, dtype: torch.dtype) -> BasisTable:
        """The same table in another precision, in which it is to be used."""
        table = copy.copy(self)
        for name in ("distances", "from_samples", "_polynomials"):
            setattr(table, name, getattr(self, name).to(dtype))
        return table

    def locate(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """What edges read of a table.

        Args:
            distance: `[n_edges]` (Å), at most the cutoff.

        Returns:
            the first row of each edge, `[n_edges]` int64, and factors of its ROWS rows, `[n_edges, 2, ROWS]`: for the
            value and for the derivative with respect to the distance (1/Å). The library of operators must be loaded.
        """
        places: tuple[Tensor, Tensor] = torch.ops.hienet.table_places(
            distance, self._polynomials, self.cutoff, self.n_intervals, self._split
        )
        return places


def rows_of_edges(distance: Tensor) -> tuple[Tensor, Tensor]:
    """What edges read of a table with ROWS rows for each of them, as `BasisTable.locate`: values, slopes, and zeros.

    The rows are its own, so that what is not a number at one edge does not reach another.
    """
    first_row = ROWS * torch.arange(len(distance), device=distance.device)
    factors = torch.zeros(len(distance), 2, ROWS, dtype=distance.dtype, device=distance.device)
    factors[:, 0, 0] = factors[:, 1, 1] = 1.0
    return first_row, factors


def _sample_places(n: int) -> Tensor:
    """`[n + DEGREE]` places in [0, n], in units of an interval: the knots, and the middles of intervals at the ends."""
    if n < DEGREE - 1:
        return torch.linspace(0.0, n, n + DEGREE, dtype=torch.float64)
    middles = torch.tensor([0.5, 1.5, n - 1.5, n - 0.5], dtype=torch.float64)
    return torch.cat([torch.arange(n + 1, dtype=torch.float64), middles]).sort().values


def _collocation(places: Tensor, n: int) -> Tensor:
    """`[places, n + DEGREE]`: rows to values at places in [0, n]."""
    interval = places.to(torch.int64).clamp(0, n - 1)
    powers = (places - interval).unsqueeze(1) ** torch.arange(ROWS, dtype=torch.float64)
    matrix = torch.zeros(len(places), n + DEGREE, dtype=torch.float64)
    columns = interval.unsqueeze(1) + torch.arange(ROWS)
    return matrix.scatter_(1, columns, powers @ _basis_polynomials()[0])


def _basis_polynomials() -> Tensor:
    """`[2, ROWS, ROWS]` (float64): powers of the fraction of an interval to the six B-splines, and to their slopes.

    By the recursion of de Boor and Cox for even knots,
    b_j^p(t) = ((t + p - j) b_(j-1)^(p-1) + (j + 1 - t) b_j^(p-1)) / p.
    """
    basis = [torch.zeros(ROWS, dtype=torch.float64)]
    basis[0][0] = 1.0
    zero = torch.zeros(ROWS, dtype=torch.float64)
    for p in range(1, DEGREE + 1):
        below = [zero, *basis, zero]
        basis = [
            ((p - j) * below[j] + below[j].roll(1) + (j + 1) * below[j + 1] - below[j + 1].roll(1)) / p
            for j in range(p + 1)
        ]
    values = torch.stack(basis, dim=1)
    slopes = torch.zeros_like(values)
    slopes[:-1] = values[1:] * torch.arange(1.0, ROWS, dtype=torch.float64).unsqueeze(1)
    return torch.stack([values, slopes])
