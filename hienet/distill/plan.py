"""What a distillation does, as plain values that are kept with its results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from hienet.errors import HIENetError
from hienet.files import atomic_path


@dataclass(frozen=True)
class Plan:
    """Options of `hienet distill`.

    Attributes:
        temperatures: K, of all dynamics.
        pressures: GPa.
        n_atoms: at least so many in dynamics.
        threshold: eV/Å; frames on which the committee's forces on some atom are further apart are labelled, and the
            rounds end when there are hardly any.
        allowed: part of the frames that may be above it at the end.
        rounds: at most.
        committee: students in a round.
        frames: labelled in a round, at most.
        steps: of each run of a student's dynamics.
        teacher_steps: of each run of the teacher's dynamics, at the beginning.
        timestep: fs.
        strain: largest component of the random strains of the first frames.
        rattle: Å, largest displacement of atoms in them.
        n_strained: number of strained and rattled frames.
        n_vacancies: number of frames with an atom missing.
        architecture: of the students.
        preset: of it.
        cutoff: Å.
        minutes: of training of each student of a round.
        final_minutes: of the training of the last student.
        ranks: of LAMMPS.
        seed: of all random numbers.
    """

    temperatures: tuple[float, ...] = (300.0, 1500.0)
    pressures: tuple[float, ...] = (0.0,)
    n_atoms: int = 64
    threshold: float = 0.2
    allowed: float = 0.02
    rounds: int = 4
    committee: int = 2
    frames: int = 30
    steps: int = 4000
    teacher_steps: int = 400
    timestep: float = 1.0
    strain: float = 0.04
    rattle: float = 0.15
    n_strained: int = 40
    n_vacancies: int = 0
    architecture: str = "hienet"
    preset: str = "small"
    cutoff: float = 4.5
    minutes: float = 3.0
    final_minutes: float = 15.0
    ranks: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) <= 0:
            raise HIENetError("--temperatures takes positive numbers, separated by commas, in K")
        if not self.pressures:
            raise HIENetError("--pressures takes numbers, separated by commas, in GPa")
        if self.committee < 2:
            raise HIENetError(f"a committee needs at least 2 students to disagree, got {self.committee}")
        if not self.threshold > 0.0:
            raise HIENetError(f"the threshold must be a positive force in eV/Å, got {self.threshold:g}")
        if min(self.minutes, self.final_minutes) <= 0 or self.rounds < 1 or self.frames < 2:
            raise HIENetError(
                "--minutes and --final-minutes must be positive, --rounds at least 1, --frames at least 2"
            )
        if not 0.0 <= self.strain <= 0.2 or not 0.0 <= self.rattle <= 0.5:
            raise HIENetError("the strain must lie between 0 and 0.2, and the displacement between 0 and 0.5 Å")
        if self.n_strained < 10:
            raise HIENetError(f"at least 10 strained frames are needed to begin with, got {self.n_strained}")

    def keep(self, path: Path, more: dict[str, str]) -> None:
        """Write it, or hold it against what is there.

        Args:
            path: of the file.
            more: what else must be the same: structure and teacher.

        Raises:
            HIENetError: the folder is that of another distillation.
        """
        values = json.loads(json.dumps({**more, **asdict(self)}))
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in values if before.get(key) != values[key])
            if changed:
                name = changed[0]
                raise HIENetError(
                    f"`{path.parent}` holds a distillation with {name} = {before.get(name)}, not {values[name]}; "
                    "give the same options to go on, or another folder with --output"
                )
            return
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
