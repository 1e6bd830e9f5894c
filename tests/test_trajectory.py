"""What is made of trajectories and decks, without LAMMPS."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from hienet.errors import HIENetError
from hienet.properties.deck import Dynamics, Ramp, deck, parse_ramp
from hienet.properties.thermo import block_error, read_columns
from hienet.properties.trajectory import mean_squared_displacement, radial_distribution


def test_neighbours_of_a_crystal_are_peaks_of_the_radial_distribution() -> None:
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    distances, g = radial_distribution([atoms], largest=3.5, n_bins=70)
    assert distances[g["Mg-O"].argmax()] == pytest.approx(2.1, abs=0.05)
    assert distances[g["Mg-Mg"].argmax()] == pytest.approx(2.1 * np.sqrt(2), abs=0.05)
    # Six neighbours: the integral of rho g 4 pi r^2 over the peak, with the density of the other kind.
    shell = 4 / 3 * np.pi * ((distances + 0.025) ** 3 - (distances - 0.025) ** 3)
    near = distances < 2.5
    assert (g["Mg-O"] * shell)[near].sum() * 4 / atoms.get_volume() == pytest.approx(6.0)


def test_an_ideal_gas_has_a_radial_distribution_of_one() -> None:
    random = np.random.default_rng(0)
    atoms = bulk("Ar", cubic=True, a=5).repeat(6)
    frames = []
    for _ in range(5):
        atoms.set_scaled_positions(random.random((len(atoms), 3)))
        frames.append(atoms.copy())
    distances, g = radial_distribution(frames, largest=8.0, n_bins=16)
    np.testing.assert_allclose(g["Ar-Ar"][distances > 4], 1.0, atol=0.05)


def test_random_walks_diffuse_and_a_drift_does_not() -> None:
    random = np.random.default_rng(0)
    atoms = bulk("Si", cubic=True).repeat(5)
    steps = random.normal(0.0, 0.1, (200, len(atoms), 3))
    frames = []
    for i, positions in enumerate(atoms.positions + steps.cumsum(0)):
        frame = atoms.copy()
        frame.positions = positions + np.array([0.5 * i, 0.0, 0.0])
        frames.append(frame)
    motion = mean_squared_displacement(frames, interval=0.02)
    # <r^2> = 3 * 0.1^2 for a step of 0.02 ps = 6 D t; 1 Å^2/ps = 1e-4 cm^2/s.
    coefficient, error = motion.coefficients["Si"]
    assert coefficient == pytest.approx(0.25e-4, rel=0.1)
    assert 0 < error < 0.1 * coefficient


def test_errors_of_means_know_correlation() -> None:
    random = np.random.default_rng(0)
    slow = np.repeat(random.standard_normal(50), 40)
    assert block_error(slow) > 3 * slow.std() / np.sqrt(len(slow))
    assert np.isnan(block_error(np.ones(3)))


def test_columns_are_those_of_the_last_run() -> None:
    text = (
        "Step Temp\n0 1\n10 2\nLoop time of 1 on 1 procs for 10 steps with 8 atoms\n"
        "Step Temp\n0 3\nWARNING: x\n5 4\nLoop time of 2 on 1 procs for 5 steps with 8 atoms\n"
    )
    np.testing.assert_array_equal(read_columns(text)["Temp"], [3, 4])
    with pytest.raises(HIENetError, match="no complete run"):
        read_columns("Step Temp\n0 1\n")


def test_a_deck_says_what_was_asked() -> None:
    dynamics = Dynamics("npt", Ramp(300, 900), Ramp(0, 2), "aniso", timestep=2.0)
    text = deck(bulk("MgO", "rocksalt", a=4.2), ["a model.pt"], dynamics, "title")
    assert "fix           dynamics all npt temp 300 900 0.1 aniso 0 20000 1" in text
    assert 'pair_coeff    * * "a model.pt" Mg O' in text
    assert "timestep      0.002" in text


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"ensemble": "npz"}, "unknown ensemble `npz`"),
        ({"coupling": "x"}, "unknown coupling `x`"),
        ({"temperature": Ramp(-1, 300)}, "temperature must be positive"),
        ({"ensemble": "nve", "temperature": Ramp(300, 400)}, "no thermostat"),
        ({"steps": 5}, "at least one frame"),
        ({"timestep": 100.0}, "time step must lie between"),
    ],
)
def test_dynamics_that_make_no_sense_are_refused(values: dict[str, object], match: str) -> None:
    with pytest.raises(HIENetError, match=match):
        Dynamics(**values)  # type: ignore[arg-type]


def test_ramps_are_one_number_or_two() -> None:
    assert parse_ramp("300:1500", "--temperature") == Ramp(300, 1500)
    with pytest.raises(HIENetError, match="takes a number, or two"):
        parse_ramp("hot", "--temperature")
