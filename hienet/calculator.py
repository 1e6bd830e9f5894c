"""Models for use: from a checkpoint or a deployed file, as energy functions and as an ASE calculator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor

from hienet.checkpoint import Checkpoint, load_checkpoint
from hienet.deployed import is_torchscript, load_deployed, read_deployed, symmetry_of_file
from hienet.derivatives import Prediction, predict
from hienet.errors import HIENetError
from hienet.graph import AtomicGraph, graph_from_atoms
from hienet.locks import SharedLock
from hienet.memory import memory_explained
from hienet.torch_state import own_torch_state

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class DeployedArchive:
    """A deployed file in memory.

    Attributes:
        path: where it was read, for messages.
        contents: of the file.
    """

    path: str
    contents: bytes = field(repr=False)

    @own_torch_state()
    def load(self, device: torch.device, dtype: torch.dtype | None) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
        """Module and metadata; None is the file's own dtype.

        Raises:
            HIENetError: as `load_deployed`, or there is no such device here.
        """
        script, metadata = load_deployed(self.path, parse_device(str(device)), self.contents)
        return script.to(dtype or DTYPES[metadata["dtype"]]), metadata


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict. It can be pickled and copied, that of a deployed file with the contents of the file.

    Threads may share it; it computes for one after the other.

    Attributes:
        module: (species, center, neighbor, edge_vectors, n_local) -> energies `[n_local]` (eV, float64).
        elements: chemical symbols, in species order.
        cutoff: Å.
        dtype: of the network.
        device: of the network.
        info: symmetry, hyperparameters and training summary, plain values.
        archive: the deployed file that the module was read from; None for a checkpoint.
    """

    module: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
    elements: tuple[str, ...]
    cutoff: float
    dtype: torch.dtype
    device: torch.device
    info: dict[str, Any]
    archive: DeployedArchive | None = field(default=None, repr=False)
    _loaded: set[int] = field(default_factory=set, init=False, repr=False, compare=False)
    """Species for which a compiled module has its tables."""
    _lock: SharedLock = field(default_factory=SharedLock, init=False, repr=False, compare=False)
    """Tables are exchanged, and TorchScript fails, while another thread computes with the same module."""

    def __getstate__(self) -> dict[str, Any]:
        """For `pickle` and `copy`, which know nothing of TorchScript: the file takes the place of its module."""
        state = dict(vars(self))
        if self.archive is not None:
            del state["module"]
            state["_loaded"] = set()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the file again.

        Raises:
            HIENetError: there is no such device here, or the operators that the file calls are not compiled.
        """
        archive = state["archive"]
        module = state["module"] if archive is None else archive.load(state["device"], state["dtype"])[0]
        vars(self).update(state, module=module)

    def load_elements(self, species: Tensor) -> None:
        """Have a compiled module build what it needs for these species (int64) and those of before."""
        with self._lock:
            wanted = self._loaded.union(species.unique().tolist())
            if wanted == self._loaded or not hasattr(self.module, "load_elements"):
                return
            # Nothing that was made in inference mode: the tables will be used where derivatives are wanted.
            with own_torch_state(), torch.no_grad():
                self.module.load_elements(torch.tensor(sorted(wanted), dtype=torch.int64, device=self.device))
            self._loaded.update(wanted)

    def unload_elements(self) -> None:
        """Let the next structure have tables of its own elements alone; those of others are given up then."""
        with self._lock:
            self._loaded.clear()

    @own_torch_state()
    def predict_graph(self, graph: AtomicGraph, derivatives: bool = True) -> Prediction:
        """Energies, forces and stress of a graph of the model's species, on any device and in any dtype."""
        with (
            self._lock,
            memory_explained(
                graph.describe_size(),
                "use a smaller structure, `float32`, a compiled file (`hienet-deploy`), or LAMMPS on several ranks",
            ),
        ):
            self.load_elements(graph.species)
            return predict(self.module, graph.to(self.device, self.dtype), derivatives)

    def predict(self, atoms: ase.Atoms, derivatives: bool = True) -> Prediction:
        """Energies, forces and stress of one structure.

        Raises:
            HIENetError: an element that the model does not know, or a structure that cannot be evaluated.
        """
        with memory_explained(
            f"the neighbours of {len(atoms)} atoms", "use a smaller structure, or LAMMPS on several ranks"
        ):
            # On the CPU as yet: which species it has is found there, without waiting for a GPU.
            graph = graph_from_atoms(atoms, self.elements, self.cutoff)
        return self.predict_graph(graph, derivatives)


def parse_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        HIENetError: no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise HIENetError(f"unknown device `{name}`; expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise HIENetError(f"unknown device `{name}`; expected cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise HIENetError(f"device `{name}` is not available: this torch sees no CUDA device; use `cpu`")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise HIENetError(
            f"device `{name}` is not available: torch numbers the GPUs here from 0 to {last}; use one of them"
        )
    return device


@own_torch_state()
def load_model(path: str | Path, device: str = "cpu", dtype: str | None = None) -> LoadedModel:
    """A checkpoint or a deployed file as a model.

    Args:
        path: either kind of file.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: `float32` or `float64`; None is float64 for a checkpoint and the file's own for a deployed model.

    Raises:
        HIENetError: unreadable file, unknown dtype, or no such device.
    """
    if dtype is not None and dtype not in DTYPES:
        raise HIENetError(f"unknown dtype `{dtype}`; expected float32 or float64")
    target = parse_device(device)
    if is_torchscript(path):
        archive = DeployedArchive(str(path), read_deployed(path))
        script, metadata = archive.load(target, None if dtype is None else DTYPES[dtype])
        chosen = DTYPES[dtype or metadata["dtype"]]
        info = {**metadata, "symmetry": symmetry_of_file(metadata)}
        return LoadedModel(script, tuple(metadata["elements"]), metadata["cutoff"], chosen, target, info, archive)
    return model_of(load_checkpoint(path), DTYPES[dtype or "float64"], target)


@own_torch_state()
def model_of(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> LoadedModel:
    """A checkpoint that is already in memory as a model.

    Raises:
        HIENetError: its weights are not those of its architecture.
    """
    config = checkpoint.config
    module = checkpoint.build(dtype).to(device).requires_grad_(False)
    info = {
        "architecture": checkpoint.architecture,
        "symmetry": config.symmetry,
        "hyperparameters": config.model_dump(mode="json"),
        "training": checkpoint.training,
        "notes": checkpoint.notes,
    }
    return LoadedModel(module, config.elements, config.cutoff, dtype, torch.device(device), info)


def force_deviation(forces: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the forces `[n_models, n_atoms, 3]` of several models are apart, `[n_atoms]`.

    With the forces F_ik of K models on atom i, and their mean <F_i>, sqrt(sum_k |F_ik - <F_i>|^2 / K): the deviation
    of Zhang et al., Phys. Rev. Materials 3, 023804 (2019), as `pair_style hienet` has it.
    """
    return np.sqrt(((forces - forces.mean(0)) ** 2).sum(2).mean(0))


class HIENetCalculator(Calculator):
    """ASE calculator: energy, free_energy, energies (eV), forces (eV/Å), stress (eV/Å^3, positive = tension).

    Of several models, a committee, it gives the means, and with the forces `force_deviation` `[n_atoms]` (eV/Å).

    Example:
        >>> from ase.build import bulk
        >>> from hienet.calculator import HIENetCalculator
        >>> atoms = bulk("Si")
        >>> atoms.calc = HIENetCalculator("model.pt")  # doctest: +SKIP
        >>> atoms.get_potential_energy()  # doctest: +SKIP
        >>> atoms.calc = HIENetCalculator(["a.pt", "b.pt", "c.pt"])  # doctest: +SKIP
        >>> atoms.calc.get_property("force_deviation", atoms).max()  # doctest: +SKIP
    """

    implemented_properties: ClassVar[list[str]] = [  # type: ignore[misc]
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "force_deviation",
    ]

    def __init__(self, path: str | Path | Sequence[str | Path], device: str = "cpu", dtype: str | None = None) -> None:
        """Load a checkpoint (`model.pt`) or a deployed file (`model.hienet.pt`), or several.

        Args:
            path: the file, or those of a committee.
            device: `cpu`, `cuda` or `cuda:N`.
            dtype: `float32` or `float64`; None is float64 for a checkpoint, the file's own for a deployed model.

        Raises:
            HIENetError: no file, unreadable file, unknown dtype, or no such device.

        The calculator can be pickled and copied: for `multiprocessing`, joblib or dask, also on another machine that
        has this package. Dtype and device stay; of deployed models the pickle holds the contents of the files as they
        were when they were read. Where processes are started by forking, the parent must compute with one thread.

        Threads may share it: each is given the numbers of its own atoms, one after the other. For speed give each
        thread a calculator of its own. `results` are those of whoever came last.
        """
        super().__init__()
        self._lock = SharedLock()
        paths = [path] if isinstance(path, (str, Path)) else list(path)
        if not paths:
            raise HIENetError("no model: give a file, or a list of the files of a committee")
        self.models = [load_model(each, device, dtype) for each in paths]

    def get_property(self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True) -> Any:
        """Called by ASE for each number that `atoms` is asked for: looks at what is there, calculates, and returns.

        No other thread's atoms may come in between.
        """
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Called by ASE. `stress` is left out where the cell has no volume."""
        super().calculate(atoms, properties, system_changes)
        derivatives = not {"forces", "stress", "force_deviation"}.isdisjoint(properties)
        predictions = [model.predict(self.atoms, derivatives) for model in self.models]
        energies = np.mean([p.energies.cpu().numpy() for p in predictions], axis=0)
        energy = float(np.mean([float(p.energy[0]) for p in predictions]))
        self.results = {"energy": energy, "free_energy": energy, "energies": energies}
        forces = [p.forces.double().cpu().numpy() for p in predictions if p.forces is not None]
        if forces:
            self.results["forces"] = np.mean(forces, axis=0)
            self.results["force_deviation"] = force_deviation(np.array(forces))
        stresses = [p.stress[0].double().cpu().numpy() for p in predictions if p.stress is not None]
        if stresses and self.atoms.cell.rank == 3:
            self.results["stress"] = full_3x3_to_voigt_6_stress(np.mean(stresses, axis=0))
