"""HIENet in TorchSim: relaxations and molecular dynamics of many structures at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase
import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from hienet.calculator import LoadedModel, load_model
from hienet.graph import AtomicGraph, batch_graphs, graph_from_atoms


class HIENetModel(ModelInterface):
    """A checkpoint or a deployed file as a model of TorchSim (Cohen et al., torch-sim-atomistic): energy (eV), forces
    (eV/Å) and stress (eV/Å^3, positive = tension) of all systems of a state in one evaluation.

    Neighbour lists are made on the CPU, for each system anew.

    Example:
        >>> import torch_sim
        >>> from hienet.torchsim import HIENetModel
        >>> state = torch_sim.integrate(  # doctest: +SKIP
        ...     [si, sic], HIENetModel("model.hienet.pt"), integrator=torch_sim.nvt_langevin, n_steps=100,
        ...     temperature=300, timestep=0.001,
        ... )
    """

    def __init__(
        self,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        compute_forces: bool = True,
        compute_stress: bool = True,
    ) -> None:
        """Load a model.

        Args:
            path: checkpoint (`model.pt`) or deployed file (`model.hienet.pt`).
            device: `cpu`, `cuda` or `cuda:N`.
            dtype: torch's float32 or float64; None is float64 for a checkpoint, the file's own for a deployed model.
            compute_forces, compute_stress: whether they are among the results.

        Raises:
            HIENetError: no file, unreadable file, unknown dtype, or no such device.
        """
        super().__init__()
        name = None if dtype is None else str(dtype).removeprefix("torch.")
        self.loaded: LoadedModel = load_model(path, str(device), name)
        self._device, self._dtype = self.loaded.device, self.loaded.dtype
        self._compute_forces, self._compute_stress = compute_forces, compute_stress

    @property
    def compute_forces(self) -> bool:
        """Whether forces are among the results."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, compute_forces: bool) -> None:
        self._compute_forces = compute_forces

    @property
    def compute_stress(self) -> bool:
        """Whether the stress is among the results."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        self._compute_stress = compute_stress

    def forward(self, state: SimState | Mapping[str, Any], **kwargs: object) -> dict[str, Tensor]:
        """Evaluate a state.

        Returns:
            `energy` `[n_systems]`, `energies` of the atoms `[n_atoms]`, and, as asked for, `forces` `[n_atoms, 3]` and
            `stress` `[n_systems, 3, 3]`, NaN where a cell has no volume.

        Raises:
            HIENetError: an element that the model does not know, or a system that cannot be evaluated.
        """
        if not isinstance(state, SimState):
            state = SimState(**{"masses": torch.ones_like(state["positions"][:, 0]), **state})
        graph = self._graph(state)
        found = self.loaded.predict_graph(graph, self._compute_forces or self._compute_stress)
        results = {"energy": found.energy, "energies": found.energies}
        if self._compute_forces:
            assert found.forces is not None
            results["forces"] = found.forces
        if self._compute_stress:
            assert found.stress is not None
            undefined = ~graph.volume.isfinite().to(found.stress.device)
            results["stress"] = found.stress.masked_fill(undefined[:, None, None], torch.nan)
        return {name: tensor.detach().to(self._device, self._dtype) for name, tensor in results.items()}

    def _graph(self, state: SimState) -> AtomicGraph:
        """All systems of a state, on the CPU."""
        positions = state.positions.detach().cpu().double().numpy()
        cells = state.row_vector_cell.detach().cpu().double().numpy()
        numbers, systems = state.atomic_numbers.cpu().numpy(), state.system_idx.cpu().numpy()
        graphs = []
        for i, cell in enumerate(cells):
            own = systems == i
            atoms = ase.Atoms(numbers[own], positions=positions[own], cell=cell, pbc=state.pbc)
            graphs.append(graph_from_atoms(atoms, self.loaded.elements, self.loaded.cutoff))
        return batch_graphs(graphs)
