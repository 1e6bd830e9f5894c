"""Torch's files are zip archives with a CRC-32 of every record, which torch does not compare when it reads one."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from hienet.errors import HIENetError
from hienet.memory import is_out_of_memory

_LARGEST_RATIO = 100
"""Of the contents to the file. Torch compresses code alone, and weights are most of a file."""


def check_archive(path: str | Path, contents: bytes | None = None) -> None:
    """Read every record of a torch archive and compare it with its checksum, so that no weight is silently wrong.

    Nothing is unpickled, and no more than a piece of a record is in memory at a time.

    Args:
        path: the file.
        contents: of the file, if they are in memory already; None reads it.

    Raises:
        HIENetError: the file is truncated or damaged, or cannot be read.
    """
    try:
        size = Path(path).stat().st_size if contents is None else len(contents)
        with zipfile.ZipFile(path if contents is None else io.BytesIO(contents)) as archive:
            if sum(record.file_size for record in archive.infolist()) > _LARGEST_RATIO * size:
                raise zipfile.BadZipFile("it announces more than it can hold")
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"the record `{damaged}` does not match its checksum")
    except PermissionError as error:
        raise HIENetError(f"cannot read `{path}`: {error.strerror}; check the permissions") from error
    # Numbers that make no sense lead zipfile to every kind of exception.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise HIENetError(f"`{path}` is truncated or damaged ({error}); copy it again, or write it anew") from error
