"""`hienet kappa`: thermal conductivity of the lattice in the relaxation-time approximation, by phono3py."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from matplotlib.figure import Figure

from hienet.errors import HIENetError
from hienet.figure import BLUE, COLORS, ORANGE, save_figure, tidy
from hienet.properties.engine import Array, Engine
from hienet.properties.optional import require
from hienet.properties.phonons import LARGEST_IMAGINARY
from hienet.properties.progress import Progress, silent
from hienet.properties.references import reading_reference, reference_file
from hienet.properties.relax import TIGHT, relaxed
from hienet.properties.screen import Column, Outcome
from hienet.properties.structures import Structure
from hienet.properties.supercells import from_phonopy, primitive_matrix, supercell_of, to_phonopy
from hienet.properties.symmetry import SYMPREC, space_group

_WITHOUT_SCATTERING = 1e6
"""W/m/K, a hundred times what any crystal has above 100 K."""
_REFERENCE = "a file of phono3py with force constants, or displacements and forces"


@dataclass(frozen=True)
class KappaSettings:
    """How force constants are found, and what of them.

    Attributes:
        supercell: repetitions for third-order force constants, one or three; None chooses them by `length`.
        harmonic_supercell: the same for those of second order; None chooses them by `harmonic_length`.
        length: Å, by which opposite faces of the supercell must be apart at least.
        harmonic_length: Å, the same for force constants of second order.
        displacement: Å.
        mesh: of q-points, one number or three.
        temperatures: K.
        reference: a file of phono3py with force constants, or displacements and forces, to compare with; or a folder in
            which there is one for each structure, `NAME.yaml`.
    """

    supercell: tuple[int, ...] | None = None
    harmonic_supercell: tuple[int, ...] | None = None
    length: float = 8.0
    harmonic_length: float = 12.0
    displacement: float = 0.03
    mesh: tuple[int, ...] = (11,)
    temperatures: tuple[float, ...] = (100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 800.0, 1000.0)
    reference: str | None = None

    def __post_init__(self) -> None:
        if len(self.mesh) not in (1, 3) or min(self.mesh) < 1:
            raise HIENetError(f"a mesh is one positive number or three, got {self.mesh}; write 11 or 11,11,7")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise HIENetError("temperatures must be positive numbers, in K")
        if not self.displacement > 0:
            raise HIENetError(f"the displacement must be positive, got {self.displacement:g} Å")


@dataclass(frozen=True)
class Conductivity:
    """From one set of force constants.

    Attributes:
        kappa: `[n_temperatures, 6]` (W/m/K), order xx, yy, zz, yz, xz, xy.
        modes: `[n_temperatures, n_q, n_bands]` contributions, means of xx, yy and zz, whose sum over irreducible points
            and bands is the mean of kappa.
        frequencies: `[n_q, n_bands]` (THz).
        weights: `[n_q]` numbers of equivalent points.
    """

    kappa: Array
    modes: Array
    frequencies: Array
    weights: Array

    @property
    def mean(self) -> Array:
        """`[n_temperatures]`."""
        return np.asarray(self.kappa[:, :3].mean(1))


@dataclass(frozen=True)
class Kappa:
    """Results for a structure; `srme` is `[n_temperatures]`, where there is a reference."""

    atoms: ase.Atoms
    temperatures: Array
    found: Conductivity
    n_displacements: int
    reference: Conductivity | None

    @property
    def srme(self) -> Array | None:
        """Symmetric relative mean error of the modes' conductivities, 0 to 2 (Póta et al., arXiv:2408.00755).

        2 sum_qs |K_qs - K_qs(reference)| / (kappa + kappa(reference)); 2 where a set of force constants has imaginary
        frequencies.
        """
        if self.reference is None:
            return None
        if min(self.found.frequencies.min(), self.reference.frequencies.min()) < -LARGEST_IMAGINARY:
            return np.full(len(self.temperatures), 2.0)
        return symmetric_relative_mean_error(self.found, self.reference)


def symmetric_relative_mean_error(found: Conductivity, reference: Conductivity) -> Array:
    """`[n_temperatures]`.

    Raises:
        HIENetError: other q-points or bands.
    """
    if found.modes.shape != reference.modes.shape:
        raise HIENetError(
            f"the reference has {reference.modes.shape[1]} q-points and {reference.modes.shape[2]} bands, the "
            f"structure {found.modes.shape[1]} and {found.modes.shape[2]}; it is of another crystal or cell"
        )
    apart = np.abs(found.modes - reference.modes).sum((1, 2))
    return np.asarray(2.0 * apart / (found.mean + reference.mean))


def thermal_conductivity(
    atoms: ase.Atoms,
    engine: Engine,
    settings: KappaSettings | None = None,
    progress: Progress | None = None,
    name: str = "",
) -> Kappa:
    """Of a crystal, limited by three-phonon scattering alone.

    Args:
        atoms: a crystal.
        engine: what gives forces.
        settings: how.
        progress: told of each displacement.
        name: of the structure, to find its reference in a folder.

    Raises:
        HIENetError: no crystal, the relaxation failed, no scattering, or the reference is not of this crystal.
    """
    settings, progress = settings or KappaSettings(), progress or silent()
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise HIENetError("the structure is not a crystal: it is not periodic in three directions")
    phono3py = require("phono3py", "thermal conductivity")
    file = None if settings.reference is None else reference_file(settings.reference, name, _REFERENCE)
    atoms = relaxed(atoms, engine, TIGHT, progress)
    cell = to_phonopy(atoms)
    phonon = phono3py.Phono3py(
        cell,
        supercell_matrix=np.diag(supercell_of(atoms, settings.length, settings.supercell)),
        phonon_supercell_matrix=np.diag(supercell_of(atoms, settings.harmonic_length, settings.harmonic_supercell)),
        primitive_matrix=primitive_matrix(cell),
        symprec=SYMPREC,
        log_level=0,
    )
    phonon.generate_displacements(distance=settings.displacement)
    phonon.generate_fc2_displacements(distance=settings.displacement)
    n_displacements = len(phonon.supercells_with_displacements)
    phonon.forces = _forces(phonon.supercell, phonon.supercells_with_displacements, engine, progress, "third order")
    phonon.phonon_forces = _forces(
        phonon.phonon_supercell, phonon.phonon_supercells_with_displacements, engine, progress, "second order"
    )
    phonon.produce_fc3()
    phonon.symmetrize_fc3()
    phonon.produce_fc2()
    phonon.symmetrize_fc2()
    found = _conductivity(phonon, settings, progress)
    reference = None
    if file is not None:
        reference = _conductivity(_load(phono3py, file), settings, progress)
        symmetric_relative_mean_error(found, reference)
    return Kappa(atoms, np.array(settings.temperatures), found, n_displacements, reference)


def _forces(rest: Any, displaced: Sequence[Any], engine: Engine, progress: Progress, what: str) -> Array:
    """`[n, n_atoms, 3]`, without those of the supercell at rest."""
    cells = [from_phonopy(rest), *map(from_phonopy, displaced)]
    progress.begin(f"{what}, displacements in {len(cells[0])} atoms", len(cells))
    zero, *forces = (found.forces for found in engine.calculate(cells, progress.advance))
    return np.array([each - zero for each in forces])


def _conductivity(phonon: Any, settings: KappaSettings, progress: Progress) -> Conductivity:
    mesh = settings.mesh if len(settings.mesh) == 3 else settings.mesh * 3
    progress.begin(f"conductivity on {mesh[0]} x {mesh[1]} x {mesh[2]} q-points", 1)
    phonon.mesh_numbers = list(mesh)
    with warnings.catch_warnings():
        # phono3py tells of acoustic modes at the zone centre, whose frequencies are rounding errors.
        warnings.simplefilter("ignore")
        phonon.init_phph_interaction()
        phonon.run_thermal_conductivity(temperatures=list(settings.temperatures))
    result = phonon.thermal_conductivity
    progress.advance()
    if not np.isfinite(result.kappa).all() or np.abs(result.kappa).max() > _WITHOUT_SCATTERING:
        raise HIENetError(
            "phonons are not scattered at all: third-order force constants vanish in a supercell in which each atom is "
            "its neighbour's image on both sides; give a larger --supercell, or a conventional cell"
        )
    number = float(np.prod(mesh))
    return Conductivity(
        np.array(result.kappa[0]),
        np.array(result.mode_kappa[0])[..., :3].mean(-1) / number,
        np.array(result.frequencies)[np.array(result.grid_points)]
        if len(result.frequencies) != len(result.grid_points)
        else np.array(result.frequencies),
        np.array(result.grid_weights),
    )


def _load(phono3py: Any, file: Path) -> Any:
    with reading_reference(file, _REFERENCE):
        loaded = phono3py.load(str(file), fc_calculator="traditional", log_level=0)
    if loaded.fc2 is None or loaded.fc3 is None:
        raise HIENetError(
            f"`{file}` holds no force constants of third order, and no forces from which they follow; save it with "
            "phono3py's `save(settings={'force_sets': True})`"
        )
    return loaded


def kappa_of_structures(
    structures: Sequence[Structure], engine: Engine, settings: KappaSettings, progress: Progress
) -> list[Outcome | HIENetError]:
    """Outcomes for `screen`."""
    return [_outcome(s, thermal_conductivity(s.atoms, engine, settings, progress, s.name)) for s in structures]


def _outcome(structure: Structure, result: Kappa) -> Outcome:
    room = int(np.abs(result.temperatures - 300.0).argmin())
    kappa = result.found.kappa[room]
    row: dict[str, Any] = {
        "formula": result.atoms.get_chemical_formula(),
        "n_atoms": len(result.atoms),
        "space_group": space_group(result.atoms),
        "displacements": result.n_displacements,
        "temperature_k": float(result.temperatures[room]),
        "kappa_w_per_m_k": float(result.found.mean[room]),
        **{f"kappa_{c}_w_per_m_k": float(kappa[i]) for i, c in enumerate(("xx", "yy", "zz"))},
        "lowest_frequency_thz": float(result.found.frequencies.min()),
    }
    details: dict[str, Any] = {
        "temperatures_k": result.temperatures,
        "kappa_w_per_m_k": result.found.kappa,
        "frequencies_thz": result.found.frequencies,
        "weights": result.found.weights,
        "mode_kappa_w_per_m_k": result.found.modes,
    }
    if result.reference is not None and result.srme is not None:
        row |= {
            "reference_kappa_w_per_m_k": float(result.reference.mean[room]),
            "kappa_srme": float(result.srme[room]),
        }
        details |= {"reference_kappa_w_per_m_k": result.reference.kappa, "kappa_srme": result.srme}
    return Outcome(row, details, {"": result.atoms}, lambda path: _draw(path, structure.name, result, room))


COLUMNS = (
    Column("formula", "formula"),
    Column("displacements", "displacements", "d"),
    Column("temperature_k", "temperature\nK", ".0f"),
    Column("kappa_w_per_m_k", "κ\nW/m/K", ".2f"),
    Column("kappa_xx_w_per_m_k", "κxx\nW/m/K", ".2f"),
    Column("kappa_zz_w_per_m_k", "κzz\nW/m/K", ".2f"),
    Column("reference_kappa_w_per_m_k", "reference\nW/m/K", ".2f"),
    Column("kappa_srme", "SRME\n", ".3f"),
)


def _draw(path: Path, name: str, result: Kappa, room: int) -> None:
    figure = Figure(figsize=(8.8, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = result.temperatures
    directions = result.found.kappa[:, :3]
    if np.allclose(directions, directions[:, :1], rtol=0.01):
        left.plot(t, result.found.mean, "o-", color=BLUE, markersize=4, linewidth=1.3, label="model")
    else:
        for color, label, values in zip(COLORS, ("xx", "yy", "zz"), directions.T, strict=False):
            left.plot(t, values, "o-", color=color, markersize=4, linewidth=1.3, label=label)
    if result.reference is not None:
        left.plot(t, result.reference.mean, "s--", color=ORANGE, markersize=4, linewidth=1.3, label="reference")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xticks(t, [f"{x:g}" for x in t], fontsize=8)
    left.minorticks_off()
    left.set_xlabel("temperature (K)")
    left.set_ylabel("thermal conductivity (W/m/K)")
    left.legend(frameon=False, fontsize=9)
    sets = [(BLUE, "model", "-", result.found)]
    if result.reference is not None:
        sets.append((ORANGE, "reference", "--", result.reference))
    for color, label, style, each in sets:
        order = np.argsort(each.frequencies, axis=None)
        total = np.cumsum(each.modes[room].ravel()[order])
        right.plot(each.frequencies.ravel()[order], total, style, color=color, linewidth=1.3, label=label)
    right.set_xlim(left=0.0)
    right.set_ylim(bottom=0.0)
    right.set_xlabel("frequency (THz)")
    right.set_ylabel(f"from modes below, {t[room]:g} K (W/m/K)")
    for axis in (left, right):
        tidy(axis)
    figure.suptitle(f"thermal conductivity of {name}", fontsize=11)
    save_figure(figure, path)
