"""Thermal expansion, thermal conductivity, alloys, convex hulls and scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from commands import hienet

from hienet.errors import HIENetError
from hienet.properties.alloy import AlloySettings, alloy, lower_hull
from hienet.properties.discovery import discovery_metrics
from hienet.properties.engine import Engine
from hienet.properties.hull import distance_to_hull, phase
from hienet.properties.kappa import KappaSettings, thermal_conductivity
from hienet.properties.qha import QhaSettings, quasi_harmonic

pytest.importorskip("phono3py", reason="the extra `properties` is not installed")


def test_a_crystal_expands_and_softens() -> None:
    settings = QhaSettings(n_volumes=5, supercell=(2,), mesh=20.0, temperature=400.0)
    found = quasi_harmonic(bulk("Cu", a=3.6, cubic=True), Engine(EMT()), settings)
    # Vibrations at zero temperature expand a crystal already.
    assert found.volume[0] > found.atoms.get_volume()
    assert (np.diff(found.volume) > -1e-9).all()
    assert found.bulk_modulus[-1] < found.bulk_modulus[0]
    # alpha B V = gamma C_V, and C_P is near to Dulong and Petit: of 4 atoms in the cell.
    assert found.heat_capacity[-1] / 4 == pytest.approx(3 * 8.314, rel=0.05)
    room = 30
    expected = found.expansion[room] * found.bulk_modulus[room] * 1e9 * found.volume[room] * 1e-30 * 6.022e23
    assert expected / found.gruneisen[room] / 4 == pytest.approx(3 * 8.314, rel=0.1)


def test_volumes_that_do_not_reach_are_refused() -> None:
    settings = QhaSettings(n_volumes=5, smallest=-0.01, largest=0.002, supercell=(2,), mesh=20.0)
    with pytest.raises(HIENetError, match=r"beyond the volumes|no minimum"):
        quasi_harmonic(bulk("Cu", a=3.6), Engine(EMT()), settings)


def test_conductivity_falls_with_temperature_and_agrees_with_itself(tmp_path: Path) -> None:
    import phono3py

    from hienet.properties.supercells import from_phonopy, primitive_matrix, to_phonopy

    engine, atoms = Engine(EMT()), bulk("Al", a=3.995, cubic=True)
    settings = KappaSettings((2,), (2,), mesh=(5,), temperatures=(300.0, 600.0))
    found = thermal_conductivity(atoms, engine, settings)
    assert 0 < found.found.mean[1] < found.found.mean[0]
    np.testing.assert_allclose(found.found.modes.sum((1, 2)), found.found.mean, rtol=1e-6)
    with pytest.raises(HIENetError, match="not scattered at all"):
        thermal_conductivity(bulk("Al", a=3.995), engine, settings)
    # A crystal alone in its axes has a scalar conductivity.
    np.testing.assert_allclose(found.found.kappa[0, :3], found.found.mean[0], rtol=1e-3)
    # The same model's forces in a file of phono3py, whose second-order constants come from the same displacements and
    # not from their own, differ little; twice the forces are another crystal.
    cell = to_phonopy(found.atoms)
    other = phono3py.Phono3py(cell, np.diag([2, 2, 2]), primitive_matrix(cell), log_level=0)
    other.generate_displacements(distance=0.03)
    cells = [from_phonopy(each) for each in other.supercells_with_displacements]
    forces = np.array([each.forces for each in engine.calculate(cells)])
    for factor, largest in ((1.0, 0.1), (2.0, 2.0)):
        other.forces = factor * forces
        path = tmp_path / "reference.yaml"
        other.save(str(path), settings={"force_sets": True})
        compared = thermal_conductivity(
            atoms, engine, KappaSettings((2,), (2,), mesh=(5,), temperatures=(300.0,), reference=str(path))
        )
        assert compared.srme is not None
        if factor == 1.0:
            assert compared.srme[0] < largest
        else:
            assert 0.2 < compared.srme[0] <= largest


def test_formation_energies_are_those_against_both_ends() -> None:
    pytest.importorskip("sqsgenerator")
    settings = AlloySettings("Cu", "Au", n_compositions=3, n_atoms=8, iterations=200)
    found = alloy(bulk("Cu", a=3.6, cubic=True), Engine(EMT()), settings)
    assert found.formation[[0, -1]] == pytest.approx([0.0, 0.0])
    assert found.structures[1].get_chemical_symbols().count("Au") == 4
    # Gold is larger than copper, and both ends relax to their own volumes.
    assert found.volumes[0] < found.volumes[1] < found.volumes[2]
    energies = [atoms.get_potential_energy() / len(atoms) for atoms in found.structures]
    assert found.formation[1] == pytest.approx(energies[1] - 0.5 * (energies[0] + energies[2]))
    with pytest.raises(HIENetError, match="the structure has no Si"):
        alloy(bulk("Cu"), Engine(EMT()), AlloySettings("Si", "Ge"))


def test_the_lower_hull() -> None:
    x = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    assert lower_hull(x, np.array([0.0, -0.1, -0.4, -0.1, 0.0])) == [0, 2, 4]


def test_distances_to_the_hull_by_hand() -> None:
    references = [phase("Mg", -1.5), phase("O2", -5.0), phase("MgO", -6.0)]
    # Half of the way between Mg and MgO: Mg3O is 1/2 of MgO atoms and 1/2 of Mg atoms.
    assert distance_to_hull(phase("Mg3O", -3.65), references) == pytest.approx(-3.65 - 0.5 * (-6.0 - 1.5))
    assert distance_to_hull(phase("Mg4O4", -6.2), references) == pytest.approx(-0.2)
    with pytest.raises(HIENetError, match="no mixture of the reference phases"):
        distance_to_hull(phase("SiO2", -6.0), references)
    with pytest.raises(HIENetError, match="not a chemical formula"):
        phase("Mg(", 0.0)


def test_scores_of_a_table_checked_by_hand() -> None:
    # Four stable crystals of eight; three are called so, two of them right, and one has no prediction.
    reference = np.array([-0.1, -0.05, 0.0, -0.02, 0.1, 0.2, 0.3, 0.05])
    predicted = np.array([-0.2, -0.05, 0.1, np.nan, -0.1, 0.2, 0.3, 0.15])
    found = discovery_metrics(reference, predicted, np.array([0.1, 0.3, *[np.nan] * 6]))
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 4)
    assert found.f1 == pytest.approx(4 / 7)
    assert found.daf == pytest.approx((2 / 3) / (4 / 8))
    assert found.accuracy == pytest.approx(5 / 8)
    assert found.mae == pytest.approx((0.1 + 0.1 + 0.2 + 0.1) / 7)
    assert found.rmse == pytest.approx(np.sqrt((0.01 + 0.01 + 0.04 + 0.01) / 7))
    known = np.delete(reference, 3)
    assert found.r2 == pytest.approx(1 - 0.07 / ((known - known.mean()) ** 2).sum())
    assert found.rmsd == pytest.approx(0.2)
    with pytest.raises(HIENetError, match="equally many"):
        discovery_metrics(reference, predicted[:3])


def test_tables_go_from_relaxations_to_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("phases.csv").write_text("formula,energy_ev_per_atom\nMg,-1.5\nO2,-5\nMgO,-6\n")
    Path("results.csv").write_text(
        "name,formula,energy_ev_per_atom,e_above_hull_dft_ev_per_atom\n"
        "a,Mg4O4,-6.1,-0.05\nb,Mg3O,-3.0,0.5\nlost,Mg,,\nc,SiO2,-6,0.1\n"
    )
    output = hienet("hull", "results.csv", "-r", "phases.csv")
    assert "c: no mixture of the reference phases" in output
    assert "-0.1000" in output
    assert "3 crystals" in hienet("discovery", "hull.csv")
    assert Path("hienet_discovery/discovery.png").exists()
    with pytest.raises(HIENetError, match="has no column `formula`"):
        hienet("hull", "hull.csv", "-r", _bad(tmp_path))


def _bad(folder: Path) -> Path:
    path = folder / "bad.csv"
    path.write_text("a,b\n1,2\n")
    return path
