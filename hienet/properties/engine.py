"""What energies, forces and stresses come from: a model's file, many structures at a time, or any ASE calculator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from hienet.calculator import HIENetCalculator, LoadedModel
from hienet.deployed import is_torchscript
from hienet.errors import HIENetError
from hienet.graph import batch_graphs, graph_from_atoms

Array = NDArray[np.float64]
BATCH_ATOMS = 512
"""Atoms that are evaluated at a time, unless one structure has more."""


@dataclass(frozen=True)
class Evaluated:
    """A structure's energy (eV), forces `[n_atoms, 3]` (eV/Å), and stress `[6]` (eV/Å^3, ASE's order, positive =
    tension), None where the cell has no volume."""

    energy: float
    forces: Array
    stress: Array | None

    def attach(self, atoms: ase.Atoms) -> ase.Atoms:
        """Make these the results of the structure's calculator, as ASE's optimizers and writers want it."""
        results: dict[str, Any] = {"energy": self.energy, "free_energy": self.energy, "forces": self.forces}
        if self.stress is not None:
            results["stress"] = self.stress
        atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms


class Engine:
    """Evaluates structures.

    Attributes:
        name: of the model, for figures and tables.
        identity: tells one model from another, also after its file was written anew.
        calculator: the same as an ASE calculator.
        elements: what the model knows; None if it does not say.
        cutoff: Å; None if unknown.
    """

    def __init__(
        self,
        source: str | Path | Calculator,
        device: str = "cpu",
        dtype: str | None = "float64",
        batch_atoms: int = BATCH_ATOMS,
    ) -> None:
        """Read a model, or take a calculator as it is.

        Args:
            source: checkpoint (`model.pt`), deployed file (`model.hienet.pt`), or an ASE calculator.
            device: `cpu`, `cuda` or `cuda:N`, for a file.
            dtype: `float32` or `float64`, for a file; None is a deployed file's own.
            batch_atoms: atoms that are evaluated at a time, unless one structure has more.

        Raises:
            HIENetError: unreadable file, unknown dtype, or no such device.
        """
        self.batch_atoms = batch_atoms
        self._model: LoadedModel | None = None
        if isinstance(source, Calculator):
            self.calculator: Calculator = source
            self.name = type(source).__name__
            self.identity = f"{self.name} {getattr(source, 'parameters', '')}"
            if isinstance(source, HIENetCalculator) and len(source.models) == 1:
                self._model = source.models[0]
        else:
            path = Path(source)
            calculator = HIENetCalculator(path, device, dtype)
            self.calculator, self._model = calculator, calculator.models[0]
            self.name = path.name.removesuffix(".pt").removesuffix(".hienet")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            self.identity = f"{path.name} {digest} {dtype or 'own dtype'}"
        self.elements = None if self._model is None else self._model.elements
        self.cutoff = None if self._model is None else self._model.cutoff

    def require_elements(self, atoms: ase.Atoms) -> None:
        """Refuse a structure before time is spent on it.

        Raises:
            HIENetError: an element that the model does not know.
        """
        unknown = sorted(set(atoms.get_chemical_symbols()) - set(self.elements or atoms.get_chemical_symbols()))
        if unknown:
            known = ", ".join(self.elements or ())
            raise HIENetError(
                f"the structure contains {', '.join(unknown)}, but the model knows only {known}; use a model that was "
                "trained with these elements"
            )

    def calculate(
        self, structures: Sequence[ase.Atoms], advance: Callable[[int], None] | None = None
    ) -> list[Evaluated]:
        """Energy, forces and stress of each structure.

        Args:
            structures: any number, each of any size; none is changed.
            advance: called with the number of structures that are done since the last call.

        Raises:
            HIENetError: a structure that the model cannot evaluate.
        """
        found: list[Evaluated] = []
        for batch in self._batches(structures):
            found += self._of_model(batch) if self._model is not None else [self._of_calculator(batch[0])]
            if advance is not None:
                advance(len(batch))
        return found

    def _batches(self, structures: Sequence[ase.Atoms]) -> Iterator[list[ase.Atoms]]:
        batch: list[ase.Atoms] = []
        limit = self.batch_atoms if self._model is not None else 0
        for atoms in structures:
            if batch and sum(map(len, batch)) + len(atoms) > limit:
                yield batch
                batch = []
            batch.append(atoms)
        if batch:
            yield batch

    def _of_model(self, batch: Sequence[ase.Atoms]) -> list[Evaluated]:
        model = self._model
        assert model is not None
        graph = batch_graphs([graph_from_atoms(atoms, model.elements, model.cutoff) for atoms in batch])
        prediction = model.predict_graph(graph)
        assert prediction.forces is not None
        assert prediction.stress is not None
        energy = prediction.energy.cpu().numpy()
        forces = np.split(prediction.forces.double().cpu().numpy(), np.cumsum([len(atoms) for atoms in batch])[:-1])
        stress = prediction.stress.double().cpu().numpy()
        return [
            Evaluated(
                float(energy[i]), forces[i], full_3x3_to_voigt_6_stress(stress[i]) if atoms.cell.rank == 3 else None
            )
            for i, atoms in enumerate(batch)
        ]

    def _of_calculator(self, atoms: ase.Atoms) -> Evaluated:
        atoms = atoms.copy()
        atoms.calc = self.calculator
        try:
            energy = atoms.get_potential_energy()
            forces = atoms.get_forces(apply_constraint=False)
            stress = atoms.get_stress(apply_constraint=False) if atoms.cell.rank == 3 else None
        except PropertyNotImplementedError as error:
            raise HIENetError(
                f"the calculator {self.name} has no {error}; use one with energy, forces and stress"
            ) from error
        return Evaluated(float(energy), np.array(forces), None if stress is None else np.array(stress))


def advice_for_model(path: str | Path) -> str | None:
    """What would make a calculation with this file faster, in a sentence; None where nothing would."""
    if is_torchscript(path):
        return None
    return (
        f"note: `{path}` is a checkpoint; `hienet-deploy {path}` makes a compiled file of it, which is many times "
        "faster on a CPU and can be given here in its place"
    )
