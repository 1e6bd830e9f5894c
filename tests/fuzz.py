"""Damaged model files: every one is refused with a sentence, or does exactly what the whole one does.

A campaign is run by hand, some thousands of files of each kind:

    .venv/bin/python tests/fuzz.py --files 3000 --seed 1

Files are damaged by a generator that is seeded by their number, so that `--first N --files 1` repeats one of them. They
are read in processes of their own, some dozens in each, whose address space and time are limited: a file that crashes
a process, hangs it, or asks for huge memory is found by its number. test_untrusted.py runs a small sample.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
KINDS = ("checkpoint", "foreign", "deployed", "compiled", "lammps")
"""`checkpoint`: of this package; `foreign`: one of the HIENet authors, to be converted; `deployed` and `compiled`:
deployed files, plain and compiled, in Python; `lammps`: a compiled one in `pair_coeff`."""
MEMORY = 2 << 30
"""Bytes of address space that reading files may add to a process."""
PATIENCE = 20.0
"""Seconds for each file; a process that takes longer for its files hangs."""
HARMLESS = ("refused", "same")
"""Outcomes that are right: an error of ours, or the same numbers as the whole file gives (what was damaged is read by
nobody: a date, padding)."""

Array = np.ndarray[Any, Any]


# Damage


def damaged(whole: bytes, number: int, seed: int, valid_checksums: bool = False) -> bytes:
    """The file that belongs to a number.

    Args:
        whole: an intact file.
        number: of the damaged file.
        seed: of the campaign.
        valid_checksums: damage the contents of one record and write the archive anew, as somebody would who means harm.
    """
    rng = np.random.default_rng((seed, number))
    if not valid_checksums:
        return _damage(whole, rng)
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(target, "w") as copy:
        # Pickles, JSON and code decide more than weights.
        records = source.infolist()
        chosen = records[rng.integers(len(records))]
        if rng.random() < 0.5:
            chosen = next(r for r in records if r.filename.endswith("/data.pkl"))
        for record in records:
            contents = source.read(record)
            copy.writestr(record, _damage(contents, rng) if record is chosen and contents else contents)
    return target.getvalue()


def _damage(whole: bytes, rng: np.random.Generator) -> bytes:
    """Truncated, bits flipped, or a piece zeroed, removed, repeated or replaced by noise."""
    data = np.frombuffer(whole, np.uint8).copy()
    size = len(data)
    # Half of the damage falls where the table of contents lies, which is small.
    place = int(rng.integers(size)) if rng.random() < 0.5 else size - 1 - int(rng.integers(min(size, 16384)))
    length = min(size - place, int(2 ** rng.uniform(0, 12)))
    kind = rng.choice(
        ["truncate", "flip", "flips", "zero", "remove", "repeat", "noise"], p=[0.15, 0.4, 0.15, *[0.075] * 4]
    )
    if kind == "truncate":
        return data[:place].tobytes()
    if kind == "flip":
        data[place] ^= 1 << rng.integers(8)
    elif kind == "flips":
        for where in rng.integers(size, size=int(rng.integers(2, 64))):
            data[where] ^= 1 << rng.integers(8)
    elif kind == "zero":
        data[place : place + length] = 0
    elif kind == "remove":
        return np.delete(data, np.s_[place : place + length]).tobytes()
    elif kind == "repeat":
        return np.insert(data, place, data[place : place + length]).tobytes()
    else:
        data[place : place + length] = rng.integers(256, size=length)
    return data.tobytes()


# Reading, in a process of its own


def _reader(kind: str, folder: Path) -> Callable[[Path], Array]:
    """What turns a file into numbers, or raises."""
    import torch

    from hienet.calculator import load_model, model_of
    from hienet.testing import silicon_carbide

    torch.set_num_threads(1)
    atoms = silicon_carbide()

    def numbers(model: Any) -> Array:
        forces = model.predict(atoms).forces
        return np.asarray(forces.double())

    if kind == "checkpoint":
        return lambda path: numbers(load_model(path))
    if kind == "foreign":
        from hienet.convert.official import convert_official

        atoms.set_chemical_symbols(["Si"] * len(atoms))
        return lambda path: numbers(model_of(convert_official(path)))
    if kind in ("deployed", "compiled"):
        return lambda path: numbers(load_model(path))
    return _read_by_lammps(folder, atoms)


def _read_by_lammps(folder: Path, atoms: Any) -> Callable[[Path], Array]:
    from hienet.lammps import create

    sys.path.insert(0, str(FOLDER / "lammps"))
    from runs import types_of, write_data

    data = folder / f"data.{os.getpid()}"
    write_data(data, atoms, types_of(atoms, ("C", "Si")), 2)
    lammps = create()

    def read(path: Path) -> Array:
        lammps.commands_string(f"clear\nunits metal\natom_modify map yes\nread_data {data}\npair_style hienet")
        lammps.command(f"pair_coeff * * {path} C Si")
        lammps.command("run 0")
        return np.array(lammps.numpy.extract_atom("f")[: len(atoms)])

    return read


def _is_ours(error: Exception) -> bool:
    from hienet.errors import HIENetError

    text = str(error)
    return isinstance(error, HIENetError) or ("pair_style hienet: " in text and "Exception raised from" not in text)


def read_batch(kind: str, whole: Path, first: int, n: int, seed: int, valid_checksums: bool) -> None:
    """Print the outcome of each file, as a line of JSON each, beginning with its number."""
    folder = Path(tempfile.mkdtemp(dir=whole.parent))
    read = _reader(kind, folder)
    expected = read(whole)
    used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line)
    resource.setrlimit(resource.RLIMIT_AS, (1024 * used + MEMORY, resource.RLIM_INFINITY))
    contents = whole.read_bytes()
    path = folder / "damaged.hienet.pt"
    for number in range(first, first + n):
        path.write_bytes(damaged(contents, number, seed, valid_checksums))
        print(json.dumps([number]), flush=True)
        try:
            found = read(path)
            outcome, detail = ("same" if np.array_equal(found, expected) else "different", "")
        except Exception as error:
            outcome = "refused" if _is_ours(error) else "unexplained"
            detail = f"{type(error).__name__}: {error}".replace(str(path), "FILE")
        print(json.dumps([number, outcome, detail]), flush=True)


# The campaign


def campaign(
    kind: str, whole: Path, first: int, n: int, seed: int, batch: int = 50, valid_checksums: bool = False
) -> list[tuple[int, str, str]]:
    """Number, outcome and detail of each file: refused, same, different, unexplained, crashed, hung."""
    results: list[tuple[int, str, str]] = []
    number = first
    while number < first + n:
        size = min(batch, first + n - number)
        command = [
            sys.executable,
            str(FOLDER / "fuzz.py"),
            "--worker",
            kind,
            str(whole),
            str(number),
            str(size),
            str(seed),
        ]
        process = subprocess.Popen(
            [*command, "--valid-checksums"] if valid_checksums else command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            output, errors = process.communicate(timeout=60 + PATIENCE * size)
            status = f"crashed with status {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            status = "hung"
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
        done = [(line[0], line[1], line[2]) for line in lines if len(line) == 3]
        results += done
        number += len(done)
        if len(done) < size:
            if not lines:
                raise SystemExit(f"nothing was read: {errors[-2000:]}")
            results.append((number, status.split()[0], f"{status}; {errors[-500:]}"))
            number += 1
    return results


def intact_files(folder: Path) -> dict[str, Path]:
    """A small file of each kind."""
    from hienet_deploy.export import export

    from hienet.testing import write_tiny_checkpoint

    # An untrained network is nearly flat; with these scales a damaged weight shows.
    checkpoint = write_tiny_checkpoint(folder / "tiny.pt", n_invariant_layers=2, scale=(40.0, 55.0))
    compiled = export(checkpoint, folder / "compiled.hienet.pt").path
    return {
        "checkpoint": checkpoint,
        "foreign": FOLDER / "reference" / "hienet_official" / "paper_small.pth",
        "deployed": export(checkpoint, folder / "plain.hienet.pt", compiled=False).path,
        "compiled": compiled,
        "lammps": compiled,
    }


def main() -> None:
    """Run a campaign; the exit status is 1 if a file was not handled as it should be."""
    options = argparse.ArgumentParser(description="Read damaged model files.")
    options.add_argument("--files", type=int, default=1000, help="of each kind [default: 1000]")
    options.add_argument("--first", type=int, default=0, help="number of the first")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options.add_argument(
        "--valid-checksums",
        action="store_true",
        help="files made by somebody who means harm: other numbers are allowed",
    )
    arguments = options.parse_args()
    allowed = (*HARMLESS, "different") if arguments.valid_checksums else HARMLESS
    n_wrong = 0
    with tempfile.TemporaryDirectory() as name:
        files = intact_files(Path(name))
        # The converter reads beside the file's folder nothing; a copy keeps the reference folder clean.
        for kind in arguments.kinds:
            whole = Path(name) / f"whole-{kind}.hienet.pt"
            whole.write_bytes(files[kind].read_bytes())
            begin = time.monotonic()
            results = campaign(
                kind, whole, arguments.first, arguments.files, arguments.seed, 100, arguments.valid_checksums
            )
            outcomes = Counter(outcome for _, outcome, _ in results)
            wrong = [result for result in results if result[1] not in allowed]
            n_wrong += len(wrong)
            print(f"{kind}: {len(results)} files, {dict(outcomes)}, {time.monotonic() - begin:.0f} s", flush=True)
            for number, outcome, detail in wrong[:20]:
                print(f"  file {number}: {outcome}: {detail[:600]}", flush=True)
    sys.exit(1 if n_wrong else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        kind, whole, first, n, seed = sys.argv[2:7]
        read_batch(kind, Path(whole), int(first), int(n), int(seed), "--valid-checksums" in sys.argv)
    else:
        main()
