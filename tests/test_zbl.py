"""The repulsion at short range that a model may have besides what it learns."""

from __future__ import annotations

from dataclasses import replace

import ase
import numpy as np
import pytest
import torch
from hienet_deploy.export import export

from hienet.calculator import LoadedModel, load_model, model_of
from hienet.checkpoint import load_checkpoint, save_checkpoint
from hienet.errors import HIENetError
from hienet.models.factory import ARCHITECTURES, build_model, make_config
from hienet.nn.zbl import UNIVERSAL_SCREENING, ZBLRepulsion
from hienet.species import keep_elements
from hienet.testing import (
    finite_difference_forces,
    finite_difference_stress,
    silicon_carbide,
    tiny_checkpoint,
    tiny_model,
)

SMALL: dict[str, object] = {"cutoff": 3.0, "equivariant_irreps": ("6x0e+3x1e", "6x0e"), "l_max": 1}
"""Even less than a tiny model: compressed crystals have thousands of neighbours, and every export evaluates many."""

OUTER = 1.11 + 0.76
"""Sum of the covalent radii of Si and C (Å)."""

DEPLOYED = [("float32", True), ("float64", True), ("float32", False)]
"""Precision, and whether compiled."""

DISTANCES = np.linspace(0.3, 1.2, 19)


def universal(z_i: int, z_j: int, distance: float) -> float:
    """Ziegler, Biersack, Littmark (1985), written down once more (eV)."""
    x = distance * (z_i**0.23 + z_j**0.23) / 0.4685
    terms = ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    return 14.3996454 * z_i * z_j / distance * sum(c * np.exp(-d * x) for c, d in terms)


def pair(distance: float, symbols: str = "SiC") -> ase.Atoms:
    return ase.Atoms(symbols, positions=[[0.1, 0.2, 0.3], np.array([0.1, 0.2, 0.3]) + distance * DIRECTION])


DIRECTION = np.array([2.0, -1.0, 2.0]) / 3.0


def energy_of(model: LoadedModel, atoms: ase.Atoms) -> float:
    return float(model.predict(atoms, derivatives=False).energy[0])


@pytest.fixture(scope="module")
def checkpoint():
    return tiny_checkpoint(zbl=True, **SMALL)


@pytest.fixture(scope="module")
def model(checkpoint) -> LoadedModel:
    return model_of(checkpoint)


@pytest.fixture(scope="module")
def files(operators, checkpoint, tmp_path_factory) -> dict[tuple[str, bool], LoadedModel]:
    """Deployed by dtype, compiled or not."""
    folder = tmp_path_factory.mktemp("zbl")
    save_checkpoint(checkpoint, folder / "m.pt")
    return {
        (dtype, compiled): load_model(
            export(folder / "m.pt", folder / f"{dtype}{compiled}.hienet.pt", dtype=dtype, compiled=compiled).path
        )
        for dtype, compiled in DEPLOYED
    }


@pytest.mark.parametrize(("symbols", "numbers"), [("SiC", (14, 6)), ("Si2", (14, 14)), ("C2", (6, 6))])
def test_the_difference_it_makes_is_the_universal_potential(symbols, numbers, model):
    """Undamped as far as the envelope is one: at 0.3 Å to two parts in a thousand."""
    without = tiny_model(**SMALL)
    found = [energy_of(model, pair(d, symbols)) - energy_of(without, pair(d, symbols)) for d in (0.3, 0.4)]
    expected = [universal(*numbers, d) for d in (0.3, 0.4)]
    assert expected[0] > 390
    assert found == pytest.approx(expected, rel=1e-2)


def test_a_wider_envelope_leaves_more_of_it_as_it_is():
    model, without = tiny_model(zbl=True, zbl_outer=4.0), tiny_model()
    for distance in (0.3, 0.5):
        difference = energy_of(model, pair(distance)) - energy_of(without, pair(distance))
        assert difference == pytest.approx(universal(14, 6, distance), rel=1e-4)


def test_each_atom_has_half_of_it(model):
    energies = (model.predict(pair(0.3)).energies - tiny_model(**SMALL).predict(pair(0.3)).energies).tolist()
    assert energies[0] == pytest.approx(energies[1], rel=1e-12)


@pytest.mark.parametrize("symbols", ["SiC", "Si2", "C2"])
def test_a_dimer_is_repulsive_down_to_three_tenths_of_an_angstrom(symbols, model):
    energies = [energy_of(model, pair(d, symbols)) for d in DISTANCES]
    assert (np.diff(energies) < 0).all()
    for distance in DISTANCES:
        forces = model.predict(pair(distance, symbols)).forces.numpy()
        assert np.isfinite(forces).all()
        assert forces[1] @ DIRECTION > 0


def test_a_compressed_crystal_is_repulsive_down_to_three_tenths_of_an_angstrom(model):
    """The nearest neighbours of zincblende are 3^(1/2)/4 of the lattice constant away."""
    energies = []
    for distance in np.linspace(0.3, 1.1, 9):
        atoms = silicon_carbide(rattle=0.0)
        atoms.set_cell(np.eye(3) * 4.0 * distance / np.sqrt(3.0), scale_atoms=True)
        atoms.rattle(0.01 * distance, seed=2)
        predicted = model.predict(atoms)
        assert torch.isfinite(predicted.forces).all()
        assert predicted.stress[0].diagonal().max() < 0, "in compression the stress is negative"
        energies.append(float(predicted.energy[0]))
    assert (np.diff(energies) < 0).all()
    assert energies[0] > 8 * universal(14, 6, 0.3)


@pytest.mark.parametrize("scale", [0.25, 0.6, 1.0])
def test_forces_and_stress_are_derivatives(scale, model):
    atoms = silicon_carbide()[:5]
    atoms.set_cell(atoms.cell.array * scale, scale_atoms=True)
    found = model.predict(atoms)
    size = max(1.0, float(found.forces.abs().max()))
    step = 1e-4 * scale
    forces = finite_difference_forces(lambda a: energy_of(model, a), atoms, step)
    np.testing.assert_allclose(found.forces.numpy() / size, forces / size, atol=1e-8)
    stress = finite_difference_stress(lambda a: energy_of(model, a), atoms)
    size = max(1.0, np.abs(stress).max())
    np.testing.assert_allclose(found.stress[0].numpy() / size, stress / size, atol=1e-8)


def test_it_ends_with_two_continuous_derivatives():
    repulsion = ZBLRepulsion(("C", "Si"), 4.0)
    inside = torch.tensor([OUTER - 1e-4], dtype=torch.float64, requires_grad=True)
    kinds = torch.tensor([0]), torch.tensor([1])
    energy = repulsion.pair_energy(inside, *kinds)
    (first,) = torch.autograd.grad(energy, inside, create_graph=True)
    (second,) = torch.autograd.grad(first, inside)
    # With V of some eV and (1 - u)^3 left of the envelope.
    assert 0 < energy.item() < 1e-9
    assert 0 < -first.item() < 1e-5
    assert 0 < second.item() < 0.1
    outside = torch.tensor([OUTER + 1e-9], dtype=torch.float64)
    assert float(repulsion.pair_energy(outside, *kinds)) == 0.0


@pytest.mark.parametrize("outer", [None, 2.5])
def test_what_training_steps_evaluate_is_the_same_with_its_derivative(outer):
    repulsion = ZBLRepulsion(("C", "Si"), 4.0, outer)
    generator = torch.Generator().manual_seed(0)
    distance = (0.3 + 3.6 * torch.rand(50, dtype=torch.float64, generator=generator)).requires_grad_()
    species = torch.randint(2, (10,), generator=generator)
    center, neighbor = torch.randint(10, (2, 50), generator=generator).sort(dim=1).values
    expected = repulsion(distance, species, center, neighbor, 10)[:, 0]
    (slopes,) = torch.autograd.grad(expected.sum(), distance)
    found = repulsion.energies_and_slopes(distance.detach(), species, center, neighbor, 10)
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(found[1], slopes, rtol=1e-12, atol=1e-13)
    assert (slopes == 0).any()
    assert (slopes < 0).any()
    far = repulsion.energies_and_slopes(torch.full((50,), 3.9).double(), species, center, neighbor, 10)
    assert not far[0].any()
    assert not far[1].any()


@pytest.mark.parametrize(("outer", "at"), [(None, OUTER), (2.5, 2.5), (4.0, 4.0)])
def test_the_energy_of_the_model_is_smooth_where_it_ends(outer, at):
    """At the outer distance, and where that is the cutoff."""
    model = tiny_model(zbl=True, zbl_outer=outer)

    def energy_and_force(distance: float) -> tuple[float, float]:
        found = model.predict(pair(distance))
        return float(found.energy[0]), float(found.forces[1] @ torch.tensor(DIRECTION))

    (before, force_before), (after, force_after) = energy_and_force(at - 1e-5), energy_and_force(at + 1e-5)
    assert before == pytest.approx(after, abs=1e-4)
    assert force_before == pytest.approx(force_after, abs=1e-3)
    slope = -(after - before) / 2e-5
    assert slope == pytest.approx(0.5 * (force_before + force_after), abs=1e-5)


def test_the_outer_distance_never_exceeds_the_cutoff():
    repulsion = ZBLRepulsion(("Cs",), 4.0)
    zero = torch.tensor([0])
    assert repulsion.largest_outer == 4.0
    distances = torch.tensor([3.9, 4.0], dtype=torch.float64)
    energies = repulsion.pair_energy(distances, zero.expand(2), zero.expand(2)).tolist()
    assert energies[0] > 0.0
    assert energies[1] == 0.0


@pytest.mark.parametrize(("dtype", "compiled"), DEPLOYED)
def test_deployed_files_have_it(dtype, compiled, files, model):
    """The error is that of one rounding of energies of hundreds and thousands of eV."""
    tolerance = 1e-6 if dtype == "float32" else 1e-12
    deployed = files[dtype, compiled]
    for atoms in (pair(0.3), pair(0.3, "Si2"), pair(1.0), silicon_carbide()):
        found, expected = deployed.predict(atoms), model.predict(atoms)
        for quantity in ("energies", "forces"):
            a, b = getattr(found, quantity).double(), getattr(expected, quantity)
            # What an export allows: 1e-8 eV/Å in float64, relative above 1 eV/Å, decided by the tables.
            limit = max(tolerance, 1e-8 if compiled else 0.0) * max(1.0, float(b.abs().max()))
            torch.testing.assert_close(a, b, rtol=0, atol=10 * limit)
    assert energy_of(deployed, pair(0.3)) > 800


def test_the_exchanged_widths_are_those_without_it(files):
    widths = [stage["exchanged_width"] for stage in files["float32", False].info["stages"]]
    assert widths == [stage.exchanged_width for stage in tiny_model(**SMALL).module.stages()]
    # Distance and harmonics; radial basis, envelope and harmonics, and the distance besides.
    assert files["float64", True].info["edge_width"] == 1 + 4
    assert files["float32", False].info["edge_width"] == 8 + 1 + 4 + 1


def test_verification_looks_at_overlapping_atoms(files):
    names = [entry["name"] for entry in files["float32", True].info["verification"]]
    assert "overlapping C..Si" in names


def test_one_element_can_be_kept(checkpoint, model):
    silicon = model_of(keep_elements(checkpoint, ["Si"]))
    assert energy_of(silicon, pair(0.3, "Si2")) == pytest.approx(energy_of(model, pair(0.3, "Si2")), rel=1e-12)


def test_a_model_without_it_has_neither_its_weights_nor_its_columns(tmp_path):
    checkpoint = tiny_checkpoint()
    assert checkpoint.weights.keys() == tiny_checkpoint(zbl=True).weights.keys()
    assert not any(isinstance(part, ZBLRepulsion) for part in checkpoint.build().modules())
    # A checkpoint of before the option.
    save_checkpoint(checkpoint, tmp_path / "new.pt")
    contents = torch.load(tmp_path / "new.pt", weights_only=True)
    for key in ("zbl", "zbl_outer"):
        del contents["hyperparameters"][key]
    torch.save(contents, tmp_path / "old.pt")
    old = load_checkpoint(tmp_path / "old.pt")
    assert old.config.zbl is False
    assert energy_of(model_of(old), silicon_carbide()) == energy_of(model_of(checkpoint), silicon_carbide())


def test_at_ordinary_distances_it_changes_nothing(model):
    """A crystal whose atoms are farther apart than their covalent radii."""
    atoms = silicon_carbide(rattle=0.0)
    atoms.set_cell(np.eye(3) * 4.5, scale_atoms=True)
    found, expected = model.predict(atoms), tiny_model(**SMALL).predict(atoms)
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-14)


def test_its_constants_can_be_trained():
    """As Geodite does; the start values give the same energy, and a loss on forces has a gradient in all ten."""
    fixed, trained = ZBLRepulsion(("C", "Si"), 4.0), ZBLRepulsion(("C", "Si"), 4.0, trainable=True)
    distance = torch.tensor([0.5, 0.5, 0.9, 0.9], dtype=torch.float64, requires_grad=True)
    center, neighbor = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1])
    arguments = (torch.tensor([0, 1, 1]), center, neighbor, 3)
    energies = trained(distance, *arguments)
    torch.testing.assert_close(energies, fixed(distance, *arguments))
    (force,) = torch.autograd.grad(energies.sum(), distance, create_graph=True)
    force.square().sum().backward()
    assert list(dict(trained.named_parameters())) == ["screening"]
    assert (trained.screening.grad.abs() > 0).sum() == len(UNIVERSAL_SCREENING)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"zbl_outer": 2.0}, r"`zbl_outer` is given, but `zbl` is false; set `zbl: true`, or remove `zbl_outer`"),
        ({"zbl": True, "zbl_outer": 6.0}, r"`zbl_outer` is 6 Å, beyond the cutoff of 4 Å; lower it"),
        ({"zbl": True, "zbl_outer": -1.0}, r"key `model.zbl_outer`: Input should be greater than 0 .given: `-1.0`."),
        (
            {"zbl": True, "elements": ("Es", "Si")},
            r"the covalent radii of \['Es'\] are not known; give `zbl_outer` with `zbl`",
        ),
    ],
)
def test_mistakes_in_the_configuration_are_named(values, sentence):
    with pytest.raises(HIENetError, match=sentence):
        make_config("hienet", None, {"elements": ("C", "Si"), "cutoff": 4.0, **values})


def test_an_architecture_without_it_says_so(monkeypatch):
    class Deaf(torch.nn.Module):
        def __init__(self, config) -> None:
            super().__init__()

    monkeypatch.setitem(ARCHITECTURES, "deaf", replace(ARCHITECTURES["hienet"], module=Deaf))
    config = make_config("deaf", None, {"elements": ("C", "Si"), "zbl": True})
    with pytest.raises(HIENetError, match=r"the architecture `deaf` has no ZBL repulsion; remove `zbl`"):
        build_model("deaf", config)
