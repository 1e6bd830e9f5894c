"""From a checkpoint to a deployed file: select elements, compile, script, write, reload, compare."""

from __future__ import annotations

import copy
import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hienet.calculator import DTYPES, LoadedModel, load_model, model_of
from hienet.checkpoint import Checkpoint, load_checkpoint
from hienet.deployed import METADATA_NAME, is_torchscript
from hienet.errors import HIENetError
from hienet.files import atomic_path
from hienet.memory import memory_explained
from hienet.ops.compile import compile_model, describe_tables, has_compiled_form
from hienet.species import keep_elements
from hienet.torch_state import own_torch_state, torchscript

from .metadata import describe, describe_stages
from .verify import FORCE_TOLERANCES, Comparison, Reference, compare, references, verification_structures

INTERVALS = (64, 96, 128, 192, 256, 384, 512, 768)
"""Sizes of tables that are tried."""


@dataclass(frozen=True)
class Deployment:
    """What an export did.

    Attributes:
        path: the file written.
        metadata: its description.
        comparisons: errors against the source model.
    """

    path: Path
    metadata: dict[str, Any]
    comparisons: list[Comparison]


def deployed_path(source: str | Path) -> Path:
    """`model.pt` -> `model.hienet.pt`, beside it."""
    source = Path(source)
    return source.with_name(f"{source.stem}.hienet.pt")


@own_torch_state()
def export(
    source: str | Path,
    output: str | Path | None = None,
    dtype: str = "float32",
    elements: list[str] | None = None,
    compiled: bool = True,
    tolerance: float | None = None,
) -> Deployment:
    """Write the deployed file of a checkpoint, having compared it with the checkpoint.

    Args:
        source: checkpoint (`hienet train`, `hienet convert` or `hienet new` wrote it).
        output: None for `NAME.hienet.pt` beside the source.
        dtype: `float32` or `float64`, of the deployed network.
        elements: keep only these, in this order; None keeps all.
        compiled: call compiled operators, which are fast, on the CPU and, where `hienet build` found `nvcc`, on GPUs;
            otherwise torch's own, on any device. An
            architecture without a compiled form is always written plain.
        tolerance: largest error of a force (eV/Å; relative above 1 eV/Å), from which the sizes of tables follow; None
            for that of the dtype (`FORCE_TOLERANCES`).

    Raises:
        HIENetError: unreadable source, unknown element or dtype, operators that are not compiled, or a deployed model
            that differs from its source by more than the tolerance. Nothing is left at `output` then, and what was
            there before stays.
    """
    if dtype not in DTYPES:
        raise HIENetError(f"unknown dtype `{dtype}`; expected float32 or float64")
    if tolerance is None:
        tolerance = FORCE_TOLERANCES[dtype]
    if not tolerance > 0:
        raise HIENetError(f"the tolerance must be a positive force error in eV/Å, got {tolerance:g}")
    if is_torchscript(source):
        raise HIENetError(f"`{source}` is already a deployed model; give the checkpoint that it was made from")
    path = deployed_path(source) if output is None else Path(output)
    with memory_explained(f"deploying `{source}`", "keep fewer elements (--elements), or use a machine with more"):
        return _export(source, path, dtype, elements, compiled, tolerance)


def _export(
    source: str | Path, path: Path, dtype: str, elements: list[str] | None, compiled: bool, tolerance: float
) -> Deployment:
    whole = load_checkpoint(source)
    checkpoint = whole if elements is None else keep_elements(whole, elements)
    structures = verification_structures(checkpoint.config.elements, overlapping=checkpoint.config.zbl)
    expected = references(model_of(whole), structures)
    # Built once, and copied for each size of the tables.
    plain = checkpoint.build(torch.float64).requires_grad_(False)
    sizes: list[int | None] = [None]
    if compiled and has_compiled_form(plain):
        fewest = choose_intervals(checkpoint, plain, expected, tolerance)
        sizes = [n_intervals for n_intervals in INTERVALS if n_intervals >= fewest]
    with atomic_path(path) as temporary:
        error = math.inf
        for n_intervals in sizes:
            script, metadata = _deployable(checkpoint, plain, dtype, n_intervals, tolerance)
            _write(script, metadata, temporary)
            comparisons = compare(expected, load_model(temporary), tolerance)
            failed = [comparison for comparison in comparisons if not comparison.passed]
            before, error = error, max((comparison.forces for comparison in failed), default=0.0)
            # Finer tables help until the rest is rounding.
            if error == 0.0 or error > 0.5 * before:
                break
        if failed:
            worst = max(failed, key=lambda comparison: comparison.forces)
            raise HIENetError(
                f"the deployed model differs from `{source}` on {len(failed)} of "
                f"{len(comparisons)} structures, for `{worst.name}` by "
                f"{worst.energy:.1e} eV/atom and {worst.forces:.1e} eV/Å, where {tolerance:.0e} is allowed; nothing "
                "was written: deploy with --dtype float64, or with a larger --tolerance"
            )
        metadata["verification"] = [asdict(comparison) for comparison in comparisons]
        _write(script, metadata, temporary)
    return Deployment(path, metadata, comparisons)


def _deployable(
    checkpoint: Checkpoint, plain: torch.nn.Module, dtype: str, n_intervals: int | None, tolerance: float
) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """The scripted model and its description; compiled unless `n_intervals`, of the tables, is None.

    `plain`: the model of the checkpoint in float64, which stays as it is.
    """
    model = copy.deepcopy(plain)
    metadata = describe(checkpoint, model, dtype)
    if n_intervals is not None:
        metadata["operators"] = compile_model(model, n_intervals)
    model.to(DTYPES[dtype])
    fix_constants(model)
    tables = None if n_intervals is None else describe_tables(model)
    if tables is not None:
        metadata["tables"] = {**tables, "tolerance": tolerance}
    metadata |= describe_stages(model, DTYPES[dtype], compiled=n_intervals is not None)
    return _scripted(model), metadata


def fix_constants(model: torch.nn.Module) -> None:
    """Have the parts of a model keep what follows from its weights alone, in the dtype that it has now."""
    for module in list(model.modules()):
        if hasattr(module, "fix_constants"):
            module.fix_constants()  # type: ignore[operator]


def choose_intervals(
    checkpoint: Checkpoint, plain: torch.nn.Module, expected: list[Reference], tolerance: float
) -> int:
    """Fewest intervals of the tables with which tabulation alone, in float64, stays below a third of `tolerance`.

    Two structures decide: the first crystal and the cluster, whose atoms are close; `export` takes more where another
    structure asks for it. More intervals cost memory and cache, so that tables are no finer than needed.

    Raises:
        HIENetError: even the finest tables are too coarse.
    """
    config = checkpoint.config
    deciding = [reference for reference in expected if reference.name.startswith(("crystal", "cluster"))][:2]
    error = math.inf
    for n_intervals in INTERVALS:
        module = copy.deepcopy(plain)
        compile_model(module, n_intervals)
        model = LoadedModel(module, config.elements, config.cutoff, torch.float64, torch.device("cpu"), {})
        comparisons = compare(deciding, model, tolerance / 3.0)
        if all(comparison.passed for comparison in comparisons):
            return n_intervals
        error = max(comparison.forces for comparison in comparisons)
    raise HIENetError(
        f"tables of {INTERVALS[-1]} intervals give force errors of {error:.1e} eV/Å, more than a third of the "
        f"tolerance {tolerance:.0e}; deploy with a larger --tolerance, or with --no-compile"
    )


def _scripted(model: torch.nn.Module) -> torch.jit.ScriptModule:
    with torchscript():
        return torch.jit.script(model)


def _write(script: torch.jit.ScriptModule, metadata: dict[str, Any], path: Path) -> None:
    # By way of memory: torch's archive writer aborts the process when the disc is full.
    archive = io.BytesIO()
    with torchscript():
        torch.jit.save(script, archive, _extra_files={METADATA_NAME: json.dumps(metadata)})
    path.write_bytes(archive.getbuffer())
