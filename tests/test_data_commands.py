"""`hienet data` converts, measures, splits and checks, and says in its exit status whether it found anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from labelled_frames import emt_frames, write_frames
from typer.testing import CliRunner, Result

from hienet.cli import app
from hienet.data.composition import least_squares, least_squares_of_parts
from hienet.data.divide import split_groups
from hienet.data.labels import read_labels
from hienet.data.reader import read_frames
from hienet.errors import HIENetError


def run(*words: object) -> Result:
    result = CliRunner().invoke(app, ["data", *map(str, words)])
    if isinstance(result.exception, HIENetError):
        raise result.exception
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    frames = emt_frames(12)
    for i, atoms in enumerate(frames):
        atoms.info["mp_id"] = f"mp-{i // 3}"
    return write_frames(tmp_path / "data.extxyz", frames)


def test_stats_are_those_of_the_frames(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they are seen a few at a time."""
    monkeypatch.setattr("hienet.data.overview._FRAMES_AT_A_TIME", 5)
    found = json.loads(run("stats", data, "--cutoff", 3.5, "--json").stdout)
    frames = read_frames([data])
    labels, _ = read_labels(frames)
    forces = np.concatenate([label.forces for label in labels])
    assert found["n_frames"] == 12
    assert found["force_rms_ev_per_angstrom"] == pytest.approx(np.sqrt((forces**2).mean()))
    counts = np.array([[sum(frame.atoms.symbols == symbol) for symbol in ("Ag", "Cu")] for frame in frames])
    energies, _ = least_squares(counts / 4, np.array([label.energy for label in labels]) / 4)
    assert [found["elements"][symbol]["energy_ev"] for symbol in ("Ag", "Cu")] == pytest.approx(energies)
    assert found["elements"]["Ag"] == {"atoms": 12, "frames": 8, "energy_ev": pytest.approx(energies[0])}
    largest = found["ranges"]["largest force component (eV/Å)"]
    assert largest["max"] == pytest.approx(np.abs(forces).max())
    text = run("stats", data, "--cutoff", 3.5).stdout
    assert "12 frames, 48 atoms" in text
    assert f"largest force component (eV/Å): least in {largest['min_frame']}, greatest in" in text


def test_least_squares_of_parts_are_those_of_the_whole() -> None:
    """Rank and solution of least norm, too."""
    generator = np.random.default_rng(0)
    fractions = generator.random((300, 4))
    fractions[:, 3] = fractions[:, 0]
    energies = generator.random(300)
    whole, rank = least_squares(fractions, energies)
    parts = [(fractions[i : i + 7], energies[i : i + 7]) for i in range(0, 300, 7)]
    found, rank_of_parts = least_squares_of_parts(parts, 4)
    assert rank_of_parts == rank == 3
    assert found == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("kind", ["extxyz", "cache"])
def test_no_group_is_on_two_sides_of_a_split(kind: str, data: Path, tmp_path: Path) -> None:
    source = data
    if kind == "cache":
        source = tmp_path / "cache"
        assert "12 frames, 48 atoms" in run("convert", data, "-o", source, "--cutoff", 3.5).stdout
    out = run("split", source, "-o", tmp_path / "parts", "--validation", 0.2, "--test", 0.2, "--group", "mp_id").stdout
    names = {name: tmp_path / "parts" / (name if kind == "cache" else f"{name}.extxyz") for name in ("train", "test")}
    assert f"train: 6 frames in {names['train']}" in out
    groups = {name: {frame.group("mp_id") for frame in read_frames([path])} for name, path in names.items()}
    assert [len(found) for found in groups.values()] == [2, 1]
    assert not groups["train"] & groups["test"]
    expected = {round(label.energy, 6) for label in read_labels(read_frames([data]))[0]}  # type: ignore[arg-type]
    labels, _ = read_labels(read_frames([names["test"]]))
    assert {round(label.energy, 6) for label in labels} < expected  # type: ignore[arg-type]
    with pytest.raises(HIENetError, match=r"exists; choose another folder with --output"):
        run("split", source, "-o", tmp_path / "parts", "--group", "mp_id")


def test_a_split_that_cannot_be_made_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(HIENetError, match=r"12 of 12 frames have no `material`; give another --group"):
        run("split", data, "-o", tmp_path / "parts", "--group", "material")
    with pytest.raises(HIENetError, match=r"--group keeps equal frames together, --stratify apart; give one"):
        run("split", data, "-o", tmp_path / "parts", "--group", "mp_id", "--stratify", "mp_id")
    with pytest.raises(HIENetError, match=r"--validation 0.6 and --test 0.5 must take more than 0 and less than 1"):
        run("split", data, "-o", tmp_path / "parts", "--validation", 0.6, "--test", 0.5)
    with pytest.raises(HIENetError, match=r"1 group\(s\) of 3 frames are too few to set 0.1 of the frames apart"):
        split_groups(["a"] * 3, 0.1, 0.0, 0)


def test_a_conversion_without_labels_is_warned_of_before_and_refused_after(tmp_path: Path) -> None:
    frames = emt_frames(3)
    for atoms in frames:
        atoms.calc = None
    data = write_frames(tmp_path / "data.extxyz", frames)
    result = CliRunner().invoke(app, ["data", "convert", str(data), "-o", str(tmp_path / "cache")])
    assert result.stdout.startswith("WARNING: in the first 100 frames no energy, forces or stress found in")
    assert isinstance(result.exception, HIENetError)


def test_check_names_what_it_finds_and_says_so_in_its_status(data: Path, tmp_path: Path) -> None:
    clean = run("check", data, "--cutoff", 3.5)
    assert (clean.exit_code, clean.stdout) == (0, "checked 12 frames: nothing found\n")
    frames = emt_frames(12)
    frames[7] = frames[2].copy()
    frames[7].calc = frames[2].calc
    frames[9].calc.results["energy"] += 500.0
    bad = write_frames(tmp_path / "bad.extxyz", frames)
    run("convert", bad, "-o", tmp_path / "cache", "--cutoff", 3.5)
    other = write_frames(tmp_path / "validation.extxyz", emt_frames(12)[3:5])
    for source in (bad, tmp_path / "cache"):
        found = run("check", source, "--validation", other, "--cutoff", 3.5)
        assert found.exit_code == 2
        for line in (
            f"note: 1 frame(s) repeat the structure of another: `{bad}`, frame 7",
            f"1 of 12 training frames is unlike the others: `{bad}`, frame 9 (energy",
            f"2 of the 2 frames of the validation set are also in the training set (`{other}`, frame 0 is `{bad}`, ",
            "checked 12 frames of the train set, 2 frames of the validation set: look at the lines above",
        ):
            assert line in found.stdout
