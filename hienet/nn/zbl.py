"""Repulsion of nuclei at short range: the universal potential of Ziegler, Biersack and Littmark (ZBL)."""

# No `from __future__ import annotations`: TorchScript reads the annotations of buffers where they are not strings.
from collections.abc import Sequence

import torch
from ase.data import atomic_numbers, covalent_radii
from torch import Tensor, nn

from hienet.nn.radial import polynomial_envelope, polynomial_envelope_slope
from hienet.nn.readout import as_float32_pairs
from hienet.units import COULOMB_CONSTANT

UNIVERSAL_SCREENING = (
    *(0.46850, 0.23),
    *(0.18175, 0.50986, 0.28022, 0.02817),
    *(3.19980, 0.94229, 0.40290, 0.20162),
)
"""Length a_0 (Å) and its exponent p, coefficients c_k, decays d_k: Ziegler, Biersack, Littmark, The Stopping and Range
of Ions in Solids, vol. 1 (1985), with the digits of LAMMPS' `pair_style zbl`."""


class ZBLRepulsion(nn.Module):
    """e_i = 1/2 sum_j V_ij(d_ij) f(d_ij / R_ij), in eV.

    V_ij(d) = k Z_i Z_j / d * sum_k c_k exp(-d_k d / a), a = a_0 / (Z_i^p + Z_j^p), with k = e^2/(4 pi epsilon_0).
    f is the polynomial envelope: energy, forces and their derivatives go to zero at the outer distance R_ij.

    A model adds the result as a last column to the state that its last stage returns, and its readout takes it off
    again: so it is never exchanged.

    It is computed in float64 whatever the dtype of the model, and only for the edges that are short enough: in a
    crystal near equilibrium hardly any.
    """

    atomic_numbers: Tensor
    """`[n_species]` int64."""
    radii: Tensor
    """`[2, n_species]` (Å), pairs of float32 numbers: R_ij is the sum of two."""
    screening: Tensor
    """`[2, 10]`, pairs likewise: a_0, p, c_1..c_4, d_1..d_4. `[1, 10]` where they are trained."""

    def __init__(
        self,
        elements: Sequence[str],
        cutoff: float,
        outer: float | None = None,
        envelope_power: int = 6,
        screening: Sequence[float] = UNIVERSAL_SCREENING,
        trainable: bool = False,
    ) -> None:
        """The repulsion between atoms of these elements.

        Args:
            elements: symbols, in species order.
            cutoff: of the model (Å), beyond which no edges are known; no R_ij is larger.
            outer: R_ij of all pairs (Å); None for the sum of both covalent radii (Cordero et al., 2008).
            envelope_power: power of the polynomial envelope.
            screening: a_0, p, c_1..c_4, d_1..d_4.
            trainable: these ten are weights.
        """
        super().__init__()
        numbers = [atomic_numbers[symbol] for symbol in elements]
        radii = [0.5 * outer if outer is not None else float(covalent_radii[number]) for number in numbers]
        self.cutoff, self.envelope_power = cutoff, envelope_power
        self.largest_outer = min(2.0 * max(radii), cutoff)
        # TorchScript knows no constants of the module's file.
        self.coulomb_constant = COULOMB_CONSTANT
        self.register_buffer("atomic_numbers", torch.tensor(numbers), persistent=False)
        self.register_buffer("radii", as_float32_pairs(radii), persistent=False)
        constants = as_float32_pairs(list(screening))
        if trainable:
            self.screening = nn.Parameter(constants.sum(0, keepdim=True))
        else:
            self.register_buffer("screening", constants, persistent=False)

    def _of_pairs(self, center: Tensor, neighbor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """k Z_i Z_j (eV Å), Z_i^p + Z_j^p, and R_ij (Å) of atoms of these species, all `[n]` float64."""
        z_i = self.atomic_numbers.index_select(0, center).to(torch.float64)
        z_j = self.atomic_numbers.index_select(0, neighbor).to(torch.float64)
        exponent = self.screening.to(torch.float64).sum(0)[1]
        radii = self.radii.to(torch.float64).sum(0)
        outer = (radii.index_select(0, center) + radii.index_select(0, neighbor)).clamp(max=self.cutoff)
        return self.coulomb_constant * z_i * z_j, z_i.pow(exponent) + z_j.pow(exponent), outer

    def _close(self, distance: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
        """Which edges are short enough, and their centers, both `[n]` int64."""
        close = (distance.detach() < self.largest_outer).nonzero().squeeze(1)
        return close, center.index_select(0, close)

    def pair_energy(self, distance: Tensor, center: Tensor, neighbor: Tensor) -> Tensor:
        """V_ij f of distances `[n]` (Å, float64) between atoms of these species, `[n]`: `[n]` (eV, float64)."""
        charge, powers, outer = self._of_pairs(center, neighbor)
        constants = self.screening.to(torch.float64).sum(0)
        reduced = distance * powers / constants[0]
        screened = torch.exp(-reduced.unsqueeze(1) * constants[6:]) @ constants[2:6]
        return charge / distance * screened * polynomial_envelope(distance / outer, 1.0, self.envelope_power)

    @torch.jit.unused
    def pair_energy_and_slope(self, distance: Tensor, center: Tensor, neighbor: Tensor) -> tuple[Tensor, Tensor]:
        """`pair_energy`, and its derivative with respect to the distance (eV/Å), written out."""
        charge, powers, outer = self._of_pairs(center, neighbor)
        constants = self.screening.to(torch.float64).sum(0)
        decays = constants[6:] * (powers / constants[0]).unsqueeze(1)
        parts = torch.exp(-distance.unsqueeze(1) * decays) * constants[2:6]
        screened, of_screened = parts.sum(1), -(parts * decays).sum(1)
        envelope = polynomial_envelope(distance / outer, 1.0, self.envelope_power)
        of_envelope = polynomial_envelope_slope(distance / outer, 1.0, self.envelope_power) / outer
        coulomb = charge / distance
        energy = coulomb * screened * envelope
        return energy, coulomb * (of_screened * envelope + screened * of_envelope) - energy / distance

    def forward(self, distance: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int) -> Tensor:
        """Energies of the owned atoms.

        Args:
            distance: `[n_edges]` (Å), none of them zero.
            species: `[n_nodes]` int64.
            center, neighbor: `[n_edges]` int64.
            n_local: number of owned atoms.

        Returns:
            `[n_local, 1]` (eV), in the dtype of `distance`: a column of the state.
        """
        close, close_center = self._close(distance, center)
        energy = self.pair_energy(
            distance.index_select(0, close).to(torch.float64),
            species.index_select(0, close_center),
            species.index_select(0, neighbor.index_select(0, close)),
        )
        total = torch.zeros(n_local, dtype=torch.float64, device=distance.device)
        return total.index_add(0, close_center, 0.5 * energy).to(distance.dtype).unsqueeze(1)

    @torch.jit.unused
    def energies_and_slopes(
        self, distance: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """Energies `[n_local]` (eV, float64) as `forward`, and the derivatives of their sum with respect to the
        distances, `[n_edges]` (eV/Å, float64), without autograd."""
        close, close_center = self._close(distance, center)
        energies, slopes = (torch.zeros(n, dtype=torch.float64, device=distance.device) for n in (n_local, len(center)))
        if len(close) == 0:
            return energies, slopes
        energy, slope = self.pair_energy_and_slope(
            distance.index_select(0, close).to(torch.float64),
            species.index_select(0, close_center),
            species.index_select(0, neighbor.index_select(0, close)),
        )
        return energies.index_add_(0, close_center, 0.5 * energy), slopes.index_copy_(0, close, 0.5 * slope)
