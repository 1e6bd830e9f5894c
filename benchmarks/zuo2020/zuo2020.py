"""The elements of Zuo et al., J. Phys. Chem. A 124, 731 (2020): one recipe for all of them, trained on the published
training frames and tested on the published test frames, beside the potentials of that paper.

    zuo2020.py DATA -o FOLDER --elements Si Li --threads 2     # trains what is not yet trained, prints the table

DATA is the folder `data` of the repository `mlearn` (`Si/training.json`, `Si/test.json`, ...), or one with files
`Si-training.json` and `Si-test.json`. `recipe.yaml` beside this script says how all elements are trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml
from common import console, machine, train_once, write_json
from rich.table import Table

RECIPE = Path(__file__).with_name("recipe.yaml")
PUBLISHED = {
    "Li": {"GAP": (0.49, 0.010), "MTP": (0.49, 0.010), "SNAP": (1.03, 0.028), "qSNAP": (0.73, 0.033)},
    "Si": {"GAP": (2.91, 0.070), "MTP": (2.21, 0.060), "SNAP": (6.44, 0.133), "qSNAP": (3.81, 0.116)},
}
"""Mean absolute errors on the test frames, meV/atom and eV/Å, of Zuo et al."""
ERRORS = {
    "energy_mae_mev_per_atom": "energy MAE, meV/atom",
    "forces_mae_mev_per_angstrom": "force MAE, meV/Å",
    "stress_mae_gpa": "stress MAE, GPa",
}


def data_file(folder: Path, element: str, part: str) -> Path:
    """The frames of an element, `training` or `test`.

    Raises:
        SystemExit: there are none.
    """
    candidates = (folder / element / f"{part}.json", folder / f"{element}-{part}.json")
    for path in candidates:
        if path.exists():
            return path
    raise SystemExit(
        f"there is neither `{candidates[0]}` nor `{candidates[1]}`; give the folder `data` of a copy of the repository "
        "`mlearn`"
    )


def configuration(element: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The recipe with files, seed, threads and time."""
    recipe: dict[str, Any] = yaml.safe_load(RECIPE.read_text())
    recipe["data"] |= {name: str(data_file(arguments.data, element, file)) for name, file in FILES.items()}
    recipe["training"] |= {"seed": seed, "threads": arguments.threads}
    for key, value in (("max_minutes", arguments.minutes), ("epochs", arguments.epochs)):
        if value is not None:
            recipe["training"][key] = value
    return recipe


FILES = {"train": "training", "test": "test"}


def print_table(element: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Ours and the published ones."""
    table = Table("potential", *ERRORS.values(), "minutes", "epochs", title=f"{element}, test frames of Zuo et al.")
    for row in rows:
        table.add_row(
            f"HIENet, seed {row['seed']}",
            *(f"{row['errors'][name]:.3g}" for name in ERRORS),
            f"{row['minutes']:.0f}",
            str(row["epochs"]),
        )
    for name, (energy, forces) in PUBLISHED.get(element, {}).items():
        table.add_row(name, f"{energy:.3g}", f"{1000.0 * forces:.3g}", "", "", "")
    console().print(table)


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the frames")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="of the trainings")
    parser.add_argument("--elements", nargs="+", default=["Si", "Li"], help="chemical symbols")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="a training for each")
    parser.add_argument("--threads", type=int, default=2, help="of a training")
    parser.add_argument("--minutes", type=float, help="of a training, in place of the recipe's")
    parser.add_argument("--epochs", type=int, help="of a training, in place of the recipe's")
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    for element in arguments.elements:
        for part in FILES.values():
            data_file(arguments.data, element, part)
    arguments.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for element in arguments.elements:
        for seed in arguments.seeds:
            results, _ = train_once(configuration(element, seed, arguments), arguments.output / f"{element}-{seed}")
            found.setdefault(element, []).append(
                {
                    "seed": seed,
                    "errors": results["errors"]["test"],
                    "minutes": results["seconds"] / 60.0,
                    "epochs": results["epochs"],
                }
            )
        print_table(element, found[element])
    write_json(
        arguments.json,
        {
            "benchmark": "zuo2020",
            "recipe": yaml.safe_load(RECIPE.read_text()),
            "threads": arguments.threads,
            "elements": found,
            "published": PUBLISHED,
            "machine": machine(),
        },
    )


if __name__ == "__main__":
    main()
