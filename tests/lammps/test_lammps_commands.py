"""Whatever LAMMPS does to the atoms, the energy and forces at the end are those that Python gives for them."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from runs import Setup

from hienet.calculator import LoadedModel, load_model
from hienet.lammps import create
from hienet.testing import silicon_carbide

COMMANDS = {
    "minimize": "minimize 0 0 5 20",
    "box/relax": "fix r all box/relax tri 0.0\nmin_modify dmax 0.01\nminimize 0 0 3 10",
    "npt, triclinic": "unfix nve\nvelocity all create 300 1\nfix n all npt temp 300 300 0.1 tri 0 0 1\nrun 5",
    "npt of a flipping box": "unfix nve\nchange_box all xy final 2.0\nvelocity all create 300 1\n"
    "fix n all npt temp 300 300 0.1 xy 2e5 2e5 0.01\nrun 5",
    "deleted atoms": "run 1\ngroup some id 2 5\ndelete_atoms group some compress no\nrun 2",
    "created atoms": "run 1\ncreate_atoms 1 single 1.1 1.2 1.3\nrun 2",
    "changed types": "run 1\nset atom 1*4 type 2\nrun 2",
    "swapped atoms": "fix s all atom/swap 1 10 29494 300.0 ke no types 1 2\nrun 3",
    "deposited atoms": "region d block 0 4 0 4 0 4 units box\n"
    "fix d all deposit 3 1 1 1234 region d near 0.5 units box\nrun 4",
    "evaporated atoms": "region e block 0 4 0 4 0 4 units box\nfix e all evaporate 1 2 e 49892\nrun 4",
    "replicated": "run 0\nreplicate 2 1 1\nrun 2",
    "no reneighbouring": "neigh_modify every 100 delay 100 check no\nvelocity all create 300 1\nrun 10",
    "no skin": "neighbor 0.0 bin\nneigh_modify every 1 delay 0 check no\nvelocity all create 300 1\nrun 5",
    "sorted atoms": "atom_modify sort 1 2.0\nvelocity all create 300 1\nrun 5",
    "twice run 0": "run 0\nrun 0 pre no\nrun 0",
    "two runs": "run 2\nrun 2 pre no post no\nrun 2",
    "pair_style again": "run 1\npair_style hienet precision double\npair_coeff * * {model} C Si\nrun 1",
}


def state(lammps) -> ase.Atoms:
    """The atoms as they are in LAMMPS now, by id, with LAMMPS' forces in an array `lammps_forces`."""
    n = lammps.extract_global("nlocal")
    order = np.argsort(lammps.numpy.extract_atom("id")[:n])
    low, high, xy, yz, xz, _, _ = lammps.extract_box()
    x, y, z = np.subtract(high, low)
    types = lammps.numpy.extract_atom("type")[:n][order]
    atoms = ase.Atoms(
        [("C", "Si")[t - 1] for t in types],
        positions=np.array(lammps.numpy.extract_atom("x")[:n])[order],
        cell=[[x, 0, 0], [xy, y, 0], [xz, yz, z]],
        pbc=True,
    )
    atoms.set_array("lammps_forces", np.array(lammps.numpy.extract_atom("f")[:n])[order])
    return atoms


@pytest.fixture(scope="module")
def oracle(models) -> LoadedModel:
    return load_model(models["float64"])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_final_state_is_evaluated_as_python_does(name, models, oracle, tmp_path):
    setup = Setup(models["float64"])
    data = tmp_path / "data.test"
    setup.write(data, silicon_carbide(1))
    lammps = create()
    try:
        lammps.commands_string(setup.preamble(silicon_carbide(1), data))
        lammps.commands_string("timestep 0.0002\nthermo_modify lost ignore")
        lammps.commands_string(COMMANDS[name].replace("{model}", str(models["float64"])))
        # Relaxation of the cell adds a term of its own to the energy and its forces belong to the last line search.
        if name in ("minimize", "box/relax", "swapped atoms"):
            lammps.commands_string(("unfix r\n" if name == "box/relax" else "") + "run 0")
        atoms, energy = state(lammps), lammps.get_thermo("pe")
    finally:
        lammps.close()
    expected = oracle.predict(atoms)
    assert energy == pytest.approx(expected.energy.item(), abs=1e-8)
    np.testing.assert_allclose(atoms.arrays["lammps_forces"], expected.forces.numpy(), atol=1e-7)


def test_rerun_of_a_trajectory(models, tmp_path):
    """The energies of a run, evaluated again from its dump."""
    setup = Setup(models["float64"])
    data, dump = tmp_path / "data.test", tmp_path / "dump.test"
    setup.write(data, silicon_carbide(1))
    lammps = create()
    try:
        lammps.commands_string(setup.preamble(silicon_carbide(1), data))
        lammps.commands_string(f"dump d all custom 2 {dump} id type x y z ix iy iz")
        lammps.commands_string("dump_modify d format float %.17g sort id\nrun 4\nundump d")
        expected = lammps.get_thermo("pe")
        lammps.commands_string(f"rerun {dump} dump x y z")
        assert lammps.get_thermo("pe") == pytest.approx(expected, abs=1e-8)
    finally:
        lammps.close()


def test_a_restart_goes_on_where_it_stopped(models, tmp_path):
    setup = Setup(models["float64"])
    data, restart = tmp_path / "data.test", tmp_path / "restart.test"
    setup.write(data, silicon_carbide(1))
    lammps = create()
    try:
        lammps.commands_string(setup.preamble(silicon_carbide(1), data))
        lammps.commands_string(f"velocity all create 300 1\nrun 3\nwrite_restart {restart}\nrun 3")
        expected = lammps.get_thermo("pe")
        lammps.commands_string(f"clear\nread_restart {restart}")
        lammps.commands_string(f"pair_style hienet\npair_coeff * * {models['float64']} C Si")
        lammps.commands_string("neighbor 1.0 bin\nfix nve all nve\ntimestep 0.001\nrun 3")
        assert lammps.get_thermo("pe") == pytest.approx(expected, abs=1e-8)
    finally:
        lammps.close()
