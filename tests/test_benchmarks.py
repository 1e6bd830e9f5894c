"""The benchmarks run and write what their documentation says; how fast anything is, is not tested."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from hienet.config import parse_config
from hienet.data.json_structures import pymatgen_structure
from hienet.derivatives import predict
from hienet.errors import HIENetError
from hienet.graph import graph_from_atoms
from hienet.testing import BOTH_PARITIES, NATURAL, silicon_carbide, tiny_model

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def eager_class(monkeypatch) -> type:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from eager import EagerHIENet

    return EagerHIENet


@pytest.mark.parametrize(
    "values", [{"n_invariant_layers": 2}, {"smooth_cutoff": False, "l_max": 2}, NATURAL, BOTH_PARITIES]
)
def test_the_eager_e3nn_model_is_the_same_function(eager_class, values):
    model = tiny_model(scale=(40.0, 55.0), **values)
    graph = graph_from_atoms(silicon_carbide(), model.elements, model.cutoff)
    expected = predict(model.module, graph)
    found = predict(eager_class.from_model(model.module), graph)
    for name in ("energies", "forces", "stress"):
        largest = getattr(expected, name).abs().max()
        assert largest > 1e-3
        assert (getattr(found, name) - getattr(expected, name)).abs().max() < 1e-10 * max(1.0, largest)


def run(script: str, folder: Path, *arguments: str) -> dict:
    """What a benchmark writes, with the smallest settings."""
    output = folder / f"{script}.json"
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--preset", "small", "--json", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *arguments], check=True, capture_output=True, text=True, timeout=600, env=environment)
    return json.loads(output.read_text())


def assert_positive(values: dict, *keys: str) -> None:
    for key in keys:
        assert math.isfinite(values[key]), key
        assert values[key] > 0, key


@pytest.mark.slow
def test_speed_writes_the_figures_of_the_headline(tmp_path):
    result = run(
        *("speed", tmp_path, "--systems", "si8", "sic8", "--threads", "1", "--rounds", "2", "--seconds", "0.02"),
        "--memory",
    )
    assert result["headline"] == {"system": "si8", "threads": 1}
    assert_positive(result, "eager_ms_per_atom", "deployed_ms_per_atom", "plain_ms_per_atom", "ratio")
    assert_positive(result, "eager_mb_per_atom", "deployed_mb_per_atom", "plain_mb_per_atom")
    assert 0 < result["max_force_error_ev_per_angstrom"] < 1e-4
    for name in ("si8", "sic8"):
        system = result["systems"][name]
        assert system["n_atoms"] == 8
        assert_positive(system["threads_1"], "eager_ms_per_atom", "deployed_ms_per_atom", "eager_over_deployed")
    assert_positive(result["machine"], "cpus")
    assert result["machine"]["versions"]["torch"]


@pytest.mark.slow
def test_operators_are_measured_beside_the_same_work_done_otherwise(tmp_path):
    arguments = ["--system", "si8", "--rounds", "1", "--seconds", "0.001", "--threads", "1"]
    rows = {row["name"]: row for row in run("operators", tmp_path, *arguments)["threads_1"]["operators"]}
    assert {"edge_geometry", "irreps_linear, layer 2", "interaction, layer 3", "gate, layer 4"} < set(rows)
    assert set(rows["interaction, layer 3"]["both"]["ratios"]) == {"plain", "e3nn"}
    assert all(row[kind]["gflops"] > 0 for row in rows.values() for kind in ("forward", "both"))
    alone = run("operators", tmp_path, *arguments, "--only", "gate", "--without-others")["threads_1"]["operators"]
    assert [row["name"] for row in alone] == ["gate, layer 2", "gate, layer 3", "gate, layer 4"]
    assert all(row["both"]["ratios"] == {} for row in alone)


@pytest.mark.slow
def test_scaling_writes_a_row_a_size_and_draws(tmp_path):
    result = run(
        *("scaling", tmp_path, "--sizes", "8", "16", "--neighbors", "12", "28", "--neighbor-atoms", "8"),
        *("--threads", "1", "--rounds", "2", "--seconds", "0.02", "--no-memory", "--plot", str(tmp_path / "plot.png")),
    )
    assert [row["n_atoms"] for row in result["sizes"]] == [8, 16]
    assert [row["neighbors"] for row in result["neighbors"]] == pytest.approx([12, 28], abs=2)
    for row in result["sizes"] + result["neighbors"]:
        assert_positive(row, "ms_per_atom", "us_per_edge")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_architectures_writes_a_row_for_each(tmp_path):
    result = run(
        *("architectures", tmp_path, "--system", "si8", "--only", "hienet", "nemp"),
        *("--threads", "1", "--rounds", "2", "--seconds", "0.02"),
    )
    assert [(row["architecture"], row["compiled"]) for row in result["architectures"]] == [
        ("hienet", True),
        ("nemp", True),
    ]
    for row in result["architectures"]:
        assert_positive(row, "steps_per_second", "ms_per_atom", "n_parameters", "neighbors")
        assert row["max_force_error_ev_per_angstrom"] < 1e-4


@pytest.mark.slow
def test_architectures_compares_presets_and_steps_of_training(tmp_path):
    result = run(
        *(
            "architectures",
            tmp_path,
            "--system",
            "si8",
            "--models",
            "sevennet:small",
            "hienet:small",
            "--training",
            "si8",
        ),
        *("--threads", "1", "--rounds", "2", "--seconds", "0.02"),
    )
    first, second = result["architectures"]
    assert (first["first_over_this"], first["training_first_over_this"]) == (1.0, 1.0)
    assert second["paths"] == [3, 11, 3]
    assert second["symmetry"] == "O(3)"
    assert_positive(second, "training_ms_per_step", "training_first_over_this", "first_over_this")


def test_peak_growth_sees_what_a_function_holds_and_frees(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from memory import peak_growth

    size = 64 << 20
    found = peak_growth(lambda: bytearray(b"x") * size, lambda: None)
    # Linux counts resident pages to within some dozens for each thread.
    assert 0.95 * size < found < 1.5 * size


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ge64", r"unknown structure `ge64`; expected a name like si64, si64-45, sic512, alloy108"),
        ("si9", r"9 atoms are not a whole number of cells of 8 atoms; take a multiple"),
    ],
)
def test_unknown_structures_are_refused(monkeypatch, name, message):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from structures import structure

    with pytest.raises(ValueError, match=message):
        structure(name)


@pytest.mark.slow
@pytest.mark.lammps
def test_a_long_run_in_lammps_keeps_its_memory_and_its_momentum(tmp_path):
    """A short one: a leak of one array of this system a step (64 atoms, 5 kB) would be seen."""
    result = run(
        *("long_run", tmp_path, "--steps", "600", "--samples", "60", "--ranks", "1"),
        *("--plot", str(tmp_path / "plot.png")),
    )
    found = result["ranks"]["1"]
    assert found["n_samples"] == 61
    assert 50 < found["resident_mb"] < 1000
    assert found["growth_mb"] < 2.5
    assert found["neighbor_builds"] > 20
    assert found["momentum"] > 1e4
    assert found["largest_change_of_momentum"] < 1e-12 * 600 * found["momentum"]
    assert abs(found["drift_mev_per_atom_per_ps"]) < 2.0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.lammps
def test_stability_is_measured_in_all_its_parts(tmp_path):
    times = ("--picoseconds", "0.2", "--npt-picoseconds", "0.3", "--melt-picoseconds", "0.1", "--timesteps", "0.5", "2")
    result = run("stability", tmp_path, *times, "--melt-temperatures", "4000")
    (scan,) = result["scans"]
    # The example model knows the repulsion of nuclei.
    assert scan["attracts_below"] == {"C-C": None, "C-Si": None, "Si-Si": None}
    assert scan["barrier"] > 20.0
    assert scan["cutoff_jump_mev"] < 1e-3
    short, long = result["conservation"]
    assert (short["timestep_fs"], long["timestep_fs"]) == (0.5, 2.0)
    assert 0.0 < short["fluctuation_mev_per_atom"] < long["fluctuation_mev_per_atom"] < 5.0
    (npt,) = result["npt"]
    assert 4.2 < npt["lattice_constant"] < 4.7
    assert npt["root_mean_square_displacement"] < 0.6
    (melt,) = result["melt"]
    assert melt["greatest_deviation"] > 0.0
    assert melt["temperature"] == 4000.0
    assert melt["explodes_after_ps"] is None


def test_the_signs_of_an_explosion_are_told_with_their_times(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from stability import Course, outside_the_data

    data = {
        "time": np.arange(6) * 0.1,
        "temperature": np.array([4000.0, 3900.0, 4100.0, 4200.0, 12100.0, 9e4]),
        "deviation": np.array([0.4, 0.6, 0.5, 1.5, 30.0, 900.0]),
        "displacement": np.array([0.0, 0.01, 0.04, 0.09, 4.0, 9.0]),
        "closest": np.array([1.6, 1.6, 1.5, 1.4, 0.6, 0.4]),
    }
    found = outside_the_data(Course(data, lost=True), 4000.0)
    assert found["explodes_after_ps"] == pytest.approx(0.4)
    assert found["deviation_above_0.5_after_ps"] == pytest.approx(0.1)
    assert found["deviation_above_1_after_ps"] == pytest.approx(0.3)
    assert found["deviation_above_2_after_ps"] == pytest.approx(0.4)
    assert (found["greatest_deviation"], found["closest"]) == (1.5, 1.4)
    # Atoms lost without a hot row before: the last row is the time.
    calm = {name: values[:3] for name, values in data.items()}
    assert outside_the_data(Course(calm, lost=True), 4000.0)["explodes_after_ps"] == pytest.approx(0.2)
    assert outside_the_data(Course(calm, lost=False), 4000.0)["explodes_after_ps"] is None


def test_lost_atoms_end_a_run_that_is_to_be_whole_and_are_told_of_one_that_may_explode(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import stability

    def run_deck(deck, timeout, echo):
        echo("   10 0.005 4000 -3.5 0 8.78 1.6 0.01 0.4\n")
        raise HIENetError("LAMMPS stopped: ERROR: Lost atoms: original 64 current 63")

    monkeypatch.setattr(stability, "run_deck", run_deck)
    arguments = (SimpleNamespace(repeat=2), [Path("model.hienet.pt")], "nve", 1000.0, 0.5, 1.0)
    with pytest.raises(HIENetError, match="Lost atoms: original 64 current 63"):
        stability.run(*arguments)
    course = stability.run(*arguments, may_lose_atoms=True)
    assert course.lost
    assert course.data["deviation"].tolist() == [0.4]


def test_the_barrier_of_a_compressed_crystal_ends_where_the_energy_falls_below_the_crystals(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from stability import barrier

    distances = np.array([0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.9, 2.1])
    energies = np.array([-99.0, 40.0, 25.0, 10.0, 12.0, -3.0, -7.0, -6.0])
    assert barrier(distances, energies) == {"barrier_at": 0.7, "barrier": 47.0, "fall_before": 2.0}
    # A crystal that never collapses is followed to the shortest distance.
    energies[0] = 99.0
    assert barrier(distances, energies) == {"barrier_at": 0.5, "barrier": 106.0, "fall_before": 2.0}


def test_a_model_to_compare_with_must_have_a_name_and_a_file(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from stability import _named

    for text in ("model.pt", "name=none.pt"):
        with pytest.raises(SystemExit, match="--compare takes NAME=FILE with the file of a model, got"):
            _named(text)


def test_a_leak_and_a_lost_momentum_show_in_the_summary_of_a_long_run(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from long_run import Course, summary

    rows = [[100.0 * i, 0.1 * i, 300.0, -64.0, 5.0, 0.0, 1e-3 * i] for i in range(101)]
    memory = [[int(100e6 + (50e6 if i > 2 else 0)), int(100e6 + 1e5 * i)] for i in range(101)]
    found = summary(Course(rows, memory, neighbor_builds=3, seconds=10.0), 8)
    assert found["growth_mb"] == pytest.approx(9.0)
    assert found["growth_mb_per_1000_steps"] == pytest.approx(1.0)
    assert found["largest_change_of_momentum"] == pytest.approx(0.1)
    assert found["resident_mb"] == pytest.approx(150.0)


@pytest.mark.parametrize(
    ("group", "expected"),
    [("Elastic", [-1.0, -2.0, -3.0, -5.0, -6.0, -4.0]), ("Vacancy", [-1.0, -2.0, -3.0, -6.0, -5.0, -4.0])],
)
def test_mlearns_stresses_are_read_in_our_units_order_and_sign(group, expected, monkeypatch, tmp_path):
    """Theirs are in kbar, compression positive, XX YY ZZ XY and then YZ ZX in one group, ZX YZ in the others."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from mlearn import read_mlearn

    site = {"species": [{"element": "Si", "occu": 1}], "abc": [0.5, 0.0, 0.25]}
    labels = {"energy": -5.0, "forces": [[0.1, 0.2, 0.3]], "virial_stress": [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]}
    lattice = {"matrix": [[4.0, 0.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 8.0]]}
    entry = {"structure": {"lattice": lattice, "sites": [site]}, "group": group, "outputs": labels}
    path = tmp_path / "Si-test.json"
    path.write_text(json.dumps([entry]))
    (atoms,) = read_mlearn(path)
    np.testing.assert_allclose(atoms.positions, [[2.0, 0.0, 2.0]])
    np.testing.assert_allclose(atoms.get_forces(), [[0.1, 0.2, 0.3]])
    np.testing.assert_allclose(160.21766208 * atoms.get_stress(), expected)
    assert (atoms.get_potential_energy(), atoms.info["config_type"]) == (-5.0, group)


@pytest.mark.slow
def test_elements_of_zuo_et_al_are_trained_by_one_recipe_and_not_twice(tmp_path):
    frames = [bulk("Cu", cubic=True) for _ in range(4)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
    (tmp_path / "Cu").mkdir()
    for part in ("training", "test"):
        entries = [
            {
                "structure": pymatgen_structure(atoms),
                "group": "Vacancy",
                "outputs": {
                    "energy": atoms.get_potential_energy(),
                    "forces": atoms.get_forces().tolist(),
                    "virial_stress": (-1602.1766 * atoms.get_stress()[[0, 1, 2, 5, 3, 4]]).tolist(),
                },
            }
            for atoms in frames
        ]
        (tmp_path / "Cu" / f"{part}.json").write_text(json.dumps(entries))
    command = [sys.executable, str(BENCHMARKS / "zuo2020" / "zuo2020.py"), str(tmp_path), "-o", str(tmp_path / "runs")]
    command += ["--elements", "Cu", "--threads", "1", "--json", str(tmp_path / "r.json"), "--epochs"]
    first = subprocess.run([*command, "2"], capture_output=True, text=True, timeout=600)
    assert first.returncode == 0, first.stderr
    assert "HIENet, seed 0" in first.stdout
    (row,) = json.loads((tmp_path / "r.json").read_text())["elements"]["Cu"]
    assert (row["seed"], row["epochs"]) == (0, 2)
    assert_positive(row["errors"], "energy_mae_mev_per_atom", "forces_mae_mev_per_angstrom", "stress_mae_gpa")
    again = subprocess.run([*command, "2"], capture_output=True, text=True, timeout=600)
    assert "epoch 1/2" in first.stdout
    assert "epoch 1/2" not in again.stdout
    other = subprocess.run([*command, "3"], capture_output=True, text=True, timeout=600)
    assert "says something else than this command would; take another folder" in other.stderr
    missing = subprocess.run([*command, "2", "--elements", "Mo"], capture_output=True, text=True, timeout=600)
    assert "there is neither" in missing.stderr
    assert missing.returncode == 1


@pytest.fixture
def in_process(monkeypatch, in_this_process, capfd) -> Callable[..., str]:
    """Runs a benchmark that has commands in this process, and returns what it printed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        importlib.import_module(script).main()
        return capfd.readouterr().out

    return run


@pytest.fixture
def ablation(in_process) -> Callable[..., str]:
    """The benchmark, in this process."""
    return partial(in_process, "ablation")


@pytest.mark.slow
def test_the_ablation_trains_measures_and_draws_and_repeats_no_training(ablation, tmp_path):
    folder = tmp_path / "models"
    train = ("train", folder, "--only", "sic-invnet-small-?", "--jobs", "2", "--epochs")
    assert "finished before" not in ablation(*train, 1)
    assert ablation(*train, 1).count("finished before") == 2
    with pytest.raises(SystemExit, match="says something else than this command would; take another folder"):
        ablation(*train, 2)

    # In a process of its own: it changes how torch rounds.
    measure = [sys.executable, str(BENCHMARKS / "ablation.py"), "measure", str(folder)]
    subprocess.run([*measure, "--atoms", "8", "--rounds", "1", "--seconds", "0.01"], check=True, timeout=600)
    ablation("report", folder, "--json", tmp_path / "r.json", "--plot", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    (row,) = json.loads((tmp_path / "r.json").read_text())["models"]
    assert (row["label"], row["size"], row["seeds"]) == ("invnet", "small", [0, 1])
    assert_positive(row, "steps_per_second")
    for errors in (row["test"], row["train"]):
        assert all(value > 0 for values in errors.values() for value in values)
    first, second = row["test"]["forces_mae_mev_per_angstrom"]
    assert abs(first - second) > 1e-6 * first


@pytest.mark.slow
def test_error_against_cost_trains_measures_and_draws_and_names_what_it_cannot_install(in_process, tmp_path):
    run = partial(in_process, "error_against_cost")
    folder, options = tmp_path / "models", ("--systems", "sic")
    with pytest.raises(SystemExit, match=r"nothing has been measured in .*; begin with"):
        run("report", folder, *options)
    with pytest.raises(SystemExit, match=r"there is no finished training in .*; begin with"):
        run("measure", folder, *options)
    train = ("train", folder, *options, "--minutes", 0.01, "--environments", tmp_path, "--pip-args=--no-index")
    with pytest.raises(SystemExit, match="no model is called like nobody; there are: hienet 16, "):
        run(*train, "--only", "nobody")
    text = run(*train, "--only", "hienet 16", "SevenNet*")
    assert "sic, SevenNet base is left out: pip could not install torch" in text
    assert "sic, hienet 16: finished before" in run(*train, "--only", "hienet 16")
    # A training that fails is told, and the next is begun; a folder that was trained in another way ends it all.
    (tmp_path / "models" / "sic" / "hienet_small").write_text("a file where the folder is to be")
    text = run(*train, "--only", "hienet small", "SevenNet*")
    assert "sic, hienet small is left out: the training `hienet_small` failed:" in text
    assert "sic, SevenNet base is left out" in text
    with pytest.raises(SystemExit, match="says something else than this command would; take another folder"):
        run(*train, "--only", "hienet small", "--seed", 1)

    # In a process of its own, as in the test before.
    measure = [sys.executable, str(BENCHMARKS / "error_against_cost.py"), "measure", str(folder), *options]
    subprocess.run([*measure, "--atoms", "8", "--rounds", "1", "--seconds", "0.01"], check=True, timeout=600)
    run("report", folder, *options, "--json", tmp_path / "r.json", "--plot", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert (row["system"], row["model"], row["mode"]) == ("sic", "hienet 16", "deployed")
    assert_positive(row, "us_per_atom", "energy_mae_mev_per_atom", "forces_mae_mev_per_angstrom", "n_parameters")


def test_ace_is_given_energies_of_its_elements_and_its_epochs_are_timed_by_its_log(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    peer_programs = importlib.import_module("peer_programs")
    program = peer_programs.PROGRAMS["grace"]
    frames = []
    for i in range(4):
        atoms = bulk("Cu", cubic=True)
        for copy in range(i):
            atoms.symbols[copy] = "Au"
        atoms.rattle(0.05, seed=i)
        atoms.calc = EMT()
        atoms.calc = SinglePointCalculator(atoms, energy=2.0 * i - 3.0 * (4 - i), forces=atoms.get_forces())
        frames.append(atoms)
    program.write(frames, tmp_path / "train.extxyz")
    command = program.command(Path("/env/bin/python"), tmp_path, 5.0, 7, 3, {"max_order": 2})
    assert command == ["/env/bin/gracemaker", "input.yaml"]
    values = yaml.safe_load((tmp_path / "input.yaml").read_text())
    assert (values["cutoff"], values["seed"], values["fit"]["maxiter"]) == (5.0, 3, 7)
    assert values["potential"]["kwargs"] == {"max_order": 2}
    assert program.reference_energies(tmp_path) == pytest.approx({"Au": 2.0, "Cu": -3.0})
    assert len(ase.io.read(tmp_path / "test.extxyz", ":")) == 4
    with pytest.raises(peer_programs.PeerError, match="it wrote no model into"):
        program.model(tmp_path)

    def trial(part, folder, epochs):
        """Twenty seconds to compile, and three for an epoch."""
        (folder / "seed" / "3").mkdir(parents=True)
        lines = [f"2026-01-01 10:00:{20 + 3 * i:02},500 I - Iteration #{i + 1}/{epochs} TRAIN" for i in range(epochs)]
        (folder / "seed" / "3" / "log.txt").write_text("\n".join(["2026-01-01 10:00:00,000 I - Start", *lines]))
        return 20.0 + 3.0 * epochs

    assert program.pace(trial, frames) == pytest.approx((20.0, 3.0))


def test_recipe_changes_one_value_and_reports_errors_of_the_same_validation_frames(in_process, tmp_path):
    run = partial(in_process, "recipe")
    options = (tmp_path, "--systems", "sic")
    with pytest.raises(SystemExit, match=r"nothing is trained in .*; train it first: recipe.py train"):
        run("report", *options)
    train = ("train", *options, "--minutes", 0.01)
    with pytest.raises(SystemExit, match="no variant is called like nobody; there are: the recipe, another seed, "):
        run(*train, "--only", "nobody")
    assert run(*train, "--only", "another seed", "l up to 1").count("sic, ") == 2
    run("report", *options, "--json", tmp_path / "r.json")
    seed, narrow = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert (seed["variant"], narrow["variant"]) == ("another seed", "l up to 1")
    for row in (seed, narrow):
        assert_positive(row, "epochs", "energy_mae_mev_per_atom", "forces_mae_mev_per_angstrom", "stress_mae_gpa")
    folder = tmp_path / "sic"
    configurations = [yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("another_seed", "l_up_to_1")]
    assert configurations[0]["data"] == configurations[1]["data"]
    assert configurations[0]["training"]["seed"] == 1
    assert configurations[1]["model"]["l_max"] == 1


@pytest.mark.slow
def test_the_ablation_compares_parity_at_equal_cost(ablation, tmp_path):
    folder = tmp_path / "models"
    (folder / "data").mkdir(parents=True)
    frames = ase.io.read(BENCHMARKS.parent / "demo" / "data" / "sic_pbe.extxyz", ":6")
    for part in ("train", "test"):
        ase.io.write(folder / "data" / f"sic-{part}.extxyz", frames)
    train = ("train", folder, "--parity", "--systems", "sic", "--only", "*-0", "--epochs", "4")
    assert "sic: an epoch without parity takes" in ablation(*train)
    cost = json.loads((folder / "cost.json").read_text())["sic"]
    assert_positive(cost, "seconds_of_epoch", "ratio")
    assert ablation(*train).count("finished before") == 3
    ablation("report", folder, "--json", tmp_path / "r.json")
    epochs = {row["label"]: row["epochs"] for row in json.loads((tmp_path / "r.json").read_text())["models"]}
    assert epochs == {"hienet": [4], "hienet-o3": [4], "hienet-o3-equal-cost": [round(4 * cost["ratio"])]}


def test_every_training_of_the_ablation_has_a_name_and_a_configuration_of_its_own(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from ablation_plan import configuration, trainings

    assert len({one.name for one in trainings()}) == len(trainings())
    # Those at equal cost differ in epochs alone, which follow from what is measured.
    chosen = [one for one in trainings() if not one.equal_cost]
    sections = [parse_config(configuration(one, tmp_path, None)).model for one in chosen]
    for section in sections:
        section.check()
    distinct = {(one.system, json.dumps(section.model_dump())) for one, section in zip(chosen, sections, strict=True)}
    assert len(distinct) == len({one.model for one in chosen})


def test_parity_is_compared_at_equal_training_and_at_equal_cost_with_two_seeds(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from ablation_plan import SYSTEMS, configuration, trainings

    chosen = [one for one in trainings() if one.concerns_parity]
    assert len(chosen) == 12 == len({(one.system, one.label, one.seed) for one in chosen})
    assert {one.system for one in chosen} == set(SYSTEMS)
    for one in chosen:
        section = parse_config(configuration(one, tmp_path, 7)).model
        config = section.hyperparameters({"elements": ("H",)})
        assert config.symmetry == ("SO(3)" if one.label == "hienet" else "O(3)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "{}", "--only", "si-hienet-small-0"), "silicon needs --mlearn, the folder with mlearn's"),
        (("train", "{}", "--mlearn", "{}", "--systems", "si"), "--mlearn must be the folder with mlearn's data"),
        (("train", "{}", "--only", "sic-mace"), "no training is called like sic-mace; `--list` names them all"),
        (("train", "{}", "--minutes", "3"), "--minutes is for the trainings with and without parity; give --parity"),
        (("measure", "{}"), "there is no finished training in"),
        (("report", "{}"), "there is no finished training in"),
    ],
)
def test_what_the_ablation_lacks_it_names(ablation, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        ablation(*(argument.format(tmp_path) for argument in arguments))


@pytest.mark.slow
def test_training_writes_the_time_of_each_contender_and_the_error_of_a_gradient(tmp_path):
    sizes = ("--frames", "1", "--atoms", "8", "--threads", "1", "--rounds", "1", "--seconds", "0.02")
    result = run("training", tmp_path, *sizes)
    contenders = ("eager", "plain", "fused")
    assert_positive(result, *(f"{name}_ms_per_atom" for name in contenders), "eager_over_fused", "plain_over_fused")
    assert result["fused_mb_per_atom"] >= 0.0
    assert 0.0 < result["largest_gradient_error"] < 1e-3


@pytest.mark.slow
def test_training_peers_measures_ours_and_names_what_it_cannot_install(tmp_path):
    sizes = ("--frames", "1", "--atoms", "8", "--threads", "1", "--rounds", "1", "--ours", "hienet-small")
    options = ("--peers", "nequip-l2-5", "--environments", str(tmp_path / "peers"), "--pip-args=--no-index")
    result = run("training_peers", tmp_path, *sizes, *options)
    (row,) = result["rows"]
    assert row["model"] == "hienet-small"
    assert_positive(row, "ms_per_atom", "cpu_ms_per_atom")
    assert "pip could not install" in result["failures"]["nequip-l2-5"]
