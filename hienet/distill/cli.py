"""The command `hienet distill`. Heavy modules are imported inside, so that help appears at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hienet.console import make_console, printable
from hienet.properties.cli import numbers


def distill(
    structure: Annotated[str, typer.Argument(help="File with a crystal.", show_default=False)],
    teacher: Annotated[
        Path | None,
        typer.Option(help="Universal potential: deployed file, or checkpoint.", show_default=False),
    ] = None,
    label_with: Annotated[
        str | None,
        typer.Option(
            help="In the teacher's place a command with {input} and {output}, for a program of DFT.", show_default=False
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything.")] = Path("hienet_distill"),
    temperatures: Annotated[str, typer.Option("--temperatures", "-t", help="K.")] = "300,1500",
    pressures: Annotated[str, typer.Option("--pressures", "-p", help="GPa.")] = "0",
    threshold: Annotated[float, typer.Option(help="Deviation of forces that calls for a label, eV/Å.")] = 0.2,
    rounds: Annotated[int, typer.Option(help="At most.")] = 4,
    committee: Annotated[int, typer.Option(help="Students in a round.")] = 2,
    frames: Annotated[int, typer.Option(help="Labelled in a round, at most.")] = 30,
    steps: Annotated[int, typer.Option(help="Of each run of the students.")] = 4000,
    teacher_steps: Annotated[int, typer.Option(help="Of each run of the teacher, at the beginning.")] = 400,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    atoms: Annotated[int, typer.Option(help="In dynamics, at least.")] = 64,
    strained: Annotated[int, typer.Option(help="Strained frames to begin with.")] = 40,
    strain: Annotated[float, typer.Option(help="Largest of these.")] = 0.04,
    rattle: Annotated[float, typer.Option(help="Largest displacement in these, Å.")] = 0.15,
    vacancies: Annotated[int, typer.Option(help="Frames with an atom missing to begin with.")] = 0,
    architecture: Annotated[str, typer.Option(help="Of the student.")] = "hienet",
    preset: Annotated[str, typer.Option(help="Of the student.")] = "small",
    cutoff: Annotated[float, typer.Option(help="Of the student, Å.")] = 4.5,
    minutes: Annotated[float, typer.Option(help="Of training of each student of a round.")] = 3.0,
    final_minutes: Annotated[float, typer.Option(help="Of training of the last student.")] = 15.0,
    ranks: Annotated[int, typer.Option("--ranks", "-n", min=1, help="MPI ranks of LAMMPS.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.")] = 1,
) -> None:
    """Make a fast potential of a material from a universal one, or from a program of DFT.

    Students are trained on what the teacher says of strained crystals and of its dynamics. They run dynamics of their
    own; where they disagree, the teacher labels, and the next students learn it. An interrupted command, given again,
    goes on where it was.
    """
    from hienet.distill.loop import Distillation
    from hienet.distill.plan import Plan
    from hienet.distill.report import FRESH_HEADINGS, comparison_rows, fresh_rows, write_report
    from hienet.properties.structures import read_one
    from hienet.tables import print_table
    from hienet.train.run import InterruptedTrainingError

    plan = Plan(
        temperatures=numbers(temperatures, "--temperatures"),
        pressures=numbers(pressures, "--pressures"),
        n_atoms=atoms,
        threshold=threshold,
        rounds=rounds,
        committee=committee,
        frames=frames,
        steps=steps,
        teacher_steps=teacher_steps,
        timestep=timestep,
        strain=strain,
        rattle=rattle,
        n_strained=strained,
        n_vacancies=vacancies,
        architecture=architecture,
        preset=preset,
        cutoff=cutoff,
        minutes=minutes,
        final_minutes=final_minutes,
        ranks=ranks,
        seed=seed,
    )
    console = make_console()
    try:
        crystal = read_one(structure)
        work = Distillation(crystal.atoms, crystal.name, output, plan, teacher, label_with, console)
        contents = write_report(work, work.run())
    except (KeyboardInterrupt, InterruptedTrainingError):
        print(f"interrupted; the same command goes on from what lies in `{printable(output)}`", file=sys.stderr)
        raise typer.Exit(130) from None
    print_table(console, FRESH_HEADINGS, fresh_rows(contents))
    print_table(console, ("", "student", "teacher", "difference"), comparison_rows(contents))
    if not contents["converged"]:
        console.print(
            f"the committee still disagreed after {len(contents['rounds'])} rounds; more --rounds or --minutes "
            "would help"
        )
    console.print(
        f"student: {output / 'final' / 'student.hienet.pt'}    report: {output / 'report.md'}, report.png, card.md"
    )
