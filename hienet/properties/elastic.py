"""`hienet elastic`: elastic constants from stresses of strained cells, averages of polycrystals, stability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress
from matplotlib.figure import Figure

from hienet.errors import HIENetError
from hienet.figure import COLORS, as_text, own_style, save_figure, tidy
from hienet.properties.engine import Array, Engine
from hienet.properties.progress import Progress, silent
from hienet.properties.relax import TIGHT, RelaxSettings, relax, relaxed
from hienet.properties.screen import Column, Outcome
from hienet.properties.structures import Structure
from hienet.properties.symmetry import point_operations, space_group
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_GPA as GPA

NORMAL_STRAINS = (-0.01, -0.005, 0.005, 0.01)
SHEAR_STRAINS = (-0.06, -0.03, 0.03, 0.06)
"""Of HIENet's paper (appendix D.2) and the Materials Project: components of the tensor, half the engineering shear."""

_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_NAMES = ("xx", "yy", "zz", "yz", "xz", "xy")


@dataclass(frozen=True)
class ElasticSettings:
    """Which strains.

    Attributes:
        normal: components of the strain on the diagonal.
        shear: those off it, half the engineering shear.
        relax_cell: relax the structure first.
        relax_atoms: relax the atoms in each strained cell; without it, constants of clamped ions.
        symmetrize: average the tensor over the crystal's point group.
        fit: `cubic`, whose slope at zero strain is free of the curvature that large strains bring; or `linear`, as in
            the paper and the Materials Project.
    """

    normal: tuple[float, ...] = NORMAL_STRAINS
    shear: tuple[float, ...] = SHEAR_STRAINS
    relax_cell: bool = True
    relax_atoms: bool = True
    symmetrize: bool = True
    fit: str = "cubic"

    def __post_init__(self) -> None:
        if self.fit not in ("cubic", "linear"):
            raise HIENetError(f"unknown fit `{self.fit}`; expected cubic or linear")
        for name, values in (("normal", self.normal), ("shear", self.shear)):
            if len(values) < 2 or min(values) >= 0 or max(values) <= 0 or max(map(abs, values)) > 0.2:
                raise HIENetError(
                    f"the {name} strains must hold values of both signs, none above 0.2, got "
                    f"{', '.join(f'{value:g}' for value in values)}; usual are -0.01,-0.005,0.005,0.01"
                )


@dataclass(frozen=True)
class Elastic:
    """Elastic constants in the crystal's Cartesian axes, GPa; Voigt's order xx, yy, zz, yz, xz, xy, engineering shear.

    Attributes:
        atoms: the structure that was strained.
        constants: `[6, 6]`, symmetric.
        strains: `[6, n]` sizes of the strains, for each component.
        stresses: `[6, n, 6]` (GPa) second Piola-Kirchhoff stresses.
        residual: root mean square of what straight lines leave of the stresses (GPa).
        asymmetry: largest |C_ij - C_ji| before symmetrisation (GPa).
    """

    atoms: ase.Atoms
    constants: Array
    strains: list[Array]
    stresses: list[Array]
    residual: float
    asymmetry: float

    @property
    def compliances(self) -> Array:
        """`[6, 6]` (1/GPa)."""
        return np.asarray(np.linalg.inv(self.constants))

    def moduli(self) -> dict[str, float]:
        """Bulk and shear moduli of polycrystals (GPa) and what follows from them.

        Voigt's and Reuss' bounds and Hill's mean, Proc. Phys. Soc. A 65, 349 (1952); the universal anisotropy of
        Ranganathan and Ostoja-Starzewski, Phys. Rev. Lett. 101, 055504 (2008).
        """
        c, s = self.constants, self.compliances
        diagonal, off = c[[0, 1, 2], [0, 1, 2]].sum(), c[0, 1] + c[1, 2] + c[0, 2]
        bulk_voigt = (diagonal + 2.0 * off) / 9.0
        shear_voigt = (diagonal - off + 3.0 * (c[3, 3] + c[4, 4] + c[5, 5])) / 15.0
        diagonal, off = s[[0, 1, 2], [0, 1, 2]].sum(), s[0, 1] + s[1, 2] + s[0, 2]
        bulk_reuss = 1.0 / (diagonal + 2.0 * off)
        shear_reuss = 15.0 / (4.0 * diagonal - 4.0 * off + 3.0 * (s[3, 3] + s[4, 4] + s[5, 5]))
        bulk, shear = 0.5 * (bulk_voigt + bulk_reuss), 0.5 * (shear_voigt + shear_reuss)
        return {
            "bulk_modulus_voigt_gpa": bulk_voigt,
            "bulk_modulus_reuss_gpa": bulk_reuss,
            "bulk_modulus_hill_gpa": bulk,
            "shear_modulus_voigt_gpa": shear_voigt,
            "shear_modulus_reuss_gpa": shear_reuss,
            "shear_modulus_hill_gpa": shear,
            "young_modulus_gpa": 9.0 * bulk * shear / (3.0 * bulk + shear),
            "poisson_ratio": (3.0 * bulk - 2.0 * shear) / (2.0 * (3.0 * bulk + shear)),
            "pugh_ratio": bulk / shear,
            "universal_anisotropy": 5.0 * shear_voigt / shear_reuss + bulk_voigt / bulk_reuss - 6.0,
        }

    @property
    def smallest_eigenvalue(self) -> float:
        """GPa; the crystal is stable against strains where it is positive (Mouhat and Coudert, Phys. Rev. B 90, 224104
        (2014))."""
        return float(np.linalg.eigvalsh(self.constants).min())


def elastic_constants(
    atoms: ase.Atoms, engine: Engine, settings: ElasticSettings | None = None, progress: Progress | None = None
) -> Elastic:
    """All C_ij from stresses.

    Cells are deformed by F = sqrt(1 + 2 E) with Lagrangian strains E of one component each; the second Piola-Kirchhoff
    stress S = det(F) F^-1 sigma F^-T is fitted by a polynomial for each of its components (Wallace, Thermodynamics of
    Crystals, 1972), so that C_ij = dS_i/dE_j at zero strain.

    Args:
        atoms: a crystal.
        engine: what gives stresses.
        settings: which strains.
        progress: told of each relaxation.

    Raises:
        HIENetError: no crystal, or a relaxation failed.
    """
    settings, progress = settings or ElasticSettings(), progress or silent()
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise HIENetError("the structure is not a crystal: it is not periodic in three directions")
    if settings.relax_cell:
        atoms = relaxed(atoms, engine, TIGHT, progress)
    amounts = [settings.normal] * 3 + [settings.shear] * 3
    gradients = [_deformation(i, amount) for i, row in enumerate(amounts) for amount in row]
    strained = [_deformed(atoms, gradient) for gradient in gradients]
    if settings.relax_atoms:
        # Symmetry is what the strain leaves; atoms that need not move are held by their own forces.
        fixed = RelaxSettings(cell=False, symmetry=False, fmax=1e-3, max_steps=500, optimizer="lbfgs")
        found = relax(strained, engine, fixed, progress)
        for error in (result.error for result in found):
            if error is not None:
                raise error
        if not all(result.converged for result in found):
            raise HIENetError(
                "atoms did not relax in a strained cell within 500 steps; the crystal is unstable, or the model rough: "
                "look at `hienet phonons` and `hienet smoothness`, or skip this with --clamped"
            )
        stresses = [result.atoms.get_stress() for result in found]
    else:
        progress.begin("strains", len(strained))
        stresses = [each.stress for each in engine.calculate(strained, progress.advance)]
    second = [_second_piola_kirchhoff(s, f) * GPA for s, f in zip(stresses, gradients, strict=True)]
    return _fit(atoms, amounts, second, settings)


def _deformation(component: int, amount: float) -> Array:
    strain = np.zeros((3, 3))
    i, j = _VOIGT[component]
    strain[i, j] = strain[j, i] = amount
    values, vectors = np.linalg.eigh(np.eye(3) + 2.0 * strain)
    return np.asarray(vectors @ np.diag(np.sqrt(values)) @ vectors.T)


def _deformed(atoms: ase.Atoms, gradient: Array) -> ase.Atoms:
    deformed = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    deformed.set_cell(atoms.cell.array @ gradient.T, scale_atoms=True)
    return deformed


def _second_piola_kirchhoff(stress: Array | None, gradient: Array) -> Array:
    """`[6]`, from Cauchy's stress `[6]`."""
    inverse = np.linalg.inv(gradient)
    full = np.linalg.det(gradient) * inverse @ voigt_6_to_full_3x3_stress(stress) @ inverse.T
    return np.array([full[i, j] for i, j in _VOIGT])


def _fit(
    atoms: ase.Atoms, amounts: Sequence[Sequence[float]], second: Sequence[Array], settings: ElasticSettings
) -> Elastic:
    constants, strains, stresses, left = np.zeros((6, 6)), [], [], []
    first = 0
    for j, row in enumerate(amounts):
        strain, stress = np.array(row), np.array(second[first : first + len(row)])
        first += len(row)
        slope, offset = np.polyfit(strain, stress, 1)
        left.append(stress - np.outer(strain, slope) - offset)
        if settings.fit == "cubic" and len(row) >= 4:
            slope = np.polyfit(strain, stress, 3)[2]
        # Engineering shear is twice the component of the tensor.
        constants[:, j] = slope / (1.0 if j < 3 else 2.0)
        strains.append(strain)
        stresses.append(stress)
    asymmetry = float(np.abs(constants - constants.T).max())
    constants = 0.5 * (constants + constants.T)
    if settings.symmetrize:
        constants = average_over(constants, point_operations(atoms))
    residual = float(np.sqrt(np.mean(np.concatenate([each.ravel() for each in left]) ** 2)))
    return Elastic(atoms, constants, strains, stresses, residual, asymmetry)


def average_over(constants: Array, operations: Array) -> Array:
    """The tensor `[6, 6]` that is left unchanged by the operations `[n, 3, 3]`, which form a group."""
    index = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    full = constants[index[:, :, None, None], index[None, None, :, :]]
    mean = np.mean([np.einsum("ai,bj,ck,dl,ijkl->abcd", r, r, r, r, full, optimize=True) for r in operations], axis=0)
    return np.array([[mean[a, b, c, d] for c, d in _VOIGT] for a, b in _VOIGT])


def elastic_of_structures(
    structures: Sequence[Structure], engine: Engine, settings: ElasticSettings, progress: Progress
) -> list[Outcome | HIENetError]:
    """Outcomes for `screen`."""
    return [_outcome(s, elastic_constants(s.atoms, engine, settings, progress)) for s in structures]


def _outcome(structure: Structure, found: Elastic) -> Outcome:
    c = found.constants
    row: dict[str, Any] = {
        "formula": found.atoms.get_chemical_formula(),
        "n_atoms": len(found.atoms),
        "space_group": space_group(found.atoms),
        **found.moduli(),
        "stable": found.smallest_eigenvalue > 0.0,
        "smallest_eigenvalue_gpa": found.smallest_eigenvalue,
        "fit_rms_gpa": found.residual,
        "asymmetry_gpa": found.asymmetry,
        **{f"c{i + 1}{j + 1}_gpa": c[i, j] for i in range(6) for j in range(i, 6)},
    }
    details = {
        "constants_gpa": c,
        "compliances_per_gpa": found.compliances,
        "strains": dict(zip(_NAMES, found.strains, strict=True)),
        "stresses_gpa": dict(zip(_NAMES, found.stresses, strict=True)),
    }
    return Outcome(row, details, {"": found.atoms}, lambda path: _draw(path, structure.name, found))


COLUMNS = (
    Column("formula", "formula"),
    Column("c11_gpa", "C11\nGPa", ".1f"),
    Column("c12_gpa", "C12\nGPa", ".1f"),
    Column("c13_gpa", "C13\nGPa", ".1f"),
    Column("c33_gpa", "C33\nGPa", ".1f"),
    Column("c44_gpa", "C44\nGPa", ".1f"),
    Column("c66_gpa", "C66\nGPa", ".1f"),
    Column("bulk_modulus_hill_gpa", "B\nGPa", ".1f"),
    Column("shear_modulus_hill_gpa", "G\nGPa", ".1f"),
    Column("young_modulus_gpa", "E\nGPa", ".1f"),
    Column("poisson_ratio", "ν\n", ".3f"),
    Column("stable", "stable"),
)


@own_style()
def _draw(path: Path, name: str, found: Elastic) -> None:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    matrix, normal, shear = figure.subplots(1, 3, width_ratios=(1.0, 1.15, 1.15))
    limit = float(np.abs(found.constants).max())
    matrix.imshow(found.constants, cmap="RdBu_r", vmin=-1.6 * limit, vmax=1.6 * limit)
    for (i, j), value in np.ndenumerate(found.constants):
        matrix.text(j, i, f"{0.0 if abs(value) < 0.5 else value:.0f}", ha="center", va="center", fontsize=8.5)
    matrix.set_xticks(range(6), range(1, 7))
    matrix.set_yticks(range(6), range(1, 7))
    matrix.set_title("$C_{ij}$ (GPa)", fontsize=10.5)
    for axis, components, title in ((normal, (0, 1, 2), "normal strains"), (shear, (3, 4, 5), "shear strains")):
        # Of decreasing size, so that those of equal directions can all be seen.
        for color, j, size in zip(COLORS, components, (9.0, 6.0, 3.0), strict=False):
            strain, stress = found.strains[j], found.stresses[j]
            slopes = np.polyfit(strain, stress, 1)[0]
            for i in range(6):
                # Of the others only what the strain brings to first order: a figure of zeros tells nothing.
                if i != j and abs(slopes[i]) < 0.05 * np.abs(slopes).max():
                    continue
                style: dict[str, Any] = {"color": color, "markersize": size, "linewidth": 1.0}
                if i != j:
                    style |= {"markerfacecolor": "white", "alpha": 0.7}
                order = np.argsort(strain)
                label = f"{_NAMES[i]} by {_NAMES[j]}" if i == j else None
                axis.plot(strain[order], stress[order, i], "o-", label=label, **style)
        axis.set_xlabel("Lagrangian strain")
        axis.set_ylabel("second Piola–Kirchhoff stress (GPa)")
        axis.set_title(title, fontsize=10.5)
        axis.legend(frameon=False, fontsize=8)
        tidy(axis)
    figure.suptitle(f"elastic constants of {as_text(name)}", fontsize=11)
    save_figure(figure, path)
