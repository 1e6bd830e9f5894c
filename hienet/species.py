"""Checkpoints for other elements than those with which they were made: fewer, more, or in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from ase.data import atomic_numbers

from hienet.checkpoint import Checkpoint
from hienet.errors import HIENetError
from hienet.torch_state import own_torch_state

_NOBLE_GASES = (2, 10, 18, 36, 54, 86, 118)


@own_torch_state()
def keep_elements(checkpoint: Checkpoint, elements: Sequence[str]) -> Checkpoint:
    """The same model for fewer elements, or in another order: the numbers of those that stay do not change.

    Raises:
        HIENetError: an element that the model does not know, or named twice.
    """
    config = checkpoint.config
    if not elements:
        raise HIENetError(f"no element to keep was named; the model's elements are {', '.join(config.elements)}")
    unknown = [symbol for symbol in elements if symbol not in config.elements]
    if unknown:
        raise HIENetError(
            f"the model does not know {', '.join(unknown)}; its elements are {', '.join(config.elements)}"
        )
    if len(set(elements)) != len(elements):
        raise HIENetError(f"an element is named twice in {', '.join(elements)}; name each once")
    return _with_rows(checkpoint, elements, [config.elements.index(symbol) for symbol in elements])


@dataclass(frozen=True)
class OtherElements:
    """A checkpoint with other elements.

    Attributes:
        checkpoint: the model, in which an added element is a copy of one that it had.
        kept, dropped: symbols.
        added: of each added element the one that it is a copy of.
    """

    checkpoint: Checkpoint
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    added: Mapping[str, str]

    def describe(self) -> str:
        """For a person."""
        parts = [f"kept {', '.join(self.kept) or 'none'}" if self.dropped else f"all {len(self.kept)} kept"]
        if self.dropped:
            parts.append(f"{len(self.dropped)} others dropped")
        parts += [f"{symbol} added, which begins as a copy of {model}" for symbol, model in self.added.items()]
        return f"elements of the checkpoint: {', '.join(parts)}"


@own_torch_state()
def with_elements(checkpoint: Checkpoint, elements: Sequence[str]) -> OtherElements:
    """The model for these elements, in this order: what it knows of those that stay does not change.

    An element that it did not have begins as a copy of the most similar one that it has (`most_similar`): weights,
    scale and reference energy. What an architecture computes from atomic numbers or radii is the element's own.

    Args:
        checkpoint: a model at rest.
        elements: symbols, at least one, each once.
    """
    known = checkpoint.config.elements
    added = {symbol: most_similar(symbol, known) for symbol in elements if symbol not in known}
    rows = [known.index(added.get(symbol, symbol)) for symbol in elements]
    return OtherElements(
        checkpoint if tuple(elements) == known else _with_rows(checkpoint, elements, rows),
        kept=tuple(symbol for symbol in elements if symbol in known),
        dropped=tuple(symbol for symbol in known if symbol not in elements),
        added=added,
    )


def most_similar(symbol: str, known: Sequence[str]) -> str:
    """Of the known elements the one nearest in the same group of the periodic table, else nearest in atomic number."""
    number = atomic_numbers[symbol]
    same = [other for other in known if _group(atomic_numbers[other]) == _group(number)]
    return min(same or known, key=lambda other: (abs(atomic_numbers[other] - number), other))


def _group(number: int) -> tuple[str, int]:
    """Block of the periodic table, and where in it an element of this atomic number stands."""
    before = max((gas for gas in _NOBLE_GASES if gas < number), default=0)
    after = min(gas for gas in _NOBLE_GASES if gas >= number)
    from_left, from_right = number - before, after - number
    if number != 2 and from_left <= 2:
        return "s", from_left
    for block, last in (("p", 5), ("d", 15)):
        if from_right <= last:
            return block, from_right
    # Lanthanides and actinides are alike.
    return "f", 0


def _with_rows(checkpoint: Checkpoint, elements: Sequence[str], rows: list[int]) -> Checkpoint:
    """The model whose s-th element is `elements[s]`, with what it knew of its element number `rows[s]`."""
    config = checkpoint.config
    model = checkpoint.build(torch.float64)
    for module in model.modules():
        if hasattr(module, "keep_species"):
            module.keep_species(rows)  # type: ignore[operator]
    selected = type(config).model_validate(
        {
            **config.model_dump(),
            "elements": tuple(elements),
            "scale": tuple(config.scale[row] for row in rows),
            "shift": tuple(config.shift[row] for row in rows),
        }
    )
    return replace(checkpoint, config=selected, weights=model.state_dict())
