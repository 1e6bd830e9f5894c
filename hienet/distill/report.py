"""The closing report of a distillation: student against teacher, the speed of both, and the student's card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
from matplotlib.figure import Figure

from hienet.distill.explore import Exploration, conditions, explore
from hienet.distill.loop import Distillation, Distilled
from hienet.figure import BLUE, COLORS, GRAY, ORANGE, save_figure, tidy
from hienet.files import atomic_path
from hienet.properties.elastic import elastic_constants
from hienet.properties.engine import Array, Engine
from hienet.properties.eos import equation_of_state
from hienet.properties.phonons import PhononSettings, phonons
from hienet.properties.screen import write_csv, write_json
from hienet.properties.thermo import block_error
from hienet.properties.trajectory import radial_distribution
from hienet.quantities import ENERGY, FORCES, QUANTITIES, STRESS

_SPEED_STEPS = 60


def write_report(work: Distillation, found: Distilled) -> dict[str, Any]:
    """Compare, and write `report.json`, `report.csv`, `report.md`, `report.png` and `card.md`; returns what JSON holds.

    Raises:
        HIENetError: a comparison fails, such as a relaxation of the student.
    """
    student = Engine(found.student)
    teacher = None if found.teacher is None else Engine(found.teacher)
    fresh = _errors_on_fresh(found.fresh, student)
    work.say("report: crystal, elastic constants and phonons")
    crystal = {"student": _crystal(found.crystal, student)}
    if teacher is not None:
        crystal["teacher"] = _crystal(found.crystal, teacher)
    phonon = _phonons(found.crystal, student, teacher)
    dynamics, functions = _dynamics(work, found)
    speed = _speed(work, found)
    contents: dict[str, Any] = {
        "material": found.crystal.get_chemical_formula(empirical=True),
        "labelled_by": work.who,
        "converged": found.converged,
        "labelled_frames": found.n_frames,
        "rounds": found.rounds,
        "fresh": fresh,
        "crystal": crystal,
        "phonons": phonon,
        "dynamics": dynamics,
        "speed": speed,
    }
    folder = work.folder
    write_json(folder / "report.json", contents)
    rows = comparison_rows(contents)
    write_csv(folder / "report.csv", [dict(zip(_COLUMNS, row, strict=True)) for row in rows])
    with atomic_path(folder / "report.md") as temporary:
        temporary.write_text(_markdown(contents, rows, work), encoding="utf-8")
    with atomic_path(folder / "card.md") as temporary:
        temporary.write_text(_card(contents, work), encoding="utf-8")
    _draw(folder / "report.png", found, student, functions, contents)
    return contents


def _errors_on_fresh(frames: Sequence[ase.Atoms], student: Engine) -> list[dict[str, Any]]:
    """Errors for each condition of the frames, and of all."""
    predicted = student.calculate(frames)
    rows = []
    names = [str(atoms.info.get("config_type", "")) for atoms in frames]
    for name in [*dict.fromkeys(names), "all"]:
        chosen = [i for i, each in enumerate(names) if name in (each, "all")]
        pairs = [(frames[i], predicted[i]) for i in chosen]
        energy = np.array([(p.energy - a.get_potential_energy()) / len(a) for a, p in pairs])
        forces = np.concatenate([(p.forces - a.get_forces()).ravel() for a, p in pairs])
        stress = [p.stress - a.get_stress() for a, p in pairs if "stress" in a.calc.results and p.stress is not None]
        rows.append(
            {
                "frames": len(chosen),
                "conditions": name,
                ENERGY.key("mae"): ENERGY.factor * float(np.abs(energy).mean()),
                FORCES.key("mae"): FORCES.factor * float(np.abs(forces).mean()),
                FORCES.key("rmse"): FORCES.factor * float(np.sqrt((forces**2).mean())),
                STRESS.key("mae"): STRESS.factor * float(np.abs(stress).mean()) if stress else None,
            }
        )
    return rows


def _crystal(atoms: ase.Atoms, engine: Engine) -> dict[str, Any]:
    eos = equation_of_state(atoms, engine)
    elastic = elastic_constants(atoms, engine)
    c = elastic.constants
    return {
        "a_angstrom": float(eos.atoms.cell.lengths()[0]),
        "volume_angstrom3_per_atom": eos.volume / len(atoms),
        "bulk_modulus_gpa": eos.bulk_modulus,
        **{f"c{i + 1}{j + 1}_gpa": float(c[i, j]) for i in range(6) for j in range(i, 6) if abs(c[i, j]) > 1.0},
    }


def _phonons(atoms: ase.Atoms, student: Engine, teacher: Engine | None) -> dict[str, Any]:
    settings = PhononSettings(length=10.0)
    mine = phonons(atoms, student, settings)
    found: dict[str, Any] = {
        "student_lowest_thz": mine.lowest,
        "student_highest_thz": float(max(each.max() for each in mine.frequencies)),
    }
    if teacher is not None:
        theirs = phonons(atoms, teacher, settings)
        difference = np.concatenate(mine.frequencies) - np.concatenate(theirs.frequencies)
        found |= {
            "teacher_lowest_thz": theirs.lowest,
            "teacher_highest_thz": float(max(each.max() for each in theirs.frequencies)),
            "mae_thz": float(np.abs(difference).mean()),
            "rmse_thz": float(np.sqrt((difference**2).mean())),
        }
    return found


def _dynamics(work: Distillation, found: Distilled) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Volumes of both at all conditions, and g(r)."""
    rows: list[dict[str, Any]] = []
    functions: dict[str, dict[str, Any]] = {}
    for i, (temperature, pressure, name) in enumerate(conditions(work.plan)):
        runs = {"student": work.fresh_run(found.student, i)}
        if found.teacher is not None:
            work.say(f"report: dynamics of the teacher, {name}")
            runs["teacher"] = explore(
                work.supercell,
                [found.teacher],
                work.folder / "fresh" / f"teacher-{name}",
                work.plan,
                temperature,
                pressure,
                2 * work.plan.teacher_steps,
                work.plan.seed + 90_000 + i,
            )
        row: dict[str, Any] = {"conditions": name}
        functions[name] = {}
        for who, run in runs.items():
            late = slice(len(run.frames) // 3, None)
            volumes: Array = run.volumes[late] / len(work.supercell)
            row[f"{who}_volume_angstrom3_per_atom"] = float(volumes.mean())
            row[f"{who}_volume_error"] = block_error(volumes)
            functions[name][who] = radial_distribution(run.frames[late])
        rows.append(row)
    return rows, functions


def _speed(work: Distillation, found: Distilled) -> dict[str, Any]:
    """Of LAMMPS on one rank, in turns; the smaller of two times each."""

    def once(model: Path, who: str, turn: int) -> float:
        run: Exploration = explore(
            work.supercell,
            [model],
            work.folder / "speed" / f"{who}-{turn}",
            work.one_rank,
            300.0,
            0.0,
            _SPEED_STEPS,
            1,
            every=_SPEED_STEPS,
        )
        return run.speed["microseconds_per_atom_step"]

    models = {"student": found.student} | ({} if found.teacher is None else {"teacher": found.teacher})
    times: dict[str, list[float]] = {who: [] for who in models}
    for turn in range(2):
        for who, model in models.items():
            times[who].append(once(model, who, turn))
    best = {f"{who}_microseconds_per_atom_step": min(values) for who, values in times.items()}
    if found.teacher is not None:
        best["ratio"] = best["teacher_microseconds_per_atom_step"] / best["student_microseconds_per_atom_step"]
    return best


_COLUMNS = ("quantity", "student", "teacher", "difference")


def comparison_rows(contents: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What student and teacher say of the crystal: quantity, both values, difference."""
    student, teacher = contents["crystal"]["student"], contents["crystal"].get("teacher")
    rows = []
    for key, value in student.items():
        name, _, unit = key.partition("_")
        unit = {"angstrom": "Å", "gpa": "GPa"}.get(unit, unit)
        label = {
            "volume_angstrom3_per_atom": "volume (Å³/atom)",
            "bulk_modulus_gpa": "bulk modulus (GPa)",
        }.get(key, f"{name.upper() if name.startswith('c') else name} ({unit})")
        digits = 1 if unit.endswith("GPa") or "gpa" in key else 4
        theirs = None if teacher is None else teacher.get(key)
        difference = "-" if not theirs else f"{100 * (value / theirs - 1):+.2f} %"
        rows.append((label, f"{value:.{digits}f}", "-" if theirs is None else f"{theirs:.{digits}f}", difference))
    phonon = contents["phonons"]
    rows.append(
        (
            "highest phonon (THz)",
            f"{phonon['student_highest_thz']:.2f}",
            f"{phonon['teacher_highest_thz']:.2f}" if "teacher_highest_thz" in phonon else "-",
            f"MAE {phonon['mae_thz']:.3f} THz" if "mae_thz" in phonon else "-",
        )
    )
    for run in contents["dynamics"]:
        mine, theirs = run["student_volume_angstrom3_per_atom"], run.get("teacher_volume_angstrom3_per_atom")
        rows.append(
            (
                f"volume, {run['conditions'].replace('_', ', ')} (Å³/atom)",
                f"{mine:.3f}",
                "-" if theirs is None else f"{theirs:.3f}",
                "-" if theirs is None else f"{100 * (mine / theirs - 1):+.2f} %",
            )
        )
    speed = contents["speed"]
    rows.append(
        (
            "time (µs/atom/step, one core)",
            f"{speed['student_microseconds_per_atom_step']:.0f}",
            f"{speed['teacher_microseconds_per_atom_step']:.0f}" if "ratio" in speed else "-",
            f"{speed['ratio']:.1f} times as fast" if "ratio" in speed else "-",
        )
    )
    return rows


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def fresh_rows(contents: dict[str, Any]) -> list[tuple[str, ...]]:
    """Errors on fresh frames: conditions, frames, energy, forces, stress."""
    return [
        (
            row["conditions"].replace("_", ", "),
            str(row["frames"]),
            *(quantity.cell(row[quantity.key("mae")]) for quantity in QUANTITIES),
        )
        for row in contents["fresh"]
    ]


FRESH_HEADINGS = ("conditions", "frames", "energy MAE (meV/atom)", "force MAE (meV/Å)", "stress MAE (GPa)")


def _markdown(contents: dict[str, Any], rows: Sequence[Sequence[str]], work: Distillation) -> str:
    ended = (
        f"The committee agreed after {len(contents['rounds'])} rounds."
        if contents["converged"]
        else f"After {len(contents['rounds'])} rounds the committee still disagreed; more rounds or minutes would help."
    )
    lines = [
        f"# {contents['material']}: a student of `{Path(contents['labelled_by']).name}`",
        "",
        f"{contents['labelled_frames']} labelled frames. {ended}",
        "",
        "## Errors against the labels, on frames of the student's own dynamics that it was not trained on",
        "",
        *_table(FRESH_HEADINGS, fresh_rows(contents)),
        "",
        "## Student and teacher",
        "",
        *_table(_COLUMNS, rows),
        "",
        "## Rounds",
        "",
        *_table(
            ("round", "labelled before", "frames seen", f"above {work.plan.threshold:g} eV/Å", "largest (eV/Å)"),
            [
                (
                    str(r["round"]),
                    str(r["labelled_before"]),
                    str(r["frames_seen"]),
                    f"{100 * r['uncertain_part']:.1f} %",
                    f"{r['largest_deviation_ev_per_angstrom']:.2f}",
                )
                for r in contents["rounds"]
            ],
        ),
        "",
        "![report](report.png)",
        "",
    ]
    return "\n".join(lines)


def _card(contents: dict[str, Any], work: Distillation) -> str:
    plan = work.plan
    last = contents["rounds"][-1]
    temperatures = ", ".join(f"{t:g}" for t in plan.temperatures)
    pressures = ", ".join(f"{p:g}" for p in plan.pressures)
    vacancies = "crystals with one vacancy, " if plan.n_vacancies else ""
    errors = next(row for row in contents["fresh"] if row["conditions"] == "all")
    return f"""# {contents["material"]}, distilled

**What it is.** A {plan.architecture} potential (preset {plan.preset}, cutoff {plan.cutoff:g} Å), trained by
`hienet distill` on labels of `{contents["labelled_by"]}`. It cannot be better than what labelled it, whose errors
against experiment and DFT it inherits.

**Data.** {contents["labelled_frames"]} frames of {contents["material"]}, with labels in this folder:
{plan.n_strained} strained up to {100 * plan.strain:g} % and rattled up to {plan.rattle:g} Å,
{vacancies}dynamics at {temperatures} K and {pressures} GPa.

**Errors** against the labels on fresh dynamics: {errors["energy_mae_mev_per_atom"]:.2f} meV/atom,
{errors["forces_mae_mev_per_angstrom"]:.1f} meV/Å.

**Limits.** It knows this composition and this crystal under these conditions. It was not shown surfaces, other phases,
other compositions, {"" if plan.n_vacancies else "vacancies, "}interstitials or higher temperatures. In the last round
{100 * last["uncertain_part"]:.1f} % of the frames had a force on which the committee disagreed by more than
{plan.threshold:g} eV/Å. Where it is to be used elsewhere, run a committee (`pair_style hienet` with several files) and
watch its deviation.
"""


def _draw(
    path: Path,
    found: Distilled,
    student: Engine,
    functions: dict[str, dict[str, Any]],
    contents: dict[str, Any],
) -> None:
    figure = Figure(figsize=(11.5, 7.0), layout="constrained")
    energy, forces, rounds, *rest = figure.subplots(2, 3).ravel()
    _parity(energy, forces, found.fresh, student)
    _rounds(rounds, contents)
    shown = list(functions)[:1] + list(functions)[1:][-2:]
    for axis, name in zip(rest, shown, strict=False):
        for (who, color), style in zip((("teacher", ORANGE), ("student", BLUE)), ("-", "--"), strict=True):
            if who in functions[name]:
                distances, g = functions[name][who]
                axis.plot(distances, g.get("all", next(iter(g.values()))), style, color=color, linewidth=1.3, label=who)
        axis.axhline(1.0, color=GRAY, linewidth=0.7, linestyle=":")
        axis.set_title(f"g(r), {name.replace('_', ', ')}", fontsize=10.5)
        axis.set_xlabel("distance (Å)")
        axis.set_ylim(bottom=0.0)
        axis.legend(frameon=False, fontsize=8.5)
    for axis in rest[len(shown) :]:
        axis.set_axis_off()
    for axis in (energy, forces, rounds, *rest[: len(shown)]):
        tidy(axis)
    figure.suptitle(f"{contents['material']}: student and {Path(contents['labelled_by']).name}", fontsize=11)
    save_figure(figure, path)


def _parity(energy: Any, forces: Any, frames: Sequence[ase.Atoms], student: Engine) -> None:
    predicted = student.calculate(frames)
    names = [str(atoms.info.get("config_type", "")) for atoms in frames]
    offset = np.mean([atoms.get_potential_energy() / len(atoms) for atoms in frames])

    def scatter(axis: Any, values: Callable[[int], tuple[Array, Array]]) -> None:
        limits = []
        for color, name in zip(COLORS, dict.fromkeys(names), strict=False):
            pairs = [values(i) for i, each in enumerate(names) if each == name]
            x, y = np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
            axis.scatter(
                x, y, s=8, color=color, linewidths=0, alpha=0.5, label=name.replace("_", ", "), rasterized=True
            )
            limits += [x.min(), x.max(), y.min(), y.max()]
        margin = 0.05 * (max(limits) - min(limits))
        ends = [min(limits) - margin, max(limits) + margin]
        axis.plot(ends, ends, color="0.25", linewidth=0.8, zorder=0)
        axis.set_xlim(*ends)
        axis.set_ylim(*ends)
        axis.set_xlabel("label")
        axis.set_ylabel("student")
        axis.legend(frameon=False, fontsize=8)

    def energies(i: int) -> tuple[Array, Array]:
        n = len(frames[i])
        label = np.array([1e3 * (frames[i].get_potential_energy() / n - offset)])
        return label, np.array([1e3 * (predicted[i].energy / n - offset)])

    scatter(energy, energies)
    energy.set_title("energy − its mean (meV/atom), fresh frames", fontsize=10.5)
    scatter(forces, lambda i: (frames[i].get_forces().ravel(), predicted[i].forces.ravel()))
    forces.set_title("force components (eV/Å), fresh frames", fontsize=10.5)


def _rounds(axis: Any, contents: dict[str, Any]) -> None:
    numbers = [row["round"] for row in contents["rounds"]]
    axis.plot(
        numbers,
        [row["median_deviation_ev_per_angstrom"] for row in contents["rounds"]],
        "o-",
        color=BLUE,
        label="median",
    )
    axis.plot(
        numbers,
        [row["largest_deviation_ev_per_angstrom"] for row in contents["rounds"]],
        "s-",
        color=ORANGE,
        label="largest",
    )
    axis.set_yscale("log")
    axis.set_xticks(numbers)
    axis.set_xlabel("round")
    axis.set_title("deviation of the committee (eV/Å)", fontsize=10.5)
    axis.legend(frameon=False, fontsize=8.5)
