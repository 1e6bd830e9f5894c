"""Training on more data than memory: synthetic frames in a cache, how fast they are read, and what the process holds.

    large_data.py --frames 1000000 --folder build/large --json large_data.json    # minutes on 2 cores, 2 GB of disc

The frames have 31 atoms on average, of 20 elements, with sizes as different as those of the Materials Project. They are
written once; a folder that has them is used again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, write_json

from hienet.config import parse_config
from hienet.data.batching import Budget, steps_of_epoch
from hienet.data.cache import Header, Store, part_folder
from hienet.data.convert import PartWriter, write_header
from hienet.data.labels import FileLabels, LabelKeys, Source
from hienet.data.prefetch import prefetched
from hienet.data.prepare import prepare_data
from hienet.data.stored import StoredDataset
from hienet.models.factory import build_model
from hienet.neighbors import neighbor_list
from hienet.train.loop import StoppedBySignal, Trainer

CUTOFF = 5.0
ELEMENTS = np.array([1, 3, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 20, 22, 25, 26, 28, 29])
MEAN_ATOMS, SPREAD, MOST_ATOMS = 31, 0.75, 200
VOLUME = 14.0  # Å^3/atom
BATCH_EDGES = 20_000
FRAMES_AT_A_TIME = 2000
DIFFERENT = 20_000


def sizes(generator: np.random.Generator, number: int) -> np.ndarray:
    """Numbers of atoms, with a long tail."""
    drawn = generator.lognormal(np.log(MEAN_ATOMS) - SPREAD**2 / 2, SPREAD, number)
    return np.clip(np.round(drawn), 1, MOST_ATOMS).astype(np.int64)


def frames(generator: np.random.Generator, number: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Numbers, positions and cell: places of a displaced lattice, so that no atoms nearly touch."""
    for n_atoms in sizes(generator, number).tolist():
        n_along = int(np.ceil(n_atoms ** (1 / 3)))
        edge = (VOLUME * n_atoms) ** (1 / 3)
        cell = np.diag([edge] * 3) + generator.normal(0, 0.02 * edge, (3, 3))
        places = generator.permutation(n_along**3)[:n_atoms]
        scaled = np.stack(np.unravel_index(places, (n_along,) * 3), axis=1) / n_along
        jitter = generator.uniform(-0.12, 0.12, (n_atoms, 3)) / n_along
        few = generator.choice(ELEMENTS, size=min(n_atoms, 4))
        yield generator.choice(few, n_atoms), (scaled + jitter) @ cell, cell


def write_cache(folder: Path, number: int) -> float:
    """Frames with labels that nobody would believe, of `DIFFERENT` structures again and again; edges counted a second.

    The structures are different enough for reading: no two rows lie at the same place of the files.
    """
    header = Header((("synthetic", 0, 0),), ((0,),), CUTOFF, LabelKeys(), None, (), with_atoms=True)
    part = part_folder(folder, 0)
    part.mkdir(parents=True)
    write_header(folder, header)
    generator, begin = np.random.default_rng(0), time.process_time()
    made = list(frames(generator, min(number, DIFFERENT)))
    n_edges = np.array([len(neighbor_list(positions, cell, True, CUTOFF)[0]) for _, positions, cell in made])
    counted = len(made) / (time.process_time() - begin)
    with PartWriter(part, header) as writer:
        for start in range(0, number, FRAMES_AT_A_TIME):
            chosen = np.arange(start, min(start + FRAMES_AT_A_TIME, number)) % len(made)
            writer.append(_columns([made[i] for i in chosen], n_edges[chosen], start, generator), {})
            writer.save()
        found = {name: Source(name, "calculator") for name in ("energy", "forces", "stress")}
        counts = dict.fromkeys(found, number)
        none: dict[str, Any] = dict.fromkeys(found)
        labels = FileLabels("synthetic", number, dict(found), counts, {}, {}, True, "", 0, none, none)
        writer.state = replace(writer.state, file=1, labels=(labels,))
        writer.finish()
    fingerprint = sha256(writer.state.digest.encode()).hexdigest()
    write_header(folder, replace(header, complete=True, fingerprint=fingerprint))
    return counted


def _columns(
    made: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    n_edges: np.ndarray,
    start: int,
    generator: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Rows of the cache, of frames from `start` on."""
    n_atoms, ones = np.array([len(numbers) for numbers, _, _ in made]), np.ones(len(made))
    forces = generator.normal(0, 0.5, (n_atoms.sum(), 3))
    stress = generator.normal(0, 0.01, (len(made), 6))
    return {
        "n_atoms": n_atoms,
        "n_edges": n_edges,
        "cell": np.array([cell for _, _, cell in made]),
        "pbc": np.ones((len(made), 3)),
        "energy": -4.0 * n_atoms + generator.normal(0, 0.1, len(made)) * n_atoms,
        "stress": stress,
        "weights": np.ones((len(made), 3)),
        "n_labels": np.stack([ones, 3 * n_atoms, 6 * ones], axis=1),
        "largest": np.stack([2.5 * ones, np.abs(stress).max(axis=1)], axis=1),
        "force_squares": np.add.reduceat((forces**2).sum(axis=1), np.concatenate([[0], np.cumsum(n_atoms)[:-1]])),
        "converged": ones,
        "file": 0 * ones,
        "index": np.arange(start, start + len(made)),
        "numbers": np.concatenate([numbers for numbers, _, _ in made]),
        "positions": np.concatenate([positions for _, positions, _ in made]),
        "forces": forces,
    }


def resident_mb() -> float:
    """Memory of this process, pages of files that it has mapped included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def rates(works: Iterator[int], seconds: float) -> dict[str, float]:
    """Frames a second of wall time, and a second of processor time of all threads, of works that say how many they do.

    The latter, times the number of cores, is what a machine that does nothing else reaches.
    """
    begin, cpu, done = time.monotonic(), time.process_time(), 0
    for number in works:
        done += number
        if time.monotonic() - begin > seconds:
            break
    return {"second": done / (time.monotonic() - begin), "cpu_second": done / (time.process_time() - cpu)}


def read_speeds(folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Of shuffled frames: batches with neighbour lists, made by two threads, and without; how full the batches are."""
    dataset = StoredDataset([Store(folder)], elements(), CUTOFF)
    budget = Budget(8, edges=BATCH_EDGES)
    begin = time.monotonic()
    steps = steps_of_epoch(dataset, budget, 0, 0)
    planned = time.monotonic() - begin
    loads = np.add.reduceat(dataset.summary.n_edges[steps.order], steps.starts[:-1])
    order = np.random.default_rng(1).permutation(len(steps)).tolist()
    jobs = iter(order * 1000)

    def with_neighbors() -> Iterator[int]:
        for graph, _ in prefetched((steps[i] for i in jobs), dataset.batch):
            yield graph.n_structures

    def without() -> Iterator[int]:
        for step in jobs:
            chosen = steps[step]
            dataset.read(chosen)
            yield len(chosen)

    speeds: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    memory = [resident_mb()]
    for _ in range(rounds):
        speeds["with"].append(rates(with_neighbors(), seconds))
        speeds["without"].append(rates(without(), seconds))
        memory.append(resident_mb())
    return {
        "seconds_to_plan_an_epoch": planned,
        "batches_of_an_epoch": len(steps),
        "fullness": float(loads[:-1].mean() / BATCH_EDGES),
        **{
            f"frames_per_{of}_{which}_neighbors": statistics.median(speed[of] for speed in found)
            for which, found in speeds.items()
            for of in ("second", "cpu_second")
        },
        "resident_mb_after_rounds": memory,
        "rounds": speeds,
    }


def elements() -> tuple[str, ...]:
    """Symbols in alphabetical order."""
    from ase.data import chemical_symbols

    return tuple(sorted(chemical_symbols[number] for number in ELEMENTS))


def train(folder: Path, seconds: float) -> dict[str, Any]:
    """A training of a small model from the cache: memory at the beginning and while it runs."""
    values = {
        "model": {"architecture": "invnet", "preset": None, "channels": 8, "n_layers": 2, "cutoff": CUTOFF},
        "data": {"train": str(folder), "validation": 0.001},
        "training": {"batch_edges": BATCH_EDGES, "epochs": 1, "threads": 1},
    }
    config, before = parse_config(values), resident_mb()
    begin = time.monotonic()
    data = prepare_data(config.data, config.model, torch.float32, 0)
    prepared = time.monotonic() - begin
    model = build_model("invnet", data.model, 0).float()
    trainer = Trainer(model, data.train, data.validation, config.training)
    memory: list[tuple[float, float, int]] = []
    start = time.monotonic()

    def on_step(loss: float) -> None:
        now = time.monotonic() - start
        if not memory or now - memory[-1][0] > seconds / 20:
            memory.append((now, resident_mb(), trainer.state.step))

    def over() -> bool:
        return time.monotonic() - start > seconds

    with suppress(StoppedBySignal):
        trainer.run(on_step, should_stop=over)
    later = [megabytes for _, megabytes, _ in memory[len(memory) // 4 :]]
    n_frames = trainer.state.step * len(data.train) / trainer.n_batches
    return {
        "resident_mb_before_data": before,
        "seconds_to_prepare": prepared,
        "resident_mb_most": max(megabytes for _, megabytes, _ in memory),
        "resident_mb_growth_after_a_quarter": later[-1] - later[0],
        "frames_per_second_trained": n_frames / (time.monotonic() - start),
        "samples": memory,
    }


def own_process(work: str, folder: Path, *options: object) -> dict[str, Any]:
    """The result of `work` in a process of its own, whose memory is nobody else's."""
    command = [sys.executable, __file__, "--worker", work, "--folder", str(folder), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("build/large"))
    parser.add_argument("--seconds", type=float, default=60.0, help="of the training")
    parser.add_argument("--seconds-each", type=float, default=10.0, help="of a round of reading")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=("read", "train"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        works: dict[str, Callable[[], dict[str, Any]]] = {
            "read": lambda: read_speeds(arguments.folder, arguments.seconds_each, arguments.rounds),
            "train": lambda: train(arguments.folder, arguments.seconds),
        }
        print(json.dumps(works[arguments.worker]()))
        return
    folder = arguments.folder / f"{arguments.frames}"
    written = None if folder.exists() else write_cache(folder, arguments.frames)
    result: dict[str, Any] = {
        "machine": machine(),
        "frames": arguments.frames,
        "atoms": int(Store(folder).first_atom[-1]),
        "frames_per_cpu_second_counted": written,
        "read": own_process("read", folder, "--seconds-each", arguments.seconds_each, "--rounds", arguments.rounds),
        "train": own_process("train", folder, "--seconds", arguments.seconds),
    }
    read, trained = result["read"], result["train"]
    print(f"{result['frames']:,} frames of {result['atoms'] / result['frames']:.1f} atoms")
    for which in ("with", "without"):
        wall, cpu = (read[f"frames_per_{of}_{which}_neighbors"] for of in ("second", "cpu_second"))
        print(f"read {which + ' neighbour lists':27s}{wall:10,.0f} frames/s, {cpu:,.0f} a second of processor time")
    print(f"batches of {BATCH_EDGES:,} edges are {100 * read['fullness']:.1f} % full")
    print(f"a training holds at most        {trained['resident_mb_most']:10,.0f} MB")
    print(f"and grows in its last 3/4 by    {trained['resident_mb_growth_after_a_quarter']:10,.1f} MB")
    if arguments.json:
        write_json(arguments.json, result)


if __name__ == "__main__":
    main()
