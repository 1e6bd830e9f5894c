"""LAMMPS on a GPU: the same answers as on the CPU, ranks that share it, and memory in a long run at constant pressure.

Energies, forces and stress of one step of many kinds of systems are compared with the source model in float64 and with
LAMMPS on the CPU. `--device cpu` runs all of it on small systems.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ase
import numpy as np
import torch
from ase.calculators.lammps import Prism
from ase.io.lammpsdata import write_lammps_data
from common import ROOT, console, machine, parser, random_checkpoint, write_json
from device import describe_device, device_memory_in_use
from hienet_deploy.export import export
from long_run import SETTLED, Course, follow
from numpy.typing import NDArray
from rich.table import Table
from structures import structure

from hienet.calculator import load_model, model_of, parse_device
from hienet.checkpoint import load_checkpoint
from hienet.errors import HIENetError
from hienet.lammps import run_deck
from hienet.testing import awkward_structures
from hienet.units import EV_PER_CUBIC_ANGSTROM_IN_BAR_OF_LAMMPS as BAR

Array = NDArray[np.float64]
Evaluation = tuple[float, Array, Array]
"""Energy (eV), forces `[n_atoms, 3]` (eV/Å), stress `[3, 3]` (eV/Å^3), in ASE's frame and with its signs."""

EXAMPLE = ROOT.parent / "lammps_examples" / "sic.pt"
"""The trained model of SiC."""
TOLERANCES = {"energy": 1e-5, "forces": 1e-4, "stress": 1e-5}
"""Relative to the largest value (the energy: of the system) if that is above 1; eV, eV/Å, eV/Å^3."""
GROWTH = 0.02
"""Part of the memory by which it may grow after the first tenth of a run at constant pressure, where the number of
neighbours changes a little."""

ONE_SYSTEM = """
clear
units         metal
atom_style    atomic
boundary      {boundary}
box           tilt large
read_data     {data}
pair_style    hienet device {device}
pair_coeff    * * {model} C Si
neighbor      1.0 bin
compute       virial all pressure NULL virial
thermo_style  custom step pe c_virial[*]
run           0
print         "evaluated {name}: $(pe:%.17g) {virial}"
write_dump    all custom {dump} id fx fy fz modify sort id format float %.17g
"""

DYNAMICS = """
units         metal
atom_style    atomic
read_data     {data}
pair_style    hienet device {device}
pair_coeff    * * {model} Si
neighbor      1.0 bin
velocity      all create 300 4928459 mom yes rot yes dist gaussian loop geom
timestep      0.0005
fix           dynamics all nve
thermo        {steps}
# The first steps load and warm up, and are not counted.
run           {warm_up}
run           {steps}
"""

CONSTANT_PRESSURE = """
units         metal
atom_style    atomic
lattice       diamond 4.39
region        box block 0 {repeat} 0 {repeat} 0 {repeat}
create_box    2 box
create_atoms  1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2
mass          1 28.0855
mass          2 12.011
pair_style    hienet device {device}
pair_coeff    * * {model} Si C
neighbor      1.0 bin
velocity      all create 600 4928459 mom yes rot yes dist gaussian loop geom
timestep      0.001
fix           dynamics all npt temp 300 300 0.1 iso 0 0 1.0
thermo        {every}
thermo_style  custom step time temp etotal press vol density
thermo_modify format float %.15g
run           {steps}
"""


def evaluated(
    chosen: dict[str, ase.Atoms], model: Path, device: str, ranks: int, folder: Path, timeout: float
) -> dict[str, Evaluation]:
    """What LAMMPS says of each system, all in one run of it."""
    deck, prisms = "", {}
    for number, (name, atoms) in enumerate(chosen.items()):
        prisms[name] = Prism(atoms.cell.array, pbc=atoms.pbc)
        data, dump = folder / f"{number}.data", folder / f"{number}.dump"
        dump.unlink(missing_ok=True)
        with data.open("w") as file:
            write_lammps_data(file, atoms, specorder=["C", "Si"], masses=True, prismobj=prisms[name])
        boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
        virial = " ".join(f"$(c_virial[{i}]:%.17g)" for i in range(1, 7))
        values = {"name": name, "boundary": boundary, "virial": virial, "data": data, "dump": dump}
        deck += ONE_SYSTEM.format(**values, model=model, device=device)
    output = run_deck(deck, ranks, timeout=timeout)
    results = {}
    for number, (name, prism) in enumerate(prisms.items()):
        line = re.search(rf"^evaluated {re.escape(name)}: (.*)$", output, re.MULTILINE)
        if line is None:
            raise SystemExit(f"LAMMPS did not evaluate `{name}`:\n{output[-2000:]}")
        energy, xx, yy, zz, xy, xz, yz = (float(word) for word in line[1].split())
        pressure = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        forces = np.loadtxt(folder / f"{number}.dump", skiprows=9, ndmin=2)[:, 1:]
        results[name] = (
            energy,
            prism.vector_to_ase(forces),
            -prism.tensor2_to_ase(pressure) / BAR,
        )
    return results


def from_python(chosen: dict[str, ase.Atoms]) -> dict[str, Evaluation]:
    """What the source model says in float64 on the CPU."""
    model = model_of(load_checkpoint(EXAMPLE))
    results = {}
    for name, atoms in chosen.items():
        found = model.predict(atoms)
        assert found.forces is not None
        assert found.stress is not None
        results[name] = (float(found.energy[0]), found.forces.numpy(), found.stress[0].numpy())
    return results


def differences(found: dict[str, Evaluation], expected: dict[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Of each system the largest errors, in units of their tolerance: above 1 is too large."""
    return {
        name: {
            key: float(np.abs(np.subtract(one, other)).max() / max(1.0, float(np.abs(other).max())) / TOLERANCES[key])
            for key, one, other in zip(TOLERANCES, found[name], expected[name], strict=True)
        }
        for name in found
    }


class Runs:
    """The models, the folder, the device, and the time that is left."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.device = parse_device(arguments.device)
        self.begin = time.monotonic()
        self.result: dict[str, Any] = {
            "benchmark": "gpu_lammps",
            "preset": arguments.preset,
            "device": describe_device(self.device),
            "machine": machine(),
            "not_measured": {},
        }

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return float(self.arguments.budget - (time.monotonic() - self.begin))

    def part(self, name: str, measure: Callable[[], object]) -> None:
        """Add a part to the result, or why it is missing, and write the file."""
        if self.left <= 0:
            self.result["not_measured"][name] = f"the budget of {self.arguments.budget:g} s was used up"
        else:
            print(f"[{time.monotonic() - self.begin:6.0f} s] {name}", flush=True)
            try:
                self.result[name] = measure()
            except HIENetError as error:
                self.result["not_measured"][name] = str(error)
        if name in self.result["not_measured"]:
            print(f"not measured: {name}: {self.result['not_measured'][name]}", flush=True)
        write_json(self.arguments.json, self.result)

    def deployed(self, checkpoint: Path, name: str) -> Path:
        """The compiled file, or where that does not run on the device, the plain one."""
        compiled = export(checkpoint, self.folder / f"{name}.hienet.pt").path
        try:
            load_model(compiled, str(self.device))
        except HIENetError as error:
            self.result["not_measured"][f"compiled {name}"] = str(error)
            return export(checkpoint, self.folder / f"{name}-plain.hienet.pt", compiled=False).path
        return compiled

    # Parts

    def agreement(self) -> dict[str, Any]:
        """Errors of every system, in units of the tolerance, on one rank and several, on the device and on the CPU."""
        chosen, model = awkward_structures(), self.example
        python = from_python(chosen)
        runs: dict[str, dict[str, dict[str, float]]] = {}
        on_device: dict[int, dict[str, Evaluation]] = {}
        for ranks in self.arguments.agreement_ranks:
            on_device[ranks] = evaluated(chosen, model, str(self.device), ranks, self.folder, self.arguments.timeout)
            runs[f"{self.device}, {ranks} rank(s), against Python"] = differences(on_device[ranks], python)
        if self.device.type != "cpu":
            on_cpu = evaluated(chosen, model, "cpu", 1, self.folder, self.arguments.timeout)
            for ranks, found in on_device.items():
                runs[f"{self.device}, {ranks} rank(s), against cpu"] = differences(found, on_cpu)
        worst = max(value for run in runs.values() for system in run.values() for value in system.values())
        return {"tolerances": TOLERANCES, "errors": runs, "worst": worst, "passed": worst <= 1.0}

    @property
    def example(self) -> Path:
        """The trained model of SiC, deployed in float32."""
        if not hasattr(self, "_example"):
            self._example = self.deployed(EXAMPLE, "sic")
        return self._example

    def constant_pressure(self) -> dict[str, Any]:
        """Memory over a long run of the trained model at constant temperature and pressure."""
        n_atoms = 8 * self.arguments.repeat**3
        steps = self.arguments.steps
        every = max(1, steps // self.arguments.samples)
        values = {"device": self.device, "model": self.example, "repeat": self.arguments.repeat}
        deck = CONSTANT_PRESSURE.format(**values, every=every, steps=steps)
        course = follow(
            deck, 1, lambda: device_memory_in_use(self.device), timeout=max(self.left, self.arguments.timeout)
        )
        return {"n_atoms": n_atoms, "steps": steps, **memory_summary(course), **state_summary(course, n_atoms)}

    def ranks(self) -> list[dict[str, float]]:
        """Constant-energy dynamics of the paper's configuration: the same atoms on more and more ranks."""
        n_atoms = self.arguments.atoms
        model = self.deployed(random_checkpoint(self.folder, self.arguments.preset, ["Si"]), "model")
        data = self.folder / "si.data"
        with data.open("w") as file:
            write_lammps_data(file, structure(f"si{n_atoms}"), specorder=["Si"], masses=True)
        rows: list[dict[str, float]] = []
        for ranks in self.arguments.ranks:
            seconds = []
            for _ in range(self.arguments.rounds):
                values = {"data": data, "model": model, "device": self.device}
                deck = DYNAMICS.format(**values, warm_up=self.arguments.warm_up, steps=self.arguments.rank_steps)
                output = run_deck(deck, ranks, timeout=self.arguments.timeout)
                loops = re.findall(r"^Loop time of (\S+)", output, re.MULTILINE)
                seconds.append(float(loops[-1]) / self.arguments.rank_steps)
            step = statistics.median(seconds)
            rows.append(
                {"ranks": ranks, "n_atoms": n_atoms, "ms_per_step": 1e3 * step, "us_per_atom": 1e6 * step / n_atoms}
            )
        for row in rows:
            row["speedup"] = rows[0]["ms_per_step"] / row["ms_per_step"]
        return rows


def memory_summary(course: Course) -> dict[str, Any]:
    """Largest and growth after `SETTLED` of the run, of the GPU and of the process, in MB; whether both are flat."""
    steps = np.array(course.rows)[:, 0]
    settled = steps >= SETTLED * steps[-1]
    result: dict[str, Any] = {}
    flat = True
    for name, values in (("device", course.device_memory), ("resident", [sum(sizes) for sizes in course.memory])):
        memory = np.array(values, dtype=float)[settled] / 1e6
        growth = float(memory[-max(1, len(memory) // 10) :].mean() - memory[: max(1, len(memory) // 10)].mean())
        result |= {f"{name}_mb": float(memory.max()), f"{name}_growth_mb": growth}
        flat = flat and growth <= GROWTH * max(float(memory.max()), 1.0)
    return {**result, "n_samples": len(steps), "flat": flat}


def state_summary(course: Course, n_atoms: int) -> dict[str, float]:
    """Speed, and that it was a crystal at the asked temperature and pressure: means of the second half."""
    half = np.array(course.rows)[len(course.rows) // 2 :]
    steps = course.rows[-1][0] - course.rows[0][0]
    return {
        "us_per_atom": 1e6 * course.seconds / steps / n_atoms,
        "ms_per_step": 1e3 * course.seconds / steps,
        "temperature_k": float(half[:, 2].mean()),
        "pressure_bar": float(half[:, 4].mean()),
        "volume_per_atom": float(half[:, 5].mean()) / n_atoms,
        "neighbor_builds": course.neighbor_builds,
    }


def report(result: dict[str, Any]) -> None:
    """Tables and verdicts."""
    if "agreement" in result:
        table = Table(
            "system", *result["agreement"]["errors"], title="largest error / tolerance: energy, forces, stress"
        )
        for name in next(iter(result["agreement"]["errors"].values())):
            rows = (run[name] for run in result["agreement"]["errors"].values())
            table.add_row(name, *(", ".join(f"{value:.2g}" for value in row.values()) for row in rows))
        console().print(table)
        verdict = "pass" if result["agreement"]["passed"] else "FAIL"
        print(f"{verdict}  agreement: {result['agreement']['worst']:.2g} of the tolerance")
    if "constant_pressure" in result:
        run = result["constant_pressure"]
        print(
            ", ".join(
                f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in run.items()
            )
        )
        print(f"{'pass' if run['flat'] else 'FAIL'}  flat memory over {run['steps']} steps of {run['n_atoms']} atoms")
    for row in result.get("ranks", []):
        print("ranks: " + ", ".join(f"{key} {value:.5g}" for key, value in row.items()))
    for name, reason in result["not_measured"].items():
        print(f"not measured: {name}: {reason}")


VERDICTS = (("agreement", "passed"), ("constant_pressure", "flat"))
"""Parts that end the program with status 1 if this is false in them."""
DEFAULTS = {
    "cuda": {"repeat": 19, "steps": 5000, "atoms": 32_000, "ranks": [1, 2, 4], "rank_steps": 100, "warm_up": 20},
    "cpu": {"repeat": 2, "steps": 100, "atoms": 64, "ranks": [1, 2], "rank_steps": 5, "warm_up": 1},
}


def main() -> None:
    """Run and report."""
    options = parser(__doc__, rounds=3)
    options.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu [default: cuda]")
    options.add_argument(
        "--budget", type=float, default=900.0, help="seconds, after which no part begins [default: 900]"
    )
    options.add_argument("--timeout", type=float, default=300.0, help="seconds of one run of LAMMPS [default: 300]")
    options.add_argument("--agreement-ranks", type=int, nargs="+", default=[1, 2], help="[default: 1 2]")
    options.add_argument("--repeat", type=int, help="cubic cells of 8 atoms along each direction, at constant pressure")
    options.add_argument("--steps", type=int, help="of 1 fs at constant pressure")
    options.add_argument("--samples", type=int, default=100, help="of memory in them [default: 100]")
    options.add_argument("--atoms", type=int, help="of silicon that ranks share, a multiple of 8")
    options.add_argument("--ranks", type=int, nargs="+", help="that share the device")
    options.add_argument("--rank-steps", type=int, help="timed steps")
    options.add_argument("--warm-up", type=int, help="steps before them")
    options.epilog = f"Defaults that depend on the device: {DEFAULTS}"
    arguments = options.parse_args()
    for key, value in DEFAULTS[parse_device(arguments.device).type].items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, value)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(arguments, Path(folder))
        runs.part("agreement", runs.agreement)
        runs.part("constant_pressure", runs.constant_pressure)
        runs.part("ranks", runs.ranks)
    report(runs.result)
    write_json(arguments.json, runs.result)
    wrong = [name for name, key in VERDICTS if name in runs.result and not runs.result[name][key]]
    if wrong:
        raise SystemExit(f"failed: {', '.join(wrong)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main()
    except HIENetError as error:
        raise SystemExit(f"error: {error}") from None
