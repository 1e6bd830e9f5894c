"""Properties of materials: relations that hold for any potential, many structures at a time, and wrong input."""

from __future__ import annotations

import csv
import importlib
import json
import re
from pathlib import Path

import ase
import numpy as np
import pytest
import yaml
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from commands import hienet, refusal

from hienet.calculator import HIENetCalculator, model_of
from hienet.errors import HIENetError
from hienet.properties.elastic import ElasticSettings, average_over, elastic_constants
from hienet.properties.engine import Engine
from hienet.properties.eos import EosSettings, equation_of_state
from hienet.properties.references import reading_reference, reference_file
from hienet.properties.relax import RelaxSettings, relax
from hienet.properties.smoothness import SmoothnessSettings, smoothness
from hienet.properties.speed import speed
from hienet.properties.structures import read_structures
from hienet.properties.supercells import repeated
from hienet.properties.symmetry import point_operations
from hienet.testing import random_rotation, silicon_carbide, tiny_checkpoint

pytest.importorskip("phonopy", reason="the extra `properties` is not installed")

SIC_MODEL = Path(__file__).parent.parent / "lammps_examples" / "sic.pt"


def argon() -> Engine:
    """Pairs that attract each other; smooth at the cutoff."""
    return Engine(LennardJones(sigma=3.4, epsilon=0.0103, rc=9.0, ro=7.0, smooth=True))


def test_structures_evaluated_together_are_those_evaluated_alone() -> None:
    calculator = HIENetCalculator(SIC_MODEL)
    engine = Engine(calculator, batch_atoms=20)
    structures = [silicon_carbide(seed=seed) for seed in range(3)] + [silicon_carbide((2, 1, 1))]
    done: list[int] = []
    found = engine.calculate(structures, done.append)
    assert done == [2, 1, 1]
    for atoms, together in zip(structures, found, strict=True):
        atoms.calc = calculator
        assert together.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(together.forces, atoms.get_forces(), atol=1e-9)
        np.testing.assert_allclose(together.stress, atoms.get_stress(), atol=1e-11)


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs", "bfgs"])
def test_relaxed_structures_have_no_forces_and_the_wanted_pressure(optimizer: str) -> None:
    settings = RelaxSettings(pressure=2.0, fmax=5e-3, optimizer=optimizer, symmetry=False)
    found = relax([bulk("Cu", a=3.58), bulk("Al", a=3.97)], Engine(EMT()), settings)
    for each, symbol in zip(found, ("Cu", "Al"), strict=True):
        assert each.converged
        assert each.atoms.get_chemical_symbols() == [symbol]
        stress = each.atoms.get_stress() * 160.21766
        np.testing.assert_allclose(stress, [-2, -2, -2, 0, 0, 0], atol=0.1)


def test_a_crystal_that_the_model_does_not_hold_together_is_given_up() -> None:
    """Its cell would grow without end."""
    engine = Engine(LennardJones(sigma=3.4, epsilon=-0.0103, rc=9.0, ro=7.0, smooth=True))
    found = relax([bulk("Ar", a=5.0)], engine, RelaxSettings(max_steps=2000))[0]
    assert found.error is not None
    assert re.search(r"has come to \S+ times its volume: the model does not hold this crystal", str(found.error))


def test_relaxation_keeps_symmetry_unless_told_otherwise() -> None:
    start = bulk("Cu", "bcc", a=2.85, cubic=True)
    start.rattle(1e-5, seed=0)
    kept = relax([start], Engine(EMT()), RelaxSettings(fmax=1e-3))[0].atoms
    np.testing.assert_allclose(kept.cell.angles(), 90.0, atol=1e-6)
    np.testing.assert_allclose(kept.cell.lengths(), kept.cell.lengths()[0], rtol=1e-6)


def test_one_structure_that_fails_stops_no_other() -> None:
    broken = ase.Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 1e-5]], cell=np.eye(3) * 6, pbc=True)
    lost, found = relax(
        [broken, silicon_carbide()], Engine(SIC_MODEL), RelaxSettings(max_steps=1, symmetry=False, cell=False)
    )
    assert "Cu" in str(lost.error)
    assert found.error is None


def test_a_pair_potential_obeys_cauchys_relation_and_agrees_with_its_equation_of_state() -> None:
    engine = argon()
    atoms = bulk("Ar", a=5.3, cubic=True)
    found = elastic_constants(atoms, engine)
    c = found.constants
    assert c[0, 1] == pytest.approx(c[3, 3], rel=0.01)
    assert found.smallest_eigenvalue > 0
    eos = equation_of_state(atoms, engine, EosSettings(largest_change=0.03))
    assert eos.bulk_modulus == pytest.approx(found.moduli()["bulk_modulus_hill_gpa"], rel=0.01)
    assert eos.volume == pytest.approx(found.atoms.get_volume(), rel=1e-3)


def test_elastic_constants_turn_with_the_crystal() -> None:
    engine, settings = Engine(EMT()), ElasticSettings(symmetrize=False)
    atoms = bulk("Cu", a=3.6)
    rotation = random_rotation(3)
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.T, scale_atoms=True)
    straight = elastic_constants(atoms, engine, settings).constants
    # Averaged over one operation, the tensor is that of the rotated crystal.
    np.testing.assert_allclose(
        elastic_constants(turned, engine, settings).constants, average_over(straight, rotation[None]), atol=1.0
    )


def test_the_point_group_leaves_the_average_unchanged() -> None:
    random = np.random.default_rng(0).standard_normal((6, 6))
    operations = point_operations(bulk("Cu", cubic=True))
    assert len(operations) == 48
    mean = average_over(random + random.T, operations)
    assert mean[0, 0] == pytest.approx(mean[1, 1])
    assert mean[3, 3] == pytest.approx(mean[5, 5])
    np.testing.assert_allclose(mean[:3, 3:], 0.0, atol=1e-12)


def test_strains_of_one_sign_are_refused() -> None:
    with pytest.raises(HIENetError, match="normal strains must hold values of both signs"):
        ElasticSettings(normal=(0.01, 0.02))


def test_an_equation_of_state_needs_a_minimum() -> None:
    with pytest.raises(HIENetError, match="lowest at the smallest"):
        equation_of_state(bulk("Cu", a=4.3), Engine(EMT()), EosSettings(relax=False))


def test_phonons_are_compared_with_a_reference(tmp_path: Path) -> None:
    from hienet.properties.phonons import PhononSettings, phonons

    engine, atoms = Engine(EMT()), bulk("Al", a=4.0)
    first = phonons(atoms, engine, PhononSettings(supercell=(3,)))
    np.testing.assert_allclose(first.gamma, 0.0, atol=1e-3)
    assert first.lowest > -0.01
    assert first.labels[0][0] == "Γ"
    # Dulong and Petit.
    assert first.thermal["heat_capacity"][-1] == pytest.approx(3 * 8.314, rel=0.02)
    path = tmp_path / "band.yaml"
    first.phonon.band_structure.write_yaml(filename=str(path))
    same = phonons(atoms, engine, PhononSettings(supercell=(3,), reference=str(path)))
    assert same.errors is not None
    assert max(same.errors) < 1e-6
    values = yaml.safe_load(path.read_text())
    for point in values["phonon"]:
        for band in point["band"]:
            band["frequency"] += 0.5
    path.write_text(yaml.safe_dump(values))
    other = phonons(atoms, engine, PhononSettings(supercell=(3,), reference=str(path)))
    assert other.errors == pytest.approx((0.5, 0.5))
    with pytest.raises(HIENetError, match="of another crystal"):
        phonons(bulk("Al", cubic=True), Engine(EMT()), PhononSettings(supercell=(1,), reference=str(_two_atoms(path))))


def _two_atoms(path: Path) -> Path:
    values = yaml.safe_load(path.read_text())
    for point in values["phonon"]:
        point["band"] = point["band"] * 2
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(("smooth", "largest"), [(True, 1e-6), (False, None)])
def test_a_jump_at_the_cutoff_is_found(smooth: bool, largest: float | None) -> None:
    model = model_of(tiny_checkpoint("hienet", smooth_cutoff=smooth))
    calculator = HIENetCalculator.__new__(HIENetCalculator)
    super(HIENetCalculator, calculator).__init__()
    calculator.models = [model]
    found = smoothness(silicon_carbide(), Engine(calculator), SmoothnessSettings(n_points=20))
    jump = max(dimer.cutoff_jump or 0.0 for dimer in found.dimers)
    assert [dimer.symbols for dimer in found.dimers] == [("C", "C"), ("C", "Si"), ("Si", "Si")]
    assert jump < largest if largest is not None else jump > 1e-5
    assert found.compression is not None


def test_a_plain_bond_is_smooth() -> None:
    found = smoothness(bulk("Ar", a=5.3, cubic=True), argon(), SmoothnessSettings(n_points=100))
    (dimer,) = found.dimers
    assert dimer.tortuosity == pytest.approx(1.0, abs=0.01)
    assert dimer.repels_when_close
    assert found.compression is not None
    assert found.compression.minima == 1
    assert found.way.inconsistency < 1e-5


def test_speed_grows_supercells_and_counts_neighbours() -> None:
    model = model_of(tiny_checkpoint())
    atoms = bulk("SiC", "zincblende", a=4.39)
    found = speed(atoms, model, (4, 16))
    assert [size.n_atoms for size in found.sizes] == [4, 16]
    assert all(size.seconds > 0 and size.memory > 1e6 for size in found.sizes)
    cell = repeated(atoms, 60)
    assert len(cell) >= 60
    with pytest.raises(HIENetError, match="no cell that could be repeated"):
        speed(molecule("CO2"), model)


def test_names_of_structures_are_unique_and_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    bulk("Cu").write(tmp_path / "x.cif")
    bulk("Cu").write(tmp_path / "a" / "x.cif")
    bulk("Cu").write(tmp_path / "a" / "POSCAR", format="vasp")
    ase.io.write(tmp_path / "many.extxyz", [bulk("Cu"), bulk("Al")])
    (tmp_path / "bad.cif").write_text("nonsense")
    files = [tmp_path / name for name in ("x.cif", "a/x.cif", "a/POSCAR", "many.extxyz", "bad.cif", "none.cif")]
    structures, failures = read_structures(files)
    assert [s.name for s in structures] == ["x", "x_2", "a-POSCAR", "many-0000", "many-0001"]
    assert [f.name for f in failures] == ["bad", "none"]
    assert "there is no file" in failures[1].reason


def test_many_files_at_once_with_failures_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bulk("SiC", "zincblende", a=4.42).write("one.cif")
    bulk("SiC", "zincblende", a=4.36).write("two.cif")
    bulk("Cu").write("copper.cif")
    command = ("relax", "one.cif", "two.cif", "copper.cif", "lost.cif", "-m", SIC_MODEL, "-o", "out")
    output = hienet(*command)
    assert "copper: failed: the structure contains Cu" in output
    assert "there is no file `lost.cif`" in output
    with Path("out/results.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["one"]["converged"] == "True"
    assert float(rows["one"]["a_angstrom"]) == pytest.approx(float(rows["two"]["a_angstrom"]), abs=2e-3)
    assert rows["one"]["space_group"] == "F-43m (216)"
    assert "Cu" in rows["copper"]["error"]
    results = json.loads(Path("out/results.json").read_text())
    assert results["command"] == "hienet relax"
    assert [failure["name"] for failure in results["failures"]] == ["lost", "copper"]
    assert all(Path(f"out/one.{ending}").exists() for ending in ("json", "png", "extxyz"))
    assert "2 of 3 were done before" in hienet(*command)
    assert "were done before" not in hienet(*command, "--fmax", "0.1")


def test_one_file_of_results_for_each_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bulk("SiC", "zincblende", a=4.39).write("sic.cif")
    assert "B0" in hienet("eos", "sic.cif", "-m", SIC_MODEL, "--points", 5)
    assert "C11" in hienet("elastic", "sic.cif", "-m", SIC_MODEL, "--clamped")
    assert "THz" in hienet("phonons", "sic.cif", "-m", SIC_MODEL, "--supercell", 1)
    assert "tortuosity" in hienet("smoothness", "sic.cif", "-m", SIC_MODEL, "--points", 20)
    assert "neighbours are found anew" in hienet("speed", "sic.cif", "-m", SIC_MODEL, "--sizes", "2,16")
    for command in ("eos", "elastic", "phonons", "smoothness", "speed"):
        assert list(Path(f"hienet_{command}").glob("*.png"))
        assert Path(f"hienet_{command}/results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("relax", "lost.cif"), "none of 1 structures could be calculated: there is no file `lost.cif`"),
        (("relax", "sic.cif", "--optimizer", "newton"), "unknown optimizer `newton`"),
        (("eos", "sic.cif", "--points", "3"), "at least 5 volumes"),
        (("elastic", "sic.cif", "--shear", "a"), "--shear takes numbers separated by commas"),
        (("phonons", "sic.cif", "--supercell", "2,2"), "a supercell is one positive number or three"),
        (("phonons", "sic.cif", "--supercell", "1", "--reference", "r.yaml"), "there is no reference `r.yaml`"),
        (("speed", "sic.cif", "--sizes", "big"), "--sizes takes whole numbers"),
    ],
)
def test_wrong_input_is_one_sentence(
    arguments: tuple[str, ...],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    bulk("SiC", "zincblende", a=4.39).write("sic.cif")
    assert match in refusal(capsys, monkeypatch, *arguments, "-m", SIC_MODEL)


def test_ml_peg_finds_the_calculator_by_its_entry() -> None:
    (entry,) = yaml.safe_load((SIC_MODEL.parents[1] / "interfaces" / "ml_peg.yml").read_text()).values()
    make = getattr(importlib.import_module(entry["module"]), entry["class_name"])
    # As its generic class of ASE calculators calls what an entry names.
    calculator = make(**{**entry["kwargs"], "model": SIC_MODEL}, device=entry["device"], default_dtype="float64")
    atoms = silicon_carbide()
    atoms.calc = calculator
    assert np.isfinite(atoms.get_potential_energy())


def test_a_reference_is_a_file_or_lies_in_a_folder_under_the_structure_s_name(tmp_path: Path) -> None:
    file = tmp_path / "sic.yaml"
    with pytest.raises(HIENetError, match=r"there is no reference `.*sic\.yaml`; give a file of X, or a folder with"):
        reference_file(tmp_path, "sic", "a file of X")
    file.write_text("")
    assert reference_file(tmp_path, "sic", "a file of X") == reference_file(file, "other", "a file of X") == file
    with (
        pytest.raises(HIENetError, match=r"sic\.yaml` cannot be read as a reference: KeyError; give a file of X"),
        reading_reference(file, "a file of X"),
    ):
        raise KeyError
    with pytest.raises(HIENetError, match="as it was"), reading_reference(file, "a file of X"):
        raise HIENetError("as it was")
