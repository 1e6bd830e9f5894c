"""The command `hienet-deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hienet.console import run_app

if TYPE_CHECKING:
    from .export import Deployment

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def deploy(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL", help="checkpoint: best.pt of a training, or what `hienet convert` wrote")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="file to write [default: NAME.hienet.pt beside MODEL]")
    ] = None,
    dtype: Annotated[str, typer.Option(help="precision of the deployed network: float32 or float64")] = "float32",
    elements: Annotated[
        str | None, typer.Option(help="keep only these elements, in this order: Si,C [default: all]")
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="with compiled operators, fast; or plain, for any device that torch knows"
        ),
    ] = True,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="largest error of a force, eV/Å (relative above 1 eV/Å); sizes of tables follow from it "
            "[default: 1e-5, in float64 1e-8]"
        ),
    ] = None,
) -> None:
    """Turn a checkpoint into the one file that LAMMPS loads, and check that it gives the same numbers."""
    from .export import export

    kept = None if elements is None else [symbol.strip() for symbol in elements.split(",") if symbol.strip()]
    _report(export(source, output, dtype, kept, compiled, tolerance), compiled)


def _report(deployment: Deployment, compiled: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from hienet.tables import SYMMETRY_IN_WORDS

    metadata = deployment.metadata
    console = Console(soft_wrap=True, highlight=False)
    table = Table(
        "structure",
        "atoms",
        "energy (eV/atom)",
        "forces (eV/Å)",
        "stress (eV/Å³)",
        title="largest errors against the source model in float64",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in deployment.comparisons:
        stress = "-" if row.stress is None else f"{row.stress:.1e}"
        table.add_row(row.name, str(row.n_atoms), f"{row.energy:.1e}", f"{row.forces:.1e}", stress)
    console.print(table)
    size = deployment.path.stat().st_size / 1e6
    exchanged = [stage["exchanged_width"] for stage in metadata["stages"]]
    console.print(
        f"{metadata['architecture']}: {metadata['n_parameters']:,} parameters, {len(metadata['elements'])} elements, "
        f"cutoff {metadata['cutoff']:g} Å, {metadata['dtype']}; between ranks "
        f"{sum(exchanged)} numbers an atom and step each way"
    )
    if metadata["operators"]:
        said = "compiled; on a GPU it needs the operators' CUDA kernels (docs/gpu.md)"
        tables = metadata["tables"]
        if tables is not None:
            said += (
                f". Functions of the distance are splines of {tables['n_intervals']} intervals, for a tolerance of "
                f"{tables['tolerance']:.0e} eV/Å: {tables['bytes'] / 1e6:.2g} MB in the file, "
                f"{tables['bytes_for_each_pair'] / 1e6:.2g} MB for each pair of elements when it is loaded"
            )
        console.print(said)
    elif compiled:
        console.print(
            f"plain TorchScript, for any device: `{metadata['architecture']}` with these hyperparameters has no "
            "compiled form, so the file is slower on a CPU than a compiled one would be"
        )
    console.print(f"symmetry {metadata['symmetry']}{SYMMETRY_IN_WORDS[metadata['symmetry']]}")
    if not metadata["smooth_cutoff"]:
        console.print(
            "WARNING: this model was made with `smooth_cutoff: false`: its energy jumps "
            "whenever a neighbour crosses the cutoff, "
            "so molecular dynamics does not conserve energy. Train with `smooth_cutoff: true` for dynamics."
        )
    console.print(
        f"wrote {deployment.path} ({size:.1f} MB). In LAMMPS, with the elements of your atom types in order:\n"
    )
    shown = " ".join(metadata["elements"][:4]) + (" ..." if len(metadata["elements"]) > 4 else "")
    console.print("pair_style hienet")
    # LAMMPS splits a line at spaces.
    name = f'"{deployment.path.name}"' if " " in deployment.path.name else deployment.path.name
    console.print(f"pair_coeff * * {name} {shown}")


def main() -> None:
    """Entry point."""
    run_app(app)
