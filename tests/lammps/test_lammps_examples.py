"""The example decks run as they are, and their reference logs are what they give."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from hienet_deploy.export import export

from hienet.lammps import run_deck
from hienet.testing import write_tiny_checkpoint

EXAMPLES = Path(__file__).resolve().parents[2] / "lammps_examples"
DECKS = ["nve", "nvt", "npt"]
COMMITTEE = [EXAMPLES / "sic.hienet.pt", *(EXAMPLES / "active_learning" / f"sic_{i}.hienet.pt" for i in (1, 2))]

pytestmark = pytest.mark.lammps


def thermo(text: str) -> dict[int, dict[str, float]]:
    """Rows of the table of thermodynamic output, by step."""
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:1] == ["Step"])
    names = lines[head].split()
    rows = {}
    for line in lines[head + 1 :]:
        words = line.split()
        if len(words) != len(names) or not words[0].isdigit():
            break
        rows[int(words[0])] = dict(zip(names, map(float, words), strict=True))
    return rows


def reference(deck: str, ranks: int) -> dict[int, dict[str, float]]:
    return thermo((EXAMPLES / deck / f"log.{deck}.{ranks}").read_text())


def assert_same(found: dict[str, float], expected: dict[str, float], n_atoms: int) -> None:
    tolerances = {"PotEng": 2e-5 * n_atoms, "TotEng": 2e-5 * n_atoms, "Press": 20.0, "c_committee[4]": 1e-3}
    compared = [name for name in tolerances if name in expected]
    assert compared
    for name in compared:
        assert found[name] == pytest.approx(expected[name], abs=tolerances[name]), name


@pytest.mark.parametrize("deck", DECKS)
def test_the_decks_run_and_give_what_their_logs_say(deck, tmp_path):
    arguments = ["-var", "model", str(EXAMPLES / "sic.hienet.pt"), "-var", "steps", "10"]
    found = thermo(run_deck(EXAMPLES / deck / f"in.{deck}", cwd=tmp_path, arguments=arguments, timeout=300))
    for step in (0, 10):
        assert_same(found[step], reference(deck, 1)[step], 512)


ATOMS = {"nve": 512, "nvt": 512, "npt": 512, "recoil": 512, "dispersion": 64, "active_learning": 64}


@pytest.mark.parametrize("deck", [*ATOMS, "sevennet"])
def test_the_logs_of_one_and_four_ranks_agree(deck):
    """The first rows: trajectories in float32 drift apart."""
    one, four = reference(deck, 1), reference(deck, 4)
    steps = sorted(one.keys() & four.keys())
    assert len(steps) > 3
    for step in steps[:4]:
        assert_same(four[step], one[step], ATOMS.get(deck, 216))


def test_a_deck_gives_on_two_ranks_what_its_log_of_one_says(tmp_path):
    arguments = ["-var", "model", str(EXAMPLES / "sic.hienet.pt"), "-var", "steps", "10"]
    found = thermo(run_deck(EXAMPLES / "npt" / "in.npt", 2, cwd=tmp_path, arguments=arguments, timeout=300))
    for step in (0, 10):
        assert_same(found[step], reference("npt", 1)[step], 512)


def test_the_deck_of_the_universal_potential_runs_on_one_and_two_ranks(tmp_path):
    """With random weights of the same architecture, since the trained ones are not part of this repository."""
    scale = (0.5, 0.5)
    source = write_tiny_checkpoint(tmp_path / "m.pt", architecture="sevennet", elements=("Mg", "O"), scale=scale)
    export(source)
    arguments = ["-var", "model", str(tmp_path / "m.hienet.pt"), "-var", "steps", "10"]
    deck = EXAMPLES / "sevennet" / "in.sevennet"
    one, two = (thermo(run_deck(deck, n, cwd=tmp_path, arguments=arguments, timeout=300)) for n in (1, 2))
    assert one[0]["Volume"] == pytest.approx((3 * 4.25) ** 3)
    for step in (0, 10):
        assert_same(two[step], one[step], 216)


@pytest.mark.parametrize("ranks", [1, 2])
def test_active_learning_saves_frames_on_which_the_models_disagree_and_stops(ranks, tmp_path):
    arguments = ["-var", "models", " ".join(map(str, COMMITTEE)), "-var", "hottest", "2000", "-var", "steps", "60"]
    arguments += ["-var", "save", "0.05", "-var", "stop", "0.075"]
    deck = EXAMPLES / "active_learning" / "in.active_learning"
    output = run_deck(deck, ranks, cwd=tmp_path, arguments=arguments, timeout=300)
    # The last row follows what `fix halt` says.
    rows = thermo(re.sub(r"^Fix halt .*\n", "", output, flags=re.MULTILINE))
    greatest = {step: row["c_committee[4]"] for step, row in rows.items()}
    last = max(greatest)
    assert last < 60
    assert greatest[last] > 0.075 > max(value for step, value in greatest.items() if step < last)
    assert f"Fix halt condition for fix-id stop met on step {last}" in output
    frames = ase.io.read(tmp_path / "frames.lammpstrj", ":", format="lammps-dump-text")
    saved = {step: value for step, value in greatest.items() if value > 0.05}
    assert 0 < len(saved) < len(greatest)
    assert len(frames) == len(saved)
    for frame, value in zip(frames, saved.values(), strict=True):
        assert len(frame) == 64
        assert frame.arrays["f_deviation"].max() == pytest.approx(value, rel=1e-4)


def test_relaxation_reaches_the_lattice_constant_of_dft(tmp_path):
    arguments = ["-var", "model", str(EXAMPLES / "sic.hienet.pt")]
    output = run_deck(EXAMPLES / "relax" / "in.relax", cwd=tmp_path, arguments=arguments, timeout=300)
    (lattice_constant,) = re.findall(r"^lattice constant (\S+) Angstrom", output, re.MULTILINE)
    assert float(lattice_constant) == pytest.approx(4.3897, rel=0.002)


def test_constant_energy_dynamics_conserve_the_energy(tmp_path):
    arguments = ["-var", "model", str(EXAMPLES / "sic.hienet.pt"), "-var", "repeat", "2", "-var", "steps", "100"]
    rows = thermo(run_deck(EXAMPLES / "nve" / "in.nve", cwd=tmp_path, arguments=arguments, timeout=300))
    total = np.array([row["TotEng"] for row in rows.values()]) / 64
    potential = np.array([row["PotEng"] for row in rows.values()]) / 64
    assert np.ptp(potential) > 0.02
    assert np.ptp(total) < 0.001


SMALL = {
    "thermal_expansion": "-var repeat 2 -var equilibrate 50 -var steps 100 -var temperature 300 1500",
    "tensile": "-var repeat 2 -var equilibrate 50 -var rate 0.2 -var largest 0.05 -var every 5",
    "slab": "-var layers 4 6",
    "thermal_conductivity": "-var equilibrate 50 -var steps 100 -var window 10",
    "melting": "-var length 4 -var melt 50 -var cool 25 -var steps 80 -var every 10",
    "diffusion": "-var repeat 2 -var melt 50 -var equilibrate 50 -var steps 100 -var every 10",
}
"""Decks for real work, at a length of seconds."""

SENTENCES = {
    "thermal_expansion": (r"lattice constant at 300 K (\S+) Å, linear thermal expansion (\S+)e-6 /K", (4.36, 4.44)),
    "tensile": (r"Young's modulus (\S+) GPa .* strength \S+ GPa at a strain of \S+", (200, 450)),
    "slab": (r"surface energy, cleaved (\S+) J/m², relaxed \S+ J/m²", (1.5, 2.6)),
    "thermal_conductivity": (r"thermal conductivity (\S+) ± \S+ W", (-500, 500)),
    "melting": (r"temperature of both phases (\S+) ± \S+ K", (300, 5000)),
    "diffusion": (r"diffusion coefficient (\S+) cm²/s at \S+ K", (1e-6, 1e-2)),
}
"""What `plot.py` prints, and between what the first number lies even in so short a run."""


@pytest.mark.parametrize("deck", SMALL)
def test_decks_for_real_work_run_and_are_drawn(deck, tmp_path, monkeypatch, capsys):
    model = "copper" if deck in ("diffusion", "melting") else "sic"
    arguments = ["-var", "model", str(EXAMPLES / f"{model}.hienet.pt"), *SMALL[deck].split()]
    output = run_deck(EXAMPLES / deck / f"in.{deck}", cwd=tmp_path, arguments=arguments, timeout=300)
    (tmp_path / "log.lammps").write_text(output)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plot.py", deck])
    runpy.run_path(str(EXAMPLES / "plot.py"), run_name="__main__")
    pattern, (least, greatest) = SENTENCES[deck]
    (found,) = [
        match[0] if isinstance(match, tuple) else match for match in re.findall(pattern, capsys.readouterr().out)
    ]
    assert least < float(found) < greatest
    assert (tmp_path / f"{deck}.png").stat().st_size > 10_000


@pytest.mark.parametrize("deck", SMALL)
def test_the_log_of_a_deck_for_real_work_begins_as_the_deck_does(deck):
    """A log that is shown must be that of the deck as it is: of its variables, and of its model."""
    settings = re.findall(
        r"^variable +(\w+) +index +(.+?) *(?:#.*)?$", (EXAMPLES / deck / f"in.{deck}").read_text(), re.M
    )
    log = (EXAMPLES / deck / f"log.{deck}.1").read_text()
    for name, value in settings:
        if name != "model":
            assert re.search(rf"^variable +{name} +index +{re.escape(value)} *(?:#.*)?$", log, re.MULTILINE), name


def test_plot_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plot.py", "slab"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / "plot.py"), run_name="__main__")
    assert "run `lmp -in in.slab` first" in capsys.readouterr().err
    (tmp_path / "log.lammps").write_text("LAMMPS\n")
    monkeypatch.setattr(sys, "argv", ["plot.py", "tensile"])
    with pytest.raises(SystemExit, match="holds no complete run of LAMMPS"):
        runpy.run_path(str(EXAMPLES / "plot.py"), run_name="__main__")
