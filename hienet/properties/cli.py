"""Commands of `hienet` that calculate properties. Heavy modules are imported inside, so that help appears at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from hienet.console import make_console

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from hienet.errors import HIENetError
    from hienet.properties.engine import Engine
    from hienet.properties.progress import Progress
    from hienet.properties.screen import Column, Outcome, Screening
    from hienet.properties.structures import Structure

PANEL = "Properties"

_Structures = Annotated[
    list[str],
    typer.Argument(help="Files with structures: CIF, POSCAR, extxyz, anything ASE reads.", show_default=False),
]
_Model = Annotated[
    Path,
    typer.Option("--model", "-m", help="Deployed model (.hienet.pt), or a checkpoint (.pt).", show_default=False),
]
_Device = Annotated[str, typer.Option(help="cpu, cuda, or cuda:N.")]
_DType = Annotated[str, typer.Option(help="float32 or float64.")]
_Supercell = Annotated[
    str | None, typer.Option(help="Repetitions, 3 or 2,2,3; default: by --length.", show_default=False)
]


def add_commands(app: typer.Typer) -> None:
    """Put all of them into an application."""
    for command in (relax, eos, elastic, phonons, qha, kappa, md, alloy, smoothness, speed, hull, discovery):
        app.command(rich_help_panel=PANEL)(command)


def relax(
    structures: _Structures,
    model: _Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("hienet_relax"),
    fixed_cell: Annotated[bool, typer.Option("--fixed-cell", help="Relax the atoms alone.")] = False,
    symmetry: Annotated[bool, typer.Option(help="Keep the space group.")] = True,
    pressure: Annotated[float, typer.Option(help="GPa.")] = 0.0,
    fmax: Annotated[float, typer.Option(min=0.0, help="Largest force at the end, eV/Å.")] = 1e-3,
    max_steps: Annotated[int, typer.Option(min=1, help="Steps at most.")] = 500,
    optimizer: Annotated[str, typer.Option(help="fire, lbfgs, or bfgs.")] = "fire",
    together: Annotated[int, typer.Option(min=1, help="Structures relaxed together.")] = 16,
    device: _Device = "cpu",
    dtype: _DType = "float64",
) -> None:
    """Relax atoms and cell of any number of structures.

    Structures are evaluated together. One that fails is named, and the others go on; an interrupted command, given
    again, keeps what was done.
    """
    from hienet.properties import relax as module

    settings = module.RelaxSettings(not fixed_cell, symmetry, pressure, fmax, max_steps, optimizer)
    screening = _run(
        "relax",
        _Work(structures, model, output, device, dtype),
        settings,
        module.relax_structures,
        module.COLUMNS,
        together,
    )
    if len(screening.rows) > 1 and all("volume_change_percent" in row for row in screening.rows):
        module.draw_changes(screening.folder / "relax.png", screening.rows)


def eos(
    structures: _Structures,
    model: _Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("hienet_eos"),
    points: Annotated[int, typer.Option(help="Number of volumes.")] = 11,
    change: Annotated[float, typer.Option(help="Largest relative change of the volume.")] = 0.06,
    relax: Annotated[bool, typer.Option(help="Relax the structure first, and atoms at each volume.")] = True,
    device: _Device = "cpu",
    dtype: _DType = "float64",
) -> None:
    """Fit Birch and Murnaghan's equation of state: volume, bulk modulus, its derivative."""
    from hienet.properties import eos as module

    settings = module.EosSettings(points, change, relax)
    _run("eos", _Work(structures, model, output, device, dtype), settings, module.eos_of_structures, module.COLUMNS)


def elastic(
    structures: _Structures,
    model: _Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("hienet_elastic"),
    normal: Annotated[str, typer.Option(help="Normal strains.")] = "-0.01,-0.005,0.005,0.01",
    shear: Annotated[str, typer.Option(help="Shear strains, half the engineering ones.")] = "-0.06,-0.03,0.03,0.06",
    relax: Annotated[bool, typer.Option(help="Relax the structure first.")] = True,
    clamped: Annotated[bool, typer.Option("--clamped", help="Do not relax the atoms in strained cells.")] = False,
    symmetrize: Annotated[bool, typer.Option(help="Average over the point group.")] = True,
    fit: Annotated[str, typer.Option(help="Of stresses against strain: cubic, or linear as published.")] = "cubic",
    device: _Device = "cpu",
    dtype: _DType = "float64",
) -> None:
    """Find all elastic constants, moduli of polycrystals, and whether the crystal is stable."""
    from hienet.properties import elastic as module

    settings = module.ElasticSettings(
        numbers(normal, "--normal"), numbers(shear, "--shear"), relax, not clamped, symmetrize, fit
    )
    _run(
        "elastic",
        _Work(structures, model, output, device, dtype),
        settings,
        module.elastic_of_structures,
        module.COLUMNS,
    )


def phonons(
    structures: _Structures,
    model: _Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("hienet_phonons"),
    supercell: _Supercell = None,
    length: Annotated[float, typer.Option(help="Least distance of opposite faces of the supercell, Å.")] = 12.0,
    displacement: Annotated[float, typer.Option(help="Å.")] = 0.01,
    relax: Annotated[bool, typer.Option(help="Relax the structure first.")] = True,
    temperature: Annotated[float, typer.Option(help="Highest, for thermal properties, K.")] = 1000.0,
    reference: Annotated[
        str | None,
        typer.Option(
            help="phonopy's band.yaml or force constants to compare with, or a folder with NAME.yaml.",
            show_default=False,
        ),
    ] = None,
    born: Annotated[str | None, typer.Option(help="phonopy's BORN, with charges.", show_default=False)] = None,
    device: _Device = "cpu",
    dtype: _DType = "float64",
) -> None:
    """Find phonons: band structure, density of states, thermal properties."""
    from hienet.properties import phonons as module

    repeats = None if supercell is None else whole_numbers(supercell, "--supercell")
    settings = module.PhononSettings(
        repeats, length, displacement, relax, temperature=temperature, reference=reference, born=born
    )
    _run(
        "phonons",
        _Work(structures, model, output, device, dtype),
        settings,
        module.phonons_of_structures,
        module.COLUMNS,
    )


def qha(
    structures: _Structures,
    model: _Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("hienet_qha"),
    volumes: Annotated[int, typer.Option(help="Number of volumes.")] = 7,
    smallest: Annotated[float, typer.Option(help="Smallest change of the volume.")] = -0.04,
    largest: Annotated[float, typer.Option(help="Largest.")] = 0.08,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="Highest, K.")] = 1000.0,
    pressure: Annotated[float, typer.Option("--pressure", "-p", help="GPa.")] = 0.0,
    supercell: _Supercell = None,
    length: Annotated[float, typer.Option(help="Least distance of opposite faces of the supercell, Å.")] = 10.0,
    device: _Device = "cpu",
    dtype: _DType = "float64",
) -> None:
    """Find thermal expansion by phonons at several volumes, the quasi-harmonic approximation."""
    from hienet.properties import qha as module

    repeats = None if supercell is None else whole_numbers(supercell, "--supercell")
    settings = module.QhaSettings(volumes, smallest, largest, temperature, pressure, repeats, length)
    _run("qha", _Work(structures, model, output, device, dtype), settings, module.qha_of_structures, module.COLUMNS)


def kappa(
    structures: _Structures,
    model: _Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("hienet_kappa"),
    supercell: Annotated[
        str | None,
        typer.Option(help="Repetitions for third order, 2 or 2,2,3; default: 8 Å.", show_default=False),
    ] = None,
    harmonic_supercell: Annotated[
        str | None, typer.Option(help="The same for second order; default: 12 Å.", show_default=False)
    ] = None,
    displacement: Annotated[float, typer.Option(help="Å.")] = 0.03,
    mesh: Annotated[str, typer.Option(help="Of q-points, 11 or 11,11,7.")] = "11",
    temperatures: Annotated[str, typer.Option("--temperatures", "-t", help="K.")] = "100,200,300,400,500,600,800,1000",
    reference: Annotated[
        str | None,
        typer.Option(help="File of phono3py to compare with, or a folder with NAME.yaml.", show_default=False),
    ] = None,
    device: _Device = "cpu",
    dtype: _DType = "float64",
) -> None:
    """Find the thermal conductivity of the lattice, by phono3py in the relaxation-time approximation."""
    from hienet.properties import kappa as module

    settings = module.KappaSettings(
        None if supercell is None else whole_numbers(supercell, "--supercell"),
        None if harmonic_supercell is None else whole_numbers(harmonic_supercell, "--harmonic-supercell"),
        displacement=displacement,
        mesh=whole_numbers(mesh, "--mesh"),
        temperatures=numbers(temperatures, "--temperatures"),
        reference=reference,
    )
    _run("kappa", _Work(structures, model, output, device, dtype), settings, module.kappa_of_structures, module.COLUMNS)


def alloy(
    structure: Annotated[str, typer.Argument(help="File with a crystal.", show_default=False)],
    model: _Model,
    replace: Annotated[str, typer.Option(help="Element whose sites are mixed.", show_default=False)],
    by: Annotated[str, typer.Option(help="Element that is put there.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("hienet_alloy"),
    compositions: Annotated[int, typer.Option(help="Number of them, both ends among them.")] = 9,
    atoms: Annotated[int, typer.Option(help="In the supercell, at least.")] = 32,
    iterations: Annotated[int, typer.Option(help="Arrangements tried for each composition.")] = 20000,
    fmax: Annotated[float, typer.Option(help="Largest force at the end, eV/Å.")] = 0.01,
    device: _Device = "cpu",
    dtype: _DType = "float64",
) -> None:
    """Find formation energies of random alloys over composition, by special quasirandom structures."""
    import ase.io

    from hienet.files import atomic_path, make_folder
    from hienet.properties import alloy as module
    from hienet.properties.engine import Engine
    from hienet.properties.progress import Progress
    from hienet.properties.screen import write_csv, write_json
    from hienet.properties.structures import read_one
    from hienet.tables import print_table

    settings = module.AlloySettings(replace, by, compositions, atoms, iterations, fmax)
    console = make_console()
    folder = make_folder(output, "--output")
    engine = Engine(model, device, dtype)
    crystal = read_one(structure)
    with Progress(console) as progress:
        found = module.alloy(crystal.atoms, engine, settings, progress)
    rows = found.rows()
    columns = module.columns(by)
    print_table(console, [c.heading for c in columns], [[c.cell(row) for c in columns] for row in rows])
    write_csv(folder / "results.csv", rows)
    write_json(
        folder / "results.json", {"model": engine.identity, "structure": structure, **asdict(settings), "results": rows}
    )
    with atomic_path(folder / "structures.extxyz") as temporary:
        ase.io.write(temporary, found.structures, format="extxyz")
    module.draw(folder / "alloy.png", found, f"{crystal.name}: {replace} and {by}, {engine.name}")
    console.print(f"results: {folder / 'results.csv'}, results.json, structures.extxyz and alloy.png beside it")


def hull(
    results: Annotated[str, typer.Argument(help="CSV with columns formula, energy_ev_per_atom.", show_default=False)],
    reference: Annotated[
        str, typer.Option("--reference", "-r", help="The same of the phases to compare with.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")] = Path("hull.csv"),
) -> None:
    """Add distances to the convex hull of reference phases to the results of `hienet relax`."""
    from hienet.errors import HIENetError
    from hienet.properties import hull as module
    from hienet.properties.screen import Column, write_csv
    from hienet.tables import print_table

    console = make_console()
    phases = module.read_phases(reference)
    rows: list[dict[str, Any]] = []
    failed = 0
    for row in module.read_table(results, ("formula", "energy_ev_per_atom")):
        new: dict[str, Any] = dict(row)
        try:
            if row["energy_ev_per_atom"]:
                compound = module.phase(row["formula"], module.number(row["energy_ev_per_atom"], results))
                new["e_above_hull_ev_per_atom"] = module.distance_to_hull(compound, phases)
        except HIENetError as error:
            failed += 1
            new["error"] = str(error)
            console.print(f"{row.get('name') or row['formula']}: {error}")
        rows.append(new)
    columns = (
        Column("name", "name"),
        Column("formula", "formula"),
        Column("e_above_hull_ev_per_atom", "above hull\neV/atom", ".4f"),
    )
    if failed == len(rows):
        raise HIENetError(f"none of the {len(rows)} rows of `{results}` could be placed")
    print_table(console, [c.heading for c in columns], [[c.cell(row) for c in columns] for row in rows])
    write_csv(output, rows)
    console.print(f"wrote {output}")


def discovery(
    table: Annotated[
        str,
        typer.Argument(
            help="CSV with columns e_above_hull_dft_ev_per_atom, e_above_hull_ev_per_atom, and perhaps rmsd.",
            show_default=False,
        ),
    ],
    threshold: Annotated[float, typer.Option(help="At most so far above the hull is called stable, eV/atom.")] = 0.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("hienet_discovery"),
) -> None:
    """Score predicted distances to the convex hull as Matbench Discovery does: F1, DAF, MAE and others."""
    from hienet.files import make_folder
    from hienet.properties import discovery as module
    from hienet.properties.screen import write_csv, write_json
    from hienet.tables import print_facts

    console = make_console()
    reference, predicted, rmsd = module.read_distances(table)
    found = module.discovery_metrics(reference, predicted, rmsd, threshold)
    folder = make_folder(output, "--output")
    values = found.as_dict()
    print_facts(
        console,
        {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in values.items() if v is not None},
        f"{found.n} crystals; mae and rmse in eV/atom",
    )
    write_csv(folder / "results.csv", [values])
    write_json(folder / "results.json", {"table": table, "threshold_ev_per_atom": threshold, **values})
    module.draw(folder / "discovery.png", reference, predicted, found)
    console.print(f"results: {folder / 'results.csv'}, results.json and discovery.png beside it")


def md(
    structure: Annotated[str, typer.Argument(help="File with a structure.", show_default=False)],
    model: _Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for deck and results.")] = Path("hienet_md"),
    ensemble: Annotated[str, typer.Option("--ensemble", "-e", help="nve, nvt, or npt.")] = "nvt",
    temperature: Annotated[str, typer.Option("--temperature", "-t", help="K; 300:1500 is a ramp.")] = "300",
    pressure: Annotated[str, typer.Option("--pressure", "-p", help="GPa, for npt; 0:10 is a ramp.")] = "0",
    coupling: Annotated[str, typer.Option(help="What npt changes: iso, aniso, or tri.")] = "iso",
    steps: Annotated[int, typer.Option(help="Steps that are analysed.")] = 5000,
    equilibration: Annotated[int, typer.Option(help="Steps before these.")] = 1000,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    every: Annotated[int, typer.Option(help="Steps between frames.")] = 20,
    atoms: Annotated[
        int | None, typer.Option(help="Repeat the cell to at least so many atoms.", show_default=False)
    ] = None,
    ranks: Annotated[int, typer.Option("--ranks", "-n", min=1, help="MPI ranks.")] = 1,
    seed: Annotated[int, typer.Option(min=1, help="Of the velocities.")] = 1,
    write_only: Annotated[bool, typer.Option("--write-only", help="Write deck and data file, run nothing.")] = False,
) -> None:
    """Write a LAMMPS deck for a structure, run it, and show temperature, volume, g(r) and diffusion."""
    from hienet.properties import md as module
    from hienet.properties.deck import Dynamics, parse_ramp
    from hienet.properties.progress import Progress
    from hienet.properties.screen import write_csv, write_json
    from hienet.properties.structures import read_one
    from hienet.tables import print_table

    dynamics = Dynamics(
        ensemble,
        parse_ramp(temperature, "--temperature"),
        parse_ramp(pressure, "--pressure"),
        coupling,
        steps,
        equilibration,
        timestep,
        every,
        seed,
    )
    console = make_console()
    found = read_one(structure)
    title = f"{found.name}, {ensemble.upper()}, {dynamics.temperature} K"
    deck = module.prepare(found.atoms, model, output, dynamics, atoms, title)
    console.print(f"wrote {deck} and {output / 'data.md'}")
    if write_only:
        return
    with Progress(console) as progress:
        progress.begin("steps", steps + equilibration)

        def follow(line: str) -> None:
            word = line.split(maxsplit=1)[0] if line.strip() else ""
            if word.isdigit() and len(line.split()) == module.N_COLUMNS and int(word) > 0:
                progress.advance(every)

        try:
            run = module.run(deck, dynamics, ranks, echo=follow)
        except KeyboardInterrupt:
            print(f"interrupted; the deck lies in `{output}`, and the same command begins anew", file=sys.stderr)
            raise typer.Exit(130) from None
    row = run.row()
    for name, rows in zip(("thermo", "rdf", "msd"), module.tables(run), strict=True):
        write_csv(output / f"{name}.csv", rows)
    write_csv(output / "results.csv", [row])
    write_json(output / "results.json", {"structure": structure, "model": str(model), **row})
    module.draw(output / "md.png", run, f"{title}, {row['n_atoms']} atoms")
    print_table(console, ("", "mean", "standard error"), module.table(row))
    console.print(
        f"results: {output / 'results.csv'}, {output / 'md.png'}, thermo.csv, rdf.csv and msd.csv beside them"
    )


def smoothness(
    structures: _Structures,
    model: _Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("hienet_smoothness"),
    points: Annotated[int, typer.Option(help="On each curve.")] = 200,
    path: Annotated[float, typer.Option(help="Way of an atom through its crystal, Å.")] = 0.6,
    device: _Device = "cpu",
    dtype: _DType = "float64",
) -> None:
    """Look whether the energy is smooth: dimers, the cutoff, compression, an atom that moves."""
    from hienet.properties import smoothness as module

    settings = module.SmoothnessSettings(points, path=path)
    _run(
        "smoothness",
        _Work(structures, model, output, device, dtype),
        settings,
        module.smoothness_of_structures,
        module.COLUMNS,
    )


def speed(
    structure: Annotated[str, typer.Argument(help="File with a crystal, which is repeated.", show_default=False)],
    model: _Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("hienet_speed"),
    sizes: Annotated[str, typer.Option(help="Numbers of atoms.")] = "64,128,256,512,1024,2048",
    device: _Device = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="float32 or float64; default: a deployed file's own.", show_default=False)
    ] = None,
) -> None:
    """Measure time and memory of energy, forces and stress here, and how many atoms fit."""
    from hienet.calculator import load_model
    from hienet.files import make_folder
    from hienet.properties import speed as module
    from hienet.properties.progress import Progress
    from hienet.properties.screen import write_csv, write_json
    from hienet.properties.structures import read_one
    from hienet.tables import print_table

    console = make_console()
    folder = make_folder(output, "--output")
    loaded = load_model(model, device, dtype)
    atoms = read_one(structure).atoms
    with Progress(console) as progress:
        found = module.speed(atoms, loaded, whole_numbers(sizes, "--sizes"), progress)
    rows = found.rows()
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    where = f"{found.machine}, {threads}" if loaded.device.type == "cpu" else found.machine
    kind = str(loaded.dtype).removeprefix("torch.")
    print_table(
        console,
        [column.heading for column in module.COLUMNS],
        [[column.cell(row) for column in module.COLUMNS] for row in rows],
    )
    fit = found.atoms_that_fit
    console.print(f"{where}, {kind}; neighbours are found anew each time")
    if found.exhausted is not None:
        console.print(f"memory did not suffice for {found.exhausted} atoms")
    elif fit is not None:
        console.print(f"about {fit:,} atoms fit here, by the memory that more atoms took")
    else:
        console.print("memory did not grow with these sizes; larger --sizes tell how many atoms fit")
    write_csv(folder / "results.csv", rows)
    contents = {"model": str(model), "machine": where, "dtype": kind, "atoms_that_fit": fit, "results": rows}
    write_json(folder / "results.json", contents)
    module.draw(folder / "speed.png", found, f"{model.name} on {where}, {kind}")
    console.print(f"results: {folder / 'results.csv'}, {folder / 'results.json'}, {folder / 'speed.png'}")


class _Work(NamedTuple):
    """What all calculations of structures are told."""

    structures: Sequence[str]
    model: Path
    output: Path
    device: str
    dtype: str


def _run(
    command: str,
    work: _Work,
    settings: DataclassInstance,
    calculate: Callable[[Sequence[Structure], Engine, Any, Progress], Sequence[Outcome | HIENetError]],
    columns: Sequence[Column],
    at_a_time: int = 1,
) -> Screening:
    """Read structures and model, calculate, and print the table; exit status 1 where nothing succeeded."""
    from hienet.errors import HIENetError
    from hienet.properties.engine import Engine, advice_for_model
    from hienet.properties.screen import print_screening, screen
    from hienet.properties.structures import read_structures

    console = make_console()
    engine = Engine(work.model, work.device, work.dtype)
    found, unreadable = read_structures(work.structures)
    advice = advice_for_model(work.model) if work.device == "cpu" else None
    if advice:
        console.print(advice)
    try:
        screening = screen(
            command,
            found,
            unreadable,
            lambda chunk, progress: calculate(chunk, engine, settings, progress),
            engine,
            asdict(settings),
            work.output,
            console,
            at_a_time,
        )
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from what lies in `{work.output}`", file=sys.stderr)
        raise typer.Exit(130) from None
    if not screening.rows:
        raise HIENetError(
            f"none of {len(screening.failures)} structures could be calculated: {screening.failures[0].reason}"
        )
    print_screening(console, screening, columns)
    return screening


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        HIENetError: something else.
    """
    from hienet.errors import HIENetError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise HIENetError(f"{option} takes numbers separated by commas, got `{text}`") from error


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers separated by commas.

    Raises:
        HIENetError: something else.
    """
    from hienet.errors import HIENetError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise HIENetError(f"{option} takes whole numbers separated by commas, got `{text}`") from error
