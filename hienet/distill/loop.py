"""`hienet distill`: rounds of dynamics, labels and training, each of which is kept on disk when it is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
from rich.console import Console

from hienet.console import printable
from hienet.distill import frames as frame_files
from hienet.distill.explore import Exploration, conditions, explore
from hienet.distill.labels import Command, Labeller, Teacher
from hienet.distill.plan import Plan
from hienet.distill.students import DEPLOYED, train
from hienet.errors import HIENetError
from hienet.files import atomic_path, json_text, make_folder
from hienet.properties.engine import Engine
from hienet.properties.md import deployed_model
from hienet.properties.progress import Progress
from hienet.properties.relax import relaxed
from hienet.properties.supercells import repeated


@dataclass(frozen=True)
class Distilled:
    """Where a distillation ended.

    Attributes:
        student: the deployed file.
        rounds: what each found, plain values.
        converged: whether the committee agreed in the end.
        n_frames: number of labelled frames.
        fresh: frames of the last student's own dynamics, with labels, on which nothing was trained.
        crystal: the crystal, relaxed by the teacher if there is one.
        teacher: its deployed file; None with a command.
    """

    student: Path
    rounds: list[dict[str, Any]]
    converged: bool
    n_frames: int
    fresh: list[ase.Atoms]
    crystal: ase.Atoms
    teacher: Path | None


class Distillation:
    """One in its folder; everything that is there already is taken as it is."""

    def __init__(
        self,
        atoms: ase.Atoms,
        name: str,
        folder: Path,
        plan: Plan,
        teacher: Path | None,
        command: str | None,
        console: Console,
    ) -> None:
        """Look at what is asked.

        Args:
            atoms: a crystal.
            name: of it.
            folder: for everything.
            plan: what is done.
            teacher: a model's file, or None.
            command: that labels frames, or None.
            console: for progress.

        Raises:
            HIENetError: not just one of teacher and command, no crystal, an unknown element, or a folder of another
                distillation.
        """
        if (teacher is None) == (command is None):
            raise HIENetError("a distillation needs either --teacher MODEL or --label-with COMMAND, and not both")
        if not atoms.pbc.all() or atoms.cell.rank < 3:
            raise HIENetError("the structure is not a crystal: it is not periodic in three directions")
        self.plan, self.folder, self.name, self.console = plan, make_folder(folder, "--output"), name, console
        self.labeller: Labeller
        self.teacher: Path | None = None
        if teacher is not None:
            elements = sorted(set(atoms.get_chemical_symbols()))
            Engine(teacher).require_elements(atoms)
            self.teacher = deployed_model(teacher, elements, self.folder)
            self.labeller = Teacher(Engine(self.teacher))
        else:
            self.labeller = Command(str(command))
        who = {"structure": atoms.get_chemical_formula(), "teacher": str(teacher or command)}
        plan.keep(self.folder / "plan.json", who)
        self.who = str(teacher or command)
        self.crystal = self._relaxed(atoms)
        self.supercell = repeated(self.crystal, plan.n_atoms)

    def run(self) -> Distilled:
        """Rounds until the committee agrees, then the student.

        Raises:
            HIENetError: a label, a training or LAMMPS failed.
            InterruptedTrainingError: a signal stopped a training; the same command goes on.
        """
        labelled = self._first()
        rounds: list[dict[str, Any]] = []
        converged = False
        for number in range(1, self.plan.rounds + 1):
            found, new = self._round(number, labelled)
            rounds.append(found)
            labelled += new
            self._say_round(found)
            if found["uncertain_part"] <= self.plan.allowed and found["complete"]:
                converged = True
                break
        student = self._student(labelled)
        fresh = self._fresh(student)
        return Distilled(student, rounds, converged, len(labelled), fresh, self.crystal, self.teacher)

    def _relaxed(self, atoms: ase.Atoms) -> ase.Atoms:
        """By the teacher; a command is spared that, and the structure taken as it is."""
        path = self.folder / "crystal.extxyz"
        if not path.exists():
            crystal = relaxed(atoms, self.labeller.engine) if isinstance(self.labeller, Teacher) else atoms
            frame_files.write(frame_files.of_trajectory([crystal], "crystal"), path)
        return frame_files.read(path)[0]

    def _first(self) -> list[ase.Atoms]:
        """Round 0: strained crystals, and dynamics of the teacher."""
        plan, folder = self.plan, self.folder / "round-0"
        done = folder / "labelled.extxyz"
        if not done.exists():
            folder.mkdir(exist_ok=True)
            frames = frame_files.first_frames(
                self.crystal, plan.n_strained, plan.n_vacancies, plan.strain, plan.rattle, plan.seed
            )
            if self.teacher is not None:
                for i, (temperature, pressure, name) in enumerate(conditions(plan)):
                    self.say(f"round 0: dynamics of the teacher, {name}")
                    found = explore(
                        self.supercell,
                        [self.teacher],
                        folder / f"teacher-{name}",
                        plan,
                        temperature,
                        pressure,
                        plan.teacher_steps,
                        plan.seed + i,
                    )
                    # The first ones are of the crystal at rest.
                    frames += frame_files.of_trajectory(found.frames[2:], f"teacher-{name}")
            self._label(frames, folder)
        return frame_files.read(done)

    def _label(self, frames: list[ase.Atoms], folder: Path) -> list[ase.Atoms]:
        path = folder / "labelled.extxyz"
        if path.exists():
            return frame_files.read(path) if path.stat().st_size else []
        labelled: list[ase.Atoms] = []
        if frames:
            with Progress(self.console) as progress:
                progress.begin(f"{folder.name}: labels", len(frames))
                labelled = self.labeller.label(frames, folder / "labels", progress.advance)
            for atoms, frame in zip(labelled, frames, strict=False):
                atoms.info.setdefault("config_type", frame.info.get("config_type", ""))
            self.say(f"{folder.name}: {len(labelled)} frames labelled")
            frame_files.write(labelled, path)
        else:
            path.touch()
        return labelled

    def _round(self, number: int, labelled: list[ase.Atoms]) -> tuple[dict[str, Any], list[ase.Atoms]]:
        plan, folder = self.plan, self.folder / f"round-{number}"
        folder.mkdir(exist_ok=True)
        models = []
        for member in range(plan.committee):
            if not (folder / f"student-{member + 1}" / DEPLOYED).exists():
                which = f"student {member + 1} of {plan.committee}"
                self.say(f"round {number}: {which}, {len(labelled)} frames, {plan.minutes:g} min")
            models.append(train(labelled, folder / f"student-{member + 1}", plan, plan.minutes, 100 * number + member))
        chosen: list[ase.Atoms] = []
        explored: list[Exploration] = []
        places = conditions(plan)
        for i, (temperature, pressure, name) in enumerate(places):
            self.say(f"round {number}: dynamics of the students, {name}")
            found = explore(
                self.supercell,
                models,
                folder / f"students-{name}",
                plan,
                temperature,
                pressure,
                plan.steps,
                plan.seed + 1000 * number + i,
            )
            explored.append(found)
            picked = frame_files.choose(found.deviations, plan.threshold, max(1, plan.frames // len(places)))
            chosen += frame_files.of_trajectory([found.frames[j] for j in picked], f"round-{number}-{name}")
        deviations = np.concatenate([found.deviations for found in explored])
        row = {
            "round": number,
            "labelled_before": len(labelled),
            "frames_seen": len(deviations),
            "uncertain_part": float((deviations > plan.threshold).mean()),
            "median_deviation_ev_per_angstrom": float(np.median(deviations)),
            "largest_deviation_ev_per_angstrom": float(deviations.max()),
            "complete": all(found.complete for found in explored),
        }
        new = self._label(chosen, folder)
        row["labelled"] = len(new)
        with atomic_path(folder / "round.json") as temporary:
            temporary.write_text(json_text({**row, "deviations": {e.name: e.deviations.tolist() for e in explored}}))
        return row, new

    def _student(self, labelled: list[ase.Atoms]) -> Path:
        if not (self.folder / "final" / DEPLOYED).exists():
            self.say(f"the student: {len(labelled)} frames, {self.plan.final_minutes:g} min")
        return train(labelled, self.folder / "final", self.plan, self.plan.final_minutes, self.plan.seed)

    def _fresh(self, student: Path) -> list[ase.Atoms]:
        """Frames of the student's own dynamics at all conditions, with labels."""
        folder = self.folder / "fresh"
        frames: list[ase.Atoms] = []
        for i, (_, _, name) in enumerate(conditions(self.plan)):
            self.say(f"dynamics of the student, {name}")
            found = self.fresh_run(student, i)
            count = max(2, self.plan.frames // len(conditions(self.plan)))
            # The second half, in which nothing of the start is left.
            late = found.frames[len(found.frames) // 2 :]
            picked = np.unique(np.linspace(0, len(late) - 1, min(count, len(late))).round().astype(int))
            frames += frame_files.of_trajectory([late[j] for j in picked], name)
        return self._label(frames, folder)

    def fresh_run(self, student: Path, index: int) -> Exploration:
        """The student's own dynamics at one of the conditions."""
        temperature, pressure, name = conditions(self.plan)[index]
        return explore(
            self.supercell,
            [student],
            self.folder / "fresh" / f"student-{name}",
            self.plan,
            temperature,
            pressure,
            self.plan.steps,
            self.plan.seed + 90_000 + index,
        )

    @property
    def one_rank(self) -> Plan:
        """The plan on one rank, for measurements of speed."""
        return replace(self.plan, ranks=1)

    def _say_round(self, found: dict[str, Any]) -> None:
        self.say(
            f"round {found['round']}: {100 * found['uncertain_part']:.1f} % of {found['frames_seen']} frames above "
            f"{self.plan.threshold:g} eV/Å, largest {found['largest_deviation_ev_per_angstrom']:.2f}"
            + ("" if found["complete"] else "; dynamics were stopped")
        )

    def say(self, text: str) -> None:
        """A line of progress."""
        self.console.print(printable(text))
        self.console.file.flush()
