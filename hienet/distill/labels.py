"""Who labels frames: a teacher, or a command of the user's, such as a program of DFT."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import ase
import ase.io
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from hienet.data.labels import read_labels
from hienet.data.reader import read_frames
from hienet.errors import HIENetError
from hienet.files import atomic_path
from hienet.properties.engine import Engine

Advance = Callable[[int], None]


class Labeller(Protocol):
    """Gives frames energies, forces and stress."""

    def label(self, frames: Sequence[ase.Atoms], folder: Path, advance: Advance) -> list[ase.Atoms]:
        """The frames that could be labelled; the folder is for what it needs to keep."""


class Teacher:
    """A model."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def label(self, frames: Sequence[ase.Atoms], folder: Path, advance: Advance) -> list[ase.Atoms]:
        """All of them."""
        found = self.engine.calculate(frames, advance)
        return [each.attach(atoms.copy()) for atoms, each in zip(frames, found, strict=True)]


class Command:
    """A command with `{input}` and `{output}` in it: reads a frame as extxyz, writes one with labels as ASE reads it.

    Each frame has a folder of its own, in which the command is run; one that is done is not done again.
    """

    def __init__(self, text: str, output: str = "output.extxyz", timeout: float = 7 * 86400.0) -> None:
        """Take the command apart.

        Raises:
            HIENetError: `{input}` or `{output}` is missing in it.
        """
        self.text, self.output, self.timeout = text, output, timeout
        self.failures: list[str] = []
        try:
            self.words = shlex.split(text)
        except ValueError as error:
            raise HIENetError(f"--label-with cannot be taken apart ({error}): `{text}`; check its quotes") from error
        if "{input}" not in text or "{output}" not in text:
            raise HIENetError(
                f"--label-with needs {{input}} and {{output}} in the command, got `{text}`; write for example "
                "--label-with 'python label.py {input} {output}'"
            )

    def label(self, frames: Sequence[ase.Atoms], folder: Path, advance: Advance) -> list[ase.Atoms]:
        """Those that the command could label.

        Raises:
            HIENetError: the first frame fails, or more than half of them.
        """
        labelled, failed = [], []
        for i, atoms in enumerate(frames):
            place = folder / f"{i:04d}"
            place.mkdir(parents=True, exist_ok=True)
            try:
                labelled.append(self._one(atoms, place))
            except HIENetError as error:
                failed.append(str(error))
                if not labelled:
                    raise HIENetError(f"the first frame could not be labelled: {error}") from error
            advance(1)
        self.failures += failed
        if len(failed) > len(frames) / 2:
            raise HIENetError(
                f"{len(failed)} of {len(frames)} frames could not be labelled; the last one: {failed[-1]}"
            )
        return labelled

    def _one(self, atoms: ase.Atoms, place: Path) -> ase.Atoms:
        result = place / self.output
        if not result.exists():
            with atomic_path(place / "input.extxyz") as temporary:
                ase.io.write(temporary, atoms, format="extxyz")
            # Its own name first: a command that is killed leaves no result that looks complete.
            unfinished = place / f"unfinished-{self.output}"
            unfinished.unlink(missing_ok=True)
            names = {"{input}": "input.extxyz", "{output}": unfinished.name}
            words = [_filled(word, names) for word in self.words]
            try:
                done = subprocess.run(
                    words, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self.timeout
                )
            except OSError as error:
                raise HIENetError(f"`{words[0]}` cannot be run: {error.strerror}; check --label-with") from error
            except subprocess.TimeoutExpired as error:
                raise HIENetError(f"the command in `{place}` did not end within {self.timeout:g} s") from error
            (place / "output.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
            if done.returncode != 0 or not unfinished.exists():
                last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
                raise HIENetError(
                    f"the command in `{place}` ended with status {done.returncode}"
                    f"{'' if unfinished.exists() else f' and wrote no {{output}} `{unfinished.name}`'}: {last}"
                )
            unfinished.rename(result)
        return _read(result, atoms)


def _filled(word: str, names: dict[str, str]) -> str:
    for key, value in names.items():
        word = word.replace(key, value)
    return word


def _read(path: Path, atoms: ase.Atoms) -> ase.Atoms:
    """The frame with the labels of a file.

    Raises:
        HIENetError: it is of other atoms, or lacks energy or forces.
    """
    frames = read_frames([path])
    if len(frames) != 1:
        # Optimisers and programs of DFT write their steps; the last is the one that counts.
        frames = frames[-1:]
    labels, _ = read_labels(frames)
    found, label = frames[0].atoms, labels[0]
    if found.get_chemical_symbols() != atoms.get_chemical_symbols():
        raise HIENetError(f"`{path}` holds other atoms than the frame, or in another order")
    if label.energy is None or label.forces is None:
        raise HIENetError(f"`{path}` holds no energy or no forces; the command must write both")
    result = ase.Atoms(found.numbers, positions=found.positions, cell=found.cell, pbc=found.pbc)
    values: dict[str, Any] = {"energy": float(label.energy), "forces": label.forces}
    if label.stress is not None:
        values["stress"] = full_3x3_to_voigt_6_stress(label.stress)
    result.calc = SinglePointCalculator(result, **values)
    return result
