"""What the ablation compares: data sets, architectures and sizes, HIENet's layers in number and order, parity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase
import ase.io
from common import ROOT
from mlearn import read_mlearn

from hienet.data.split import split_frames
from hienet.files import atomic_path


@dataclass(frozen=True)
class System:
    """A data set, and how models are trained and measured on it.

    Attributes:
        title: for people.
        cutoff: Å.
        epochs, batch_size: of every training.
        measured: structure of `structures.py` on which throughput is measured.
    """

    title: str
    cutoff: float
    epochs: int
    batch_size: int
    measured: str


SYSTEMS = {
    "sic": System("3C-SiC, 134 frames of 8 atoms", 4.0, 120, 4, "sic512"),
    "si": System("mlearn Si, 54 frames of up to 96 atoms", 5.0, 60, 1, "si512"),
}
SIC_TEST = 0.25
"""Part of the frames of molecular dynamics in demo/data that is set apart, in proportion from all temperatures and
pressures. The other frames are all for training: a single rattled one, of forces above 20 eV/Å, would outweigh all else
in the error."""
SI_EVERY = 4
"""Of mlearn's 214 training frames of silicon every fourth is taken, 54; the test frames are mlearn's own."""

_IRREPS = {"small": "32x0e+16x1e", "medium": "32x0e+16x1e+8x2e"}
SIZES: dict[str, dict[str, object]] = {
    size: {"parity": False, "equivariant_irreps": [irreps, irreps, "32x0e"], "l_max": irreps.count("+")}
    for size, irreps in _IRREPS.items()
}
"""Three equivariant layers of the `small` presets' widths, l up to 1 or up to 2, in the published form."""
O3: dict[str, object] = {"parity": True, "equivariant_irreps": ["32x0e+16x1o+8x2e", "32x0e+16x1o+8x2e", "32x0e"]}
"""The medium size with parity: SO(3) becomes O(3), and the tensor products have fewer paths."""
INVNET_SIZES: dict[str, dict[str, object]] = {"small": {"n_layers": 2}, "medium": {"n_layers": 3}}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "invnet": {},
    "hienet": {},
    "eqvnet": {},
    "sevennet": {"species_self_connection": True},
    "inv_sevennet": {"species_self_connection": True},
}
"""SevenNet as in SevenNet-0, with self-connections for each species: without them it is EqvNet."""
PARITY_SEEDS = (0, 1)
ORDERS = ("invariant_first", "alternating", "invariant_last")


@dataclass(frozen=True)
class Training:
    """One model to train.

    Attributes:
        system: key of `SYSTEMS`.
        label: architecture, or `hienet` with number and order of its invariant layers, or with parity.
        size: `small` or `medium`.
        seed: of weights and of the order of frames, not of the split.
        values: `model` section of the configuration, without what the data set says.
        equal_cost: as many epochs as cost what those of the same model without parity do, not as many as that has.
    """

    system: str
    label: str
    size: str
    seed: int
    values: Mapping[str, object] = field(compare=False)
    equal_cost: bool = False

    @property
    def concerns_parity(self) -> bool:
        """Whether it is one of those that compare the model with and without parity."""
        return self.size == "medium" and self.label in ("hienet", "hienet-o3", "hienet-o3-equal-cost")

    @property
    def model(self) -> str:
        """Name of what is compared; seeds apart."""
        return f"{self.system}-{self.label}-{self.size}"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.model}-{self.seed}"


def trainings() -> list[Training]:
    """All of them, the most telling first."""
    row = [_architecture(system, name, "medium", 0) for system in SYSTEMS for name in ARCHITECTURES]
    row += _layers(seed=0)
    row += [_architecture("sic", name, "medium", 1) for name in ARCHITECTURES]
    row += [_architecture(system, name, "small", 0) for system in SYSTEMS for name in ARCHITECTURES]
    row += _layers(seed=1)
    row += [_architecture("sic", name, "small", 1) for name in ARCHITECTURES]
    return row + [one for one in _parity() if one not in row]


def _parity() -> list[Training]:
    """HIENet without and with parity, two seeds each: at equal training, and at equal cost."""
    row = []
    for seed in PARITY_SEEDS:
        for system in SYSTEMS:
            base = _architecture(system, "hienet", "medium", seed)
            values = {**base.values, **O3}
            row.append(base)
            row.append(Training(system, "hienet-o3", "medium", seed, values))
            row.append(Training(system, "hienet-o3-equal-cost", "medium", seed, values, equal_cost=True))
    return row


def _architecture(system: str, name: str, size: str, seed: int) -> Training:
    sizes = INVNET_SIZES if name == "invnet" else SIZES
    values = {"architecture": name, "preset": "small", **sizes[size], **ARCHITECTURES[name]}
    return Training(system, name, size, seed, values)


def _layers(seed: int) -> list[Training]:
    """HIENet by number and order of invariant layers, but for what is among the architectures: none of them is EqvNet,
    and one in front is HIENet."""
    base = _architecture("sic", "hienet", "medium", seed)
    return [
        Training(
            "sic", f"hienet-{n}-{order}", "medium", seed, base.values | {"n_invariant_layers": n, "layer_order": order}
        )  # type: ignore[operator]
        for n in (1, 2, 3)
        for order in ORDERS
        if (n, order) != (1, "invariant_first")
    ]


def write_data(system: str, folder: Path, mlearn: Path | None, every: int = SI_EVERY) -> dict[str, Path]:
    """Files of training and test frames of a system, `SYSTEM-train.extxyz` and `SYSTEM-test.extxyz`, written unless
    they are there; `every` as in `silicon_frames`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {part: folder / f"{system}-{part}.extxyz" for part in ("train", "test")}
    if not all(path.exists() for path in paths.values()):
        frames = silicon_carbide_frames() if system == "sic" else silicon_frames(mlearn, every)
        for part, path in paths.items():
            with atomic_path(path) as temporary:
                ase.io.write(temporary, frames[part], format="extxyz")
    return paths


def silicon_carbide_frames() -> dict[str, list[ase.Atoms]]:
    """Training and test frames of demo/data."""
    frames = ase.io.read(ROOT.parent / "demo" / "data" / "sic_pbe.extxyz", ":")
    kinds = [frame.info["config_type"] for frame in frames]
    dynamics = [i for i, kind in enumerate(kinds) if kind.startswith("npt")]
    chosen = split_frames([kinds[i] for i in dynamics], validation=0.0, test=SIC_TEST, seed=0).test
    test = [dynamics[i] for i in chosen]
    return {"train": [frame for i, frame in enumerate(frames) if i not in test], "test": [frames[i] for i in test]}


def silicon_frames(mlearn: Path | None, every: int = SI_EVERY) -> dict[str, list[ase.Atoms]]:
    """Every fourth of mlearn's training frames, unless `every` is another number, and its test frames."""
    if mlearn is None:
        raise SystemExit(
            "silicon needs --mlearn, the folder with mlearn's Si-training.json; or leave it: --systems sic"
        )
    paths = [mlearn / f"Si-{part}.json" for part in ("training", "test")]
    for path in paths:
        if not path.exists():
            raise SystemExit(f"there is no file `{path}`; --mlearn must be the folder with mlearn's data")
    return {"train": read_mlearn(paths[0])[::every], "test": read_mlearn(paths[1])}


def configuration(training: Training, folder: Path, epochs: int | None) -> dict[str, Any]:
    """What `hienet train` is given; `epochs` in place of the system's own."""
    system = SYSTEMS[training.system]
    return {
        "model": {**training.values, "cutoff": system.cutoff},
        "data": {
            "train": str(folder / "data" / f"{training.system}-train.extxyz"),
            "validation": 0.0,
            "test": [str(folder / "data" / f"{training.system}-test.extxyz")],
        },
        "training": {
            "epochs": epochs or system.epochs,
            "batch_size": system.batch_size,
            "ema_decay": 0.99,
            "select": "last",
            "seed": training.seed,
            "threads": 1,
        },
        "output": str(folder / training.name),
    }
