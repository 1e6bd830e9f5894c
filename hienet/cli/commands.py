"""The command `hienet`. Heavy modules are imported inside the commands, so that help appears at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hienet.cli.data import app as data_app
from hienet.cli.options import EnergyKey, Force, ForcesKey, StressKey, VirialKey, require_free, write_configuration
from hienet.console import make_console, printable, run_app, say
from hienet.distill.cli import distill
from hienet.memory import keep_freed_memory
from hienet.properties.cli import add_commands

if TYPE_CHECKING:
    from hienet.metrics import Errors
    from hienet.train.run import TrainingResult

app = typer.Typer(
    name="hienet",
    help="HIENet and other interatomic potentials: train on DFT data, evaluate, and use in LAMMPS and ASE.",
    epilog="A first model: `hienet init data.extxyz`, `hienet train config.yaml`, `hienet-deploy model.pt`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write.", show_default=False)]
_Architecture = Annotated[str, typer.Option(help="Architecture of the model; `hienet models` lists them.")]
_Preset = Annotated[str, typer.Option(help="Size of the model; `hienet models` lists those of each architecture.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        import hienet

        print(f"hienet {hienet.__version__}")
        raise typer.Exit


@app.command(rich_help_panel="Training")
def init(
    data: Annotated[list[str], typer.Argument(help="Files with labelled frames: extxyz, or anything ASE reads.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Configuration to write.")] = Path("config.yaml"),
    architecture: _Architecture = "hienet",
    preset: Annotated[
        str | None,
        typer.Option(
            help="Size of the model; `hienet models` lists those of each architecture. Default: small, or with "
            "--minutes the largest for which the time is enough.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Time for training on this machine: some steps are made to find how many it is enough for.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Train as the authors of the architecture did: `paper`; `l3i5` for that SevenNet. Default: what suits "
            "the size of the data.",
            show_default=False,
        ),
    ] = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    virial_key: VirialKey = None,
    force: Force = False,
) -> None:
    """Write a commented configuration for the given data."""
    from hienet.data.labels import LabelKeys
    from hienet.models.factory import DEFAULT_PRESET, make_config
    from hienet.recipes import find_recipe
    from hienet.template import render, summarize, within_minutes

    require_free(output, force)
    make_config(architecture, preset or DEFAULT_PRESET, {"elements": ("H",)})
    if recipe is not None:
        # Before the data are read, which may take long.
        find_recipe(architecture, recipe, mean_atoms=1.0)
    summary = summarize(data, LabelKeys(energy_key, forces_key, stress_key, virial_key))
    chosen = None if recipe is None else find_recipe(architecture, recipe, summary.n_atoms[1])
    folder = f"{output.stem}_run" if output.stem != "config" else "hienet_training"
    remarks = [*summary.lines(), *(chosen.lines() if chosen is not None else [])]
    limit: dict[str, Any] = {}
    if minutes is not None:
        found = within_minutes(minutes, summary, architecture, preset, chosen)
        preset, limit = found.preset, found.training
        remarks += found.lines
    text = render(summary, folder, architecture, preset or DEFAULT_PRESET, chosen, limit)
    write_configuration(output, text, remarks)


@app.command(rich_help_panel="Training")
def finetune(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint (.pt) whose model is trained further.", show_default=False)
    ],
    data: Annotated[list[str], typer.Argument(help="Files with labelled frames.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Configuration to write.")] = Path("finetune.yaml"),
    strength: Annotated[
        str,
        typer.Option(
            help="How far the weights may move: gentle (few frames, or little to be forgotten), standard, or strong "
            "(many frames of another kind)."
        ),
    ] = "standard",
    keep_elements: Annotated[
        bool, typer.Option("--keep-elements", help="Keep all elements of the checkpoint, not only those of the data.")
    ] = False,
    replay: Annotated[
        list[str] | None,
        typer.Option(help="File with frames of what is not to be forgotten; may be repeated.", show_default=False),
    ] = None,
    replay_labels: Annotated[
        str, typer.Option(help="Labels of these frames: `file`, or `model` for what the checkpoint says of them.")
    ] = "file",
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    virial_key: VirialKey = None,
    force: Force = False,
) -> None:
    """Write a commented configuration that trains a model further, on the given data."""
    from hienet.data.labels import LabelKeys
    from hienet.template import FineTuning, render_fine_tuning, summarize
    from hienet.train.start import load_start

    require_free(output, force)
    start = load_start(str(checkpoint))
    wanted = FineTuning(str(checkpoint), start, strength, keep_elements, tuple(replay or ()), replay_labels)
    summary = summarize(data, LabelKeys(energy_key, forces_key, stress_key, virial_key))
    folder = f"{output.stem}_run"
    text = render_fine_tuning(summary, folder, wanted)
    write_configuration(output, text, [*summary.lines(), *wanted.lines(summary)])


@app.command(rich_help_panel="Training")
def train(
    config: Annotated[Path, typer.Argument(help="YAML file, such as `hienet init` writes.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from `last.pt` in the output folder.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder, in place of the configuration's `output`.", show_default=False),
    ] = None,
) -> None:
    """Train a model. Ctrl-C ends after the present step; `--resume` then goes on as if nothing had happened."""
    _let_threads_sleep()
    from hienet.config import load_config
    from hienet.errors import HIENetError
    from hienet.processes import OtherProcessError, process_group
    from hienet.tables import print_errors
    from hienet.train.loop import NonFiniteLossError
    from hienet.train.run import InterruptedTrainingError, Run

    with process_group() as processes, open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = make_console(None if processes.is_first else nowhere)
        try:
            settings = processes.agree(lambda: load_config(config))
            if output is not None:
                settings = settings.model_copy(update={"output": str(output)})
            result = Run(settings, resume, console, str(config), processes).train()
        except InterruptedTrainingError as error:
            if processes.is_first:
                print(printable(error), file=sys.stderr)
            raise typer.Exit(130) from None
        except (OtherProcessError, NonFiniteLossError):
            # All processes end so, and the first one says why.
            if processes.is_first:
                raise
            raise typer.Exit(1) from None
        except HIENetError as error:
            if processes.number == 1 or processes.is_first:
                raise
            raise HIENetError(f"process {processes.rank} of {processes.number}: {error}") from error
        if not processes.is_first:
            return
    print_errors(console, "set", list(result.errors.items()) if not result.errors_before else _side_by_side(result))
    folder = result.best.parent
    say(f"model: {result.best}    plots: {folder / 'learning_curves.png'}, {folder / 'parity.png'}")
    say(f"next: hienet eval {result.best} DATA    or: hienet-deploy {result.best}")


def _side_by_side(result: TrainingResult) -> list[tuple[str, Errors]]:
    """Errors before and after fine-tuning, a pair of rows for each set."""
    rows = []
    for name, after in result.errors.items():
        shown = "replay (old frames)" if name == "replay" else name
        rows += [(f"{shown}, before", result.errors_before[name]), (f"{shown}, after", after)]
    return rows


app.add_typer(data_app, rich_help_panel="Training")


@app.command("eval", rich_help_panel="Models")
def evaluate_model(
    model: Annotated[Path, typer.Argument(help="Checkpoint (.pt) or deployed model (.hienet.pt).", show_default=False)],
    data: Annotated[list[str], typer.Argument(help="Files with labelled frames.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and plots.")] = Path("hienet_eval"),
    by: Annotated[
        str | None,
        typer.Option(
            metavar="ENTRY",
            help="Entry of the frames' info by which errors, and then R² too, are listed; default: config_type.",
            show_default=False,
        ),
    ] = None,
    by_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Part of that entry which names the group, such as '\\d+K' for temperatures in names.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Frames predicted at a time.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, or cuda:N.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32 or float64; default: float64, a deployed model's own.", show_default=False),
    ] = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    virial_key: VirialKey = None,
) -> None:
    """Compare a model with labelled frames: errors by config_type (--by) and element, R², CSV of frames and atoms,
    plots."""
    from hienet.data.labels import LabelKeys
    from hienet.evaluate import evaluate, write_evaluation
    from hienet.files import folder_for_results
    from hienet.tables import print_determination, print_errors, print_forces_by_element, print_mirror_change

    keys = LabelKeys(energy_key, forces_key, stress_key, virial_key)
    entry = by or "config_type"
    with folder_for_results(output, "--output"):
        evaluation = evaluate(model, data, keys, entry, by_pattern, batch_size, device, dtype)
    console = make_console()
    for line in (*evaluation.dataset.report.lines(), *evaluation.dataset.remarks, *evaluation.notes):
        say(line)
    groups = list(evaluation.by_group.items())
    print_errors(console, entry, groups, evaluation.total)
    if by is not None or by_pattern is not None:
        print_determination(console, entry, groups, evaluation.total)
    print_forces_by_element(console, evaluation.forces_by_element)
    print_mirror_change(console, evaluation.mirror)
    paths = write_evaluation(evaluation, output)
    say("wrote " + ", ".join(str(path) for path in paths))


@app.command(rich_help_panel="Models")
def info(
    file: Annotated[Path, typer.Argument(help="Checkpoint (.pt) or deployed model (.hienet.pt).", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Describe a model file: architecture, parameters, elements, stages, training."""
    from hienet.info import describe_file
    from hienet.tables import print_description

    description = describe_file(file)
    if as_json:
        print(json.dumps(description, indent=1, ensure_ascii=False))
    else:
        print_description(make_console(), description)


@app.command(rich_help_panel="Models")
def models(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the architectures: presets, parameters, and the numbers per atom that ranks exchange."""
    from hienet.info import describe_architectures
    from hienet.tables import print_architectures

    found = describe_architectures()
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print_architectures(make_console(), found)


@app.command(rich_help_panel="Models")
def new(
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.", show_default=False)],
    elements: Annotated[
        str,
        typer.Option(help="Symbols separated by commas, or `mptrj` for the 89 elements of MPtrj.", show_default=False),
    ],
    architecture: _Architecture = "hienet",
    preset: _Preset = "small",
    cutoff: Annotated[float | None, typer.Option(help="Å; default: the preset's.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
) -> None:
    """Write a model with random weights, for tests and benchmarks."""
    from hienet.checkpoint import Checkpoint, save_checkpoint
    from hienet.elements import parse_elements
    from hienet.models.factory import build_model, make_config

    values: dict[str, Any] = {"elements": parse_elements(elements)}
    if cutoff is not None:
        values["cutoff"] = cutoff
    config = make_config(architecture, preset, values)
    model = build_model(architecture, config, seed)
    notes = {"source": f"hienet new --architecture {architecture} --preset {preset} --seed {seed}: not trained"}
    save_checkpoint(Checkpoint(architecture, config, model.state_dict(), notes=notes), output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"wrote {output}: {architecture} {preset}, {len(config.elements)} elements, {parameters:,} parameters, "
        f"symmetry {config.symmetry}, random weights"
    )


@app.command(rich_help_panel="Models")
def convert(
    file: Annotated[
        Path, typer.Argument(help="Checkpoint of the HIENet authors or of SevenNet (.pth).", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.", show_default=False)],
    modal: Annotated[
        str | None,
        typer.Option(
            help="Of a SevenNet that was trained on data of several kinds: the kind that it is to predict.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert a checkpoint of the HIENet authors or of SevenNet."""
    from hienet.checkpoint import save_checkpoint
    from hienet.convert import convert as converted

    checkpoint = converted(file, modal)
    save_checkpoint(checkpoint, output)
    config = checkpoint.config
    say(
        f"wrote {output}: {checkpoint.architecture}, {len(config.elements)} elements, cutoff {config.cutoff:g} Å, "
        f"symmetry {config.symmetry}"
    )
    for name, note in checkpoint.notes.items():
        say(f"{name}: {note}")


@app.command("build", rich_help_panel="LAMMPS")
def build_plugin(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the output of CMake and of the compiler.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Compile even if nothing changed.")] = False,
) -> None:
    """Compile the LAMMPS pair style against the torch and LAMMPS of this environment.

    With a CUDA build of torch and the CUDA toolkit (`nvcc`), compiled models run on GPUs, too.
    """
    from hienet.build import build

    build(verbose=verbose, force=force)


@app.command(rich_help_panel="Training")
def schema(output: _Output = None, architecture: _Architecture = "hienet") -> None:
    """Print the JSON schema of the configuration, for editors that complete and check YAML."""
    from hienet.config import json_schema
    from hienet.files import atomic_path

    text = json.dumps(json_schema(architecture), indent=1, ensure_ascii=False)
    if output is None:
        print(text)
        return
    with atomic_path(output) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _let_threads_sleep() -> None:
    """Make OpenMP's idle threads yield early; call it before torch is imported.

    By default they spin for long, and a step takes ten times as long as soon as another program wants one of the cores.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


add_commands(app)
app.command(rich_help_panel="Training")(distill)


def main() -> None:
    """Run the command; wrong input is one sentence on stderr and exit status 1."""
    keep_freed_memory()
    run_app(app)
