"""Energies, forces and stresses of frames: under which name they stand, and whether they can be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import ase
import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from hienet.data.reader import Frame
from hienet.errors import HIENetError

Value = TypeVar("Value")


@dataclass(frozen=True)
class LabelKeys:
    """Names given by the user; None: to be found."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None


@dataclass(frozen=True)
class Labels:
    """Labels of one frame, None where there is none.

    Attributes:
        energy: eV.
        forces: `[n_atoms, 3]` (eV/Å), NaN for atoms without a label.
        stress: `[3, 3]` (eV/Å^3, symmetric, positive = tension).
    """

    energy: float | None
    forces: NDArray[np.float64] | None
    stress: NDArray[np.float64] | None


@dataclass(frozen=True)
class Source:
    """One place where a label may stand: an entry of `info`, of `arrays`, or a result of the attached calculator."""

    name: str
    place: str
    is_virial: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({'calculator' if self.place == 'calculator' else 'frame'})"

    def read(self, atoms: ase.Atoms) -> object | None:
        """The value in a frame, or None."""
        if self.place == "calculator":
            return None if atoms.calc is None else atoms.calc.results.get(self.name)
        return atoms.arrays.get(self.name) if self.place == "arrays" else atoms.info.get(self.name)


def _sources(quantity: str, place: str, calculator: Sequence[str], aliases: Sequence[str]) -> tuple[Source, ...]:
    return (
        *(Source(f"{prefix}_{quantity}", place) for prefix in ("REF", "ref")),
        *(Source(name, "calculator") for name in calculator),
        *(Source(name, place, "virial" in name.lower()) for name in aliases),
    )


_PREFIXES = ("dft", "DFT", "vasp", "pbe")
SEARCH_ORDER: dict[str, tuple[Source, ...]] = {
    "energy": _sources(
        "energy",
        "info",
        ("energy", "free_energy"),
        (
            "energy",
            "Energy",
            *(f"{p}_energy" for p in _PREFIXES),
            "total_energy",
            "corrected_total_energy",
            "energy_total",
        ),
    ),
    "forces": _sources(
        "forces",
        "arrays",
        ("forces",),
        ("forces", "force", "Force", *(f"{p}_{f}" for p in _PREFIXES for f in ("forces", "force"))),
    ),
    "stress": _sources(
        "stress",
        "info",
        ("stress",),
        (
            "stress",
            *(f"{p}_stress" for p in _PREFIXES),
            "REF_virial",
            "REF_virials",
            "virial",
            "virials",
            *(f"{p}_virial" for p in _PREFIXES),
        ),
    ),
}
"""Where labels are looked for when the configuration names no key, in this order; virials are turned into stresses."""


@dataclass(frozen=True)
class LabelReport:
    """What was found in a set of frames.

    Attributes:
        used: for each quantity the source that was read, or None.
        counts: for each quantity the number of frames that have it.
        n_frames: number of frames.
        unused: for a quantity another source, and the number of frames that have only this one.
    """

    used: dict[str, Source | None]
    counts: dict[str, int]
    n_frames: int
    unused: dict[str, tuple[Source, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = []
        for quantity, source in self.used.items():
            parts.append(
                f"no {quantity}"
                if source is None
                else f"{quantity} from `{source}` in {self.counts[quantity]} of {self.n_frames}"
            )
        for quantity, (source, count) in self.unused.items():
            parts.append(f"WARNING: {count} frames have only `{source}`, which is not used; set `{quantity}_key`")
        return "labels: " + ", ".join(parts)


def read_labels(frames: Sequence[Frame], keys: LabelKeys | None = None) -> tuple[list[Labels], LabelReport]:
    """The labels of frames.

    One source is chosen for each quantity: the given key, or else the first of `SEARCH_ORDER` that any frame has.

    Raises:
        HIENetError: a given key is in no frame, no labels at all, a wrong shape, or a value that is not finite.
    """
    keys = keys or LabelKeys()
    used = {
        "energy": _choose("energy", frames, keys.energy),
        "forces": _choose("forces", frames, keys.forces),
        "stress": _choose("stress", frames, keys.virial or keys.stress, keys.virial is not None),
    }
    if not any(used.values()):
        raise HIENetError(
            f"no energy, forces or stress found in `{frames[0].file}`; keys seen: {seen_keys(frames)}; "
            "name the labels with `data.energy_key`, `data.forces_key` and `data.stress_key` of the configuration, "
            "or the options --energy-key, --forces-key and --stress-key of `hienet init` and `hienet eval`"
        )
    labels = [
        Labels(
            _read(used["energy"], frame, _as_energy),
            _read(used["forces"], frame, _as_forces),
            _read(used["stress"], frame, _as_stress),
        )
        for frame in frames
    ]
    counts = {quantity: sum(getattr(label, quantity) is not None for label in labels) for quantity in used}
    unused = {
        quantity: other
        for quantity, source in used.items()
        if source is not None and getattr(keys, quantity) is None and (other := _unused(quantity, source, frames))
    }
    return labels, LabelReport(used, counts, len(frames), unused)


def _unused(quantity: str, chosen: Source, frames: Sequence[Frame]) -> tuple[Source, int] | None:
    """The source that most of the frames without the chosen one have, and how many they are."""
    without = [frame for frame in frames if chosen.read(frame.atoms) is None]
    counts = [
        (sum(source.read(frame.atoms) is not None for frame in without), source) for source in SEARCH_ORDER[quantity]
    ]
    count, source = max(counts, key=lambda pair: pair[0])
    return (source, count) if count else None


def seen_keys(frames: Sequence[Frame]) -> str:
    """All names in the frames' info, arrays and calculators, for messages."""
    seen: Counter[str] = Counter()
    for frame in frames:
        seen.update(name for name in frame.atoms.info if name != "config_type")
        seen.update(name for name in frame.atoms.arrays if name not in ("numbers", "positions"))
        if frame.atoms.calc is not None:
            seen.update(f"{name} (calculator)" for name, value in frame.atoms.calc.results.items() if value is not None)
    return ", ".join(f"`{name}` in {count}" for name, count in sorted(seen.items())) or "none"


def _choose(quantity: str, frames: Sequence[Frame], key: str | None, is_virial: bool = False) -> Source | None:
    candidates = SEARCH_ORDER[quantity]
    if key is not None:
        place = "arrays" if quantity == "forces" else "info"
        candidates = (Source(key, place, is_virial), Source(key, "calculator", is_virial))
    for source in candidates:
        if any(source.read(frame.atoms) is not None for frame in frames):
            return source
    if key is not None:
        option = "virial_key" if is_virial else f"{quantity}_key"
        raise HIENetError(
            f"`data.{option}` is `{key}`, which no frame of `{frames[0].file}` has; keys seen: {seen_keys(frames)}"
        )
    return None


def _read(
    source: Source | None, frame: Frame, convert: Callable[[NDArray[np.float64], ase.Atoms, bool], Value | None]
) -> Value | None:
    """The value of a source in a frame, in this project's units and signs."""
    value = None if source is None else source.read(frame.atoms)
    if source is None or value is None:
        return None
    try:
        array = np.asarray(value, dtype=np.float64)
        converted = convert(array, frame.atoms, source.is_virial)
    except (TypeError, ValueError) as error:
        raise HIENetError(
            f"{frame.source}: `{source.name}` cannot be read: {error}; mend the file, or choose another key"
        ) from error
    if not np.isfinite(array).all() and not (convert is _as_forces and _is_masked_in_part(array)):
        raise HIENetError(
            f"{frame.source}: `{source.name}` contains NaN or infinity; remove the frame, or leave the label out of it"
        )
    return converted


def _as_energy(value: NDArray[np.float64], atoms: ase.Atoms, is_virial: bool) -> float:
    if value.size != 1:
        raise ValueError(f"expected one number, got the shape {list(value.shape)}")
    return float(value.reshape(()))


def _as_forces(value: NDArray[np.float64], atoms: ase.Atoms, is_virial: bool) -> NDArray[np.float64]:
    if value.shape != (len(atoms), 3):
        raise ValueError(f"expected the shape [{len(atoms)}, 3], got {list(value.shape)}")
    return np.where(np.isnan(value).any(axis=1, keepdims=True), np.nan, value)


def _is_masked_in_part(forces: NDArray[np.float64]) -> bool:
    """Whether NaN stands for atoms without a label, not for a calculation that failed."""
    return not np.isinf(forces).any() and not np.isnan(forces).any(axis=1).all()


def _as_stress(value: NDArray[np.float64], atoms: ase.Atoms, is_virial: bool) -> NDArray[np.float64] | None:
    """`[3, 3]` from six components in ASE's order or from nine; None for a cell without volume."""
    if value.size not in (6, 9):
        raise ValueError(f"expected 6 components (xx, yy, zz, yz, xz, xy) or 9, got the shape {list(value.shape)}")
    if not (atoms.cell.rank == 3 and atoms.pbc.all()):
        return None
    stress = voigt_6_to_full_3x3_stress(value.reshape(6)) if value.size == 6 else value.reshape(3, 3)
    if is_virial:
        stress = -stress / atoms.cell.volume
    return 0.5 * (stress + stress.T)
