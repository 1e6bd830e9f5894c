"""Optimizer steps of other packages for peer_worker.py, each as the package's own training makes it.

A step is made on a prepared batch, in float32 on the CPU: energies, forces and stress, the package's loss, gradients of
all weights, and its optimizer.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from structures import structure


def batch_of(system: str, frames: int) -> list[ase.Atoms]:
    """Frames of the system, rattled, all different, with labels at random, of the size of real ones."""
    result = []
    for i in range(frames):
        atoms = structure(system)
        atoms.rattle(0.1, seed=i + 1)
        random = np.random.default_rng(i)
        forces = random.normal(size=(len(atoms), 3))
        labels = {"energy": random.normal(), "forces": forces, "stress": 0.01 * random.normal(size=6)}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        result.append(atoms)
    return result


def said(module: torch.nn.Module, cutoff: float, packages: tuple[str, ...]) -> dict[str, object]:
    """What a worker says first."""
    return {
        "n_parameters": sum(parameter.numel() for parameter in module.parameters()),
        "cutoff": cutoff,
        "versions": {name: version(name) for name in packages},
    }


def sevenn(options: dict[str, Any]) -> tuple[Any, dict[str, object]]:
    """SevenNet-l3i5 with the weights of its package, by `Trainer.run_one_epoch` with one batch, Huber losses, Adam."""
    from sevenn import util
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import atoms_to_graph
    from sevenn.train.loss import ForceLoss, PerAtomEnergyLoss, StressLoss
    from sevenn.train.trainer import Trainer
    from torch_geometric.data import Batch

    checkpoint = util.load_checkpoint("7net-l3i5")
    module = checkpoint.build_model()
    module.set_is_batch_data(True)
    module.requires_grad_(True)
    cutoff = checkpoint.config["cutoff"]
    criterion = torch.nn.HuberLoss(delta=0.01)
    losses = [(PerAtomEnergyLoss(criterion=criterion), 1.0), (ForceLoss(criterion=criterion), 1.0)]
    losses.append((StressLoss(criterion=criterion), 0.01))
    trainer = Trainer(
        module, losses, optimizer_cls=torch.optim.Adam, optimizer_args={"lr": 1e-6}, device=torch.device("cpu")
    )

    def prepare(system: str) -> tuple[Any, int]:
        graphs = [
            AtomGraphData.from_numpy_dict(atoms_to_graph(atoms, cutoff, y_from_calc=True))
            for atoms in batch_of(system, options["frames"])
        ]
        batch = Batch.from_data_list(graphs)
        # The model adds its results to what it is given.
        return lambda: trainer.run_one_epoch([batch.clone()], is_train=True), int(batch.edge_index.shape[1])

    return prepare, said(module, cutoff, ("sevenn", "torch", "e3nn"))


def mace(options: dict[str, Any]) -> tuple[Any, dict[str, object]]:
    """A MACE with random weights (`peer_worker.random_mace`) by `take_step`, with its Huber loss, Adam (amsgrad) and
    the moving average of weights."""
    from peer_worker import number_of_edges, random_mace

    model, description = random_mace(options)
    from mace import data, tools
    from mace.modules import WeightedHuberEnergyForcesStressLoss
    from mace.tools.torch_geometric.batch import Batch
    from mace.tools.train import take_step
    from torch_ema import ExponentialMovingAverage

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    table = tools.AtomicNumberTable([int(number) for number in model.atomic_numbers])
    loss = WeightedHuberEnergyForcesStressLoss(1.0, 1.0, 0.01)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, amsgrad=True)
    average = ExponentialMovingAverage(model.parameters(), decay=0.99)
    outputs = {"forces": True, "virials": False, "stress": True}
    names = data.KeySpecification(info_keys={"energy": "energy", "stress": "stress"}, arrays_keys={"forces": "forces"})

    def prepare(system: str) -> tuple[Any, int]:
        frames = batch_of(system, options["frames"])
        for atoms in frames:
            atoms.info.update(energy=atoms.calc.results["energy"], stress=atoms.calc.results["stress"])
            atoms.arrays["forces"] = atoms.calc.results["forces"]
        configurations = [data.config_from_atoms(atoms, key_specification=names) for atoms in frames]
        batch = Batch.from_data_list(
            [
                data.AtomicData.from_config(one, z_table=table, cutoff=options["cutoff"], heads=["Default"])
                for one in configurations
            ]
        )
        n_edges = sum(number_of_edges(atoms, options["cutoff"]) for atoms in frames)
        return lambda: take_step(model, loss, batch, optimizer, average, outputs, 10.0, torch.device("cpu")), n_edges

    return prepare, description


def nequip(options: dict[str, Any]) -> tuple[Any, dict[str, object]]:
    """A NequIP with random weights by the `training_step` of its Lightning module, with its loss of energies, forces
    and stresses, and Adam."""
    from nequip.data import AtomicDataDict
    from nequip.data.ase import from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.train import NequIPLightningModule
    from nequip.utils.global_state import set_global_state

    set_global_state(allow_tf32=False)
    elements = list(options["elements"])
    module = NequIPLightningModule(
        model={
            "_target_": "nequip.model.NequIPGNNModel",
            "seed": 0,
            "model_dtype": "float32",
            "type_names": elements,
            "r_max": options["cutoff"],
            "avg_num_neighbors": 35.0,
            **options["model"],
        },
        num_datasets={"train": 1, "val": 0, "test": 0, "predict": 0},
        optimizer={"_target_": "torch.optim.Adam", "lr": 1e-6},
        loss={"_target_": "nequip.train.EnergyForceStressLoss"},
    )
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-6)
    mapper = ChemicalSpeciesToAtomTypeMapper(model_type_names=elements)
    neighbors = NeighborListTransform(r_max=options["cutoff"])

    def prepare(system: str) -> tuple[Any, int]:
        frames = [neighbors(mapper(from_ase(atoms))) for atoms in batch_of(system, options["frames"])]
        batch = AtomicDataDict.batched_from_list(frames)

        def work() -> None:
            optimizer.zero_grad(set_to_none=True)
            module.training_step(dict(batch), 0).backward()
            optimizer.step()

        return work, int(batch[AtomicDataDict.EDGE_INDEX_KEY].shape[1])

    return prepare, said(module, options["cutoff"], ("nequip", "torch", "e3nn"))


KINDS = {"sevenn": sevenn, "mace": mace, "nequip": nequip}
