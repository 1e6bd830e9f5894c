"""What the pair style lets other commands change: the factor of its energy, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from runs import TIMEOUT, Setup

from hienet.calculator import load_model
from hienet.errors import HIENetError
from hienet.lammps import run_deck
from hienet.testing import silicon_carbide

ATOMS = silicon_carbide()
ALONE = "pair_style hienet\npair_coeff * * {model} C Si"
OVERLAY = """pair_style hybrid/overlay hienet lj/cut 3.0
pair_coeff * * hienet {model} C Si
pair_coeff * * lj/cut 0.0 1.0"""
WITH_NULL = """pair_style hybrid/overlay hienet lj/cut 3.0
pair_coeff * * hienet {model} C Si NULL
pair_coeff * * lj/cut 0.0 1.0"""
TWICE = "pair_style hienet\npair_coeff * * {model} Si C\npair_coeff * * {model} C Si"
COMMITTEE = "pair_style hienet committee mean\npair_coeff * * {model} {model} C Si"


def evaluated(
    model: Path, folder: Path, commands: str, pair: str = ALONE, ranks: int = 1, symbols=("C", "Si")
) -> tuple[list[list[float]], np.ndarray]:
    """The rows of the thermo output, and the last forces by id."""
    setup = Setup(model, type_symbols=symbols, pair=pair.format(model=model))
    rotation = setup.write(folder / "data.test", ATOMS, [{"C": 1, "Si": 2}[s] for s in ATOMS.symbols])
    deck = f"""
units metal
read_data {folder / "data.test"}
{setup.pair}
variable part equal 0.4
variable other equal 0.7
variable delta equal -0.01
fix nve all nve
thermo_modify line yaml format float %.17g
{commands}
write_dump all custom dump.forces id fx fy fz modify sort id format float %.17g
"""
    output = run_deck(deck, ranks, timeout=TIMEOUT, cwd=folder)
    rows = re.findall(r"^ +- \[(.*?),? ?\]$", output, re.MULTILINE)
    forces = np.loadtxt(folder / "dump.forces", skiprows=9)[:, 1:] @ rotation
    return [[float(x) for x in row.split(",")] for row in rows], forces


@pytest.fixture(scope="module")
def right(models):
    """Energy and forces of Python."""
    found = load_model(models["float64"]).predict(ATOMS)
    return float(found.energy), found.forces.numpy()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("pair", "types"), [(ALONE, "* *"), (OVERLAY, "* *"), (WITH_NULL, "1*2 1*2"), (TWICE, "* *"), (COMMITTEE, "* *")]
)
def test_compute_fep_finds_its_part_of_the_energy(pair, types, ranks, models, right, tmp_path):
    """And leaves energy and forces as they were, in a second run with the same compute too."""
    symbols = ("C", "Si", "NULL") if pair is WITH_NULL else ("C", "Si")
    again = "" if pair is not TWICE else f"pair_coeff * * {models['float64']} C Si\n"
    commands = f"compute f all fep 300 pair hienet scale {types} v_delta\n"
    commands += f"thermo_style custom step pe c_f[1]\nthermo_modify line yaml format float %.17g\nrun 0\n{again}run 0"
    rows, forces = evaluated(models["float64"], tmp_path, commands, pair, ranks, symbols)
    assert len(rows) == 2
    for _, energy, change in rows:
        assert energy == pytest.approx(right[0], abs=1e-8)
        assert change == pytest.approx(-0.01 * right[0], abs=1e-8)
    np.testing.assert_allclose(forces, right[1], atol=1e-8)


SCALED = {
    "fix adapt of all": "fix a all adapt 1 pair hienet scale * * v_part",
    "fix adapt of each": "fix a all adapt 1 pair hienet scale 1 1 v_part pair hienet scale 1 2 v_part "
    "pair hienet scale 2 2 v_part",
    "fix adapt of types in either order": "fix a all adapt 1 pair hienet scale 1 * v_part pair hienet scale 2 2 v_part",
    "fix adapt/fep": "fix a all adapt/fep 1 pair hienet scale * * v_part",
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", SCALED)
def test_the_scale_of_all_types_multiplies_everything(case, ranks, models, right, tmp_path):
    rows, forces = evaluated(
        models["float64"],
        tmp_path,
        f"{SCALED[case]}\nthermo_style custom step pe\nthermo_modify line yaml format float %.17g\nrun 0",
        ranks=ranks,
    )
    assert rows[-1][1] == pytest.approx(0.4 * right[0], abs=1e-8)
    np.testing.assert_allclose(forces, 0.4 * right[1], atol=1e-8)


def test_a_new_pair_coeff_is_not_scaled(models, right, tmp_path):
    """What `fix adapt` has left behind goes with the model."""
    commands = f"{SCALED['fix adapt of all']}\nrun 0\nunfix a\npair_coeff * * {models['float64']} C Si\nrun 0"
    _, forces = evaluated(models["float64"], tmp_path, commands)
    np.testing.assert_allclose(forces, right[1], atol=1e-8)


ONE_SCALE = r"scale is .* for types \d and \d, .* a many-body energy has one scale; give one for all types"
REFUSED = {
    "one type": ("fix a all adapt 0 pair hienet scale 1 1 v_part", ONE_SCALE),
    "two types": ("fix a all adapt 0 pair hienet scale 1 2 v_part", ONE_SCALE),
    "one of them left out": ("fix a all adapt 0 pair hienet scale 1 * v_part", ONE_SCALE),
    "different ones": ("fix a all adapt 0 pair hienet scale * * v_part pair hienet scale 2 2 v_other", ONE_SCALE),
    "adapt/fep": ("fix a all adapt/fep 0 pair hienet scale 1 1 v_part", ONE_SCALE),
    "fep": (
        "compute f all fep 300 pair hienet scale 1 1 v_part\nthermo_style custom step pe c_f[1]",
        ONE_SCALE,
    ),
    "not a number": (
        "variable nan equal exp(1000.0)\nfix a all adapt 0 pair hienet scale * * v_nan",
        r"the scale of types 1 and 1 is inf at step 0; look at the variable",
    ),
    "cutoff": ("fix a all adapt 0 pair hienet cutoff * * v_part", r"(?i)fix adapt.*cutoff.*(not supported|not found)"),
    "trigger": (
        "fix a all adapt 0 pair hienet force_deviation_flag * * v_part",
        r"(?i)fix adapt.*force_deviation_flag.*not supported",
    ),
    "fep of the cutoff": (
        "compute f all fep 300 pair hienet cutoff * * v_part\nthermo_style custom step pe c_f[1]",
        r"(?i)compute fep.*cutoff.*not supported",
    ),
    "fep of the trigger": (
        "fix d all pair 1 hienet force_deviation 1\n"
        "compute f all fep 300 pair hienet force_deviation_flag * * v_part\nthermo_style custom step pe c_f[1]",
        r"(?i)compute fep.*force_deviation_flag.*not supported",
    ),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_wrong_is_refused(case, ranks, models, tmp_path):
    commands, says = REFUSED[case]
    with pytest.raises(HIENetError, match=says):
        evaluated(models["float64"], tmp_path, f"{commands}\nrun 0", ranks=ranks)


def test_types_of_another_style_have_no_scale(models, right, tmp_path):
    """Those of NULL may differ."""
    commands = "fix a all adapt 0 pair hienet scale 1*2 1*2 v_part\nrun 0"
    _, forces = evaluated(models["float64"], tmp_path, commands, WITH_NULL, symbols=("C", "Si", "NULL"))
    np.testing.assert_allclose(forces, 0.4 * right[1], atol=1e-8)
