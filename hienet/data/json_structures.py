"""JSON files of structures as pymatgen writes them: the Materials Project's trajectories and the sets of mlearn.

Both are read a piece at a time, however large the file is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import open_with_compression

from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_KBAR

_FROM_VASP = [0, 1, 2, 4, 5, 3]
"""XX YY ZZ XY YZ ZX, the order of the deformed crystals (group Elastic), to xx yy zz yz xz xy."""
_FROM_OTHER = [0, 1, 2, 5, 4, 3]
"""XX YY ZZ XY ZX YZ, the order of all other groups of silicon. Nothing says so, but the labels do. Models trained on
them predict the shear stresses yz and zx of these groups with correlations of 0.96 and more in this order, and of 0.1
to 0.3 in VASP's; for the deformed crystals it is the other way round. The potential of Stillinger and Weber (1985) says
the same of the molecular dynamics (0.97 and more), and less clearly of the vacancies."""

_MPTRJ_SCALARS = (
    "uncorrected_total_energy",
    "corrected_total_energy",
    "energy_per_atom",
    "ef_per_atom",
    "e_per_atom_relaxed",
    "ef_per_atom_relaxed",
    "bandgap",
)


def is_mlearn(head: bytes) -> bool:
    """Whether a file that begins so is a list of structures with `outputs`."""
    return re.match(rb'\[\s*\{\s*"(structure|outputs|group|num_atoms|description|tag|data)"', head) is not None


def is_mptrj(head: bytes) -> bool:
    """Whether a file that begins so holds structures by material and step, not rows of an ASE database."""
    return re.match(rb'\{\s*"[^"\d][^"]*"\s*:\s*\{\s*"[^"]*"\s*:\s*\{', head) is not None


def iterate_mptrj(path: Path) -> Iterator[ase.Atoms]:
    """The Materials Project's trajectories in the format of Deng et al., Nat. Mach. Intell. 5, 1031 (2023).

    `{material: {step: {"structure", "force", "stress", "corrected_total_energy", ...}}}`. Forces are in eV/Å; stresses
    in kbar with compression positive, as VASP has them, become eV/Å^3 with tension positive. Energies stay entries of
    `info` under their names in the file, beside `mp_id` and `frame_id`; `corrected_total_energy` is that with the
    corrections of the Materials Project, `uncorrected_total_energy` VASP's own.

    Raises:
        ImportError: no `ijson`.
        ValueError: a frame lacks its structure, or has one that cannot be understood.
    """
    import ijson

    with open_with_compression(str(path), "rb") as file:
        for material, steps in ijson.kvitems(file, "", use_float=True):
            if not isinstance(steps, dict):
                raise ValueError(f"`{material}` holds no steps but {type(steps).__name__}")
            for step, entry in steps.items():
                if not isinstance(entry, dict) or "structure" not in entry:
                    raise ValueError(f"`{step}` of `{material}` has no `structure`")
                yield _mptrj_frame(material, step, entry)


def _mptrj_frame(material: str, step: str, entry: dict[str, Any]) -> ase.Atoms:
    atoms = atoms_of_structure(entry["structure"])
    atoms.info = {"mp_id": str(entry.get("mp_id") or material), "frame_id": step}
    atoms.info |= {name: entry[name] for name in _MPTRJ_SCALARS if entry.get(name) is not None}
    results: dict[str, Any] = {}
    if entry.get("force") is not None:
        results["forces"] = np.array(entry["force"], dtype=np.float64)
    if entry.get("stress") is not None:
        results["stress"] = _stress_from_kbar(np.array(entry["stress"], dtype=np.float64))
    if entry.get("magmom") is not None:
        results["magmoms"] = np.array(entry["magmom"], dtype=np.float64)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _stress_from_kbar(stress: np.ndarray) -> np.ndarray:
    """`[6]` in ASE's units, sign and order from `[3, 3]` of VASP."""
    if stress.shape != (3, 3):
        raise ValueError(f"a stress has the shape {list(stress.shape)}, expected [3, 3]")
    symmetric = -0.5 * (stress + stress.T) / EV_PER_CUBIC_ANGSTROM_IN_KBAR
    return np.array([symmetric[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))])


def iterate_mlearn(path: Path) -> Iterator[ase.Atoms]:
    """The data sets of mlearn (Zuo et al., J. Phys. Chem. A 124, 731 (2020)): a list of structures and `outputs`.

    In the file stresses are in kbar, and compression is positive. `config_type` of a frame is its group.

    Raises:
        ImportError: no `ijson`.
        ValueError: an entry lacks its structure or outputs, or has a structure that cannot be understood.
    """
    import ijson

    with open_with_compression(str(path), "rb") as file:
        for entry in ijson.items(file, "item", use_float=True):
            missing = [name for name in ("structure", "outputs") if name not in entry]
            if missing:
                raise ValueError(f"it has no `{missing[0]}`")
            yield _mlearn_frame(entry)


def _mlearn_frame(entry: dict[str, Any]) -> ase.Atoms:
    labels, group = entry["outputs"], entry.get("group")
    atoms = atoms_of_structure(entry["structure"])
    if group is not None:
        atoms.info["config_type"] = group
    results: dict[str, Any] = {}
    if labels.get("energy") is not None:
        results["energy"] = float(labels["energy"])
    if labels.get("forces") is not None:
        results["forces"] = np.array(labels["forces"], dtype=np.float64)
    if labels.get("virial_stress") is not None:
        order = _FROM_VASP if group == "Elastic" else _FROM_OTHER
        stress = np.array(labels["virial_stress"], dtype=np.float64)
        results["stress"] = -stress[order] / EV_PER_CUBIC_ANGSTROM_IN_KBAR
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def atoms_of_structure(structure: dict[str, Any]) -> ase.Atoms:
    """The atoms of pymatgen's dictionary of a periodic structure.

    Raises:
        ValueError: a site that is not one element, or has no coordinates.
    """
    try:
        lattice, sites = structure["lattice"], structure["sites"]
        symbols = []
        for i, site in enumerate(sites):
            (species,) = site["species"]
            if float(species.get("occu", 1)) != 1.0:
                raise ValueError(f"site {i} is occupied in part; a model needs whole atoms")
            # Oxidation states stand in a key of their own, or behind the symbol.
            symbols.append(re.sub(r"[\d.]*[+-]$", "", species["element"]))
        return ase.Atoms(
            symbols,
            scaled_positions=np.array([site["abc"] for site in sites], dtype=np.float64).reshape(-1, 3),
            cell=np.array(lattice["matrix"], dtype=np.float64),
            pbc=lattice.get("pbc", (True, True, True)),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"its structure cannot be understood: {type(error).__name__} {error}") from error


def pymatgen_structure(atoms: ase.Atoms) -> dict[str, Any]:
    """What pymatgen's `Structure.from_dict` reads, and `atoms_of_structure`."""
    symbols, fractional = atoms.get_chemical_symbols(), atoms.get_scaled_positions(wrap=False)
    sites = [
        {
            "species": [{"element": symbol, "occu": 1}],
            "abc": abc.tolist(),
            "xyz": xyz.tolist(),
            "label": symbol,
            "properties": {},
        }
        for symbol, abc, xyz in zip(symbols, fractional, atoms.positions, strict=True)
    ]
    lattice = {"matrix": atoms.cell.array.tolist(), "pbc": [bool(periodic) for periodic in atoms.pbc]}
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": 0,
        "lattice": lattice,
        "properties": {},
        "sites": sites,
    }
