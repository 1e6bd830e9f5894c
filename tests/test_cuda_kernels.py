"""The kernels for GPUs, without one: the CUDA compiler takes them, and an emulation runs them on the CPU.

The emulation is a library that takes the place of the operators for CPUs. Here it is built, and their own tests are
run on it in a process of their own, with the tests at the end of this file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_interaction import IRREPS, Problem

from hienet.build import find_toolchain
from hienet.ops.compile import compile_model
from hienet.testing import silicon_carbide, tiny_model

LIBRARY = os.environ.get("HIENET_TEST_EMULATED_CUDA")
ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"

not_emulated = pytest.mark.skipif(LIBRARY is not None, reason="the emulation is being tested")
emulated = pytest.mark.skipif(LIBRARY is None, reason="run by `test_operators_on_emulated_kernels`")
with_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler `nvcc`")


def compile_with_cmake(folder: Path, target: str, *options: str) -> Path:
    """Build a target of the C++ sources in `folder`, which is kept for the next time."""
    tools = find_toolchain()
    configure = [
        *(str(tools.cmake), "-S", str(tools.sources), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}"),
        *(f"-DCMAKE_CXX_COMPILER={tools.compiler}", "-DCMAKE_BUILD_TYPE=Release"),
        *options,
    ]
    if tools.ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools.ninja}"]
    compile_target = [str(tools.cmake), "--build", str(folder), "--parallel", str(os.cpu_count()), "--target", target]
    for command in (configure, compile_target):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
        assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-2000:]
    return folder


def run_pytest(library: Path, *arguments: str) -> str:
    """pytest with the emulated kernels; its output."""
    environment = {**os.environ, "HIENET_TEST_EMULATED_CUDA": str(library)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=1200, check=False, env=environment, cwd=Path(__file__).parent
    )
    assert answer.returncode == 0, answer.stdout[-6000:] + answer.stderr[-2000:]
    return answer.stdout


# ----------------------------------------------------------------------
# by the CUDA compiler
# ----------------------------------------------------------------------


@not_emulated
@with_nvcc
def test_the_library_builds_with_cuda_and_says_so(operators):
    folder = compile_with_cmake(
        BUILD / "cuda",
        "hienet_ops",
        "-DHIENET_CUDA=ON",
        "-DHIENET_CUDA_ARCHITECTURES=90",
        "-DHIENET_PORTABLE_ONLY=ON",
        "-DHIENET_KERNEL_OPTIMIZATION=-O0",
    )
    code = f"""
import torch
torch.ops.load_library({str(folder / "libhienet_ops.so")!r})
assert torch.ops.hienet.devices() == ["cpu", "cuda"]
gates = torch.ops.hienet.gate(torch.ones(2, 3), torch.zeros(0, 2, dtype=torch.int64), 3, 1.0)
assert torch.allclose(gates, torch.nn.functional.silu(torch.ones(2, 3)))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    assert torch.ops.hienet.devices() == ["cpu"]


@not_emulated
@with_nvcc
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_the_convolution_lives_in_registers(architecture, tmp_path):
    """A kernel whose numbers do not fit the registers, or whose loops are not unrolled, is many times slower."""
    command = [
        *("nvcc", "-std=c++17", "-O3", "-gencode", f"arch=compute_{architecture},code=sm_{architecture}"),
        *("-Xptxas", "-v", "-c", str(ROOT / "pair_hienet/ops/cuda/convolution.cu"), "-o", str(tmp_path / "kernel.o")),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert answer.returncode == 0, answer.stderr
    kernels = re.findall(
        r"Compiling entry function '\S*?(forward|backward)_kernelILi(\d)Ef\S*'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers",
        answer.stderr,
        re.DOTALL,
    )
    assert {(direction, int(dim)) for direction, dim, *_ in kernels} == {
        (direction, dim) for direction in ("forward", "backward") for dim in (1, 3, 5, 7)
    }
    for direction, dim, stack, spilled, registers in kernels:
        # No array; a number or two that the compiler puts aside cost nothing.
        assert int(stack) <= 16, f"{direction} for 2l+1 = {dim}"
        assert int(spilled) <= 16, f"{direction} for 2l+1 = {dim}"
        assert int(registers) <= 128, f"{direction} for 2l+1 = {dim}"


# ----------------------------------------------------------------------
# by the emulation
# ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(operators) -> Path:
    """The emulation."""
    folder = compile_with_cmake(BUILD / "emulated_cuda", "hienet_emulated_cuda", "-DHIENET_EMULATED_CUDA=ON")
    return folder / "libhienet_emulated_cuda.so"


@not_emulated
@pytest.mark.parametrize(
    "arguments",
    [
        ("test_cuda_kernels.py",),
        ("test_interaction.py",),
        ("test_pair_message.py", "test_node_ops.py"),
        ("test_edge_network.py", "test_cuda_edge_network.py"),
        ("lammps/test_lammps_emulated_cuda.py",),
        ("test_compiled.py", "-k", "source or every_kind or derivatives or equivariant or neighbours or tables"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_operators_on_emulated_kernels(arguments, library):
    output = run_pytest(library, *arguments)
    assert int(re.findall(r"(\d+) passed", output)[-1]) > 1


@pytest.fixture
def reversed_order():
    """Lanes run from the last to the first between shuffles."""

    def turn(reverse: bool) -> None:
        torch.ops.hienet_emulation.set_reversed(reverse)

    yield turn
    turn(False)


@pytest.fixture
def workspace():
    """Sets the bytes of a chunk."""
    usual = 2 << 30
    yield torch.ops.hienet.set_cuda_workspace
    torch.ops.hienet.set_cuda_workspace(usual)


def launches_of(function: Callable[[], object]) -> int:
    before = torch.ops.hienet_emulation.launches()
    function()
    return torch.ops.hienet_emulation.launches() - before


@pytest.fixture
def device(operators) -> str:
    """A GPU for which the operators have kernels, or the CPU where they are emulated."""
    if LIBRARY is not None:
        return "cpu"
    if torch.cuda.is_available() and "cuda" in torch.ops.hienet.devices():
        return "cuda"
    pytest.skip("no GPU for which the operators have kernels")


class TestKernels:
    """On a GPU, or emulated."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("irreps", "harmonics", "irreps_out"), IRREPS)
    def test_the_interaction_is_the_plain_one(self, irreps, harmonics, irreps_out, dtype, device):
        problem = Problem(irreps, harmonics, irreps_out, dtype)
        expected = problem.results(problem.plain)
        found = problem.to(device).results(problem.fused)
        tolerance = 1e-12 if dtype == torch.float64 else 3e-5
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance * float(b.abs().max()))
        for a, b in zip(problem.results(problem.fused), found, strict=True):
            assert torch.equal(a, b)

    def test_every_model_is_that_of_plain_torch(self, variant, device):
        model, atoms = tiny_model(**variant), silicon_carbide()
        expected = model.predict(atoms)
        compile_model(model.module, 256)
        for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-4)):
            there = replace(model, module=model.module.to(device, dtype), dtype=dtype, device=torch.device(device))
            found = there.predict(atoms)
            for quantity in ("energies", "forces", "stress"):
                torch.testing.assert_close(
                    getattr(found, quantity).cpu().double(), getattr(expected, quantity), rtol=1e-6, atol=tolerance
                )


@emulated
@pytest.mark.usefixtures("operators")
class TestEmulation:
    def test_it_runs_the_kernels(self):
        problem = Problem(*IRREPS[1])
        # Couplings, one kernel for each l, and the linear map by torch.
        assert launches_of(lambda: problem.fused(*problem.inputs)) == 5

    @pytest.mark.parametrize("irreps", [IRREPS[2], IRREPS[5]])
    def test_no_thread_depends_on_the_order_of_others(self, irreps, reversed_order):
        problem = Problem(*irreps, dtype=torch.float32)
        usual = problem.results(problem.fused)
        reversed_order(True)
        for found, expected in zip(problem.results(problem.fused), usual, strict=True):
            assert torch.equal(found, expected)

    @pytest.mark.parametrize("size", [1, 3000, 30000])
    def test_a_small_workspace_changes_rounding_only(self, size, workspace):
        problem = Problem(*IRREPS[2])
        n_launches = launches_of(lambda: problem.results(problem.fused))
        expected = problem.results(problem.fused)
        workspace(size)
        assert launches_of(lambda: problem.results(problem.fused)) > n_launches
        for a, b in zip(problem.results(problem.fused), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("name", ["weights", "coefficients", "table"])
    def test_changed_constants_are_noticed(self, name):
        """What is made once of a tensor is made again when the tensor has changed in place."""
        problem = Problem(*IRREPS[1])
        before = problem.fused(*problem.inputs)
        problem.arguments[name].mul_(2.0)
        after = problem.fused(*problem.inputs)
        kept = problem.inputs[0][: problem.indices[2], problem.kept_start : problem.kept_start + before.shape[1]]
        torch.testing.assert_close(after - kept, 2.0 * (before - kept))

    def test_a_changed_graph_is_noticed(self):
        problem = Problem(*IRREPS[1])
        neighbor = problem.indices[1]
        problem.fused(*problem.inputs)
        neighbor.copy_(neighbor.flip(0))
        for found, expected in zip(problem.results(problem.fused), problem.results(problem.plain), strict=True):
            torch.testing.assert_close(found, expected)
        neighbor[3] = 99
        with pytest.raises(ValueError, match=r"`neighbor` must be below 13, got 99 for edge 3"):
            problem.fused(*problem.inputs)

    def test_memory_of_graphs_is_let_go(self):
        problem = Problem(*IRREPS[0])
        references = []
        for _ in range(5):
            center, neighbor, n_local = problem.indices
            problem.indices = (center.clone(), neighbor.clone(), n_local)
            references.append(torch.multiprocessing.reductions.StorageWeakRef(problem.indices[1].untyped_storage()))
            problem.fused(*problem.inputs)
        assert sum(not reference.expired() for reference in references) <= 3

    def test_paths_that_read_parts_of_a_block_are_refused(self):
        problem = Problem(*IRREPS[1])
        problem.arguments["paths"] = problem.arguments["paths"].clone()
        # The scalar path reads a component of the vectors.
        problem.arguments["paths"][0, 0] = 2
        with pytest.raises(ValueError, match=r"path 0 of the interaction reads columns that another path reads"):
            problem.fused(*problem.inputs)

    def test_a_model_in_single_precision(self, reversed_order):
        model, atoms = tiny_model(), silicon_carbide(rattle=0.1)
        expected = model.predict(atoms)
        compile_model(model.module, 128)
        single = replace(model, module=model.module.to(torch.float32), dtype=torch.float32)
        found = single.predict(atoms)
        torch.testing.assert_close(found.energies.double(), expected.energies, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.forces.double(), expected.forces, rtol=0, atol=1e-4)
        reversed_order(True)
        assert torch.equal(single.predict(atoms).forces, found.forces)

    def test_it_refuses_what_a_gpu_cannot_do(self):
        with pytest.raises(RuntimeError, match=r"reached by 16 of a warp's 32 threads"):
            torch.ops.hienet_emulation.run_mistake("divergent shuffle")
        with pytest.raises(RuntimeError, match=r"no GPU takes 1 blocks of 2048 threads"):
            torch.ops.hienet_emulation.run_mistake("large block")
        # It goes on as if nothing had been.
        Problem(*IRREPS[1]).fused(*Problem(*IRREPS[1]).inputs)

    def test_a_race_gives_other_numbers_in_another_order(self, reversed_order):
        usual = torch.ops.hienet_emulation.run_mistake("race")
        reversed_order(True)
        assert not torch.equal(torch.ops.hienet_emulation.run_mistake("race"), usual)
