"""The benchmarks of GPUs run on the CPU, and say what their documentation says; how fast anything is, is not tested."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import fake_gpu
from test_benchmarks import BENCHMARKS, assert_positive, run

from hienet.models.factory import build_model, make_config
from hienet.ops.compile import compile_model


@pytest.fixture
def gpu(monkeypatch, in_this_process) -> Any:
    """Imports a module of benchmarks/gpu."""
    for folder in (BENCHMARKS, BENCHMARKS / "gpu"):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module


@pytest.mark.slow
def test_measure_writes_all_its_parts(tmp_path, models):
    (tmp_path / "gpu").mkdir()
    result = run(
        *("gpu/measure", tmp_path, "--device", "cpu", "--sizes", "8", "16", "--compared", "8", "--rounds", "2"),
        *("--seconds", "0.02", "--models", str(models)),
    )
    assert result["device"] == {"type": "cpu"}
    assert result["not_measured"] == {}
    assert result["targets"] == []
    for part, n_atoms in (("contenders", 8), ("latency", 64)):
        assert (result[part]["n_atoms"], result[part]["ours"]) == (n_atoms, "deployed")
        assert result[part]["models"].keys() == {"deployed", "plain", "eager"}
        for row in result[part]["models"].values():
            assert_positive(row, "ms_per_step", "us_per_atom", "over_ours")
    for name in ("deployed", "plain", "eager"):
        assert_positive(result["load"][name], "load_s", "first_step_s", "later_step_s")
        assert 0 < result["load"][name]["force_error_ev_per_angstrom"] < 1e-4
        assert result["launches"][name]["kernels"] == 0
        assert result["launches"][name]["operators"] > 50
    assert [row["n_atoms"] for row in result["sizes"]] == [8, 16]
    for row in result["sizes"]:
        assert row["neighbors"] == pytest.approx(28, abs=1)
        assert_positive(row, "us_per_atom", "ns_per_edge", "kb_per_atom", "mflop_per_atom", "floor_us_per_atom")
        assert 0 < row["fraction_of_floor"] < 1
    assert_positive(result["tf32"]["tf32"], "us_per_atom", "force_error_ev_per_angstrom")
    assert_positive(result["peaks"], "tflops", "tb_per_s")


@pytest.mark.slow
@pytest.mark.lammps
def test_dynamics_writes_all_its_parts(tmp_path, operators):
    (tmp_path / "gpu").mkdir()
    result = run(
        *("gpu/dynamics", tmp_path, "--device", "cpu", "--rounds", "1", "--steps", "40", "--samples", "20"),
        *("--atoms", "16", "--ranks", "1", "--rank-steps", "2"),
    )
    assert result["not_measured"] == {}
    assert result["agreement"]["passed"]
    assert len(result["agreement"]["errors"]) == 2
    for found in result["agreement"]["errors"].values():
        assert len(found) == 9
        assert max(found["bulk"].values()) > 0
    run_ = result["constant_pressure"]
    assert (run_["n_atoms"], run_["steps"], run_["device_mb"]) == (64, 40, 0)
    assert run_["flat"]
    assert_positive(run_, "us_per_atom", "resident_mb", "temperature_k", "volume_per_atom")
    assert [row["ranks"] for row in result["ranks"]] == [1]
    assert_positive(result["ranks"][0], "us_per_atom", "speedup")


@pytest.fixture(scope="module")
def models(tmp_path_factory, operators) -> Path:
    """Prepared as for a machine with a GPU."""
    folder = tmp_path_factory.mktemp("prepared")
    command = [sys.executable, str(BENCHMARKS / "gpu" / "measure.py"), "--prepare", "--preset", "small"]
    subprocess.run([*command, "--models", str(folder)], check=True, timeout=300)
    return folder


@pytest.fixture
def measurement(gpu, models, tmp_path, monkeypatch) -> Any:
    """Nothing measured as yet; small systems throughout."""
    monkeypatch.setattr(gpu("measure"), "LATENCY_ATOMS", 8)
    arguments = argparse.Namespace(
        device="cpu",
        preset="small",
        json=tmp_path / "gpu.json",
        budget=600.0,
        rounds=1,
        seconds=0.0,
        sizes=[8, 16, 24],
        compared=32,
        peak_tflops=67.0,
        peak_bandwidth=4.8,
    )
    return gpu("measure").Measurement(arguments, models)


def test_measure_takes_the_plain_model_where_the_compiled_one_does_not_run(gpu, measurement, monkeypatch):
    """On the fake GPU, for which no operator is compiled; the driver's part is left out."""
    memory = iter(range(0, 10**9, 10**6))
    for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: next(memory))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    measurement.device = torch.device("cuda")
    with fake_gpu():
        measurement.part("load", measurement.load)
        assert "built here without kernels for `cuda`" in measurement.result["not_measured"]["deployed"]
        measurement.arguments.sizes = [8]
        for part in ("latency", "sizes"):
            measurement.part(part, getattr(measurement, part))
    assert measurement.result["latency"]["ours"] == "plain"
    assert measurement.result["latency"]["models"].keys() == {"plain", "eager"}
    assert measurement.result["load"]["eager"]["force_error_ev_per_angstrom"] < 1e-4
    (row,) = measurement.result["sizes"]
    assert row["kb_per_atom"] > 0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert gpu("device").peaks(torch.device("cuda"), None, None) == (67.0, 4.8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    assert gpu("device").peaks(torch.device("cuda"), 1.0, 2.0) == (1.0, 2.0)
    with pytest.raises(SystemExit, match=r"the peaks of `another` are not known here: give --peak-tflops and"):
        gpu("device").peaks(torch.device("cuda"), 1.0, None)


def test_measure_stops_at_the_size_that_does_not_fit(measurement, monkeypatch):
    measurement.part("load", measurement.load)
    evaluate = measurement.step

    def exhausted(name: str, n_atoms: int) -> Any:
        step = evaluate(name, n_atoms)

        def work() -> object:
            if (name == "eager" and n_atoms >= 32) or n_atoms == 16:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return step()

        return work

    monkeypatch.setattr(measurement, "step", exhausted)
    measurement.part("sizes", measurement.sizes)
    written = json.loads(measurement.arguments.json.read_text())
    assert [row["n_atoms"] for row in written["sizes"]] == [8]
    assert written["sizes"][0]["floor_us_per_atom"] < 1.0
    assert written["not_measured"] == {"16 atoms": "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB"}
    # The comparison is made where all fit.
    monkeypatch.setattr(measurement.arguments, "compared", 48)
    measurement.part("contenders", measurement.contenders)
    assert measurement.result["contenders"]["n_atoms"] == 24
    assert measurement.result["not_measured"]["contenders, 48 atoms"] == "out of memory"


def test_measure_times_no_model_whose_results_are_wrong(measurement, gpu, monkeypatch):
    measure = gpu("measure")
    load = measure.load_contender

    def broken(name: str, *arguments: object) -> Any:
        model = load(name, *arguments)
        if name == "deployed":
            model.module.energy_readout.weight.mul_(1.001)
        return model

    monkeypatch.setattr(measure, "load_contender", broken)
    measurement.part("load", measurement.load)
    assert measurement.models.keys() == {"plain", "eager"}
    assert measurement.ours == "plain"
    assert measurement.result["not_measured"]["deployed"].startswith("its results are wrong: relative_energy_error is")


def test_measure_begins_nothing_after_its_budget(measurement, monkeypatch):
    measurement.part("load", measurement.load)
    monkeypatch.setattr(measurement.arguments, "budget", 0.0)
    measurement.part("latency", measurement.latency)
    assert "latency" not in measurement.result
    assert measurement.result["not_measured"]["latency"] == "the budget of 0 s was used up"


def test_the_floor_counts_the_work_of_the_papers_configuration(gpu, operators):
    """The linear maps and the readout by their weights, what depends on the neighbours by its share of them."""
    floor = gpu("floor")
    plain = build_model("hienet", make_config("hienet", "paper", {"elements": ("Si",)}), 0).requires_grad_(False)
    linear = sum(
        # Multiplication and addition, forward and backward, for each weight and component.
        4.0 * fan_in * fan_out * dim
        for layer in plain.layers[1:]
        for part in (layer.linear_in, layer.linear_skip, layer.linear_out)
        for _, fan_in, dim, fan_out, _ in part.columns
    )
    compile_model(plain, n_intervals=64)
    at = {n: {part.name: part for part in floor.work_of_step(plain, n)} for n in (0.0, 28.0, 56.0)}
    maps = sum(part.flop for name, part in at[0.0].items() if "interaction" in name or "irreps_linear" in name)
    assert maps == pytest.approx(linear)
    for name, part in at[28.0].items():
        assert part.flop - at[0.0][name].flop == pytest.approx(at[56.0][name].flop - part.flop), name
    total = list(at[28.0].values())
    assert 30e6 < sum(part.flop for part in total) < 45e6
    # Both bounds of each part: infinitely fast arithmetic leaves the traffic, and the other way round.
    traffic = sum(part.bytes_moved for part in total)
    assert floor.floor_seconds(total, 1e30, 4.8) == pytest.approx(traffic / 4.8e12)
    assert floor.floor_seconds(total, 67.0, 1e30) == pytest.approx(sum(part.flop for part in total) / 67e12)
    gathered = sum(part.gathered for part in total)
    assert floor.floor_seconds(total, 1e30, 4.8, cached=False) == pytest.approx((traffic + gathered) / 4.8e12)


def test_targets_are_judged_by_what_was_measured(gpu):
    measure = gpu("measure")
    result = {
        "contenders": {"n_atoms": 10_000, "models": {"deployed": {}, "eager": {"over_ours": 9.9}}},
        "latency": {"ours": "deployed", "models": {"deployed": {"ms_per_step": 1.9}}},
        "sizes": [{"n_atoms": 10_000, "us_per_atom": 4.0}, {"n_atoms": 100_000, "us_per_atom": 5.1}],
    }
    assert [line["passed"] for line in measure.targets(result)] == [False, False, True, False]
    result["sizes"].append({"n_atoms": 500_000, "us_per_atom": 5.0})
    result["contenders"]["n_atoms"] = 5000
    assert [line["passed"] for line in measure.targets(result)] == [None, False, True, True]
    assert [line["passed"] for line in measure.targets({})] == [None] * 4


def test_a_wrong_force_and_a_leak_show(gpu):
    dynamics = gpu("dynamics")
    right = (-60.0, np.ones((2, 3)), np.zeros((3, 3)))
    wrong = (-60.0, np.array([[1.0, 1.0002, 1.0], [1.0] * 3]), np.zeros((3, 3)))
    found = dynamics.differences({"pair": wrong}, {"pair": right})["pair"]
    assert found == {"energy": 0.0, "forces": pytest.approx(2.0), "stress": 0.0}
    rows = [[100.0 * i, 0.1 * i, 300.0, -64.0, 5.0, 700.0, 3.2] for i in range(101)]
    for leak, flat in ((1e5, True), (5e5, False)):
        course = gpu("long_run").Course(rows, [[int(1e9)]] * 101, [int(1e9 + leak * i) for i in range(101)])
        summary = dynamics.memory_summary(course)
        assert summary["device_growth_mb"] == pytest.approx(81 * leak / 1e6, rel=0.05)
        assert summary["flat"] is flat
