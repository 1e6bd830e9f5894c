"""Energies, forces and stresses of frames: under which name they stand, and whether they can be used."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

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
        """The value in a frame, or None. What belongs into `arrays` is found in `info`, too."""
        if self.place == "calculator":
            return None if atoms.calc is None else atoms.calc.results.get(self.name)
        if self.place == "arrays" and self.name in atoms.arrays:
            return atoms.arrays[self.name]
        return atoms.info.get(self.name)


QUANTITIES = ("energy", "forces", "stress")
"""What can be labelled."""


def _sources(quantity: str, place: str, calculator: Sequence[str], aliases: Sequence[str]) -> tuple[Source, ...]:
    return (
        *(Source(f"{prefix}_{quantity}", place) for prefix in ("REF", "ref")),
        *(Source(name, "calculator") for name in calculator),
        *(Source(name, place, "virial" in name.lower()) for name in aliases),
    )


_PREFIXES = ("dft", "DFT", "vasp", "pbe")
FREE_ENERGY = Source("free_energy", "calculator")
ZERO_BROADENING_ENERGY = Source("energy", "calculator")
SEARCH_ORDER: dict[str, tuple[Source, ...]] = {
    "energy": _sources(
        "energy",
        "info",
        (FREE_ENERGY.name, ZERO_BROADENING_ENERGY.name),
        (
            "free_energy",
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

_LOOKS_LIKE = {
    "energy": re.compile(r"energ|toten|etot|(^|_)(e|e0|e_?tot|u)($|_)", re.IGNORECASE),
    "forces": re.compile(r"forc|grad|^f(xyz)?$|(^|_)f(rc|xyz)?($|_)", re.IGNORECASE),
    "stress": re.compile(r"stress|virial|pressure", re.IGNORECASE),
}
_IS_SOMETHING_ELSE = re.compile(r"weight|cutoff|kinetic|error|std|sigma|mask|uncert|variance", re.IGNORECASE)


@dataclass(frozen=True)
class FileLabels:
    """What was found in one file.

    Attributes:
        file: the file.
        n_frames: number of frames.
        used: for each quantity the source that was read, or None.
        counts: for each quantity the number of frames that have it.
        unused: for a quantity another source, and the number of frames that have only this one.
        similar: for a quantity that was not found, entries that look like it, and the number of frames with them.
        needs_forces: whether any frame has more than one atom.
        seen: all names in the frames.
        ignored: number of frames whose stress is not used, because they are not periodic in three directions.
        given: for each quantity the name that the user gave, or None.
        options: for each quantity the key of the configuration that gives its name.
    """

    file: str
    n_frames: int
    used: dict[str, Source | None]
    counts: dict[str, int]
    unused: dict[str, tuple[Source, int]]
    similar: dict[str, dict[str, int]]
    needs_forces: bool
    seen: str
    ignored: int
    given: dict[str, str | None]
    options: dict[str, str]

    def continued(self, other: FileLabels) -> FileLabels:
        """Of these frames and the next ones of the same file."""
        unused = dict(self.unused)
        for quantity, (source, count) in other.unused.items():
            unused[quantity] = (source, count + (unused[quantity][1] if quantity in unused else 0))
        similar = {
            quantity: dict(Counter(self.similar.get(quantity, {})) + Counter(other.similar.get(quantity, {})))
            for quantity in QUANTITIES
            if other.used[quantity] is None
        }
        return replace(
            other,
            n_frames=self.n_frames + other.n_frames,
            counts={quantity: self.counts[quantity] + other.counts[quantity] for quantity in QUANTITIES},
            unused=unused,
            similar=similar,
            needs_forces=self.needs_forces or other.needs_forces,
            seen=self.seen,
            ignored=self.ignored + other.ignored,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FileLabels:
        """The inverse of `as_dict`.

        Raises:
            KeyError, TypeError: it is none.
        """
        used = {name: None if source is None else Source(**source) for name, source in values["used"].items()}
        unused = {name: (Source(**source), int(count)) for name, (source, count) in values["unused"].items()}
        return cls(**{**values, "used": used, "unused": unused})

    def lacks(self, quantity: str) -> bool:
        """Whether no frame has a label that it could have; forces on a single atom vanish by symmetry."""
        return self.counts[quantity] == 0 and (quantity != "forces" or self.needs_forces)

    def missing(self, quantity: str) -> str:
        """What is said where no frame has a label: what looks like it instead, and what to do."""
        article = "an" if quantity == "energy" else "a" if quantity == "stress" else "any"
        name = f"named `{self.given[quantity]}`" if self.given.get(quantity) else "under a known name"
        sentence = f"no frame of `{self.file}` has {article} {quantity} {name}"
        similar = self.similar.get(quantity, {})
        if not similar:
            return sentence
        names = " and ".join(f"`{name}` (in {count})" for name, count in similar.items())
        if self.given.get(quantity):
            return (
                f"{sentence}, but {names}; give the labels one name in all files, or leave `{self.options[quantity]}` "
                "out, so that names are found file by file"
            )
        settings = "` or `".join(f"{_key_of(quantity, name)}: {name}" for name in similar)
        looks = "looks like it; if it is, set" if len(similar) == 1 else "look like it; set the right one,"
        return f"{sentence}, but {names} {looks} `{settings}` in `data` of the configuration"

    def option(self, quantity: str) -> str:
        """The same as an option of a command; empty if nothing looks like the label."""
        similar = self.similar.get(quantity, {})
        if not similar or self.given.get(quantity):
            return ""
        return " or ".join(f"--{_key_of(quantity, name).replace('_', '-')} {name}" for name in similar)


def _key_of(quantity: str, name: str) -> str:
    """The key of the configuration that names an entry."""
    return "virial_key" if quantity == "stress" and "virial" in name.lower() else f"{quantity}_key"


@dataclass(frozen=True)
class LabelReport:
    """What was found, file by file."""

    files: tuple[FileLabels, ...]

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return sum(file.n_frames for file in self.files)

    @property
    def counts(self) -> dict[str, int]:
        """For each quantity the number of frames that have it."""
        return {quantity: sum(file.counts[quantity] for file in self.files) for quantity in QUANTITIES}

    def __add__(self, other: LabelReport) -> LabelReport:
        return LabelReport(self.files + other.files)

    def __str__(self) -> str:
        return "labels: " + ", ".join(self._describe(quantity) for quantity in QUANTITIES)

    def lines(self) -> list[str]:
        """One line that says which labels were read, and a line for each warning."""
        return [str(self), *self._warnings()]

    def _describe(self, quantity: str) -> str:
        sources: dict[Source, list[FileLabels]] = {}
        for file in self.files:
            source = file.used[quantity]
            if source is not None:
                sources.setdefault(source, []).append(file)
        if not sources:
            return f"no {quantity}"
        n_frames = self.n_frames if len(sources) == 1 else None
        found = []
        for source, files in sources.items():
            count = sum(file.counts[quantity] for file in files)
            found.append(f"`{source}` in {count} of {n_frames or sum(file.n_frames for file in files)}")
        return f"{quantity} from " + " and ".join(found)

    def _warnings(self) -> Iterator[str]:
        """Files of which the same is to be said are named together."""
        grouped: dict[str, list[FileLabels]] = {}
        for file in self.files:
            for quantity in QUANTITIES:
                for sentence in self._warnings_of(file, quantity):
                    grouped.setdefault(sentence.replace(f"`{file.file}`", "FILES"), []).append(file)
        for sentence, files in grouped.items():
            names = ", ".join(f"`{file.file}`" for file in files[:3])
            names += f" and {len(files) - 3} more files" if len(files) > 3 else ""
            yield sentence.replace("FILES", names)

    def _warnings_of(self, file: FileLabels, quantity: str) -> Iterator[str]:
        if quantity in file.unused:
            source, count = file.unused[quantity]
            yield (
                f"WARNING: {count} frames of `{file.file}` have only `{source}`, which is not used; set "
                f"`{quantity}_key`, or give these frames in a file of their own"
            )
        if quantity == "stress" and file.ignored:
            yield f"note: the stress of frames of `{file.file}` that are not periodic in three directions is ignored"
        elif file.lacks(quantity) and (quantity != "stress" or file.similar.get(quantity) or self.counts[quantity]):
            option = file.option(quantity)
            yield f"WARNING: {file.missing(quantity)}" + (
                f" (`hienet init` and `hienet eval`: {option})" if option else ""
            )


def read_labels(
    frames: Sequence[Frame], keys: LabelKeys | None = None, may_lack_all: bool = False
) -> tuple[list[Labels], LabelReport]:
    """The labels of frames.

    For each file and quantity one source is chosen: the given key, or else the first of `SEARCH_ORDER` that any frame
    of the file has. A free energy is chosen before the energy extrapolated to zero broadening, because forces are its
    derivatives, where all frames of the file with the one have the other.

    Args:
        frames: at least one.
        keys: names of labels, where not to be found automatically.
        may_lack_all: leave it to the caller to `require_any_labels` of these and other frames together.

    Raises:
        HIENetError: a given key is in no frame, no labels at all, a wrong shape, or a value that is not finite.
    """
    keys = keys or LabelKeys()
    labels: list[Labels] = []
    files = []
    for _, group in itertools.groupby(frames, key=lambda frame: frame.file):
        read, found = _read_file_labels(list(group), keys)
        labels += read
        files.append(found)
    report = LabelReport(tuple(files))
    if not may_lack_all:
        require_any_labels(report)
    return labels, report


class LabelReader:
    """Labels of files of which some frames are seen at a time.

    As `read_labels`, but for each file and quantity the source is chosen at the first frames that have one, and kept.

    Attributes:
        files: what was found so far, by file.
    """

    def __init__(self, keys: LabelKeys | None = None, files: Mapping[str, FileLabels] | None = None) -> None:
        """`files`: what an earlier reader has found."""
        self.keys = keys or LabelKeys()
        self.files = dict(files or {})

    def read(self, frames: Sequence[Frame]) -> list[Labels]:
        """The labels of the next frames.

        Raises:
            HIENetError: a label has the wrong shape, or is not finite.
        """
        found: list[Labels] = []
        for file, group in itertools.groupby(frames, key=lambda frame: frame.file):
            before = self.files.get(file)
            labels, now = _read_file_labels(list(group), self.keys, {} if before is None else before.used)
            self.files[file] = now if before is None else before.continued(now)
            found += labels
        return found

    @property
    def report(self) -> LabelReport:
        """What was found."""
        return LabelReport(tuple(self.files.values()))


def require_any_labels(report: LabelReport) -> None:
    """Stop where a key that was given is in no frame, or where there are no labels at all.

    Raises:
        HIENetError: in these cases, with the names that there are.
    """
    first = report.files[0]
    for quantity in QUANTITIES:
        key = first.given[quantity]
        if key is not None and all(file.used[quantity] is None for file in report.files):
            raise HIENetError(
                f"`data.{first.options[quantity]}` is `{key}`, which no frame of `{first.file}` has; keys seen: "
                f"{first.seen}"
            )
    if all(source is None for file in report.files for source in file.used.values()):
        raise HIENetError(
            f"no energy, forces or stress found in `{first.file}`; keys seen: {first.seen}; "
            "name the labels with `data.energy_key`, `data.forces_key` and `data.stress_key` of the configuration, "
            "or the options --energy-key, --forces-key and --stress-key of `hienet init` and `hienet eval`"
        )


def _read_file_labels(
    frames: Sequence[Frame], keys: LabelKeys, chosen: Mapping[str, Source | None] | None = None
) -> tuple[list[Labels], FileLabels]:
    """The labels of frames of one file, from the sources that were `chosen` at earlier frames where there were any."""
    chosen = chosen or {}
    used = {
        "energy": chosen.get("energy") or _choose("energy", frames, keys.energy),
        "forces": chosen.get("forces") or _choose("forces", frames, keys.forces),
        "stress": chosen.get("stress")
        or _choose("stress", frames, keys.virial or keys.stress, keys.virial is not None),
    }
    labels = [
        Labels(
            _read(used["energy"], frame, _as_energy),
            _read(used["forces"], frame, _as_forces),
            _read(used["stress"], frame, as_stress),
        )
        for frame in frames
    ]
    stress = used["stress"]
    given = {"energy": keys.energy, "forces": keys.forces, "stress": keys.virial or keys.stress}
    unused = {
        quantity: other
        for quantity, source in used.items()
        if source is not None and given[quantity] is None and (other := _unused(quantity, source, frames))
    }
    return labels, FileLabels(
        file=frames[0].file,
        n_frames=len(frames),
        used=used,
        counts={quantity: sum(getattr(label, quantity) is not None for label in labels) for quantity in used},
        unused=unused,
        similar={quantity: _similar(quantity, frames) for quantity, source in used.items() if source is None},
        needs_forces=any(len(frame.atoms) > 1 for frame in frames),
        seen=seen_keys(frames),
        ignored=sum(
            stress is not None and stress.read(frame.atoms) is not None and label.stress is None
            for frame, label in zip(frames, labels, strict=True)
        ),
        given=given,
        options={
            "energy": "energy_key",
            "forces": "forces_key",
            "stress": "stress_key" if keys.virial is None else "virial_key",
        },
    )


def require_labels(report: LabelReport, may_lack: Collection[str]) -> None:
    """Stop where energies or forces are missing in a whole file.

    Args:
        report: of all files that are used in training.
        may_lack: the quantities of which the user said so.

    Raises:
        HIENetError: the first such file, what looks like the label in it, and what the user may do.
    """
    for file in report.files:
        for quantity in ("energy", "forces"):
            if quantity not in may_lack and file.lacks(quantity):
                keys = "" if file.similar.get(quantity) else f"; keys seen: {file.seen}"
                raise HIENetError(
                    f"{file.missing(quantity)}{keys}; to train without, set `data.allow_missing: [{quantity}]`, "
                    f"or `training.{quantity}_weight: 0` for all files"
                )


def _unused(quantity: str, chosen: Source, frames: Sequence[Frame]) -> tuple[Source, int] | None:
    """The source that most of the frames without the chosen one have, and how many they are."""
    without = [frame for frame in frames if chosen.read(frame.atoms) is None]
    counts = [
        (sum(source.read(frame.atoms) is not None for frame in without), source) for source in SEARCH_ORDER[quantity]
    ]
    count, source = max(counts, key=lambda pair: pair[0])
    return (source, count) if count else None


def _similar(quantity: str, frames: Sequence[Frame]) -> dict[str, int]:
    """Entries whose name and shape are such as a label has, and the number of frames that have them."""
    seen: Counter[str] = Counter()
    for frame in frames:
        atoms = frame.atoms
        entries = {**atoms.info, **atoms.arrays, **({} if atoms.calc is None else atoms.calc.results)}
        for name, value in entries.items():
            pattern = _LOOKS_LIKE[quantity]
            if not isinstance(name, str) or not pattern.search(name) or _IS_SOMETHING_ELSE.search(name):
                continue
            try:
                array = np.asarray(value)
            except ValueError:
                continue
            if array.dtype.kind not in "iuf":
                continue
            fits = {"energy": array.size == 1, "forces": array.shape == (len(atoms), 3), "stress": array.size in (6, 9)}
            seen[name] += fits[quantity]
    return {name: count for name, count in sorted(seen.items()) if count}


def seen_keys(frames: Sequence[Frame]) -> str:
    """All names in the frames' info, arrays and calculators, for messages."""
    seen: Counter[str] = Counter()
    for frame in frames:
        seen.update(str(name) for name in frame.atoms.info if name != "config_type")
        seen.update(name for name in frame.atoms.arrays if name not in ("numbers", "positions"))
        if frame.atoms.calc is not None:
            seen.update(f"{name} (calculator)" for name, value in frame.atoms.calc.results.items() if value is not None)
    return ", ".join(f"`{name}` in {count}" for name, count in sorted(seen.items())) or "none"


def _choose(quantity: str, frames: Sequence[Frame], key: str | None, is_virial: bool = False) -> Source | None:
    """The first source that any frame has."""
    candidates = SEARCH_ORDER[quantity]
    if key is not None:
        place = "arrays" if quantity == "forces" else "info"
        candidates = (Source(key, place, is_virial), Source(key, "calculator", is_virial))
    for source in candidates:
        having = [frame for frame in frames if source.read(frame.atoms) is not None]
        if not having:
            continue
        if key is None and source == FREE_ENERGY and len(having) < len(frames):
            # Never the free energy of some frames and nothing of those that have only the other energy.
            energies = [ZERO_BROADENING_ENERGY.read(frame.atoms) for frame in frames]
            if sum(energy is not None for energy in energies) > len(having):
                continue
        return source
    return None


def _read(
    source: Source | None, frame: Frame, convert: Callable[[NDArray[np.float64], ase.Atoms, bool], Value | None]
) -> Value | None:
    """The value of a source in a frame, in this project's units and signs."""
    value = None if source is None else source.read(frame.atoms)
    if source is None or value is None:
        return None
    try:
        if np.asarray(value).dtype.kind == "b":
            raise ValueError("it is true or false, not a number; a name without `=` is read as true")
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


def as_stress(value: object, atoms: ase.Atoms, is_virial: bool) -> NDArray[np.float64] | None:
    """`[3, 3]` from six components in ASE's order or from nine; None for a cell without volume.

    Raises:
        ValueError, TypeError: not six or nine numbers.
    """
    value = np.asarray(value, dtype=np.float64)
    if value.size not in (6, 9):
        raise ValueError(f"expected 6 components (xx, yy, zz, yz, xz, xy) or 9, got the shape {list(value.shape)}")
    if not (atoms.cell.rank == 3 and atoms.pbc.all()):
        return None
    stress = voigt_6_to_full_3x3_stress(value.reshape(6)) if value.size == 6 else value.reshape(3, 3)
    if is_virial:
        stress = -stress / atoms.cell.volume
    return 0.5 * (stress + stress.T)
