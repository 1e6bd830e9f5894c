"""A training step of another package, in a process of its own, asked by training.py as peers.py asks peer_worker.py.

A step is what the package's own trainer does with a batch: energies, forces and stress, its loss, gradients of all
weights, its optimizer; and the moving average of the weights where the trainer keeps one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peer_worker import Builder, described, random_mace, serve

LEARNING_RATE = 1e-6
"""So that hundreds of steps on random labels lead nowhere."""


def frames_of(atoms: Any, n_frames: int) -> list[Any]:
    """Rattled copies with random labels of the size of real ones: energies (eV), forces and stress in ASE's units."""
    frames = []
    for i in range(n_frames):
        frame = atoms.copy()
        frame.rattle(0.1, seed=i + 1)
        random = np.random.default_rng(i)
        frame.info["y_energy"] = float(random.normal())
        frame.arrays["y_force"] = random.normal(size=(len(frame), 3))
        frame.info["y_stress"] = 0.01 * random.normal(size=6)
        frames.append(frame)
    return frames


def sevenn(options: dict[str, Any]) -> tuple[Builder, dict[str, object]]:
    """SevenNet-l3i5, from the weights of its package, by `Trainer.run_one_epoch` with its loss and Adam."""
    from sevenn import util
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import atoms_to_graph
    from sevenn.train.loss import get_loss_functions_from_config
    from sevenn.train.trainer import Trainer
    from torch_geometric.data import Batch

    checkpoint = util.load_checkpoint("7net-l3i5")
    config = checkpoint.config
    model = checkpoint.build_model().requires_grad_(True)
    losses = get_loss_functions_from_config({**config, "is_train_stress": True})
    trainer = Trainer(model, losses, torch.optim.Adam, {"lr": LEARNING_RATE}, device="cpu")

    def prepare(atoms: Any) -> tuple[Callable[[], object], int]:
        graphs = [
            AtomGraphData.from_numpy_dict(atoms_to_graph(frame, config["cutoff"], transfer_info=False))
            for frame in frames_of(atoms, options["frames"])
        ]
        batch = Batch.from_data_list(graphs)
        # The model adds its results to what it is given.
        return lambda: trainer.run_one_epoch([batch.clone()], is_train=True), batch.edge_index.shape[1]

    return prepare, described(model, config["cutoff"], ("sevenn", "torch", "e3nn"))


def mace(options: dict[str, Any]) -> tuple[Builder, dict[str, object]]:
    """A MACE of two layers with random weights, by `take_step` of its trainer with its loss of energies, forces and
    stress, AMSGrad and its moving average."""
    model, description = random_mace(options)
    import mace.modules as modules
    from ase.data import atomic_numbers
    from mace import data
    from mace.tools import AtomicNumberTable, torch_geometric
    from mace.tools.train import take_step
    from peer_worker import mace_model
    from torch_ema import ExponentialMovingAverage

    numbers = sorted(atomic_numbers[symbol] for symbol in options["elements"])
    model = mace_model(options, numbers)
    loss = modules.WeightedEnergyForcesStressLoss(energy_weight=1.0, forces_weight=100.0, stress_weight=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, amsgrad=True)
    average = ExponentialMovingAverage(model.parameters(), decay=0.99)
    table = AtomicNumberTable(numbers)

    def prepare(atoms: Any) -> tuple[Callable[[], object], int]:
        graphs = []
        for frame in frames_of(atoms, options["frames"]):
            keys = data.KeySpecification(
                info_keys={"energy": "y_energy", "stress": "y_stress"}, arrays_keys={"forces": "y_force"}
            )
            graphs.append(
                data.AtomicData.from_config(
                    data.config_from_atoms(frame, key_specification=keys), z_table=table, cutoff=options["cutoff"]
                )
            )
        batch = next(iter(torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs))))
        outputs = {"forces": True, "virials": False, "stress": True}

        def work() -> object:
            return take_step(
                model=model,
                loss_fn=loss,
                batch=batch,
                optimizer=optimizer,
                ema=average,
                output_args=outputs,
                max_grad_norm=10.0,
                device=torch.device("cpu"),
            )

        return work, batch.edge_index.shape[1]

    return prepare, description


KINDS = {"sevenn": sevenn, "mace": mace}

if __name__ == "__main__":
    serve(KINDS)
