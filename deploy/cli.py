"""The command `hienet-deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hienet.console import make_console, run_app, say

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
    from hienet.tables import SYMMETRY_IN_WORDS, print_table

    metadata = deployment.metadata
    print_table(
        make_console(),
        ("structure", "atoms", "energy\neV/atom", "forces\neV/Å", "stress\neV/Å³"),
        [
            (
                row.name,
                str(row.n_atoms),
                f"{row.energy:.1e}",
                f"{row.forces:.1e}",
                "-" if row.stress is None else f"{row.stress:.1e}",
            )
            for row in deployment.comparisons
        ],
        title="largest errors against the source model in float64",
    )
    size = deployment.path.stat().st_size / 1e6
    exchanged = [stage["exchanged_width"] for stage in metadata["stages"]]
    say(
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
        say(said)
    elif compiled:
        say(
            f"plain TorchScript, for any device: `{metadata['architecture']}` with these hyperparameters has no "
            "compiled form, so the file is slower on a CPU than a compiled one would be"
        )
    say(f"symmetry {metadata['symmetry']}{SYMMETRY_IN_WORDS[metadata['symmetry']]}")
    if not metadata["smooth_cutoff"]:
        say(
            "WARNING: this model was made with `smooth_cutoff: false`: its energy jumps "
            "whenever a neighbour crosses the cutoff, "
            "so molecular dynamics does not conserve energy. Train with `smooth_cutoff: true` for dynamics."
        )
    say(f"wrote {deployment.path} ({size:.1f} MB). In LAMMPS, with the elements of your atom types in order:")
    say("")
    shown = " ".join(metadata["elements"][:4]) + (" ..." if len(metadata["elements"]) > 4 else "")
    say("pair_style hienet")
    say(f"pair_coeff * * {_quoted(deployment.path.name)} {shown}")


def _quoted(name: str) -> str:
    """A file name as a word of a LAMMPS command, which splits lines at spaces and reads `#`, `$` and `&` in them."""
    if not set(name) & set(" \t#$&'\""):
        return name
    return f'"{name}"' if '"' not in name else f'"""{name}"""'


def main() -> None:
    """Entry point."""
    run_app(app)
