"""What a model file says of its training: described, written and read here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hienet.errors import HIENetError


class TrainingSummary(BaseModel):
    """The entry `training` of checkpoints and deployed files. All of it may be missing; other entries are kept.

    Attributes:
        files: of each set.
        n_frames: of each set.
        labels: how many frames of the training set have a label of each quantity.
        elements: of the training set.
        epochs, best_epoch: how many there were, and from which the weights are.
        best_validation_loss: of that epoch, if there was a validation set.
        validation: that epoch's row of `log.csv`.
        errors: of each set, as `hienet.metrics.Errors.as_dict` has them.
        settings: the section `training` of the configuration.
        started, finished: times (ISO 8601, UTC).
        seconds: of training.
    """

    model_config = ConfigDict(extra="allow")

    files: dict[str, Any] = {}
    n_frames: dict[str, int] = {}
    labels: dict[str, int] = {}
    elements: list[str] = []
    epochs: int | None = None
    best_epoch: int | None = None
    best_validation_loss: float | None = None
    validation: dict[str, int | float | None] | None = None
    errors: dict[str, dict[str, int | float | None]] = {}
    settings: dict[str, Any] = {}
    seed: int | None = None
    started: str | None = None
    finished: str | None = None
    seconds: float | None = Field(None, ge=0)
    package_version: str | None = None
    torch_version: str | None = None

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> TrainingSummary:
        """From a file.

        Raises:
            HIENetError: it says something that cannot be.
        """
        try:
            return cls.model_validate(dict(entry))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise HIENetError(
                f"the file's summary of its training is damaged: it says `{key}: {first['input']!s:.40}`; "
                "`hienet info --json` shows all of it"
            ) from error
