"""Errors are computed over what has labels, and written where they can be read."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import matplotlib
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from labelled_frames import emt_frames, write_frames
from matplotlib.figure import Figure
from typer.testing import CliRunner

from hienet.calculator import HIENetCalculator
from hienet.cli import app
from hienet.data.labels import LabelKeys
from hienet.errors import HIENetError
from hienet.evaluate import evaluate, write_evaluation
from hienet.figure import as_text, save_figure
from hienet.files import json_text
from hienet.metrics import Comparison, Errors, compare, determination, errors
from hienet.testing import NATURAL, random_rotation, rotated, write_tiny_checkpoint
from hienet.train import report


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "model.pt", elements=("Ag", "Cu"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "data.extxyz")


def comparison(**changes: object) -> Comparison:
    values: dict[str, object] = {
        "n_atoms": np.array([2, 1]),
        "compositions": np.array([[2.0], [1.0]]),
        "energy": np.array([2.0, 5.0]),
        "energy_label": np.array([2.2, np.nan]),
        "energies": np.zeros(3),
        "forces": np.ones((3, 3)),
        "forces_label": np.array([[1.0, 1, 1], [1, 1, 4], [np.nan] * 3]),
        "stress": np.full((2, 6), np.nan),
        "stress_label": np.full((2, 6), np.nan),
    }
    return Comparison(**{**values, **changes})  # type: ignore[arg-type]


def test_errors_are_over_what_has_labels() -> None:
    found = errors(comparison())
    assert found.energy_mae == pytest.approx(100.0)
    assert found.forces_mae == pytest.approx(500.0)
    assert found.forces_rmse == pytest.approx(1000 * np.sqrt(9 / 6))
    assert found.stress_mae is None


def test_a_prediction_that_is_not_a_number_is_not_hidden() -> None:
    assert np.isnan(errors(comparison(energy=np.array([np.nan, 1.0]))).energy_mae)


def test_stress_errors_are_in_gpa() -> None:
    zero = np.zeros((2, 6))
    assert errors(comparison(stress=zero + 0.01, stress_label=zero)).stress_mae == pytest.approx(1.6021766)


def test_the_coefficient_of_determination_is_the_part_of_the_variance_that_is_predicted() -> None:
    label = np.array([1.0, 2.0, 3.0, np.nan])
    assert determination(label, label) == 1.0
    assert determination(np.full(4, 2.0), label) == 0.0
    assert determination(np.array([1.0, 2.0, 4.0, 9.0]), label) == pytest.approx(1.0 - 1.0 / 2.0)
    assert determination(label, np.array([2.0, 2.0, np.nan, 2.0])) is None
    assert determination(label, np.full(4, np.nan)) is None
    predicted = np.array([np.nan, 2.0, 3.0, 0.0])
    assert np.isnan(determination(predicted, label))


def test_errors_of_files_without_a_coefficient_of_determination_are_read() -> None:
    row = errors(comparison()).as_dict()
    found = Errors.from_dict({name: value for name, value in row.items() if not name.endswith("_r2")})
    assert found.forces_r2 is None
    assert Errors.from_dict(row) == errors(comparison())


def test_frames_are_grouped_by_any_entry_and_by_a_part_of_it(model: Path, tmp_path: Path) -> None:
    frames = emt_frames(5)
    names = ("npt_1000K_0bar", "npt_300K_0bar", "npt_300K_5bar", "eos", "npt_1000K_5bar")
    for atoms, name in zip(frames, names, strict=True):
        atoms.info |= {"config_type": name, "pressure": name[-4:]}
    data = write_frames(tmp_path / "named.extxyz", frames)
    by_temperature = evaluate(model, [data], group_pattern=r"(\d+)K")
    assert [(name, found.n_frames) for name, found in by_temperature.by_group.items()] == [
        ("", 1),
        ("300", 2),
        ("1000", 2),
    ]
    command = ["eval", str(model), str(data), "-o", str(tmp_path / "out"), "--by"]
    said = CliRunner().invoke(app, [*command, "pressure"]).output
    assert "_eos" not in said
    assert {"0bar", "5bar", "R²"} <= set(said.split())
    assert set(json.loads((tmp_path / "out" / "errors.json").read_text())["by_pressure"]) == {"0bar", "5bar", "eos"}
    with (tmp_path / "out" / "frames.csv").open(encoding="utf-8", newline="") as file:
        assert [row["pressure"] for row in csv.DictReader(file)] == [atoms.info["pressure"] for atoms in frames]
    assert (tmp_path / "out" / "errors.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(HIENetError, match=r"no frame has the entry `temperature` .* have `config_type`, `pressure`"):
        evaluate(model, [data], group_key="temperature")
    with pytest.raises(HIENetError, match=r"`\(` is no regular expression: missing \)"):
        evaluate(model, [data], group_pattern="(")
    with pytest.raises(HIENetError, match=r"`nvt` matches nothing in the entries `config_type` .*, such as `npt_1000K"):
        evaluate(model, [data], group_pattern="nvt")


def test_an_evaluation_that_fails_leaves_no_empty_folder_and_takes_none_away(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ["eval", str(model), str(tmp_path / "none.extxyz"), "-o", str(output)]
    assert isinstance(CliRunner().invoke(app, command).exception, HIENetError)
    assert not output.exists()
    output.mkdir()
    assert CliRunner().invoke(app, command).exit_code != 0
    assert output.is_dir()


def test_predictions_are_those_of_the_calculator(model: Path, data: Path) -> None:
    evaluation = evaluate(model, [data], batch_size=3)
    frames = ase.io.read(data, index=":")
    calculator = HIENetCalculator(model)
    found = evaluation.comparison
    for i, atoms in enumerate(frames):
        atoms.calc = calculator
        assert found.energy[i] == pytest.approx(atoms.get_potential_energy())
        assert found.forces[4 * i : 4 * i + 4] == pytest.approx(atoms.get_forces())
        assert found.stress[i] == pytest.approx(atoms.get_stress())


def test_a_label_equal_to_the_prediction_has_no_error(model: Path, tmp_path: Path) -> None:
    frames = emt_frames(3)
    calculator = HIENetCalculator(model)
    for atoms in frames:
        atoms.calc = calculator
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **results)
    total = evaluate(model, [write_frames(tmp_path / "own.extxyz", frames)]).total
    assert total.energy_mae == pytest.approx(0.0, abs=1e-4)
    assert total.forces_mae == pytest.approx(0.0, abs=1e-4)
    assert total.stress_mae == pytest.approx(0.0, abs=1e-6)


def test_what_mirroring_the_frames_changes_is_told_of_models_without_that_symmetry(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = evaluate(model, [data], batch_size=3).mirror
    assert found is not None
    calculator = HIENetCalculator(model)
    energies, forces = [], []
    for atoms in ase.io.read(data, index=":"):
        other = rotated(atoms, np.diag([1.0, 1.0, -1.0]) @ random_rotation())
        atoms.calc = other.calc = calculator
        energies.append(1e3 * abs(other.get_potential_energy() - atoms.get_potential_energy()) / len(atoms))
        back = other.get_forces() @ np.diag([1.0, 1.0, -1.0]) @ random_rotation()
        forces.append(1e3 * np.abs(back - atoms.get_forces()))
    assert found.energy_mean == pytest.approx(np.mean(energies), rel=1e-6)
    assert found.energy_max == pytest.approx(np.max(energies), rel=1e-6)
    assert found.forces_mean == pytest.approx(np.mean(forces), rel=1e-6)
    assert found.forces_max == pytest.approx(np.max(forces), rel=1e-6)
    assert found.energy_max > found.energy_mean > 1e-6
    said = CliRunner().invoke(app, ["eval", str(model), str(data), "-o", str(tmp_path / "out")]).output
    assert f"components of forces by {found.forces_mean:.1f} meV/Å on average" in " ".join(said.split())
    assert json.loads((tmp_path / "out" / "errors.json").read_text())["mirror"] == found.as_dict()


def test_of_models_with_that_symmetry_nothing_is_told(data: Path, tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "m.pt", elements=("Ag", "Cu"), **NATURAL)
    assert evaluate(path, [data]).mirror is None
    said = CliRunner().invoke(app, ["eval", str(path), str(data), "-o", str(tmp_path / "out")]).output
    assert "E MAE" in said
    assert "mirror" not in said.lower()
    assert json.loads((tmp_path / "out" / "errors.json").read_text())["mirror"] is None


def test_errors_are_listed_by_config_type_and_element(model: Path, data: Path) -> None:
    evaluation = evaluate(model, [data])
    assert {name: found.n_frames for name, found in evaluation.by_group.items()} == {"first": 4, "second": 4}
    assert {symbol: row[0] for symbol, row in evaluation.forces_by_element.items()} == {"Ag": 7, "Cu": 25}
    rows = evaluation.forces_by_element.values()
    mean = sum(count * (mae or 0.0) for count, mae, _ in rows) / 32
    assert mean == pytest.approx(evaluation.total.forces_mae)


def test_the_tables_hold_every_frame_and_atom(model: Path, data: Path, tmp_path: Path) -> None:
    evaluation = evaluate(model, [data])
    paths = write_evaluation(evaluation, tmp_path / "out")
    assert [path.name for path in paths] == [
        "frames.csv",
        "atoms.csv",
        "errors.csv",
        "errors.json",
        "parity.png",
        "errors.png",
    ]
    frames, atoms, table = (list(csv.DictReader(path.read_text().splitlines())) for path in paths[:3])
    assert (len(frames), len(atoms)) == (8, 32)
    assert float(frames[3]["energy_ev"]) == pytest.approx(evaluation.comparison.energy[3])
    assert float(atoms[5]["force_y_label_ev_per_angstrom"]) == pytest.approx(evaluation.comparison.forces_label[5, 1])
    assert sum(float(row["energy_ev"]) for row in atoms[:4]) == pytest.approx(float(frames[0]["energy_ev"]))
    assert [row["set"] for row in table] == [
        "all",
        "config_type first",
        "config_type second",
        "element Ag",
        "element Cu",
    ]
    assert json.loads(paths[3].read_text())["all"]["n_frames"] == 8
    for path in paths[4:]:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_missing_labels_are_empty_cells(model: Path, tmp_path: Path) -> None:
    atoms = emt_frames(1)[0]
    atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    data = write_frames(tmp_path / "data.extxyz", [atoms])
    paths = write_evaluation(evaluate(model, [data]), tmp_path / "out")
    row = next(csv.DictReader(paths[0].read_text().splitlines()))
    assert row["forces_mae_mev_per_angstrom"] == ""
    assert row["stress_xx_label_ev_per_cubic_angstrom"] == ""
    assert row["stress_xx_ev_per_cubic_angstrom"] != ""


def test_masked_atoms_are_left_out_of_errors_and_are_empty_cells(model: Path, tmp_path: Path) -> None:
    frames = emt_frames(2)
    frames[1].calc.results["forces"][0] = np.nan
    evaluation = evaluate(model, [write_frames(tmp_path / "data.extxyz", frames)])
    c = evaluation.comparison
    labelled = [0, 1, 2, 3, 5, 6, 7]
    assert evaluation.total.forces_mae == pytest.approx(1e3 * np.abs(c.forces - c.forces_label)[labelled].mean())
    assert any("forces of 1 atoms in 1 frames are NaN" in note for note in evaluation.notes)
    paths = write_evaluation(evaluation, tmp_path / "out")
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert [row["force_x_label_ev_per_angstrom"] == "" for row in rows] == [False] * 4 + [True] + [False] * 3
    assert all(row["force_x_ev_per_angstrom"] for row in rows)


def test_weights_change_no_errors(model: Path, tmp_path: Path) -> None:
    frames = emt_frames(3)
    plain = evaluate(model, [write_frames(tmp_path / "data.extxyz", frames)]).total
    frames[0].info["config_weight"] = 9.0
    assert evaluate(model, [write_frames(tmp_path / "data.extxyz", frames)]).total == plain


def test_predictions_that_are_not_numbers_are_named_and_leave_json_valid(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare_badly(*arguments: Any, **options: Any) -> Comparison:
        found = compare(*arguments, **options)
        found.energy[2] = np.nan
        found.forces[21, 1] = np.inf
        return found

    monkeypatch.setattr("hienet.evaluate.compare", compare_badly)
    evaluation = evaluate(model, [data])
    (note,) = evaluation.notes
    assert note.startswith("WARNING: for 2 of 8 frames the model does not predict finite numbers")
    assert "frame 2, " in note
    assert "frame 5;" in note
    paths = write_evaluation(evaluation, tmp_path / "out")
    values = json.loads(paths[3].read_text(), parse_constant=pytest.fail)
    assert values["all"]["energy_mae_mev_per_atom"] is None
    assert values["all"]["stress_mae_gpa"] == evaluation.total.stress_mae
    frames = list(csv.DictReader(paths[0].read_text().splitlines()))
    assert frames[2]["energy_ev"] == "nan"


def test_json_knows_no_nan() -> None:
    values = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": (None, "x", 2)}}
    assert json.loads(json_text(values)) == {"a": None, "b": [1.0, None], "c": {"d": [None, "x", 2]}}


def energies_of_parity(
    monkeypatch: pytest.MonkeyPatch, path: Path, sets: Sequence[str] = ("test",), **changes: object
) -> Any:
    """The panel of energies that is plotted, of the same frames for each set."""
    figures: list[Any] = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: (figures.append(figure), save_figure(figure, path)))
    n = 12
    generator = np.random.default_rng(0)
    counts = np.stack([np.arange(1, n + 1), np.full(n, 4)], axis=1).astype(float)
    left = generator.normal(0, 0.03, n)
    energy = counts @ [-50.0, -2000.0] + counts.sum(axis=1) * left
    values: dict[str, object] = {
        "n_atoms": counts.sum(axis=1).astype(int),
        "compositions": counts,
        "energy": energy,
        "energy_label": energy.copy(),
        "energies": np.zeros(int(counts.sum())),
        "forces": np.zeros((int(counts.sum()), 3)),
        "forces_label": np.zeros((int(counts.sum()), 3)),
        "stress": np.full((n, 6), np.nan),
        "stress_label": np.full((n, 6), np.nan),
    }
    comparison = Comparison(**{**values, **changes})  # type: ignore[arg-type]
    report.plot_parity(dict.fromkeys(sets, comparison), path)
    return figures[0].axes[0]


def test_errors_of_energies_are_seen_beside_the_energies_of_atoms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of -50 and -2000 eV: without them, the axis is as long as the errors and labels spread."""
    axis = energies_of_parity(monkeypatch, tmp_path / "p.png")
    assert "reference energies" in axis.get_xlabel()
    assert "reference energies" in axis.get_ylabel()
    assert np.ptp(axis.get_xlim()) < 0.3
    assert axis.get_xlim() == axis.get_ylim()
    points = np.asarray(axis.collections[0].get_offsets())
    assert points[:, 0] == pytest.approx(points[:, 1])


def test_an_absurd_label_does_not_hide_the_others_in_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_atoms = np.arange(5, 17)
    labels = np.stack([np.arange(1, 13), np.full(12, 4)], axis=1) @ [-50.0, -2000.0] + n_atoms * np.linspace(-1, 1, 12)
    axis = energies_of_parity(
        monkeypatch, tmp_path / "p.png", energy=labels, energy_label=labels + 1e6 * (n_atoms == 9)
    )
    assert np.ptp(axis.get_xlim()) < 5.0
    assert [text.get_text() for text in axis.texts] == ["1 point lies outside"]


@pytest.mark.parametrize("n_sets", [1, 2, 3, 4])
def test_titles_and_labels_are_on_the_figure_for_any_number_of_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_sets: int
) -> None:
    sets = ["train", "validation", "test", "replay"][:n_sets]
    axis = energies_of_parity(monkeypatch, tmp_path / "p.png", sets)
    whole = axis.figure.bbox
    for part in (axis.get_legend(), axis.xaxis.get_label(), axis.yaxis.get_label()):
        box = part.get_window_extent()
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1


@pytest.mark.parametrize("offset", [0.0, -3.2, 2860.0, 1e-9])
def test_labels_of_ticks_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: float) -> None:
    """Also where all labels are equal, or all predictions far from them."""
    energy = np.full(12, -300.0)
    axis = energies_of_parity(monkeypatch, tmp_path / "p.png", energy=energy + offset, energy_label=energy)
    boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
    assert len(boxes) >= 2
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_plots_need_nothing_that_a_matplotlibrc_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LaTeX that is not there; afterwards the caller's settings are as they were."""
    energy = np.linspace(-300.0, -299.0, 12)
    plain = tmp_path / "plain.png"
    energies_of_parity(monkeypatch, plain, energy=energy, energy_label=energy)
    mine = {"text.usetex": True, "font.size": 40.0, "savefig.bbox": "tight", "savefig.dpi": 20.0}
    with matplotlib.rc_context(mine):
        energies_of_parity(monkeypatch, tmp_path / "mine.png", energy=energy, energy_label=energy)
        assert {key: matplotlib.rcParams[key] for key in mine} == mine
    assert (tmp_path / "mine.png").read_bytes() == plain.read_bytes()


def test_a_dollar_sign_in_a_name_begins_no_formula(tmp_path: Path) -> None:
    figure = Figure()
    figure.suptitle(as_text(r"$x_1$ and $\nonsense$"))
    save_figure(figure, tmp_path / "name.png")
    assert (tmp_path / "name.png").read_bytes().startswith(b"\x89PNG")


def test_float32_is_close_to_float64(model: Path, data: Path) -> None:
    single, double = (evaluate(model, [data], dtype=dtype).comparison for dtype in ("float32", "float64"))
    assert single.forces == pytest.approx(double.forces, abs=1e-4)
    assert torch.get_default_dtype() == torch.float32


def test_an_element_that_the_model_does_not_know_is_named(model: Path, tmp_path: Path) -> None:
    frames = emt_frames(1)
    frames[0].symbols[0] = "Au"
    data = write_frames(tmp_path / "data.extxyz", frames)
    with pytest.raises(HIENetError, match=r"frame 0: the structure contains Au, but the model knows only Ag, Cu"):
        evaluate(model, [data])


def test_a_given_key_is_used(model: Path, tmp_path: Path) -> None:
    frames = emt_frames(2)
    for atoms in frames:
        atoms.info["mine"] = 3.0
    data = write_frames(tmp_path / "data.extxyz", frames)
    assert evaluate(model, [data], LabelKeys(energy="mine")).comparison.energy_label.tolist() == [3.0, 3.0]
