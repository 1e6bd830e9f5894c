"""Stresses per atom and the heat flux made of them: what they are (docs/lammps.md), and on any number of ranks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from conftest import with_velocities
from hienet_deploy.export import export
from runs import BAR_IN_LAMMPS, TIMEOUT, Array, Setup, lammps_cell

from hienet.calculator import LoadedModel, load_model
from hienet.graph import graph_from_atoms
from hienet.lammps import run_deck
from hienet.testing import silicon_carbide, write_tiny_checkpoint

"""1 eV in bar Å^3, with the digits of LAMMPS."""

ORDER = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)]
"""Of the nine components."""

OUTPUT = """
compute ke all ke/atom
compute flux all heat/flux ke atom_energy atom_centroid
thermo_style custom step pe vol c_virial[1] c_virial[2] c_virial[3] c_virial[4] c_virial[5] c_virial[6] &
  c_flux[1] c_flux[2] c_flux[3] c_flux[4] c_flux[5] c_flux[6]
thermo_modify format float %.17g norm no line one
thermo {steps}
dump 1 all custom {steps} dump.test id c_atom_energy c_atom_stress[*] c_atom_centroid[*] vx vy vz
dump_modify 1 sort id format float %.17g
run {run}
"""


@dataclass(frozen=True)
class PerAtom:
    """One step, in LAMMPS' frame: virials in eV, `[n, 3, 3]`; flux in eV Å/ps without its convective part."""

    energies: Array
    stress: Array
    centroid: Array
    velocities: Array
    virial: Array
    flux: Array
    convective: Array


def per_atom(atoms: ase.Atoms, setup: Setup, folder: Path, ranks: int = 1, steps: int = 0) -> list[PerAtom]:
    """The first and the last step of a run."""
    setup.write(folder / "data.test", atoms)
    deck = setup.preamble(atoms, folder / "data.test") + OUTPUT.format(steps=max(steps, 1), run=steps)
    output = run_deck(deck, ranks, timeout=TIMEOUT, cwd=folder)
    number = r"[-+]?\d[-+.\de]*"
    rows = [
        [float(x) for x in line.split()] for line in re.findall(rf"^ *(?:{number} +){{14}}{number} *$", output, re.M)
    ]
    blocks = (folder / "dump.test").read_text().split("ITEM: ATOMS")[1:]
    tables = [
        np.array([[float(x) for x in line.split()] for line in b.splitlines()[1 : 1 + len(atoms)]]) for b in blocks
    ]
    assert len(rows) == len(tables) == 1 + (steps > 0), output
    return [_per_atom(np.array(row), table) for row, table in zip(rows, tables, strict=True)]


def _per_atom(row: Array, table: Array) -> PerAtom:
    stress, centroid = np.zeros((len(table), 3, 3)), np.zeros((len(table), 3, 3))
    for k, (a, b) in enumerate(ORDER):
        centroid[:, a, b] = -table[:, 8 + k] / BAR_IN_LAMMPS
        if k < 6:
            stress[:, a, b] = stress[:, b, a] = -table[:, 2 + k] / BAR_IN_LAMMPS
    virial = np.zeros((3, 3))
    for value, (a, b) in zip(row[3:9], ORDER, strict=False):
        virial[a, b] = virial[b, a] = value * row[2] / BAR_IN_LAMMPS
    flux, convective = row[9:12], row[12:15]
    return PerAtom(table[:, 1], stress, centroid, table[:, 17:20], virial, flux - convective, convective)


def in_lammps_frame(atoms: ase.Atoms) -> ase.Atoms:
    """The same atoms, rotated so that their cell is that of LAMMPS."""
    cell, rotation = lammps_cell(atoms)
    rotated = atoms.copy()
    rotated.set_cell(cell)
    rotated.positions = atoms.positions @ rotation.T
    rotated.arrays["velocities"] = atoms.arrays["velocities"] @ rotation.T
    return rotated


def edge_terms(model: LoadedModel, atoms: ase.Atoms) -> tuple[Array, Array, Array]:
    """Center, neighbour and -r (x) dE/dr (eV) of each edge."""
    graph = graph_from_atoms(atoms, model.elements, model.cutoff)
    vectors = graph.edge_vectors.requires_grad_()
    model.load_elements(graph.species)
    energy = model.module(graph.species, graph.center, graph.neighbor, vectors, graph.n_local).sum()
    (gradient,) = torch.autograd.grad(energy, vectors)
    terms = -(vectors.detach().unsqueeze(2) * gradient.unsqueeze(1))
    return graph.center.numpy(), graph.neighbor.numpy(), terms.numpy()


def summed(indices: Array, terms: Array, n_atoms: int) -> Array:
    total = np.zeros((n_atoms, 3, 3))
    np.add.at(total, indices, terms)
    return total


def exact_flux(model: LoadedModel, atoms: ase.Atoms, step: float = 1e-5) -> Array:
    """Potential part of d/dt sum_i r_i E_i of a cluster: sum_i r_i (F_i . v_i + dU_i/dt), in eV Å/ps."""
    v = atoms.arrays["velocities"]
    power = (model.predict(atoms).forces.numpy() * v).sum(1)

    def energies(time: float) -> Array:
        moved = atoms.copy()
        moved.positions += time * v
        return model.predict(moved, derivatives=False).energies.detach().numpy()

    rate = (8 * (energies(step) - energies(-step)) - (energies(2 * step) - energies(-2 * step))) / (12 * step)
    return atoms.positions.T @ (power + rate)


@pytest.fixture(scope="module")
def one_layer(plugin, tmp_path_factory) -> Path:
    """A network whose energy per atom depends on its neighbours alone."""
    folder = tmp_path_factory.mktemp("one-layer")
    values: dict[str, object] = {"n_invariant_layers": 0, "equivariant_irreps": ("6x0e",), "scale": (40.0, 55.0)}
    checkpoint = write_tiny_checkpoint(folder / "one.pt", **values)
    return export(checkpoint, folder / "one.hienet.pt", dtype="float64", compiled=False).path


def cluster() -> ase.Atoms:
    atoms = silicon_carbide(1, rattle=0.2)
    atoms.set_cell(np.eye(3) * 20.0, scale_atoms=False)
    atoms.center()
    atoms.pbc = False
    return with_velocities(atoms)


@pytest.mark.parametrize("name", ["cluster", "crystal"])
def test_the_definition_of_both_stresses_per_atom(name, models, tmp_path):
    """Half of each edge's term to both atoms, symmetrised; all of it to the neighbour, as it is."""
    atoms = cluster() if name == "cluster" else in_lammps_frame(with_velocities(silicon_carbide(1)))
    center, neighbor, terms = edge_terms(load_model(models["float64"]), atoms)
    found = per_atom(atoms, Setup(models["float64"]), tmp_path)[0]
    shared = 0.5 * (summed(center, terms, len(atoms)) + summed(neighbor, terms, len(atoms)))
    np.testing.assert_allclose(found.stress, 0.5 * (shared + shared.transpose(0, 2, 1)), atol=1e-7)
    np.testing.assert_allclose(found.centroid, summed(neighbor, terms, len(atoms)), atol=1e-7)
    assert np.abs(found.stress - found.centroid).max() > 0.01


def test_the_heat_flux_of_one_layer_is_exact(one_layer, tmp_path):
    """It is the rate of change of sum_i r_i E_i; with terms shared equally it would not be."""
    atoms = cluster()
    model = load_model(one_layer)
    exact = exact_flux(model, atoms)
    found = per_atom(atoms, Setup(one_layer), tmp_path)[0]
    np.testing.assert_allclose(found.flux, exact, atol=1e-6 * np.abs(exact).max())
    center, neighbor, terms = edge_terms(model, atoms)
    v = atoms.arrays["velocities"]
    shared = np.einsum("eab,eb->a", terms, 0.5 * (v[center] + v[neighbor]))
    assert np.abs(shared - exact).max() > 0.01 * np.abs(exact).max()
    kinetic = 0.5 * 28.0 * 1.0364269e-4 * (v**2).sum(1)
    np.testing.assert_allclose(found.convective, (found.energies + kinetic) @ v, rtol=1e-6)


def test_the_heat_flux_of_several_layers_is_not(models, tmp_path):
    """docs/lammps.md says so: energy that a layer passes on is not followed."""
    atoms = cluster()
    exact = exact_flux(load_model(models["float64"]), atoms)
    found = per_atom(atoms, Setup(models["float64"]), tmp_path)[0]
    _, neighbor, terms = edge_terms(load_model(models["float64"]), atoms)
    expected = np.einsum("eab,eb->a", terms, atoms.arrays["velocities"][neighbor])
    np.testing.assert_allclose(found.flux, expected, atol=1e-6 * np.abs(expected).max())
    assert np.abs(found.flux - exact).max() > 1e-3 * np.abs(exact).max()


@pytest.fixture(scope="module")
def serial(models, tmp_path_factory):
    """The run on one rank."""

    @cache
    def result(name: str) -> list[PerAtom]:
        return per_atom(moving(), Setup(models[name]), tmp_path_factory.mktemp("serial"), steps=10)

    return result


def moving() -> ase.Atoms:
    """A box thinner than two cutoffs in two directions."""
    return with_velocities(silicon_carbide((2, 1, 1)))


@pytest.mark.parametrize(
    ("name", "ranks", "grid"), [("float64", 2, "2 1 1"), ("float64", 4, "2 1 2"), ("float32", 2, "1 2 1")]
)
def test_ranks_agree_on_every_atom_and_on_the_heat_flux(name, ranks, grid, models, serial, tmp_path):
    setup = Setup(models[name], before_box=f"processors {grid}")
    tolerance = 1e-7 if name == "float64" else 2e-4
    for found, expected in zip(per_atom(moving(), setup, tmp_path, ranks, 10), serial(name), strict=True):
        for quantity in ("stress", "centroid", "virial", "flux", "convective"):
            a, b = getattr(found, quantity), getattr(expected, quantity)
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()), err_msg=quantity)


@pytest.mark.parametrize("ranks", [1, 4])
def test_both_stresses_per_atom_sum_to_the_virial(ranks, models, tmp_path):
    grid = {1: "1 1 1", 4: "2 2 1"}[ranks]
    for found in per_atom(moving(), Setup(models["float64"], before_box=f"processors {grid}"), tmp_path, ranks, 5):
        np.testing.assert_allclose(found.stress.sum(0), found.virial, atol=1e-7)
        np.testing.assert_allclose(found.centroid.sum(0), found.virial, atol=1e-7)
