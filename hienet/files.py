"""Whole files or none: every file is written under a temporary name and renamed when complete."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from hienet.errors import HIENetError


def make_folder(path: str | Path, option: str) -> Path:
    """Create a folder, with those above it, unless it exists.

    Args:
        path: the folder.
        option: what the user changes to choose another, for the message.

    Raises:
        HIENetError: it cannot be created, or not be written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise HIENetError(
            f"cannot write to the folder `{path}`: {error.strerror}; choose another as `{option}`"
        ) from error
    return path


@contextmanager
def folder_for_results(path: str | Path, option: str) -> Iterator[Path]:
    """`make_folder` before a long work, so that it does not fail at its end; where the work fails and has written
    nothing, a folder that is new is removed again.

    Raises:
        HIENetError: as `make_folder`.
    """
    existed = Path(path).exists()
    folder = make_folder(path, option)
    try:
        yield folder
    except BaseException:
        if not existed:
            # With files in it, it stays.
            with suppress(OSError):
                folder.rmdir()
        raise


def json_text(value: object, indent: int | None = None) -> str:
    """JSON as its standard has it: numbers that are not finite, which it does not know, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it on success and removed on failure.

    Raises:
        HIENetError: the folder does not exist or cannot be written to, or the disc is full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise HIENetError(f"cannot write `{path}`: there is no folder `{path.parent}`; create it first")
    if path.is_dir():
        raise HIENetError(f"cannot write `{path}`: it is a folder; give the name of a file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise HIENetError(f"cannot write `{path}`: {error.strerror}; choose another folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp creates files readable by the owner only; give the result the permissions of an ordinary file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise HIENetError(
            f"cannot write `{path}`: {error.strerror or error}; free some space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
