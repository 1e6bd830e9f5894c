"""What ASE does not say of a VASP calculation: which ionic steps did not converge, and whether the last is whole."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ase.io.formats import open_with_compression

_XML_EVENT = re.compile(r"<(calculation|scstep)\b|<i\b[^>]*\bname=\"NELM\"[^>]*>\s*(\d+)")
_OUTCAR_EVENT = re.compile(
    r"Iteration\s+\d+\(\s*(?P<step>\d+)\)"
    r"|\bNELM\s*=\s*(?P<limit>\d+)"
    r"|(?P<failed>EDIFF was not reached)"
    r"|(?P<end>FREE ENERGIE OF THE ION-ELECTRON SYSTEM)"
)


@dataclass(frozen=True)
class IonicSteps:
    """The ionic steps of a calculation.

    Attributes:
        limit: NELM, the largest number of electronic steps; None if the file does not say.
        converged: for each ionic step, whether fewer electronic steps than NELM were needed.
    """

    limit: int | None
    converged: list[bool]


def read_ionic_steps(path: Path, file_format: str) -> IonicSteps:
    """Electronic convergence of the steps of a `vasprun.xml` (`vasp-xml`) or `OUTCAR` (`vasp-out`), whole or not."""
    with open_with_compression(str(path), "rb") as binary:
        lines = io.TextIOWrapper(binary, encoding="utf-8", errors="replace")
        return _from_xml(lines) if file_format == "vasp-xml" else _from_outcar(lines)


def _from_xml(lines: Iterable[str]) -> IonicSteps:
    limit: int | None = None
    counts: list[int] = []
    for line in lines:
        for event in _XML_EVENT.finditer(line):
            if event[2]:
                limit = int(event[2])
            elif event[1] == "calculation":
                counts.append(0)
            elif counts:
                counts[-1] += 1
    return IonicSteps(limit, [limit is None or count < limit for count in counts])


def _from_outcar(lines: Iterable[str]) -> IonicSteps:
    limit: int | None = None
    converged: list[bool] = []
    count, failed = 0, False
    for line in lines:
        for event in _OUTCAR_EVENT.finditer(line):
            if event["step"]:
                count = int(event["step"])
            elif event["limit"]:
                limit = int(event["limit"])
            elif event["failed"]:
                failed = True
            else:
                converged.append(not failed and (limit is None or count < limit))
                count, failed = 0, False
    if count:
        converged.append(False)
    return IonicSteps(limit, converged)
