"""Peak memory of one evaluation, for `common.peak_memory`: `python peak_memory.py CONTENDER FILE SYSTEM THREADS`.

A process that has already evaluated something larger holds memory that an evaluation reuses; each figure therefore
comes from a process of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common import evaluation, load_contender, set_threads
from memory import peak_growth
from structures import small_cell_of_all_elements, structure


def main() -> None:
    """Print the bytes as JSON."""
    name, path, system, threads = sys.argv[1:]
    set_threads(int(threads))
    model = load_contender(name, Path(path))
    atoms = structure(system)
    work, warm_up = (evaluation(name, model, one) for one in (atoms, small_cell_of_all_elements(atoms)))
    print(json.dumps({"bytes": peak_growth(work, warm_up)}))


if __name__ == "__main__":
    main()
