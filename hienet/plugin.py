"""Where the compiled LAMMPS plugin lies. Every start of `lmp` imports this: standard library only, and no failure."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from importlib import metadata
from pathlib import Path

PLUGIN_NAME = "hienetplugin.so"
"""LAMMPS loads every `*plugin.so` in the folders of `LAMMPS_PLUGIN_PATH`."""

OPERATORS_NAME = "libhienet_ops.so"
"""Beside the plugin, which links it: the operators of compiled models. Python loads it, too."""

ENGINE_NAME = "libhienet_engine.a"
"""Beside both: what the plugin consists of besides LAMMPS' own, for other programs (pair_hienet/engine)."""

STAMP_NAME = "hienetplugin.json"
"""Beside the plugin: what they were compiled from and against."""

_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def plugin_directory() -> Path:
    """`$HIENET_PLUGIN_DIR` (an absolute path), or `lib/hienet` of the Python environment. It need not exist."""
    chosen = os.environ.get("HIENET_PLUGIN_DIR")
    return Path(chosen).expanduser().resolve() if chosen else Path(sys.prefix) / "lib" / "hienet"


def source_directory() -> Path | None:
    """The folder of the C++ sources, or None if they are not installed."""
    spec = importlib.util.find_spec("pair_hienet")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def source_hash(folder: Path) -> str:
    """SHA-256 of the files in `folder` that the plugin is made from."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu") or path.name in ("CMakeLists.txt", "libtorch.cmake", "mpi.cmake"):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def installed_version(package: str) -> str | None:
    """Version of an installed Python package, or None. The package is not imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def current_stamp() -> dict[str, str | None]:
    """What a plugin compiled now would be stamped with."""
    sources = source_directory()
    return {
        "torch": installed_version("torch"),
        "lammps": installed_version("lammps"),
        "sources": source_hash(sources) if sources is not None else None,
    }


def plugin_problem(folder: Path) -> str | None:
    """Why the plugin in `folder` should be compiled (again), as a clause; None if it is fine."""
    for name in (PLUGIN_NAME, OPERATORS_NAME):
        if not (folder / name).is_file():
            return f"the LAMMPS plugin is not compiled (there is no {folder / name})"
    try:
        stamp = json.loads((folder / STAMP_NAME).read_text())
    except (OSError, ValueError):
        return f"the LAMMPS plugin in {folder} does not say what it was compiled against"
    for key, name in (("torch", "torch"), ("lammps", "LAMMPS")):
        installed = installed_version(key)
        if stamp.get(key) != installed:
            return f"the LAMMPS plugin was compiled against {name} {stamp.get(key)}, but {installed} is installed"
    sources = source_directory()
    if sources is not None and stamp.get("sources") != source_hash(sources):
        return "the LAMMPS plugin was compiled from other C++ sources than those installed"
    return None


def plugin_folder() -> str:
    """Entry point of the group `lammps.plugins`: the folder whose plugins `lmp` loads.

    Says on stderr (of the first rank) when the plugin should be compiled again, and never fails: other pair styles
    must go on working.
    """
    folder = plugin_directory()
    try:
        problem = plugin_problem(folder)
    except OSError as error:
        problem = f"the LAMMPS plugin in {folder} cannot be read ({error})"
    is_first_rank = all(os.environ.get(name, "0") == "0" for name in _RANK_VARIABLES)
    if problem and is_first_rank:
        print(f"hienet: {problem}; run `hienet build`, otherwise `pair_style hienet` may not work", file=sys.stderr)
    return str(folder)
