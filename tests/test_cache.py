"""Data sets that are larger than memory hold what those in memory hold, whatever interrupts or damages them."""

from __future__ import annotations

import errno
import io
import json
import shutil
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch
from ase.db import connect
from labelled_frames import emt_frames, tiny_values, write_frames
from rich.console import Console

from hienet.config import parse_config
from hienet.data import convert as convert_module
from hienet.data.aselmdb import index_of
from hienet.data.cache import HEADER, Store
from hienet.data.convert import convert
from hienet.data.dataset import Dataset, build_dataset
from hienet.data.labels import LabelKeys
from hienet.data.prepare import prepare_data
from hienet.data.reader import read_frames
from hienet.data.sources import DataSource, prepare_stores
from hienet.data.stored import StoredDataset
from hienet.errors import HIENetError
from hienet.train.run import Run

ELEMENTS = ("Ag", "Cu")


def varied_frames() -> list[ase.Atoms]:
    """Of different labels, sizes, periodicity and weights."""
    frames = emt_frames(9)
    del frames[1].calc.results["stress"]
    del frames[2].calc.results["forces"]
    frames[3].pbc = False
    frames[4].calc.results["forces"][1] = np.nan
    frames[5].info["config_weight"] = 2.0
    frames[6].cell[2] = 0.0
    frames[6].pbc = (True, True, False)
    return frames


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, frames = tmp_path_factory.mktemp("files"), varied_frames()
    return [write_frames(folder / f"{i}.extxyz", frames[3 * i : 3 * i + 3]) for i in range(3)]


@pytest.fixture(scope="module")
def cache(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "data"
    convert(files, folder, 3.5, weight_key="config_weight")
    return folder


@pytest.fixture
def copied(cache: Path, tmp_path: Path) -> Path:
    """A cache to damage."""
    return Path(shutil.copytree(cache, tmp_path / "copy"))


def write_lmdb(path: Path, frames: list[ase.Atoms]) -> Path:
    with connect(str(path), type="aselmdb", use_lock_file=False) as database:
        for atoms in frames:
            database.write(atoms, key_value_pairs={"config_type": atoms.info["config_type"]})
    return path


def assert_equal_datasets(found: Dataset, expected: Dataset) -> None:
    for name, values in vars(expected.summary).items():
        assert getattr(found.summary, name) == pytest.approx(values, rel=1e-6, nan_ok=True), name
    n_frames = len(expected)
    assert np.array_equal(found.compositions(0, n_frames), expected.compositions(0, n_frames))
    chosen = [n_frames - 1, 0, 3, 2]
    for one, other in zip(found.batch(chosen), expected.batch(chosen), strict=True):
        for name, value in vars(other).items():
            mine = getattr(one, name)
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(mine, value, rtol=0, atol=0, equal_nan=True)
            else:
                assert mine == value
    part, other_part = found.subset([4, 1, 3]), expected.subset([4, 1, 3])
    assert np.array_equal(part.compositions(0, 3), other_part.compositions(0, 3))
    assert list(part.groups("config_type")) == list(other_part.groups("config_type"))
    assert [frame.source for frame in part.frames] == [frame.source for frame in other_part.frames]
    for label, other_label in zip(part.labels, other_part.labels, strict=True):
        for name, value in vars(other_label).items():
            assert (value is None) == (getattr(label, name) is None)
            assert value is None or getattr(label, name) == pytest.approx(value, nan_ok=True)


def in_memory(files: list[Path], **options: Any) -> Dataset:
    return build_dataset(read_frames(files), ELEMENTS, options.pop("cutoff", 3.5), torch.float64, **options)


def test_a_cache_holds_what_files_hold(cache: Path, files: list[Path]) -> None:
    source = DataSource.open([cache], weight_key="config_weight")
    assert source.elements() == ELEMENTS
    found = source.dataset(ELEMENTS, 3.5, torch.float64, weight_key="config_weight")
    expected = in_memory(files, weight_key="config_weight")
    assert_equal_datasets(found, expected)
    assert str(found.report) == str(expected.report)
    assert len(read_frames([cache])) == 9


def test_edges_of_another_cutoff_are_counted_once_and_kept(copied: Path, files: list[Path]) -> None:
    for _ in range(2):
        found = StoredDataset([Store(copied)], ELEMENTS, 2.8, torch.float64)
        assert np.array_equal(found.summary.n_edges, in_memory(files, cutoff=2.8).summary.n_edges)
    assert (copied / "n_edges_2.8.bin").stat().st_size == 4 * 9


def test_a_conversion_that_was_stopped_goes_on_to_the_same_cache(
    files: list[Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a file, when rows are written that no state counts; then by two processes."""
    monkeypatch.setattr(convert_module, "_FRAMES_AT_A_TIME", 2)
    append, calls = convert_module.PartWriter.append, []

    def stop_at_fourth(self: Any, columns: Any, groups: Any) -> None:
        append(self, columns, groups)
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(convert_module.PartWriter, "append", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        convert(files, tmp_path / "data", 3.5, weight_key="config_weight")
    with pytest.raises(HIENetError, match=r"is not complete; give the `hienet data convert` that began it again"):
        Store(tmp_path / "data")
    monkeypatch.undo()
    header = convert(files, tmp_path / "data", 3.5, weight_key="config_weight", processes=2)
    assert header.fingerprint == Store(cache).header.fingerprint
    assert convert(files, tmp_path / "data", 3.5, weight_key="config_weight") == header
    Store(tmp_path / "data").verify()


def test_a_full_disc_stops_a_conversion_which_then_goes_on(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = convert_module.PartWriter
    opened = writer._open

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(self: Any, name: str, size: int) -> Any:
        return Full() if name == "forces.bin" and "part-00001" in str(self.part) else opened(self, name, size)

    monkeypatch.setattr(writer, "_open", open_full)
    with pytest.raises(HIENetError, match=r"cannot write to `.*part-00001`: No space left on device; free some space,"):
        convert(files, tmp_path / "data", 3.5)
    monkeypatch.undo()
    convert(files, tmp_path / "data", 3.5)
    assert len(Store(tmp_path / "data")) == 9


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def newer(header: Path) -> None:
    header.write_text(json.dumps(json.loads(header.read_text()) | {"format_version": 9}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: truncate(f / "part-00001/forces.bin"), r"forces.bin` has \d+ bytes, expected \d+: it is truncated"),
        (lambda f: (f / "part-00000/cell.bin").unlink(), r"cell.bin` has 0 bytes, expected 216: it is truncated"),
        (lambda f: (f / "part-00002/state.json").write_text("{"), r"state.json` is damaged .*; remove the folder"),
        (lambda f: (f / HEADER).write_text("[]"), r"hienet_data.json` is damaged .*; convert the data again"),
        (lambda f: newer(f / HEADER), r"has format version 9, newer than 1; update hienet, or convert"),
    ],
)
def test_a_damaged_cache_is_refused(damage: Any, message: str, copied: Path) -> None:
    damage(copied)
    with pytest.raises(HIENetError, match=message):
        DataSource.open([copied])


def test_a_cache_of_other_data_is_not_gone_on_with(copied: Path, files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(HIENetError, match=r"was made of other files, or they have changed since; choose another"):
        convert(files[:2], copied, 3.5, weight_key="config_weight")
    with pytest.raises(HIENetError, match=r"was made of other options"):
        convert(files, copied, 4.0, weight_key="config_weight")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(HIENetError, match=r"full` exists and is no cache; choose another folder"):
        convert(files, tmp_path / "full", 3.5)
    (copied / "part-00000/energy.bin").write_bytes(bytes(24))
    with pytest.raises(HIENetError, match=r"part-00000` has changed since it was written"):
        Store(copied).verify()


def test_what_does_not_go_together_with_a_cache_is_refused(cache: Path, files: list[Path]) -> None:
    with pytest.raises(HIENetError, match=r"is read when it is needed, .* as a whole, and one set cannot have both"):
        DataSource.open([cache, files[0]])
    with pytest.raises(HIENetError, match=r"`data.energy_key` is `mine`, but `.*` was made with none; leave it out"):
        DataSource.open([cache], LabelKeys(energy="mine"))
    with pytest.raises(HIENetError, match=r"`data.weight_key` is `w`, but `.*` was made with `config_weight`"):
        DataSource.open([cache], weight_key="w")
    with pytest.raises(HIENetError, match=r"contains Ag, but the model knows only Cu; use a model"):
        DataSource.open([cache]).dataset(("Cu",), 3.5)


def test_rows_of_an_lmdb_database_are_read_when_they_are_needed(tmp_path: Path) -> None:
    """Without any metadata or index at first, which is said."""
    frames = emt_frames(6)
    path = write_lmdb(tmp_path / "data.aselmdb", frames)
    said: list[str] = []
    for _ in range(2):
        prepare_stores([path], 3.5, LabelKeys(), None, said.append)
    assert [text for text in said if "has no index yet: all its rows are read once" in text] == said[:1] == said
    found = DataSource.open([path]).dataset(ELEMENTS, 3.5, torch.float64)
    assert isinstance(found, StoredDataset)
    assert not (index_of(path) / "part-00000" / "positions.bin").exists()
    assert_equal_datasets(found, in_memory([path]))


def test_an_lmdb_database_that_does_not_fit_its_index_is_refused(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "data.aselmdb", emt_frames(3))
    prepare_stores([path], 3.5, LabelKeys(), None)
    write_lmdb(path, emt_frames(2))
    with pytest.raises(HIENetError, match=r"has 5 rows, its index 3; remove `.*hienet-index`, so that it is made anew"):
        DataSource.open([path])
    with pytest.raises(HIENetError, match=r"was made for other names of labels, or before the database changed"):
        prepare_stores([path], 3.5, LabelKeys(), None)
    (tmp_path / "bad.aselmdb").write_text("no database")
    with pytest.raises(HIENetError, match=r"cannot read `.*bad.aselmdb`, frame 0: .*\(making the index of `"):
        prepare_stores([tmp_path / "bad.aselmdb"], 3.5, LabelKeys(), None)


def test_training_on_a_cache_is_training_on_its_files(tmp_path: Path) -> None:
    """Same statistics, split, steps and weights; a cache of other data does not resume."""
    data = write_frames(tmp_path / "data.extxyz", emt_frames(12))
    convert([data], tmp_path / "cache", 3.5)
    found = []
    for name in (data, tmp_path / "cache"):
        config = parse_config(tiny_values(name, tmp_path / f"run_{name.stem}", epochs=2, engine="plain"))
        prepared = prepare_data(config.data, config.model, torch.float32, 0)
        Run(config, False, Console(file=io.StringIO())).train()
        results = json.loads((tmp_path / f"run_{name.stem}" / "results.json").read_text())["errors"]
        found.append((prepared.model.model_dump(), prepared.split, results))
    assert found[0][1] == found[1][1]
    for key, value in found[0][0].items():
        assert found[1][0][key] == (pytest.approx(value) if key in ("scale", "shift", "avg_num_neighbors") else value)
    for name, errors in found[0][2].items():
        assert found[1][2][name] == pytest.approx(errors, rel=1e-3), name

    shutil.rmtree(tmp_path / "cache")
    convert([write_frames(tmp_path / "data.extxyz", emt_frames(12, seed=1))], tmp_path / "cache", 3.5)
    config = parse_config(tiny_values(tmp_path / "cache", tmp_path / "run_cache", epochs=2, engine="plain"))
    with pytest.raises(HIENetError, match=r"the data are not those with which the run in `.*` began"):
        Run(config, True, Console(file=io.StringIO()))
