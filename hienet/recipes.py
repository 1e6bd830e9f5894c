"""How the authors of each architecture trained it, as values of the sections `training` and `data`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hienet.errors import HIENetError


@dataclass(frozen=True)
class Recipe:
    """A published way of training.

    Attributes:
        training: values of that section.
        data: values of that section.
        source: where it is from.
        published: what of it the authors state, in words.
        assumed: what of it they do not, and we take in its place; empty if nothing.
    """

    training: Mapping[str, Any]
    source: str
    published: str
    assumed: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For a person."""
        found = [f"recipe: {self.source}", f"  published: {self.published}"]
        return [*found, f"  assumed: {self.assumed}"] if self.assumed else found


_HIENET: dict[str, Any] = {
    "epochs": 250,
    "batch_size": 384,
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "final_learning_rate": 5e-6,
    "warmup_fraction": 0.1,
    "warmup_factor": 0.2,
    "weight_decay": 0.001,
    "schedule": "cosine",
    "ema_decay": 0.999,
    "loss": "huber",
    "huber_delta": 0.01,
    "energy_weight": 1.0,
    "forces_weight": 1.0,
    "stress_weight": 0.01,
}
_HIENET_PUBLISHED = (
    "AdamW, cosine with warm-up, 250 epochs, batches of 8 x 48, moving average 0.999, Huber losses of energies per "
    "atom, forces, and stresses in kbar with weights 1, 1, 0.01"
)
_ABLATION = Recipe(
    _HIENET,
    "HIENet (Yan et al., 2025), of which this is an ablation",
    _HIENET_PUBLISHED,
    "that ablations were trained as HIENet was",
)

_SEVENNET: dict[str, Any] = {
    "epochs": 600,
    "batch_size": 128,
    "optimizer": "adam",
    "learning_rate": 0.01,
    "final_learning_rate": 1e-6,
    "warmup_fraction": 0.0,
    "weight_decay": 0.0,
    "schedule": "linear",
    "ema_decay": 0.0,
    "loss": "huber",
    "huber_delta": 0.01,
    "energy_weight": 1.0,
    "forces_weight": 1.0,
    "stress_weight": 0.01,
}
_SEVENNET_PUBLISHED = (
    "Adam, learning rate falling linearly from 0.01 to 1e-6 in 600 epochs, Huber losses of energies per atom, forces, "
    "and stresses in kbar with weights 1, 1, 0.01, no moving average"
)

RECIPES: dict[str, dict[str, Recipe]] = {
    "hienet": {"paper": Recipe(_HIENET, "HIENet (Yan et al., 2025)", _HIENET_PUBLISHED)},
    "invnet": {"paper": _ABLATION},
    "eqvnet": {"paper": _ABLATION},
    "inv_sevennet": {"paper": _ABLATION},
    "sevennet": {
        "paper": Recipe(
            _SEVENNET,
            "SevenNet-0 (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)), preset of the package `sevenn`",
            f"{_SEVENNET_PUBLISHED}, batches of 128",
            "the scale, which is the RMS force here and the spread of energies there",
        ),
        "l3i5": Recipe(
            {**_SEVENNET, "batch_size": 1024},
            "SevenNet-l3i5, preset of the package `sevenn`",
            f"{_SEVENNET_PUBLISHED}, batches of 1024",
        ),
    },
    "nemp": {
        "paper": Recipe(
            {
                "epochs": 1000,
                "batch_size": 10,
                "optimizer": "adamw",
                "amsgrad": True,
                "learning_rate": 0.02,
                "final_learning_rate": 1e-5,
                "warmup_fraction": 0.01,
                "warmup_factor": 0.05,
                "weight_decay": 1e-6,
                "schedule": "plateau",
                "plateau_factor": 0.02,
                "plateau_patience": 40,
                "ema_decay": 0.999,
                "gradient_clip": 0.1,
                "loss": "mse",
                "energy_weight": 1.0,
                "final_energy_weight": 1.0,
                "forces_weight": 10.0,
                "final_forces_weight": 0.1,
                "stress_weight": 0.0,
            },
            "NEMP (Zhang and Guo, Chem. Sci. 2026), configuration for HME21 of 19 December 2025",
            "AMSGrad with decay 1e-6, learning rate 0.02, ten epochs of warm-up, falling on plateaus to 1e-5, batches "
            "of 2 x 5, norm of gradients at most 0.1, squared errors of energies per atom and forces, whose weight "
            "falls from 10 to 0.1 with the learning rate, moving average 0.999",
            "1000 epochs, and that the decay is that of AdamW; losses are means over a batch here and sums there, "
            "which matters to the limit of the gradient's norm alone",
        )
    },
    "botnet": {
        "paper": Recipe(
            {
                "epochs": 3000,
                "batch_size": 5,
                "optimizer": "adam",
                "amsgrad": True,
                "learning_rate": 0.01,
                "final_learning_rate": 0.0,
                "warmup_fraction": 0.0,
                "weight_decay": 0.0,
                "schedule": "plateau",
                "plateau_factor": 0.8,
                "plateau_patience": 50,
                "early_stopping": 512,
                "ema_decay": 0.99,
                "loss": "mse",
                "energy_normalization": "sqrt_atoms",
                "stress_weight": 0.0,
                "dtype": "float64",
            },
            "BOTNet (Batatia et al., arXiv 2205.06643), its program's recipe for 3BPA",
            "Adam with AMSGrad, learning rate 0.01, falling by 0.8 on plateaus of 50 epochs, batches of 5, at most "
            "3000 epochs, early stopping after 512, moving average 0.99, float64, squared errors of energies over the "
            "square root of the number of atoms, weight N, and of forces, weight N^2",
            "N is the mean number of atoms of your frames; validation in every epoch, there in every other one",
            data={"validation": 0.1},
        )
    },
    "geodite": {
        "paper": Recipe(
            {
                "epochs": 250,
                "batch_size": 32,
                "optimizer": "adamw",
                "learning_rate": 0.001,
                "final_learning_rate": 1e-6,
                "warmup_fraction": 0.1,
                "weight_decay": 0.001,
                "schedule": "cosine",
                "ema_decay": 0.999,
                "loss": "huber",
                "huber_delta": 0.01,
                "normalize_labels": True,
                "energy_weight": 1.0,
                "forces_weight": 1.0,
                "stress_weight": 1.0,
            },
            "Geodite (Reschuetzegger et al., arXiv 2601.15492)",
            "normalised labels, Huber losses with delta 0.01 and weights 1, 1, 1, summed",
            "AdamW, learning rate, schedule, epochs, batch size and moving average, which were not published",
        )
    },
}
"""By architecture and name."""


def find_recipe(architecture: str, name: str, mean_atoms: float) -> Recipe:
    """The recipe of that name, for frames of so many atoms.

    Raises:
        HIENetError: there is none.
    """
    known = RECIPES[architecture]
    if name not in known:
        raise HIENetError(f"unknown recipe `{name}` of `{architecture}`; expected one of: {', '.join(known)}")
    recipe = known[name]
    if architecture == "botnet":
        n = round(mean_atoms, 1)
        weights = {"energy_weight": n, "forces_weight": round(n * n, 1)}
        return Recipe({**recipe.training, **weights}, recipe.source, recipe.published, recipe.assumed, recipe.data)
    return recipe
