"""What the configuration of every architecture has."""

from __future__ import annotations

from typing import Literal

from ase.data import atomic_numbers, chemical_symbols
from pydantic import BaseModel, ConfigDict, Field, model_validator

LAST_WITH_RADIUS = 96
"""Atomic number of the last element, curium, whose covalent radius Cordero et al. (2008) tabulated."""

Symmetry = Literal["O(3)", "SO(3)"]
"""What leaves the energy as it is: rotations and reflections, or rotations alone."""


class ModelConfig(BaseModel):
    """What every architecture needs to know of its elements and its training set."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    elements: tuple[str, ...] = Field(min_length=1, description="chemical symbols, in species order")
    cutoff: float = Field(5.0, gt=0, description="Å")
    avg_num_neighbors: float = Field(
        35.989574, gt=0, description="mean number of neighbours; normalises sums over them"
    )
    scale: tuple[float, ...] = Field((), description="for each element: eV by which the network's output is multiplied")
    shift: tuple[float, ...] = Field((), description="for each element: its reference energy (eV)")
    zbl: bool = Field(False, description="add the repulsion of nuclei at short range (ZBL) to what is learnt")
    zbl_outer: float | None = Field(
        None, gt=0, description="Å, where that repulsion ends; null: at the sum of each pair's covalent radii"
    )

    @property
    def symmetry(self) -> Symmetry:
        """Of the energy: O(3), or SO(3) where a structure and its mirror image may differ."""
        return "O(3)"

    def check_for_training(self) -> None:
        """Refuse what is no use to train, though models that have it may be read and used.

        Raises:
            ValueError: one sentence for the user.
        """

    @model_validator(mode="before")
    @classmethod
    def _fill_scale_and_shift(cls, values: dict[str, object]) -> dict[str, object]:
        elements = values.get("elements")
        if isinstance(elements, (list, tuple)):
            values = dict(values)
            values["scale"] = values.get("scale") or (1.0,) * len(elements)
            values["shift"] = values.get("shift") or (0.0,) * len(elements)
        return values

    @model_validator(mode="after")
    def _elements_are_known(self) -> ModelConfig:
        unknown = [symbol for symbol in self.elements if symbol not in chemical_symbols[1:]]
        if unknown:
            raise ValueError(f"`elements` has {unknown}, which are not chemical symbols; write them like Si, C")
        if len(set(self.elements)) != len(self.elements):
            raise ValueError(f"`elements` names an element twice: {list(self.elements)}")
        for name in ("scale", "shift"):
            if len(getattr(self, name)) != len(self.elements):
                raise ValueError(f"`{name}` must have one number for each of the {len(self.elements)} elements")
        return self

    @model_validator(mode="after")
    def _repulsion_has_an_end(self) -> ModelConfig:
        if self.zbl_outer is None:
            unknown = [symbol for symbol in self.elements if atomic_numbers[symbol] > LAST_WITH_RADIUS]
            if self.zbl and unknown:
                raise ValueError(f"the covalent radii of {unknown} are not known; give `zbl_outer` with `zbl`")
        elif not self.zbl:
            raise ValueError("`zbl_outer` is given, but `zbl` is false; set `zbl: true`, or remove `zbl_outer`")
        elif self.zbl_outer > self.cutoff:
            raise ValueError(f"`zbl_outer` is {self.zbl_outer:g} Å, beyond the cutoff of {self.cutoff:g} Å; lower it")
        return self
