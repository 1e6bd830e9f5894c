"""Files to compare a calculation with: one, or a folder in which there is one for each structure, `NAME.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hienet.errors import HIENetError


def reference_file(reference: str | Path, name: str, expected: str) -> Path:
    """The reference of a structure.

    Args:
        reference: a file, or a folder.
        name: of the structure.
        expected: what such a file is, for the message.

    Raises:
        HIENetError: there is no such file.
    """
    file = Path(reference)
    if file.is_dir():
        file = file / f"{name}.yaml"
    if not file.is_file():
        raise HIENetError(f"there is no reference `{file}`; give {expected}, or a folder with `NAME.yaml`")
    return file


@contextmanager
def reading_reference(file: Path, expected: str) -> Iterator[None]:
    """Says in a sentence what stops another package from reading a reference.

    Raises:
        HIENetError: it cannot be read.
    """
    try:
        yield
    except HIENetError:
        raise
    # yaml, phonopy and phono3py raise whatever comes up.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HIENetError(f"`{file}` cannot be read as a reference: {reason}; give {expected}") from error
