"""Extended XYZ. What belongs to a frame is decided and checked here, line by line; ASE reads the frame."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import ase
import numpy as np
from ase.data import atomic_numbers
from ase.io.extxyz import key_val_str_to_dict, parse_properties, read_xyz
from ase.io.formats import open_with_compression
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from hienet.errors import HIENetError

_DEFAULT_COLUMNS = "species:S:1:pos:R:3"
_KEYS_OF_THE_FORMAT = ("Lattice", "Properties", "pbc")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|\{[^}]*\}|\[[^\]]*\]')
_KEY = re.compile(r"([^\s=\"']+)\s*=")
_ONLY_ONCE = re.compile(r"energy|force|stress|virial|^lattice$|^properties$|^pbc$", re.IGNORECASE)
_TENSOR = re.compile(r"(?<![\w-])(stress|virial)(?=\s*=)")
_PERIODIC = {"t": True, "true": True, "1": True, "p": True, "f": False, "false": False, "0": False}
_SHOWN = 60


class _Lines:
    """Lines of a file with their numbers, from 1, and the possibility to look at the next one."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._lines, self._path = iter(file), path
        self._next: str | None = None
        self.number = 0

    def peek(self) -> str:
        """The next line, empty at the end of the file."""
        if self._next is None:
            try:
                self._next = next(self._lines, "")
            except UnicodeDecodeError as error:
                raise HIENetError(
                    f"`{self._path}` is not UTF-8 after line {self.number}: {error.reason}; convert it to UTF-8"
                ) from error
            except (OSError, EOFError) as error:
                raise HIENetError(
                    f"`{self._path}` cannot be read after line {self.number}: {error}; the file is damaged or "
                    "incomplete, copy it again"
                ) from error
        return self._next

    def take(self) -> str:
        """The next line, which is left behind."""
        line = self.peek()
        self._next = None
        self.number += bool(line)
        return line


def iterate_extxyz(path: Path) -> Iterator[ase.Atoms]:
    """The frames of a file, which may be compressed. Blank lines between frames are skipped.

    Beyond what ASE reads, `stress` and `virial` may have six components (xx, yy, zz, yz, xz, xy), and the names
    `Lattice`, `Properties` and `pbc` may be written in any case.

    Raises:
        HIENetError: anything that is not a whole frame, with the frame (from 0) and the line (from 1).
    """
    with open_with_compression(str(path), "rb") as binary:
        lines = _Lines(io.TextIOWrapper(binary, encoding="utf-8-sig"), path)
        index = 0
        while first := lines.take():
            if first.strip():
                yield _read_frame(first, lines, path, index)
                index += 1


def _read_frame(first: str, lines: _Lines, path: Path, index: int) -> ase.Atoms:
    """The frame whose first line was taken."""

    def refuse(line: int, problem: str) -> HIENetError:
        return HIENetError(f"`{path}`, frame {index}, line {line}: {problem}")

    start = lines.number
    if not re.fullmatch(r"\d+", first.strip(), re.ASCII):
        reason = (
            "either the frame before has another number of atoms than its first line says, or the file is damaged"
            if index
            else "the file is damaged, or not extxyz as its name says"
        )
        raise refuse(start, f"expected the number of atoms, got `{_shortened(first)}`; {reason}")
    n_atoms = int(first)
    comment = lines.take()
    rows: list[str] = []
    while len(rows) < n_atoms and lines.peek():
        rows.append(lines.take())
    if len(rows) < n_atoms or not comment:
        raise refuse(
            lines.number,
            f"the file ends after {len(rows)} of {n_atoms} atoms of this frame; remove the incomplete frame, or copy "
            "the file again",
        )
    vectors: list[str] = []
    while lines.peek().lstrip().startswith("VEC"):
        vectors.append(lines.take())
    try:
        info = _parse_comment(comment.strip())
        columns = str(info.get("Properties", _DEFAULT_COLUMNS))
        names, _, _, converters = parse_properties(columns)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise refuse(start + 1, f"the comment line cannot be read: {error}; mend it") from error
    held = {name for name, _ in names.values()}
    for name, kinds in (("elements (species:S:1)", {"symbols", "numbers"}), ("positions (pos:R:3)", {"positions"})):
        if not held & kinds:
            raise refuse(start + 1, f"`Properties={columns}` has no column for {name}; add it")
    for number, row in enumerate(rows, start + 2):
        problem = _problem_of_row(row, converters, columns, "Properties" in info)
        if problem:
            raise refuse(number, problem)
    text = "".join([first, comment, *rows, *vectors])
    try:
        return next(iter(read_xyz(io.StringIO(text), 0, properties_parser=lambda _: dict(info))))
    except Exception as error:
        found = _bad_value(rows, names, converters)
        if found is not None:
            raise refuse(start + 2 + found[0], found[1]) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise refuse(start, f"ASE cannot read the frame: {reason}; mend or remove it") from error


def _problem_of_row(row: str, converters: Sequence[Any], columns: str, described: bool) -> str | None:
    """What is wrong with the number of values in an atom's line."""
    count = len(row.split())
    if count == len(converters):
        return None
    if described:
        return (
            f"expected the {len(converters)} values of `Properties={columns}`, got {count}: `{_shortened(row)}`; the "
            "line is damaged, or the frame has another number of atoms than its first line says"
        )
    return (
        f"the comment line has no `Properties`, so that a line is an element and a position, but this one has {count} "
        f"values: `{_shortened(row)}`; describe the columns, for example Properties=species:S:1:pos:R:3:forces:R:3"
    )


def _bad_value(
    rows: Sequence[str], names: dict[str, tuple[str, int]], converters: Sequence[Any]
) -> tuple[int, str] | None:
    """The first row with a value that is no number or no element, and what is wrong with it."""
    of_column = [ase_name for ase_name, count in names.values() for _ in range(count)]
    for i, row in enumerate(rows):
        for name, convert, value in zip(of_column, converters, row.split(), strict=True):
            if name == "symbols" and value.capitalize() not in atomic_numbers:
                return i, f"`{value}` is not a chemical symbol; name the element alone, without labels or numbers"
            try:
                convert(value)
            except ValueError:
                return i, f"`{value}` is not a number, in the column of `{name}`; mend the line, or remove the frame"
    return None


def _parse_comment(comment: str) -> dict[str, Any]:
    """The entries of a comment line.

    Raises:
        ValueError: an entry that cannot be what its name says.
    """
    bare = _QUOTED.sub('""', comment)
    keys = [key for key in _KEY.findall(bare) if _ONLY_ONCE.search(key)]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"`{twice[0]}` is given twice")
    try:
        info = key_val_str_to_dict(comment) if comment else {}
    except ValueError:
        # ASE insists on nine components of these names.
        info = key_val_str_to_dict(_TENSOR.sub(r"\1_of_any_shape", comment))
        for name in ("stress", "virial"):
            value = info.pop(f"{name}_of_any_shape", None)
            if value is not None:
                info[name] = _as_tensor(name, value)
    for name in _KEYS_OF_THE_FORMAT:
        for key in [key for key in info if key != name and key.lower() == name.lower()]:
            value = info.pop(key)
            info.setdefault(name, _as_lattice(value) if name == "Lattice" else value)
    if "pbc" in info:
        info["pbc"] = _as_periodicity(info["pbc"])
    return info


def _as_tensor(name: str, value: object) -> NDArray[np.float64]:
    """`[3, 3]`, of which a `Properties` line holds six or nine components."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` is not numbers, got `{_shortened(str(value))}`") from None
    if array.size == 6:
        return np.asarray(voigt_6_to_full_3x3_stress(array.reshape(6)), dtype=np.float64)
    if array.size == 9:
        return array.reshape(3, 3)
    raise ValueError(f"`{name}` has {array.size} number(s), expected 6 (xx, yy, zz, yz, xz, xy) or 9")


def _as_lattice(value: object) -> NDArray[np.float64]:
    """As ASE has it: vectors in columns."""
    array = np.asarray(value, dtype=np.float64)
    if array.size != 9:
        raise ValueError(f"`Lattice` has {array.size} number(s), expected 9")
    return array.reshape(3, 3).T


def _as_periodicity(value: object) -> list[bool]:
    words = (
        re.findall(r"[^\s,]+", value) if isinstance(value, str) else [str(word) for word in np.ravel(np.array(value))]
    )
    known = [_PERIODIC.get(word.lower()) for word in words]
    if len(known) not in (1, 3) or None in known:
        raise ValueError(f'`pbc` is `{_shortened(str(value))}`, expected three of T and F, such as pbc="T T F"')
    return [bool(word) for word in known] * (3 // len(known))


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
