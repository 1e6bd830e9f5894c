"""One model in a process of its own, asked by peers.py over pipes: `python peer_worker.py '{"kind": ..., ...}'`.

Runs in the environment of that model, so it needs no more than ASE and the model's own packages. It answers each line
of its input, a JSON object, with one line of JSON; what libraries print goes to the error output.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import peer_training
import torch
from memory import peak_growth
from structures import small_cell_of_all_elements, structure

Builder = Callable[[Any], tuple[Callable[[], object], int]]
"""A structure to the evaluation of its prebuilt graph, and the number of edges."""


def main() -> None:
    """Load the model, say what it is, then answer."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    torch.set_flush_denormal(True)
    trains = options.get("task") == "training"
    prepare, description = (peer_training.KINDS if trains else KINDS)[options["kind"]](options)
    work: Callable[[], object] = lambda: None  # noqa: E731
    print(json.dumps(description), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["do"] == "prepare":
            work, answer["n_edges"] = prepare(request["system"] if trains else structure(request["system"]))
            for _ in range(1 if trains else 3):
                work()
        elif request["do"] == "measure":
            answer = measure(work, request["seconds"], options.get("device", "cpu"))
        elif request["do"] == "forces":
            # In mode `calculator` the work gives them.
            answer = {"forces": work().tolist()}  # type: ignore[attr-defined]
        elif request["do"] == "predict":
            answer = predictions(CALCULATORS[options["kind"]](options), request["frames"], request["references"])
        elif request["do"] == "memory":
            atoms = structure(request["system"])
            answer["bytes"] = peak_growth(prepare(atoms)[0], prepare(small_cell_of_all_elements(atoms))[0])
        print(json.dumps(answer), file=answers, flush=True)


def measure(work: Callable[[], object], seconds: float, device: str = "cpu") -> dict[str, float]:
    """Mean seconds of an evaluation over at least `seconds`; each is over when the device has done its work."""
    count, begin, cpu_begin = 0, time.perf_counter(), time.process_time()
    while count == 0 or time.perf_counter() - begin < seconds:
        work()
        if device != "cpu":
            torch.accelerator.synchronize()
        count += 1
    return {
        "seconds": (time.perf_counter() - begin) / count,
        "cpu_seconds": (time.process_time() - cpu_begin) / count,
    }


def asked_of(calculator: Any, atoms: Any) -> Callable[[], Any]:
    """Energy, forces and stress through ASE, neighbour list included; the forces are returned."""

    def work() -> Any:
        calculator.calculate(atoms, ["energy", "forces", "stress"])
        return calculator.results["forces"]

    return work


def predictions(calculator: Any, path: str, references: dict[str, float]) -> dict[str, Any]:
    """Energies (eV), with those of elements added, and forces (eV/Å) of the frames of a file."""
    import ase.io

    answer: dict[str, Any] = {"energies": [], "forces": []}
    for atoms in ase.io.read(path, ":"):
        calculator.calculate(atoms, ["energy", "forces"])
        added = sum(references.get(symbol, 0.0) for symbol in atoms.symbols)
        answer["energies"].append(float(calculator.results["energy"]) + added)
        answer["forces"].append(calculator.results["forces"].tolist())
    return answer


def described(module: Any, cutoff: float, packages: tuple[str, ...]) -> dict[str, object]:
    """What a worker says first."""
    return {
        "n_parameters": sum(parameter.numel() for parameter in module.parameters()),
        "cutoff": cutoff,
        "versions": {name: version(name) for name in packages},
    }


def hienet(options: dict[str, Any]) -> tuple[Builder, dict[str, object]]:
    """A contender of speed.py, or `calculator`, ASE's; `file` is its file."""
    from common import evaluation, load_contender, prebuilt_graph

    from hienet.calculator import HIENetCalculator, load_model

    through_ase = options["mode"] == "calculator"
    model = load_model(options["file"]) if through_ase else load_contender(options["mode"], options["file"])

    def prepare(atoms: Any) -> tuple[Callable[[], object], int]:
        if through_ase:
            n_edges = prebuilt_graph(model, atoms).center.shape[0]
            return asked_of(HIENetCalculator(options["file"]), atoms), n_edges
        return evaluation(options["mode"], model, atoms), prebuilt_graph(model, atoms).center.shape[0]

    description = described(model.module, model.cutoff, ("hienet", "torch", "e3nn"))
    # Compiled files keep what they made of the weights, not the weights.
    description["n_parameters"] = model.info.get("n_parameters", description["n_parameters"])
    return prepare, description


def sevenn_calculator(options: dict[str, Any]) -> Any:
    """SevenNet's, of the checkpoint `model` or else SevenNet-l3i5."""
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator(options.get("model", "7net-l3i5"), device=options.get("device", "cpu"))


def sevenn(options: dict[str, Any]) -> tuple[Builder, dict[str, object]]:
    """SevenNet-l3i5 with the weights of its package, or the checkpoint `model`.

    `calculator`: its calculator for ASE; `eager`: as that runs the model; `torchscript`: scripted and frozen, as its
    `deploy` does for LAMMPS, where forces and virial are sums of the gradient with respect to the edges; `cueq`,
    `flash`, `oeq`: eager with that accelerator, on a GPU. `device` is the CPU unless it is given.
    """
    import sevenn._keys as KEY
    from sevenn import util
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph

    checkpoint = util.load_checkpoint(options.get("model", "7net-l3i5"))
    accelerators = {f"enable_{options['mode']}": True} if options["mode"] in ("cueq", "flash", "oeq") else {}
    device = options.get("device", "cpu")
    module = checkpoint.build_model(**accelerators).to(device)
    module.set_is_batch_data(False)
    module.eval().requires_grad_(False)
    cutoff, type_map = checkpoint.config["cutoff"], checkpoint.config["_type_map"]
    description = described(module, cutoff, ("sevenn", "torch", "e3nn"))
    scripted = options["mode"] == "torchscript"
    if scripted:
        from e3nn.util.jit import script

        module.delete_module_by_key("force_output")
        module.eval_type_map = False
        module = torch.jit.freeze(script(module))

    def prepare(atoms: Any) -> tuple[Callable[[], object], int]:
        if options["mode"] == "calculator":
            n_edges = unlabeled_atoms_to_graph(atoms, cutoff, with_shift=False)["edge_index"].shape[1]
            return asked_of(sevenn_calculator(options), atoms), n_edges
        data = AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, cutoff, with_shift=False)).to(device)
        if not scripted:
            # The model adds its results to what it is given.
            return lambda: module(data.clone()), data.edge_index.shape[1]
        tensors = {key: value for key, value in data.to_dict().items() if isinstance(value, torch.Tensor)}
        tensors[KEY.NODE_FEATURE] = torch.tensor([type_map[number] for number in atoms.numbers], device=device)

        def work() -> object:
            vectors = tensors[KEY.EDGE_VEC].detach().requires_grad_()
            found = module({**tensors, KEY.EDGE_VEC: vectors})
            (gradient,) = torch.autograd.grad([found[KEY.PRED_TOTAL_ENERGY].sum()], [vectors])
            forces = torch.zeros(len(atoms), 3, device=device)
            for sign, end in ((1.0, 0), (-1.0, 1)):
                forces.index_add_(0, tensors[KEY.EDGE_IDX][end], gradient, alpha=sign)
            return forces, vectors.detach().t() @ gradient

        return work, data.edge_index.shape[1]

    return prepare, description


PACKAGES_OF_MACE = ("mace-torch", "torch", "e3nn")


def random_mace(options: dict[str, Any]) -> tuple[Any, dict[str, object]]:
    """A MACE of two layers with random weights and the hyperparameters of MACE-MP-0, apart from `irreps` and `cutoff`,
    and what a worker says of it."""
    # MACE reads files of e3nn's that need this with a recent torch; it says so itself when it is imported first.
    import mace.modules as modules
    import numpy as np
    from ase.data import atomic_numbers
    from e3nn import o3

    numbers = sorted(atomic_numbers[symbol] for symbol in options["elements"])
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    model = modules.ScaleShiftMACE(
        atomic_inter_scale=0.8,
        atomic_inter_shift=0.0,
        r_max=options["cutoff"],
        num_bessel=10,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(numbers),
        hidden_irreps=o3.Irreps(options["irreps"]),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(numbers)),
        avg_num_neighbors=35.0,
        atomic_numbers=numbers,
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
    )
    return model, described(model, options["cutoff"], PACKAGES_OF_MACE)


def mace_model(options: dict[str, Any]) -> tuple[Any, dict[str, object]]:
    """The trained `model`, or else `random_mace`."""
    if "model" not in options:
        return random_mace(options)
    # As in `random_mace`.
    import mace.modules  # noqa: F401

    torch.set_default_dtype(torch.float32)
    model = torch.load(options["model"], map_location="cpu", weights_only=False)
    return model, described(model, options["cutoff"], PACKAGES_OF_MACE)


def mace_calculator(model: Any, compiled: bool = False) -> Any:
    """MACE's, of a model."""
    from mace.calculators import MACECalculator

    mode = "default" if compiled else None
    return MACECalculator(models=[model], device="cpu", default_dtype="float32", compile_mode=mode)


def mace(options: dict[str, Any]) -> tuple[Builder, dict[str, object]]:
    """`random_mace`, or the trained `model`, by its own package.

    `eager`: as its calculator runs it; `torchscript`: scripted, as for LAMMPS; `compile`: torch.compile through its
    calculator.
    """
    model, description = mace_model(options)
    compiled = options["mode"] == "compile"
    calculator = mace_calculator(model, compiled)
    module = calculator.models[0]
    if options["mode"] == "torchscript":
        from e3nn.util.jit import compile as script

        module = script(module)

    def prepare(atoms: Any) -> tuple[Callable[[], object], int]:
        batch = calculator._atoms_to_batch(atoms)

        def work() -> object:
            data = calculator._clone_batch(batch).to_dict()
            tensors = {key: value for key, value in data.items() if isinstance(value, torch.Tensor)}
            return module(tensors, compute_stress=True, training=compiled)

        return work, number_of_edges(atoms, options["cutoff"])

    return prepare, description


def number_of_edges(atoms: Any, cutoff: float) -> int:
    """Ordered pairs of atoms within the cutoff, with the library of MACE and GRACE."""
    from matscipy.neighbours import neighbour_list

    return len(neighbour_list("i", atoms, cutoff))


def symmetrix(options: dict[str, Any]) -> tuple[Builder, dict[str, object]]:
    """`random_mace`, or the trained `model`, by Symmetrix-XL, with kernels generated for the model (`direct`) in its
    profile for speed.

    Its calculator is asked directly: it keeps the neighbor list of positions that have not moved, so that is made once.
    """
    # Its OpenMP runtime reads this when it is loaded.
    os.environ["OMP_NUM_THREADS"] = str(options["threads"])
    os.environ.setdefault("OMP_PROC_BIND", "false")
    import tempfile

    from symmetrix import Symmetrix
    from symmetrix.extract_mace_data import extract_mace_data

    model, description = mace_model(options)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, extracted = os.path.join(folder, "mace.pt"), os.path.join(folder, "mace.json")
        torch.save(model, checkpoint)
        # Only the elements of the run: an extraction of all 89 takes very long.
        values = extract_mace_data(checkpoint, species=options["elements"])
        with open(extracted, "w") as file:
            json.dump(values, file)
        calculator = Symmetrix(extracted, dtype="float32", streamed_edges="direct", execution_profile="speed")
    description["versions"] = {name: version(name) for name in ("symmetrix-xl", *PACKAGES_OF_MACE)}

    def prepare(atoms: Any) -> tuple[Callable[[], object], int]:
        return asked_of(calculator, atoms), number_of_edges(atoms, options["cutoff"])

    return prepare, description


def grace_calculator(options: dict[str, Any]) -> Any:
    """That of `tensorpotential`, of the saved `model`."""
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(options["threads"])
    tensorflow.config.threading.set_inter_op_parallelism_threads(options["threads"])
    from tensorpotential.calculator import TPCalculator

    return TPCalculator(options["model"])


def grace(options: dict[str, Any]) -> tuple[Builder, dict[str, object]]:
    """A GRACE potential, compiled by XLA as its calculator runs it by default."""
    import numpy as np
    import tensorflow

    calculator = grace_calculator(options)
    (model,) = calculator.models
    weights = tensorflow.train.list_variables(f"{options['model']}/variables/variables")
    description = {
        "n_parameters": sum(int(np.prod(shape)) for name, shape in weights if "_variables_to_train" in name),
        "cutoff": options["cutoff"],
        "versions": {name: version(name) for name in ("tensorpotential", "tensorflow-cpu")},
    }

    def prepare(atoms: Any) -> tuple[Callable[[], object], int]:
        calculator.get_data(atoms)
        data = calculator.data

        def work() -> object:
            # The results are there when they have been read.
            return {name: value.numpy() for name, value in model.compute(data).items()}

        return work, number_of_edges(atoms, options["cutoff"])

    return prepare, description


CALCULATORS = {
    "sevenn": sevenn_calculator,
    "mace": lambda options: mace_calculator(mace_model(options)[0]),
    "grace": grace_calculator,
}
KINDS = {"hienet": hienet, "sevenn": sevenn, "mace": mace, "symmetrix": symmetrix, "grace": grace}

if __name__ == "__main__":
    main()
