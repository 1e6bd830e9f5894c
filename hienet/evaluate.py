"""`hienet eval`: a model's predictions on labelled data, its errors by kind of frame and by element, and plots."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hienet.calculator import LoadedModel, load_model
from hienet.data.dataset import Dataset
from hienet.data.labels import LabelKeys
from hienet.data.mirror import of_mirror_images
from hienet.data.sources import DataSource, prepare_stores
from hienet.errors import HIENetError
from hienet.files import atomic_path, json_text, make_folder
from hienet.metrics import (
    Comparison,
    Errors,
    MirrorChange,
    compare,
    describe_not_finite,
    errors,
    mae_and_rmse,
    mirror_change,
)
from hienet.quantities import ENERGY, FORCES
from hienet.tables import group_label
from hienet.torch_state import own_torch_state

_STRESS_COMPONENTS = ("xx", "yy", "zz", "yz", "xz", "xy")


@dataclass(frozen=True)
class Evaluation:
    """Predictions on a data set, and their errors.

    Attributes:
        dataset: frames and labels.
        comparison: predictions beside labels.
        total: errors over all frames.
        group_key: the entry of the frames' info by which they are grouped.
        by_group: errors for each group; empty if there is at most one.
        forces_by_element: for each element the number of its atoms, MAE and RMSE of their forces (meV/Å).
        mirror: what changes when the frames are replaced by their mirror images; None for a model with O(3) symmetry.
        notes: what else is to be said, one line each.
    """

    dataset: Dataset
    comparison: Comparison
    total: Errors
    group_key: str
    by_group: dict[str, Errors]
    forces_by_element: dict[str, tuple[int, float | None, float | None]]
    mirror: MirrorChange | None
    notes: list[str]


@own_torch_state()
def evaluate(
    model_path: str | Path,
    files: Sequence[str | Path],
    keys: LabelKeys | None = None,
    group_key: str = "config_type",
    group_pattern: str | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    dtype: str | None = None,
) -> Evaluation:
    """Predict the frames of some files.

    Args:
        model_path: checkpoint or deployed file.
        files: anything that ASE reads.
        keys: names of labels, where not to be found automatically.
        group_key: entry of the frames' info by which errors are listed.
        group_pattern: regular expression of the part of that entry which names the group: what it matches, or its first
            pair of parentheses does. `(\\d+) ?K` finds temperatures in names.
        batch_size: frames predicted at a time.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: `float32` or `float64`; None is float64 for a checkpoint, the file's own for a deployed model.

    Raises:
        HIENetError: a file cannot be read, there are no labels, the model does not know an element, or no frame has a
            group.
    """
    model = load_model(model_path, device, dtype)
    dataset = _dataset(model, files, keys)
    groups = _groups(dataset, group_key, group_pattern)
    model.load_elements(torch.tensor(np.flatnonzero(dataset.compositions(0, len(dataset)).any(axis=0))))
    remedy = "give a smaller --batch-size, --dtype float32, or a compiled file (`hienet-deploy`)"
    comparison = compare(model.module, dataset, batch_size, model.device, remedy)
    mirror = None
    if model.info["symmetry"] != "O(3)":
        other = compare(of_mirror_images(model.module), dataset, batch_size, model.device, remedy)
        mirror = mirror_change(comparison, other)
    names = sorted(set(groups.tolist()), key=_natural)
    return Evaluation(
        dataset=dataset,
        comparison=comparison,
        total=errors(comparison),
        group_key=group_key,
        by_group={name: errors(comparison, groups == name) for name in names} if len(names) > 1 else {},
        forces_by_element=_forces_by_element(comparison, symbols_of(dataset)),
        mirror=mirror,
        notes=[*dataset.describe_masked_atoms(), *describe_not_finite(comparison, dataset, "frames")],
    )


def _groups(dataset: Dataset, key: str, pattern: str | None) -> NDArray[np.str_]:
    """`[n_frames]` names of the frames' groups, empty where they have none.

    Raises:
        HIENetError: no frame has the entry, or the pattern is none or matches nothing.
    """
    names = list(dataset.groups(key))
    if key != "config_type" and not any(names):
        known = sorted({name for frame in dataset.frames for name in frame.atoms.info})
        raise HIENetError(
            f"no frame has the entry `{key}` by which errors are to be listed; "
            + (f"the frames have {', '.join(f'`{name}`' for name in known)}" if known else "the frames have no entries")
        )
    if pattern is not None:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise HIENetError(f"`{pattern}` is no regular expression: {error}") from error
        found = [compiled.search(name) for name in names]
        if not any(found):
            example = f", such as `{names[0]}`" if names and names[0] else ""
            raise HIENetError(f"`{pattern}` matches nothing in the entries `{key}` of the frames{example}")
        names = ["" if match is None else next(iter(match.groups()), None) or match.group() for match in found]
    return np.array(names)


def _natural(name: str) -> list[tuple[int, float, str]]:
    """A key by which names are sorted as people do it: 300K before 1000K."""
    parts = re.findall(r"(\d+(?:\.\d+)?)|(\D+)", name)
    return [(0, float(number), "") if number else (1, 0.0, text) for number, text in parts]


def _dataset(model: LoadedModel, files: Sequence[str | Path], keys: LabelKeys | None) -> Dataset:
    prepare_stores(files, model.cutoff, keys or LabelKeys(), None)
    return DataSource.open(files, keys).dataset(model.elements, model.cutoff, model.dtype, keys)


def symbols_of(dataset: Dataset) -> NDArray[np.str_]:
    """`[n_atoms_total]` chemical symbols."""
    return np.concatenate([frame.atoms.get_chemical_symbols() for frame in dataset.frames])


def _forces_by_element(
    comparison: Comparison, symbols: NDArray[np.str_]
) -> dict[str, tuple[int, float | None, float | None]]:
    found = {}
    for symbol in sorted(set(symbols.tolist())):
        chosen = symbols == symbol
        found[symbol] = (
            int(chosen.sum()),
            *mae_and_rmse(comparison.forces[chosen], comparison.forces_label[chosen], FORCES.factor),
        )
    return found


def write_evaluation(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Write `frames.csv`, `atoms.csv`, `errors.csv`, `errors.json` and `parity.png`, and if there are groups also
    `errors.png`; returns their paths.

    Raises:
        HIENetError: the folder cannot be written to.
    """
    from hienet.train.report import plot_errors_of_groups, plot_parity

    folder = make_folder(folder, "--output")
    frames, atoms = _frame_rows(evaluation), _atom_rows(evaluation)
    paths = [folder / name for name in ("frames.csv", "atoms.csv", "errors.csv", "errors.json", "parity.png")]
    columns = tuple(evaluation.group_key if name == "config_type" else name for name in _FRAME_COLUMNS)
    _write_csv(paths[0], columns, frames)
    _write_csv(paths[1], _ATOM_COLUMNS, atoms)
    _write_csv(paths[2], ("set", *evaluation.total.as_dict()), _error_rows(evaluation))
    with atomic_path(paths[3]) as temporary:
        temporary.write_text(json_text(_as_json(evaluation), indent=1))
    plot_parity({"all frames": evaluation.comparison}, paths[4])
    if evaluation.by_group:
        paths.append(folder / "errors.png")
        named = {group_label(name): found for name, found in evaluation.by_group.items()}
        plot_errors_of_groups(named, evaluation.group_key, paths[-1])
    return paths


_FRAME_COLUMNS = (
    "file",
    "frame",
    "config_type",
    "formula",
    "n_atoms",
    "energy_ev",
    "energy_label_ev",
    ENERGY.key("error"),
    FORCES.key("mae"),
    *(f"stress_{c}_ev_per_cubic_angstrom" for c in _STRESS_COMPONENTS),
    *(f"stress_{c}_label_ev_per_cubic_angstrom" for c in _STRESS_COMPONENTS),
)


def _frame_rows(evaluation: Evaluation) -> Iterable[Sequence[object]]:
    c = evaluation.comparison
    first = np.concatenate([[0], np.cumsum(c.n_atoms)])
    for i, frame in enumerate(evaluation.dataset.frames):
        atoms = slice(first[i], first[i + 1])
        energy_error = ENERGY.factor * (c.energy[i] - c.energy_label[i]) / c.n_atoms[i]
        forces_mae, _ = mae_and_rmse(c.forces[atoms], c.forces_label[atoms], FORCES.factor)
        yield (
            frame.file,
            frame.index,
            frame.group(evaluation.group_key),
            frame.atoms.get_chemical_formula(),
            c.n_atoms[i],
            f"{c.energy[i]:.10g}",
            *_numbers(c.energy_label[i], energy_error),
            "" if forces_mae is None else f"{forces_mae:.6g}",
            *_numbers(*c.stress[i], *c.stress_label[i]),
        )


_ATOM_COLUMNS = (
    "file",
    "frame",
    "atom",
    "element",
    "energy_ev",
    *(f"force_{x}_ev_per_angstrom" for x in "xyz"),
    *(f"force_{x}_label_ev_per_angstrom" for x in "xyz"),
)


def _atom_rows(evaluation: Evaluation) -> Iterable[Sequence[object]]:
    c = evaluation.comparison
    atom = 0
    for frame in evaluation.dataset.frames:
        for i, symbol in enumerate(frame.atoms.get_chemical_symbols()):
            yield (
                frame.file,
                frame.index,
                i,
                symbol,
                *(f"{value:.10g}" for value in (c.energies[atom], *c.forces[atom])),
                *_numbers(*c.forces_label[atom]),
            )
            atom += 1


def _error_rows(evaluation: Evaluation) -> Iterable[Sequence[object]]:
    """One row for all frames, each group, and each element (forces only)."""
    key = evaluation.group_key
    rows = [("all", evaluation.total), *((f"{key} {group_label(k)}", v) for k, v in evaluation.by_group.items())]
    for name, found in rows:
        yield name, *("" if value is None else f"{value:.6g}" for value in found.as_dict().values())
    for symbol, (count, mae, rmse) in evaluation.forces_by_element.items():
        yield f"element {symbol}", "", count, "", "", *("" if v is None else f"{v:.6g}" for v in (mae, rmse)), *5 * [""]


def _as_json(evaluation: Evaluation) -> dict[str, object]:
    return {
        "all": evaluation.total.as_dict(),
        f"by_{evaluation.group_key}": {name: found.as_dict() for name, found in evaluation.by_group.items()},
        "by_element": {
            symbol: {"n_atoms": count, FORCES.key("mae"): mae, FORCES.key("rmse"): rmse}
            for symbol, (count, mae, rmse) in evaluation.forces_by_element.items()
        },
        "mirror": None if evaluation.mirror is None else evaluation.mirror.as_dict(),
    }


def _numbers(*values: float) -> list[str]:
    """Numbers as text; one that is missing or undefined is empty."""
    return ["" if np.isnan(value) else f"{value:.10g}" for value in values]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
