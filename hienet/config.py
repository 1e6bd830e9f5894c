"""The configuration of a training run: what may stand in the YAML file given to `hienet train`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from ase.data import chemical_symbols
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic.fields import FieldInfo

from hienet.data.weights import DEFAULT_KEY as DEFAULT_WEIGHT_KEY
from hienet.errors import HIENetError
from hienet.files import atomic_path
from hienet.models.config import ModelConfig
from hienet.models.factory import (
    DEFAULT_PRESET,
    describe_validation_error,
    find_architecture,
    make_config,
    shortened,
)

COMPUTED_MODEL_KEYS = ("elements", "scale", "shift", "avg_num_neighbors")
"""Constructor arguments of every architecture that are computed from the training set unless given."""


def _as_files(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise ValueError("must be a file or a list of files")
    return tuple(value)


def _as_files_or_fraction(value: object) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0.0 <= value < 1.0:
            raise ValueError(
                "must be a fraction of the training frames, at least 0 and below 1, or a file or list of files"
            )
        return float(value)
    try:
        return _as_files(value)
    except ValueError:
        raise ValueError("must be a fraction of the training frames, a file, or a list of files") from None


def _as_reference_energies(value: object) -> object:
    if value in ("auto", "least_squares", "keep"):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            "must be auto, least_squares, keep, or an energy in eV for each element like {Si: -0.8, C: -1.3}"
        )
    for symbol, energy in value.items():
        if symbol not in chemical_symbols[1:]:
            raise ValueError(f"`{symbol}` is not a chemical symbol; write energies like {{Si: -0.8, C: -1.3}}")
        if isinstance(energy, bool) or not isinstance(energy, (int, float)):
            raise ValueError(f"the energy of {symbol} must be a number in eV, got `{shortened(energy)}`")
    return dict(value)


LossKind = Literal["huber", "mse", "l1"]
_LOSS_KINDS = ("huber", "mse", "l1")


def _as_loss_kinds(value: object) -> object:
    kinds = value if isinstance(value, Mapping) else {"energy": value}
    for quantity, kind in kinds.items():
        if quantity not in ("energy", "forces", "stress") or kind not in _LOSS_KINDS:
            raise ValueError("must be huber, mse or l1, or one of these for some of energy, forces and stress")
    return dict(value) if isinstance(value, Mapping) else value


def _as_names(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise ValueError("must be a name or a list of names")
    return tuple(value)


def _as_quantities(value: object) -> object:
    return (value,) if isinstance(value, str) else value


_FILES_SCHEMA = [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
Files = Annotated[tuple[str, ...], BeforeValidator(_as_files), WithJsonSchema({"anyOf": _FILES_SCHEMA})]
FilesOrFraction = Annotated[
    tuple[str, ...] | float,
    BeforeValidator(_as_files_or_fraction),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, *_FILES_SCHEMA]}),
]
ReferenceEnergies = Annotated[
    Literal["auto", "least_squares", "keep"] | dict[str, float], BeforeValidator(_as_reference_energies)
]
LossKinds = Annotated[LossKind | dict[Literal["energy", "forces", "stress"], LossKind], BeforeValidator(_as_loss_kinds)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_names)]


class Section(BaseModel):
    """A part of the configuration: cannot be changed once read, and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)


class ModelSection(BaseModel):
    """The model: architecture, preset, and any constructor argument of the architecture."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    architecture: str = Field("hienet", description="name of the architecture; `hienet models` lists them")
    preset: str | None = Field(
        DEFAULT_PRESET,
        description="named set of values to start from, one that `hienet models` lists; null: the defaults",
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor arguments that were given."""
        return dict(self.model_extra or {})

    def hyperparameters(self, computed: Mapping[str, object]) -> ModelConfig:
        """The architecture's configuration: what was given, over what was `computed` from the data, over the preset."""
        return make_config(self.architecture, self.preset, {**computed, **self.arguments})

    def check(self) -> None:
        """Find mistakes before any data is read.

        Raises:
            HIENetError: an argument that the architecture does not have, or a value that it does not allow.
        """
        given = self.arguments
        if "elements" not in given and (given.get("scale") or given.get("shift")):
            raise HIENetError(
                "`model.scale` and `model.shift` are in the order of `model.elements`; give `model.elements` too"
            )
        config = self.hyperparameters({"elements": ("H",)})
        try:
            config.check_for_training()
        except ValueError as error:
            raise HIENetError(f"`model`: {error}") from error


class DataSection(Section):
    """Where frames and labels come from."""

    train: Files = Field(
        min_length=1, description="file or list of files with the training frames: extxyz, or anything ASE reads"
    )
    validation: FilesOrFraction = Field(
        0.1,
        description="file(s) with the validation frames, or the fraction of the training frames to set apart for it",
    )
    test: FilesOrFraction = Field(
        0.0, description="file(s) with test frames, or the fraction of the training frames to set apart for it; 0: none"
    )
    stratify: str | None = Field(
        "config_type",
        description="entry of the frames' info; equal ones are split in proportion; null: split all at random",
    )
    energy_key: str | None = Field(
        None,
        description="name of the energy (eV) in the files; null: look for REF_energy, the calculator's, other names",
    )
    forces_key: str | None = Field(
        None, description="name of the forces (eV/Å); null: look for REF_forces, the calculator's, other names"
    )
    stress_key: str | None = Field(
        None,
        description="name of the stress (eV/Å^3, tension positive); null: look for REF_stress, the calculator's, ...",
    )
    virial_key: str | None = Field(
        None, description="name of the virial (eV; stress = -virial/volume), to be used in place of a stress"
    )
    weight_key: str | None = Field(
        DEFAULT_WEIGHT_KEY,
        description="entry of the frames' info, a factor on the frame's loss; null: all frames have weight 1",
    )
    allow_missing: Annotated[tuple[Literal["energy", "forces"], ...], BeforeValidator(_as_quantities)] = Field(
        (), description="quantities (energy, forces) that whole files may lack, such as [energy]; others stop the run"
    )
    keep_unconverged: bool = Field(
        False,
        description="use frames of VASP whose electronic steps ended without convergence; false: leave them out",
    )
    reference_energies: ReferenceEnergies = Field(
        "auto",
        description="energy of an atom of each element (eV): that of isolated atoms in the training files, and "
        "least_squares on the composition for other elements (auto); least_squares for all; or {symbol: eV}. With "
        "`training.from` those of the checkpoint are moved to the new labels (auto, least_squares), or kept (keep)",
    )
    shift_to_mean: bool = Field(
        False,
        description="add to each reference energy the mean energy per atom that they leave; an isolated atom then no "
        "longer has its reference energy",
    )
    replay: Annotated[Files, Field(min_length=1)] | None = Field(
        None,
        description="with `training.from`: file(s) with frames of what the model knows and is not to forget; a part of "
        "them, as large as that of `validation`, measures what it forgets; null: none",
    )
    replay_labels: Literal["file", "model"] = Field(
        "file", description="labels of these frames: those in the file, or (model) what the checkpoint says of them"
    )
    replay_weight: float = Field(1.0, gt=0, description="factor on the loss of these frames, beside their own weights")

    @model_validator(mode="after")
    def _one_source_of_stress(self) -> DataSection:
        if self.stress_key is not None and self.virial_key is not None:
            raise ValueError("give either `stress_key` or `virial_key`, not both")
        fractions = [part for part in (self.validation, self.test) if isinstance(part, float)]
        if sum(fractions) >= 1.0:
            raise ValueError(
                f"`validation` and `test` take {sum(fractions):g} of the frames; together they must take less than 1"
            )
        return self


class TrainingSection(Section):
    """How the model is trained."""

    epochs: int = Field(250, ge=1, description="passes over the training frames")
    batch_size: int = Field(8, ge=1, description="frames in one step, of all processes together")
    batch_edges: int | None = Field(
        None,
        ge=1,
        description="fill steps with frames up to so many edges (pairs of neighbours, each counted twice), in place of "
        "batch_size; null: not",
    )
    batch_atoms: int | None = Field(None, ge=1, description="the same with so many atoms; null: not")
    accumulate: int = Field(
        1,
        ge=1,
        description="parts in which each process computes its share of a step, one after the other; more take less "
        "memory, and change nothing but rounding",
    )
    optimizer: Literal["adamw", "adam"] = Field(
        "adamw",
        description="torch's AdamW, whose weight decay is apart from the gradient, or Adam, where it is in it",
    )
    amsgrad: bool = Field(False, description="AMSGrad: steps never grow as old gradients are forgotten")
    learning_rate: float = Field(0.01, gt=0, description="largest learning rate, reached after the warm-up")
    schedule: Literal["cosine", "linear", "plateau", "constant"] = Field(
        "cosine",
        description="how the learning rate falls to `final_learning_rate`: along half a cosine, a line, or by a factor "
        "whenever the validation loss has not fallen for some epochs (plateau); or not at all",
    )
    final_learning_rate: float = Field(5e-6, ge=0, description="learning rate at the end, or least one (plateau)")
    plateau_factor: float = Field(0.8, gt=0, lt=1, description="with schedule plateau: the factor")
    plateau_patience: int = Field(50, ge=0, description="with schedule plateau: epochs without a lower validation loss")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="part of the run in which the learning rate rises")
    warmup_factor: float = Field(0.2, gt=0, le=1, description="factor on the learning rate at the first step")
    weight_decay: float = Field(0.001, ge=0, description="the optimizer's weight decay")
    ema_decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay per step of the moving average of the weights that is validated and kept; 0: none",
    )
    select: Literal["best", "last"] = Field(
        "best", description="averaged weights that are kept: best, of the epoch of least validation loss; or the last"
    )
    early_stopping: int | None = Field(
        None, ge=1, description="end when the validation loss has not fallen for so many epochs; null: never"
    )
    loss: LossKinds = Field(
        "huber",
        description="huber, mse (squares) or l1 (absolute values); or by quantity: {energy: mse, forces: l1}",
    )
    energy_weight: float = Field(1.0, ge=0, description="weight of the energy loss (eV/atom)")
    forces_weight: float = Field(1.0, ge=0, description="weight of the force loss (eV/Å)")
    stress_weight: float = Field(0.01, ge=0, description="weight of the stress loss (kbar)")
    final_energy_weight: float | None = Field(
        None,
        ge=0,
        description="weight of the energy loss at the end, to which it goes as the learning rate goes from its largest "
        "value to its final one; null: it does not change",
    )
    final_forces_weight: float | None = Field(None, ge=0, description="the same for forces")
    final_stress_weight: float | None = Field(None, ge=0, description="the same for stress")
    huber_delta: float = Field(
        0.01, gt=0, description="error above which the Huber loss is linear (eV/atom, eV/Å, kbar)"
    )
    energy_normalization: Literal["atoms", "sqrt_atoms", "none"] = Field(
        "atoms", description="what energy errors are divided by: the number of atoms, its square root, or nothing"
    )
    stress_unit: Literal["kbar", "GPa", "eV/A^3"] = Field("kbar", description="unit of stress errors in the loss")
    normalize_labels: bool = Field(
        False,
        description="divide errors by the spread of the labels in the training set, so that losses have no units: "
        "standard deviation of energies per atom and of stresses, RMS of forces",
    )
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null: not clipped")
    engine: Literal["fused", "plain"] = Field(
        "fused",
        description="what computes the steps on a CPU: compiled operators, if the model has a form for them; or torch",
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of training")
    device: str = Field("cpu", description="torch device: cpu, cuda, cuda:1, ...")
    reflect: bool = Field(
        False,
        description="take the mirror image of half of the frames, chosen anew in each epoch; teaches a model with "
        "`parity: false` what one with parity has by construction",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="of the initial weights, the split, the order of frames, dropout, and which frames are reflected",
    )
    threads: int | None = Field(None, ge=1, description="threads on the CPU; null: torch's choice")
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="wall time (minutes) after which training ends; the learning rate follows the time; null: none",
    )

    # `from` is no name in Python.
    start: str | None = Field(
        None,
        alias="from",
        description="checkpoint whose model is trained further (fine-tuning), which also decides on the architecture; "
        "null: a new model",
    )
    freeze: Names = Field(
        (),
        description="with `from`: parts of the model that stay as they are, such as [species_embedding, layers.0]; "
        "`hienet finetune` lists them",
    )

    @model_validator(mode="after")
    def _learning_rate_falls(self) -> TrainingSection:
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"`final_learning_rate` {self.final_learning_rate:g} exceeds `learning_rate` {self.learning_rate:g}"
            )
        if self.batch_edges is not None and self.batch_atoms is not None:
            raise ValueError("give either `batch_edges` or `batch_atoms`, not both")
        weights = [self.energy_weight, self.forces_weight, self.stress_weight]
        if not any(weights):
            raise ValueError(
                "`energy_weight`, `forces_weight` and `stress_weight` are all 0; at least one must be positive"
            )
        final = [self.final_energy_weight, self.final_forces_weight, self.final_stress_weight]
        last = [weight if end is None else end for weight, end in zip(weights, final, strict=True)]
        if not any(last):
            raise ValueError("the weights of the losses are all 0 at the end; at least one must be positive")
        if last != weights and self.learning_rate == self.final_learning_rate:
            raise ValueError(
                "weights of the losses change as the learning rate does, but that is "
                f"{self.learning_rate:g} all the time; lower `final_learning_rate`, or remove the final weights"
            )
        if last != weights and self.schedule == "constant":
            raise ValueError(
                "weights of the losses change as the learning rate does, which `schedule: constant` keeps; choose "
                "another schedule, or remove the final weights"
            )
        return self


class TrainConfig(Section):
    """A training run."""

    model: ModelSection = Field(default_factory=lambda: ModelSection())
    data: DataSection
    training: TrainingSection = Field(default_factory=lambda: TrainingSection())
    output: str = Field("hienet_training", min_length=1, description="folder that receives models, logs and plots")

    @model_validator(mode="after")
    def _some_keys_need_a_checkpoint(self) -> TrainConfig:
        if self.training.start is not None:
            if self.data.shift_to_mean:
                raise ValueError(
                    "`data.shift_to_mean` is for new models; with `training.from` reference energies are moved to the "
                    "labels anyway: remove it"
                )
            return self
        needing = {
            "training.freeze": self.training.freeze,
            "data.replay": self.data.replay,
            "data.reference_energies: keep": self.data.reference_energies == "keep",
        }
        for name, given in needing.items():
            if given:
                raise ValueError(
                    f"`{name}` is for fine-tuning; name the checkpoint to begin with as `training.from`, or remove it"
                )
        return self


def keys_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a section as they stand in files."""
    return {info.alias or name: info for name, info in section.model_fields.items()}


def parse_config(values: object, source: str = "the configuration") -> TrainConfig:
    """A configuration from plain values.

    Raises:
        HIENetError: the first key that is unknown, missing or has a value that is not allowed, in one sentence.
    """
    if not isinstance(values, Mapping):
        raise HIENetError(
            f"{source} must hold the sections {', '.join(TrainConfig.model_fields)}, got `{shortened(values)}`"
        )
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        raise HIENetError(f"{source}: {describe_validation_error(error, TrainConfig, '')}") from error
    try:
        # What a checkpoint decides cannot be known before it is read.
        if config.training.start is None:
            config.model.check()
    except HIENetError as error:
        raise HIENetError(f"{source}: {error}") from error
    return config


def load_config(path: str | Path) -> TrainConfig:
    """Read a YAML file. Paths in it are relative to the working folder.

    Raises:
        HIENetError: no such file, not YAML, or a mistake in it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise HIENetError(f"cannot read `{path}`: {reason}; give a YAML file such as `hienet init` writes") from error
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise HIENetError(
            f"`{path}` is not valid YAML{where}: {problem}; check indentation, colons and quotes there"
        ) from error
    return parse_config(values, f"`{path}`")


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Write every value of a configuration, defaults included."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


def json_schema(architecture: str = "hienet") -> dict[str, Any]:
    """JSON schema of the configuration, for editors; the model section lists the arguments of `architecture`."""
    schema = TrainConfig.model_json_schema()
    model = schema["$defs"]["ModelSection"]
    arguments = find_architecture(architecture).config.model_json_schema()
    for key, value in arguments["properties"].items():
        model["properties"].setdefault(key, value)
    model["additionalProperties"] = False
    return schema


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also reads 1e-3 as a number and refuses a key that is given twice.

    Of YAML 1.1's truth values only true and false are left, as in YAML 1.2: `No` is nobelium. Where a truth value is
    wanted, yes and no are understood all the same.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float)) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key}` is given twice", key_node.start_mark)
            seen.add(key if isinstance(key, (str, int, float)) else id(key))
        return super().construct_mapping(node, deep)


def _read_exponent(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)))


_TRUTH = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TRUTH]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TRUTH, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_constructor("!exponent", _read_exponent)
_Loader.add_implicit_resolver("!exponent", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))
