"""`hienet phonons`: band structure, density of states and thermal properties, by phonopy and seekpath."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
import yaml
from matplotlib.figure import Figure

from hienet.errors import HIENetError
from hienet.figure import BLUE, GRAY, GREEN, ORANGE, as_text, own_style, save_figure, tidy
from hienet.properties.engine import Array, Engine
from hienet.properties.optional import require
from hienet.properties.progress import Progress, silent
from hienet.properties.references import reading_reference, reference_file
from hienet.properties.relax import TIGHT, relaxed
from hienet.properties.screen import Column, Outcome
from hienet.properties.structures import Structure
from hienet.properties.supercells import DISPLACEMENT, harmonic, supercell_of
from hienet.properties.symmetry import space_group

LARGEST_IMAGINARY = 0.1
"""THz; a crystal with imaginary frequencies beyond this is called unstable, others are noise near the zone centre."""


@dataclass(frozen=True)
class PhononSettings:
    """How force constants are found, and what of them is shown.

    Attributes:
        supercell: repetitions, one or three; None chooses them by `length`.
        length: Å, by which opposite faces of the supercell must be apart at least.
        displacement: Å.
        relax: relax the structure first.
        mesh: density of points for the density of states, as phonopy has it: a length in Å.
        temperature: K, up to which thermal properties go.
        reference: `band.yaml`, or a file of phonopy with force constants or forces, to compare with; or a folder in
            which there is one for each structure, `NAME.yaml`.
        born: phonopy's file `BORN` with charges and dielectric constant, for the splitting of optical modes.
    """

    supercell: tuple[int, ...] | None = None
    length: float = 12.0
    displacement: float = DISPLACEMENT
    relax: bool = True
    mesh: float = 60.0
    temperature: float = 1000.0
    reference: str | None = None
    born: str | None = None

    def __post_init__(self) -> None:
        if not self.displacement > 0 or not self.length > 0 or not self.temperature >= 10.0:
            raise HIENetError(
                "the displacement and the length must be positive, and the temperature at least 10 K, got "
                f"{self.displacement:g} Å, {self.length:g} Å and {self.temperature:g} K"
            )


@dataclass(frozen=True)
class Reference:
    """Frequencies to compare with.

    Attributes:
        q_points: `[n_q, 3]` in units of the primitive cell's reciprocal vectors.
        frequencies: `[n_q, n_bands]` (THz).
    """

    q_points: Array
    frequencies: Array


@dataclass(frozen=True)
class Phonons:
    """Results; frequencies in THz, imaginary ones negative.

    Attributes:
        atoms: the structure.
        phonon: phonopy's object, with force constants.
        distances: of the points on the path, for each of its segments.
        frequencies: `[n_q, n_bands]` for each segment.
        labels: name and distance of special points.
        gamma: `[n_bands]` at the zone centre.
        dos_frequencies, dos: `[n]` (THz, states/THz per primitive cell).
        thermal: temperatures (K), free energy (kJ/mol), entropy and heat capacity (J/K/mol), per primitive cell.
        reference: what was compared with, and the model's frequencies there; None without.
    """

    atoms: ase.Atoms
    phonon: Any
    distances: list[Array]
    frequencies: list[Array]
    labels: list[tuple[str, float]]
    gamma: Array
    dos_frequencies: Array
    dos: Array
    thermal: dict[str, Array]
    reference: tuple[Reference, Array] | None

    @property
    def lowest(self) -> float:
        """THz."""
        return float(min(*(each.min() for each in self.frequencies), self.gamma.min()))

    @property
    def errors(self) -> tuple[float, float] | None:
        """MAE and RMSE (THz) against the reference, bands in order of frequency."""
        if self.reference is None:
            return None
        difference = np.sort(self.reference[1], axis=1) - np.sort(self.reference[0].frequencies, axis=1)
        return float(np.abs(difference).mean()), float(np.sqrt((difference**2).mean()))


def phonons(
    atoms: ase.Atoms,
    engine: Engine,
    settings: PhononSettings | None = None,
    progress: Progress | None = None,
    name: str = "",
) -> Phonons:
    """Harmonic phonons by finite displacements.

    Args:
        atoms: a crystal.
        engine: what gives forces.
        settings: how.
        progress: told of each displacement.
        name: of the structure, to find its reference in a folder.

    Raises:
        HIENetError: no crystal, the relaxation failed, or the reference is not of this crystal.
    """
    settings, progress = settings or PhononSettings(), progress or silent()
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise HIENetError("the structure is not a crystal: it is not periodic in three directions")
    require("seekpath", "the path of a band structure")
    if settings.relax:
        atoms = relaxed(atoms, engine, TIGHT, progress)
    phonon = harmonic(
        atoms, engine, supercell_of(atoms, settings.length, settings.supercell), settings.displacement, progress
    )
    if settings.born is not None:
        phonon.nac_params = _born(settings.born, phonon)
    phonon.auto_band_structure(npoints=61)
    bands = phonon.band_structure
    phonon.run_mesh(settings.mesh)
    phonon.run_total_dos(freq_pitch=max(0.02, float(phonon.mesh.frequencies.max()) / 250))
    phonon.run_thermal_properties(t_max=settings.temperature, t_step=10, exclude_gamma_acoustic=True)
    thermal = phonon.thermal_properties
    phonon.run_qpoints([[0.0, 0.0, 0.0]])
    gamma = np.sort(phonon.qpoints.frequencies[0])
    dos = phonon.total_dos
    return Phonons(
        atoms,
        phonon,
        [np.array(each) for each in bands.distances],
        [np.array(each) for each in bands.frequencies],
        _labels(bands),
        gamma,
        np.array(dos.frequency_points),
        np.array(dos.dos),
        {key: np.array(getattr(thermal, key)) for key in ("temperatures", "free_energy", "entropy", "heat_capacity")},
        _compare(phonon, settings.reference, name),
    )


def _born(path: str, phonon: Any) -> Any:
    file_io = require("phonopy.file_IO", "charges")
    if not Path(path).is_file():
        raise HIENetError(f"there is no file `{path}`; give phonopy's `BORN`")
    try:
        return file_io.parse_BORN(phonon.primitive, filename=path)
    # phonopy raises whatever comes up.
    except Exception as error:
        raise HIENetError(f"phonopy cannot read `{path}` as charges of this crystal: {error}") from error


def _labels(bands: Any) -> list[tuple[str, float]]:
    """Names of special points and where they are; where the path jumps, two share a place."""
    names = [
        label.replace("\\Gamma", "Γ").replace("$", "").replace("\\mathrm", "").strip("{}") for label in bands.labels
    ]
    names = ["Γ" if name.upper() == "GAMMA" else name for name in names]
    found: list[tuple[str, float]] = []
    position = 0
    joined = [False, *bands.path_connections]
    for segment, distance in enumerate(bands.distances):
        if not joined[segment]:
            start, end = names[position], names[position + 1]
            position += 2
            if found:
                found[-1] = (f"{found[-1][0]}|{start}", found[-1][1])
            else:
                found.append((start, float(distance[0])))
        else:
            end = names[position]
            position += 1
        found.append((end, float(distance[-1])))
    return found


def _compare(phonon: Any, path: str | None, name: str) -> tuple[Reference, Array] | None:
    if path is None:
        return None
    file = reference_file(path, name, "phonopy's `band.yaml`")
    reference = _read_reference(file, phonon)
    n_bands = 3 * len(phonon.primitive)
    if reference.frequencies.shape[1] != n_bands:
        raise HIENetError(
            f"`{file}` has {reference.frequencies.shape[1]} bands, but the structure's primitive cell has {n_bands}; "
            "it is of another crystal, or of a cell that is not primitive"
        )
    phonon.run_qpoints(reference.q_points)
    return reference, np.array(phonon.qpoints.frequencies)


def _read_reference(path: Path, phonon: Any) -> Reference:
    with reading_reference(path, "phonopy's `band.yaml`, or a file with force constants"):
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if "phonon" in values:
            points = values["phonon"]
            return Reference(
                np.array([point["q-position"] for point in points], dtype=float),
                np.array([[band["frequency"] for band in point["band"]] for point in points], dtype=float),
            )
        other = require("phonopy", "phonons").load(str(path), log_level=0)
        q_points = np.concatenate(phonon.band_structure.qpoints)
        other.run_qpoints(q_points)
        return Reference(q_points, np.array(other.qpoints.frequencies))


def phonons_of_structures(
    structures: Sequence[Structure], engine: Engine, settings: PhononSettings, progress: Progress
) -> list[Outcome | HIENetError]:
    """Outcomes for `screen`."""
    return [_outcome(s, phonons(s.atoms, engine, settings, progress, s.name), engine) for s in structures]


def _outcome(structure: Structure, found: Phonons, engine: Engine) -> Outcome:
    n_atoms = len(found.phonon.primitive)
    thermal = found.thermal
    room = int(np.abs(thermal["temperatures"] - 300.0).argmin())
    row: dict[str, Any] = {
        "formula": found.atoms.get_chemical_formula(),
        "n_atoms": len(found.atoms),
        "space_group": space_group(found.atoms),
        "supercell_atoms": len(found.phonon.supercell),
        "lowest_frequency_thz": found.lowest,
        "highest_frequency_thz": float(max(each.max() for each in found.frequencies)),
        "stable": found.lowest > -LARGEST_IMAGINARY,
        "zero_point_energy_mev_per_atom": float(thermal["free_energy"][0]) / n_atoms * _KJ_PER_MOL_IN_MEV,
        f"heat_capacity_{thermal['temperatures'][room]:.0f}_k_j_per_k_mol_atoms": float(thermal["heat_capacity"][room])
        / n_atoms,
        f"entropy_{thermal['temperatures'][room]:.0f}_k_j_per_k_mol_atoms": float(thermal["entropy"][room]) / n_atoms,
        "gamma_frequencies_thz": [float(x) for x in found.gamma],
    }
    if found.errors is not None:
        row |= {"mae_thz": found.errors[0], "rmse_thz": found.errors[1]}
    details = {
        "labels": found.labels,
        "distances": found.distances,
        "q_points": found.phonon.band_structure.qpoints,
        "frequencies_thz": found.frequencies,
        "dos_frequencies_thz": found.dos_frequencies,
        "dos_per_thz": found.dos,
        "temperatures_k": thermal["temperatures"],
        "free_energy_kj_per_mol": thermal["free_energy"],
        "entropy_j_per_k_mol": thermal["entropy"],
        "heat_capacity_j_per_k_mol": thermal["heat_capacity"],
    }
    with tempfile.TemporaryDirectory() as folder:
        file = found.phonon.save(str(Path(folder) / "phonopy.yaml"), settings={"force_constants": True})
        text = Path(file).read_text(encoding="utf-8")
    return Outcome(
        row,
        details,
        {"": found.atoms},
        lambda path: draw(path, structure.name, found, engine.name),
        {".phonopy.yaml": text},
    )


_KJ_PER_MOL_IN_MEV = 10.364269656
"""1 kJ/mol in meV (CODATA 2018)."""

COLUMNS = (
    Column("formula", "formula"),
    Column("space_group", "space group"),
    Column("supercell_atoms", "atoms in\nsupercell", "d"),
    Column("lowest_frequency_thz", "lowest\nTHz", ".2f"),
    Column("highest_frequency_thz", "highest\nTHz", ".2f"),
    Column("stable", "stable"),
    Column("heat_capacity_300_k_j_per_k_mol_atoms", "Cv at 300 K\nJ/K/mol atoms", ".2f"),
    Column("mae_thz", "MAE\nTHz", ".3f"),
    Column("rmse_thz", "RMSE\nTHz", ".3f"),
)


@own_style()
def draw(path: Path, name: str, found: Phonons, model: str) -> None:
    """Band structure, density of states, heat capacity and entropy."""
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    bands, dos, thermal = figure.subplots(1, 3, width_ratios=(3.0, 0.9, 1.5))
    for distance, frequencies in zip(found.distances, found.frequencies, strict=True):
        bands.plot(distance, frequencies, color=BLUE, linewidth=1.1)
    bands.plot([], [], color=BLUE, linewidth=1.1, label=as_text(model))
    _draw_reference(bands, found)
    for _, position in found.labels:
        bands.axvline(position, color="0.8", linewidth=0.7, zorder=0)
    bands.set_xticks([position for _, position in found.labels], [label for label, _ in found.labels])
    bands.set_xlim(found.distances[0][0], found.distances[-1][-1])
    bands.set_ylabel("frequency (THz)")
    if found.errors is not None:
        bands.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderpad=0.1)
    dos.fill_betweenx(found.dos_frequencies, found.dos, color=BLUE, alpha=0.25, linewidth=0)
    dos.plot(found.dos, found.dos_frequencies, color=BLUE, linewidth=1.0)
    dos.set_xlim(left=0.0)
    dos.set_xlabel("DOS (1/THz)")
    dos.tick_params(labelleft=False)
    low, high = min(0.0, 1.05 * found.lowest), 1.05 * max(each.max() for each in found.frequencies)
    for axis in (bands, dos):
        axis.set_ylim(low, high)
        axis.axhline(0.0, color="0.4", linewidth=0.7)
    n_atoms = len(found.phonon.primitive)
    temperatures = found.thermal["temperatures"]
    thermal.plot(temperatures, found.thermal["heat_capacity"] / n_atoms, color=BLUE, label="$C_V$")
    thermal.plot(temperatures, found.thermal["entropy"] / n_atoms, color=GREEN, label="entropy")
    thermal.axhline(3 * 8.31446, color=GRAY, linewidth=0.9, linestyle=":", label="3R")
    thermal.set_xlabel("temperature (K)")
    thermal.set_ylabel("J/K per mole of atoms")
    thermal.set_xlim(temperatures[0], temperatures[-1])
    thermal.set_ylim(bottom=0.0)
    thermal.legend(frameon=False, fontsize=9)
    for axis in (bands, dos, thermal):
        tidy(axis)
    bands.grid(False, axis="x")
    figure.suptitle(f"phonons of {as_text(name)}", fontsize=11)
    save_figure(figure, path)


def _draw_reference(axis: Any, found: Phonons) -> None:
    """Frequencies of the reference at the points of the path that it shares with the model's."""
    if found.reference is None or found.errors is None:
        return
    reference = found.reference[0]
    first = True
    for distance, q_points in zip(found.distances, found.phonon.band_structure.qpoints, strict=True):
        apart = np.linalg.norm(np.asarray(q_points)[:, None, :] - reference.q_points[None], axis=2)
        nearest, shared = apart.argmin(1), apart.min(1) < 1e-4
        if shared.any():
            label = f"reference; MAE {found.errors[0]:.3f} THz, RMSE {found.errors[1]:.3f} THz" if first else None
            frequencies = reference.frequencies[nearest[shared]]
            lines = axis.plot(np.asarray(distance)[shared], frequencies, "--", color=ORANGE, linewidth=1.0)
            lines[0].set_label(label)
            first = False
    if first:
        axis.plot([], [], "--", color=ORANGE, label=f"reference, other points; MAE {found.errors[0]:.3f} THz")
