"""Matbench Discovery's relaxation of the WBM crystals, as an entry of its leaderboard needs it.

    python -m hienet.properties.matbench_discovery MODEL ATOMS.zip -o results --part 1 --parts 32

`interfaces/matbench_discovery.yml` is such an entry, and says what to do with the results.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import ase
import ase.io
import typer

from hienet.console import run_app
from hienet.data.json_structures import pymatgen_structure
from hienet.errors import HIENetError
from hienet.files import atomic_path, json_text, make_folder
from hienet.properties.engine import Engine
from hienet.properties.relax import Relaxation, RelaxSettings, relax
from hienet.properties.screen import of_known_elements
from hienet.properties.structures import Structure

SETTINGS = RelaxSettings(cell=True, symmetry=False, fmax=0.05, max_steps=500, optimizer="fire")
"""As most entries have it: FIRE, `FrechetCellFilter`, 0.05 eV/Å, 500 steps."""
MATERIAL = "material_id"


def read_zip(path: str | Path) -> Iterator[tuple[str, ase.Atoms]]:
    """Identifier and structure of each extxyz file in an archive.

    Raises:
        HIENetError: no such archive, or a structure without an identifier.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise HIENetError(
            f"cannot read `{path}`: {error}; expected an archive of extxyz files, such as Matbench Discovery's "
            "`wbm_initial_atoms`"
        ) from error
    with archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".extxyz")):
            text = io.StringIO(archive.read(name).decode("utf-8"))
            for atoms in ase.io.read(text, index=":", format="extxyz"):
                if MATERIAL not in atoms.info:
                    raise HIENetError(f"`{name}` in `{path}` has no entry `{MATERIAL}` that says which crystal it is")
                yield str(atoms.info[MATERIAL]), atoms


def relax_crystals(
    crystals: Sequence[tuple[str, ase.Atoms]], engine: Engine, path: Path, together: int = 16
) -> Iterator[tuple[str, Relaxation | HIENetError]]:
    """Relax what is not yet in a file of JSON lines, and append a line for each crystal that succeeds.

    Args:
        crystals: identifiers and structures.
        engine: what gives forces.
        path: of the lines `material_id`, `hienet_energy` (eV), `hienet_structure`.
        together: crystals that are evaluated at a time.

    Yields:
        Identifier and result of each crystal, when it is done.
    """
    done = _finished(path)
    todo = [Structure(name, name, atoms) for name, atoms in crystals if name not in done]
    for first in range(0, len(todo), together):
        chunk = todo[first : first + together]
        results = of_known_elements(chunk, engine, lambda known: relax([s.atoms for s in known], engine, SETTINGS))
        with path.open("a", encoding="utf-8") as file:
            for structure, result in zip(chunk, results, strict=True):
                if isinstance(result, Relaxation) and result.error is None:
                    file.write(json_text(_row(structure.name, result)) + "\n")
        yield from ((structure.name, result) for structure, result in zip(chunk, results, strict=True))


def _row(name: str, result: Relaxation) -> dict[str, Any]:
    structure = pymatgen_structure(result.atoms)
    return {MATERIAL: name, "hienet_energy": result.energies[-1], "hienet_structure": structure}


def _finished(path: Path) -> set[str]:
    """Of a run that was interrupted; a line that was not written to its end is cut off."""
    if not path.exists():
        return set()
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    with atomic_path(path) as temporary:
        temporary.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return {json.loads(line)[MATERIAL] for line in whole.splitlines()}


def main(
    model: Annotated[Path, typer.Argument(help="Checkpoint or deployed model.")],
    atoms: Annotated[Path, typer.Argument(help="Archive of the initial structures, extxyz in zip.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("results"),
    part: Annotated[int, typer.Option(min=1, help="Which part of the structures.")] = 1,
    parts: Annotated[int, typer.Option(min=1, help="Into how many parts they are divided, one for each job.")] = 1,
    together: Annotated[int, typer.Option(min=1, help="Structures relaxed together.")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda, or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float64",
) -> None:
    """Relax the crystals of Matbench Discovery; a command that was interrupted, given again, goes on."""
    if part > parts:
        raise HIENetError(f"--part {part} is more than --parts {parts}; parts are numbered from 1")
    engine = Engine(model, device, dtype)
    crystals = list(read_zip(atoms))[part - 1 :: parts]
    path = make_folder(output, "--output") / f"hienet-{part:03d}.jsonl"
    failed = 0
    for name, result in relax_crystals(crystals, engine, path, together):
        error = result if isinstance(result, HIENetError) else result.error
        failed += error is not None
        ending = "relaxed" if isinstance(result, Relaxation) and result.converged else "not converged"
        print(f"{name}: {ending if error is None else f'failed: {error}'}", flush=True)
    compressed = path.with_suffix(".json.gz")
    with atomic_path(compressed) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
        file.write(path.read_text(encoding="utf-8"))
    print(f"{len(crystals) - failed} of {len(crystals)} crystals are in {compressed}")


app = typer.Typer(add_completion=False)
app.command()(main)

if __name__ == "__main__":
    run_app(app)
