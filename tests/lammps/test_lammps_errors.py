"""Wrong input is one clear sentence with the remedy, from every rank count, and never a deadlock."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from analytic import EDGE_WALK_STAGES, LJ_STAGES, WALK_STAGES, EdgeWalks, LennardJones, Walks, write_deployed
from runs import Setup, evaluate, run
from torch import Tensor

from hienet.errors import HIENetError
from hienet.testing import silicon_carbide

ATOMS = silicon_carbide(1)


@dataclass(frozen=True)
class Wrong:
    """Changes to a deck that works, and what LAMMPS must say."""

    says: str
    before_box: str = ""
    commands: str = ""
    style: str = ""
    pair: str | None = None


GPU_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.72 GiB of which 1 GiB is free.",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
)
"""What torch says where its allocator, the runtime, or a library has no memory."""

WRONG = {
    "newton off": Wrong("needs newton pair on; put `newton on`", before_box="newton off"),
    "units lj": Wrong("`units lj` cannot be converted from eV and Angstrom; use `units metal`", before_box="units lj"),
    "exclusions": Wrong("`neigh_modify exclude` takes neighbors away", commands="neigh_modify exclude type 1 2"),
    "included group": Wrong(
        "`neigh_modify include` leaves atoms without neighbors",
        commands="group first id 1:4\natom_modify first first\nneigh_modify include first",
    ),
    "comm group": Wrong(
        "`comm_modify group` takes ghost atoms away",
        commands="group first id 1:4\natom_modify first first\ncomm_modify group first",
    ),
    "too few symbols": Wrong(r"gives 1 element symbol\(s\), but there are 2 atom type\(s\)", pair="{model} C"),
    "too many symbols": Wrong(r"gives 3 element symbol\(s\), but there are 2", pair="{model} C Si Si"),
    "unknown element": Wrong("element `Xe` of type 2 is not in the model .* it knows: C Si", pair="{model} C Xe"),
    "no symbols": Wrong("gives 0 element symbol", pair="{model}"),
    "NULL alone": Wrong("All pair coeffs are not set", pair="{model} C NULL"),
    "no such file": Wrong(
        "cannot open the model file `nowhere.hienet.pt`: No such file", pair="nowhere.hienet.pt C Si"
    ),
    "a folder": Wrong("it is empty or a folder", pair="{folder} C Si"),
    "text file": Wrong("is not a deployed HIENet model .*`hienet-deploy model.pt`", pair="{text} C Si"),
    "checkpoint": Wrong("is not a deployed HIENet model .*`hienet-deploy model.pt`", pair="{checkpoint} C Si"),
    "other TorchScript": Wrong("is not a deployed HIENet model .it has no `hienet.json`", pair="{script} C Si"),
    "truncated": Wrong("is truncated or damaged .it is not a whole archive.; copy it again", pair="{truncated} C Si"),
    "newer format": Wrong(
        "has format version 99, this pair style reads versions up to 4; upgrade", pair="{newer} C Si"
    ),
    "other format": Wrong("`hienet.json` describes something else", pair="{other} C Si"),
    "missing key": Wrong(
        "`hienet.json` is damaged .type must be string, but is null.; write the file again", pair="{incomplete} C Si"
    ),
    "no methods": Wrong("it has no method `embed_edges`", pair="{shell} C Si"),
    "wrong width": Wrong("returned energies of a wrong shape", pair="{energies} C Si"),
    "wrong edge width": Wrong(
        r"`embed_edges` returned a tensor of shape \[\d+, 1\] for \d+ edges, and the file announces 25 columns; "
        "write the file again with `hienet-deploy`",
        pair="{edges} C Si",
    ),
    "no edges returned": Wrong(
        "stage `first` returned something else than the file announces; write the file again", pair="{silent} C Si"
    ),
    "wrong width of returned edges": Wrong(
        "stage `second` returned edges of another shape than the file announces", pair="{wider} C Si"
    ),
    "edges of some stages": Wrong(
        "some of its stages announce the columns of the edges that they read, and some do not", pair="{mixed} C Si"
    ),
    "no memory": Wrong(
        r"not enough memory for the network; use more ranks, a smaller system, or `precision mixed` "
        r"\(step 0, rank 0, 8 atoms, \d+ edges\)",
        pair="{greedy} C Si",
    ),
    **{
        f"no memory on a GPU, {number}": Wrong(
            r"stage `pairs`: not enough memory on the GPU for the network; use more GPUs, a smaller system, or "
            r"`precision mixed` \(step 0, rank 0, 8 atoms, \d+ edges\)",
            pair=f"{{gpu{number}}} C Si",
        )
        for number in range(len(GPU_MEMORY))
    },
    "unknown keyword": Wrong("unknown keyword `gpu`; keywords are `device`", style="gpu 1"),
    "keyword without value": Wrong("keyword `device` has no value", style="device"),
    "unknown device": Wrong("`device tpu` is not known; use auto, cpu, cuda or cuda:N", style="device tpu"),
    "device number": Wrong("`device cuda:x` is not known", style="device cuda:x"),
    "threads": Wrong("`threads 0` must be at least 1", style="threads 0"),
    "exchange": Wrong("`exchange fast` is not known; use auto, direct or host", style="exchange fast"),
    "resident": Wrong("`resident maybe` is not known; use auto, yes or no", style="resident maybe"),
    "precision": Wrong("`precision half` is not known; use model, double or mixed", style="precision half"),
}
if not torch.cuda.is_available():
    WRONG["no GPU"] = Wrong("torch sees no CUDA GPU here; .* or use `device cpu`", style="device cuda")


class Shell(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class WrongShape(LennardJones):
    @torch.jit.export
    def readout(self, state: Tensor, species: Tensor) -> Tensor:
        return torch.zeros(species.size(0) + 1, dtype=torch.float64)


class Greedy(LennardJones):
    @torch.jit.export
    def readout(self, state: Tensor, species: Tensor) -> Tensor:
        return torch.zeros(100000000000000, species.size(0), dtype=torch.float64).sum(0)


class OutOfMemory(LennardJones):
    """Fails as torch does where the memory of a GPU is exhausted."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    @torch.jit.export
    def stage(
        self, index: int, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        if edges.size(0) > 0:
            raise RuntimeError(self.text)
        return state


class Breaks(Walks):
    """Its second stage fails, after an exchange."""

    @torch.jit.export
    def stage(
        self, index: int, state: Tensor, edges: Tensor, species: Tensor, center: Tensor, neighbor: Tensor, n_local: int
    ) -> Tensor:
        if index == 1:
            raise RuntimeError("deliberate failure")
        return torch.cat([state[:n_local], state[:n_local]], 1)


@pytest.fixture(scope="module")
def files(models, tmp_path_factory) -> dict[str, Path]:
    """Files that are not what pair_coeff wants."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "text").write_text("not a model\n")
    whole = models["float64"].read_bytes()
    (folder / "truncated").write_bytes(whole[: len(whole) // 2])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\..*` is deprecated", category=DeprecationWarning)
        torch.jit.save(torch.jit.script(Shell()), str(folder / "script"))
    write_deployed(LennardJones(), folder / "newer", LJ_STAGES, format_version=99, package_version="9.0")
    write_deployed(LennardJones(), folder / "other", LJ_STAGES, format="something")
    write_deployed(Shell(), folder / "shell", LJ_STAGES)
    write_deployed(WrongShape(), folder / "energies", LJ_STAGES)
    write_deployed(LennardJones(), folder / "edges", LJ_STAGES, edge_width=25)
    write_deployed(Greedy(), folder / "greedy", LJ_STAGES)
    for number, text in enumerate(GPU_MEMORY):
        write_deployed(OutOfMemory(text), folder / f"gpu{number}", LJ_STAGES)
    write_deployed(Breaks(), folder / "breaks", WALK_STAGES)
    write_deployed(LennardJones(), folder / "incomplete", LJ_STAGES, architecture=None)
    silent = [{**stage, "edge_width": 4} for stage in WALK_STAGES]
    write_deployed(Walks(), folder / "silent", silent, format_version=4)
    wider = [*EDGE_WALK_STAGES[:2], {**EDGE_WALK_STAGES[2], "edge_width": 7}]
    write_deployed(EdgeWalks(), folder / "wider", wider, format_version=4)
    write_deployed(Walks(), folder / "mixed", [*WALK_STAGES[:2], {**WALK_STAGES[2], "edge_width": 4}])
    names = (
        "text",
        "truncated",
        "script",
        "newer",
        "other",
        "shell",
        "energies",
        "edges",
        "greedy",
        *(f"gpu{number}" for number in range(len(GPU_MEMORY))),
        "breaks",
        "incomplete",
        "silent",
        "wider",
        "mixed",
    )
    return {name: folder / name for name in names} | {
        "folder": folder,
        "model": models["float64"],
        "checkpoint": models["checkpoint"],
    }


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_explained(case, models, files, tmp_path):
    wrong = WRONG[case]
    pair = None
    if wrong.pair is not None:
        pair = f"pair_style hienet\npair_coeff * * {wrong.pair.format_map(files)}"
    setup = Setup(models["float64"], style=wrong.style, before_box=wrong.before_box, commands=wrong.commands, pair=pair)
    with pytest.raises(Exception, match=wrong.says) as failure:
        evaluate(ATOMS, setup, tmp_path)
    assert "Exception raised from" not in str(failure.value), "no stack of C++"
    assert "Traceback" not in str(failure.value)


def test_pair_coeff_wants_all_types(models, tmp_path):
    setup = Setup(models["float64"], pair=f"pair_style hienet\npair_coeff 1 1 {models['float64']} C Si")
    with pytest.raises(Exception, match=r"[Pp]air_coeff must start with \* \* for pair style hienet"):
        evaluate(ATOMS, setup, tmp_path)


@pytest.mark.parametrize(
    "command", ["comm_modify cutoff 2.0", "comm_modify mode multi", "comm_modify mode multi cutoff/multi * 1.0"]
)
def test_ghosts_reach_far_enough_whatever_comm_modify_says(command, models, tmp_path):
    """LAMMPS extends a cutoff that is too small for the neighbour list."""
    if "multi" in command:
        command = f"neighbor 1.0 multi\n{command}"
    expected = evaluate(ATOMS, Setup(models["float64"]), tmp_path)
    found = evaluate(ATOMS, Setup(models["float64"], commands=command), tmp_path)
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-10)


def test_the_start_names_model_types_and_training_and_warns_of_a_jump_at_the_cutoff(tmp_path):
    training = {
        "n_frames": {"train": 80, "validation": 10, "test": 0},
        "errors": {"validation": {"n_frames": 10, "energy_mae_mev_per_atom": 2.125, "stress_mae_gpa": None}},
    }
    model = write_deployed(
        LennardJones(), tmp_path / "rough.hienet.pt", LJ_STAGES, smooth_cutoff=False, training=training
    )
    output = run(ATOMS, Setup(model), tmp_path, steps=0)[0].output
    assert "has no smooth cutoff: its energy jumps" in output
    assert "type 2 -> Si -> species 1" in output
    assert "cutoff 4 Angstrom" in output
    # A file without the entry, as older ones.
    assert "symmetry unknown: the file is older than this entry (`hienet info` derives it)\n" in output
    assert "training set: 80 train, 10 validation frames; validation MAE: 2.12 meV/atom\n" in output


@pytest.mark.parametrize(
    ("symmetry", "said"),
    [
        ("O(3)", "symmetry O(3): a structure and its mirror image have the same energy\n"),
        ("SO(3)", "symmetry SO(3): a structure and its mirror image may have different energies\n"),
    ],
)
def test_the_start_says_whether_mirror_images_have_the_same_energy(symmetry, said, tmp_path):
    model = write_deployed(LennardJones(), tmp_path / "m.hienet.pt", LJ_STAGES, symmetry=symmetry)
    assert said in run(ATOMS, Setup(model), tmp_path, steps=0)[0].output


@pytest.mark.parametrize("case", ["nowhere.hienet.pt", "{truncated}", "{newer}"])
def test_an_unreadable_file_stops_all_ranks(case, models, files, tmp_path):
    pair = f"pair_style hienet\npair_coeff * * {case.format_map(files)} C Si"
    with pytest.raises(HIENetError, match=r"cannot open|truncated or damaged|format version 99"):
        run(ATOMS, Setup(models["float64"], pair=pair), tmp_path, 2, steps=0)


def test_a_failure_between_exchanges_stops_all_ranks_and_says_where(models, files, tmp_path):
    """Only the rank that has atoms fails; the other waits in the next exchange."""
    atoms = ase.Atoms("SiC", positions=[[2, 2, 2], [3.5, 2, 2]], cell=np.diag([20.0, 8, 8]), pbc=False)
    setup = Setup(files["breaks"], before_box="processors 2 1 1")
    with pytest.raises(HIENetError, match=r"stage `second`: .*deliberate failure .step 0, rank 0"):
        run(atoms, setup, tmp_path, 2, steps=0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_positions_that_are_not_numbers_stop_the_run(ranks, models, tmp_path):
    commands = "variable bad atom 1e308*10\nset atom 3 vx v_bad\nneigh_modify every 10 delay 10 check no"
    with pytest.raises(HIENetError, match=r"the position of atom .* is not finite at step 1; use a shorter timestep"):
        run(ATOMS, Setup(models["float64"], commands=commands), tmp_path, ranks, steps=3)


def test_coincident_atoms_are_named(models, tmp_path):
    atoms = ATOMS.copy()
    atoms.positions[4] = atoms.positions[2]
    with pytest.raises(Exception, match=r"atoms [35] and [35] are at the same place at step 0; remove one"):
        evaluate(atoms, Setup(models["float64"]), tmp_path)
