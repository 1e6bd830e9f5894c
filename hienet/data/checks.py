"""What is suspicious about labelled frames, in sentences: nothing here changes or leaves out anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ase.constraints import FixAtoms
from ase.stress import full_3x3_to_voigt_6_stress

from hienet.data.force_units import check_forces
from hienet.data.labels import FREE_ENERGY, SEARCH_ORDER, ZERO_BROADENING_ENERGY, LabelReport, Labels, Source, as_stress
from hienet.data.reader import Frame
from hienet.data.repeats import Chained, first_equals
from hienet.data.stress_units import check_stress

_NAMED = 5
_SAME_STRESS = 1e-3
_SAME_ENERGY = 1e-3
_SAME_COMPONENTS = 0.05


def check_frames(frames: Sequence[Frame], labels: Sequence[Labels], report: LabelReport) -> list[str]:
    """Sentences about frames whose labels are, or may be, not what they seem."""
    found = [f"WARNING: {frame.remark}" for frame in frames if frame.remark]
    for check in (
        _unconverged,
        _repeated,
        _contradicting_virials,
        _asymmetric_stresses,
        _two_of_one_name,
        _mixed_calculations,
        _constrained_forces,
        _mixed_energies,
    ):
        found += check(frames, labels, report)
    sentences = (*check_stress(frames, labels), *check_forces(frames, labels))
    return found + [f"WARNING: {sentence}" for sentence in sentences]


def check_overlap(sets: Mapping[str, Sequence[Frame]]) -> list[str]:
    """Sentences about frames that are in several sets, which are given in the order train, validation, test."""
    members = [name for name, frames in sets.items() for _ in range(len(frames))]
    frames_of_all = Chained(list(sets.values()))
    first = first_equals(frames_of_all)
    found = []
    for name, frames in sets.items():
        shared = [i for i, own in enumerate(members) if own == name and members[first[i]] != name]
        if shared:
            frame, other, twin = frames_of_all[shared[0]], members[first[shared[0]]], frames_of_all[first[shared[0]]]
            other = "training" if other == "train" else other
            found.append(
                f"WARNING: {len(shared)} of the {len(frames)} frames of the {name} set are also in the {other} set "
                f"({frame.source} is {twin.source}), so that errors of the {name} set look better than those of new "
                "structures; remove them from one of the two"
            )
    return found


def _named(frames: Sequence[Frame]) -> str:
    """The first frames, and how many there are besides."""
    rest = f" and {len(frames) - _NAMED} more" if len(frames) > _NAMED else ""
    return "; ".join(frame.source for frame in frames[:_NAMED]) + rest


def _warning(bad: Sequence[Frame], sentence: str) -> Iterator[str]:
    """A sentence about these frames, `{n}` in it their number, with the first of them; nothing if there are none."""
    if bad:
        yield f"WARNING: {sentence.replace('{n}', str(len(bad)))}: {_named(bad)}"


def _unconverged(frames: Sequence[Frame], labels: Sequence[Labels], report: LabelReport) -> Iterator[str]:
    yield from _warning(
        [frame for frame in frames if not frame.converged],
        "the electronic steps of {n} frame(s) ended at their largest number (NELM) without convergence, so that "
        "energies, forces and stresses may be wrong",
    )


def _repeated(frames: Sequence[Frame], labels: Sequence[Labels], report: LabelReport) -> Iterator[str]:
    repeated, contradicting = [], []
    for i, (frame, twin) in enumerate(zip(frames, first_equals(frames), strict=True)):
        if twin == i:
            continue
        repeated.append(frame)
        energies = labels[i].energy, labels[twin].energy
        if energies[0] is not None and energies[1] is not None:
            difference = abs(energies[0] - energies[1]) / len(frame.atoms)
            if difference > _SAME_ENERGY:
                contradicting.append((difference, frame, frames[twin]))
    if repeated:
        yield f"note: {len(repeated)} frame(s) repeat the structure of another: {_named(repeated)}"
    if contradicting:
        difference, frame, other = max(contradicting, key=lambda item: item[0])
        yield (
            f"WARNING: {len(contradicting)} of them have another energy than the same structure before, by up to "
            f"{1e3 * difference:.3g} meV/atom ({frame.source} and {other.source}); keep only one of them"
        )


def _contradicting_virials(frames: Sequence[Frame], labels: Sequence[Labels], report: LabelReport) -> Iterator[str]:
    """Frames in which both a stress and a virial stand, and -V stress is not the virial."""
    stresses = [source for source in SEARCH_ORDER["stress"] if not source.is_virial]
    virials = [source for source in SEARCH_ORDER["stress"] if source.is_virial]
    bad: list[Frame] = []
    largest, example = 0.0, ""
    for frame in frames:
        both = []
        for sources in (stresses, virials):
            held = ((source, source.read(frame.atoms)) for source in sources)
            found = next(((source, value) for source, value in held if value is not None), None)
            if found is not None:
                try:
                    both.append((found[0], as_stress(found[1], frame.atoms, found[0].is_virial)))
                except (TypeError, ValueError):
                    continue
        if len(both) < 2 or both[0][1] is None or both[1][1] is None:
            continue
        (source, stress), (other, from_virial) = both
        assert stress is not None
        assert from_virial is not None
        difference = float(np.abs(stress - from_virial).max())
        # Printed with few digits, the two differ in the last one.
        if difference > _SAME_STRESS * max(np.abs(stress).max(), np.abs(from_virial).max()) + 1e-5:
            bad.append(frame)
            if difference > largest:
                largest = difference
                relation = ": the virial has the opposite sign" if np.allclose(stress, -from_virial, rtol=1e-2) else ""
                example = f"`{source.name}` and -`{other.name}`/volume by {difference:.3g} eV/Å^3{relation}"
    yield from _warning(
        bad,
        f"stress and virial contradict each other in {{n}} frame(s), {example}; a stress is in eV/Å^3 with tension "
        "positive, a virial is -volume times the stress; choose one with `stress_key` or `virial_key`, and mend the "
        "other",
    )


def _asymmetric_stresses(frames: Sequence[Frame], labels: Sequence[Labels], report: LabelReport) -> Iterator[str]:
    """Nine components that are no stress: those of another order, or of another quantity."""
    used = {file.file: file.used["stress"] for file in report.files}
    bad: list[Frame] = []
    largest = 0.0
    for frame, label in zip(frames, labels, strict=True):
        source = used[frame.file]
        tensor = None if source is None or label.stress is None else np.asarray(source.read(frame.atoms), np.float64)
        if tensor is None or tensor.size != 9:
            continue
        tensor = tensor.reshape(3, 3)
        difference = float(np.abs(tensor - tensor.T).max()) / max(float(np.abs(tensor).max()), 1e-5)
        if difference > _SAME_COMPONENTS:
            bad.append(frame)
            largest = max(largest, difference)
    if bad:
        yield (
            f"WARNING: the nine components of the stress or virial of {len(bad)} frame(s) are not symmetric, by up to "
            f"{100 * largest:.2g} % of the largest, and their symmetric part is used; expected is the order "
            f"xx, xy, xz, yx, yy, yz, zx, zy, zz: {_named(bad)}"
        )


def _two_of_one_name(frames: Sequence[Frame], labels: Sequence[Labels], report: LabelReport) -> Iterator[str]:
    """Labels of the calculator beside entries of the same name, but of other values, in the frame."""
    used = {file.file: file.used for file in report.files}
    bad: dict[str, list[Frame]] = {}
    for frame in frames:
        for source in used[frame.file].values():
            if source is None or source.place != "calculator":
                continue
            label, other = source.read(frame.atoms), frame.atoms.info.get(source.name)
            other = frame.atoms.arrays.get(source.name, other)
            if label is not None and other is not None and not _equal(label, other):
                bad.setdefault(source.name, []).append(frame)
    for name, members in bad.items():
        yield from _warning(
            members,
            f"`{name}` stands in {{n}} frame(s) twice with different values, as a result of the calculator, which is "
            "used, and as an entry of the frame, which is not",
        )


def _mixed_calculations(frames: Sequence[Frame], labels: Sequence[Labels], report: LabelReport) -> Iterator[str]:
    """Energies under a name of their own beside forces of a calculator that has another energy, or the reverse."""
    used = {file.file: file.used for file in report.files}
    bad: dict[tuple[str, str, str], list[Frame]] = {}
    for frame, label in zip(frames, labels, strict=True):
        sources = used[frame.file]
        for own, other in (("energy", "forces"), ("forces", "energy")):
            first, second = sources[own], sources[other]
            if first is None or second is None or first.place == "calculator" or second.place != "calculator":
                continue
            value, twin = getattr(label, own), Source(own, "calculator").read(frame.atoms)
            if value is not None and twin is not None and not _equal(value, twin):
                bad.setdefault((own, str(first), str(second)), []).append(frame)
    for (own, label_name, other_name), members in bad.items():
        yield from _warning(
            members,
            f"in {{n}} frame(s) labels seem to be of two calculations: `{label_name}` differs from the {own} of the "
            f"calculator, but `{other_name}` is used beside it; name what belongs together with `energy_key` and "
            "`forces_key`",
        )


def _equal(label: object, other: object) -> bool:
    try:
        first, second = (np.asarray(value, dtype=np.float64) for value in (label, other))
    except (TypeError, ValueError):
        return False
    if first.size == 6 and second.size == 9:
        second = full_3x3_to_voigt_6_stress(second.reshape(3, 3))
    return first.size == second.size and np.allclose(first.ravel(), second.ravel(), rtol=1e-6, atol=1e-6)


def _constrained_forces(frames: Sequence[Frame], labels: Sequence[Labels], report: LabelReport) -> Iterator[str]:
    """Frames in which exactly the fixed atoms have no forces: these were set to zero, not calculated."""
    bad = []
    for frame, label in zip(frames, labels, strict=True):
        fixed = np.zeros(len(frame.atoms), dtype=bool)
        for constraint in frame.atoms.constraints:
            if isinstance(constraint, FixAtoms):
                fixed[constraint.index] = True
        if label.forces is not None and fixed.any() and not fixed.all():
            vanish = (label.forces == 0).all(axis=1)
            if vanish[fixed].all() and not vanish[~fixed].any():
                bad.append(frame)
    yield from _warning(
        bad,
        "in {n} frame(s) the forces on all fixed atoms, and on no others, are exactly zero, as if the constraint had "
        "removed them; a model would learn forces that are not there; write the forces without constraints (ASE: "
        "get_forces(apply_constraint=False))",
    )


def _mixed_energies(frames: Sequence[Frame], labels: Sequence[Labels], report: LabelReport) -> Iterator[str]:
    """Free energies in some files, energies of which it is not known in others."""
    free = {file.file for file in report.files if file.used["energy"] == FREE_ENERGY}
    other = [file.file for file in report.files if file.used["energy"] == ZERO_BROADENING_ENERGY]
    largest = 0.0
    for frame in frames:
        if frame.file in free:
            pair = FREE_ENERGY.read(frame.atoms), ZERO_BROADENING_ENERGY.read(frame.atoms)
            if pair[0] is not None and pair[1] is not None:
                largest = max(largest, abs(float(pair[0]) - float(pair[1])) / len(frame.atoms))  # type: ignore[arg-type]
    if largest > _SAME_ENERGY and other:
        yield (
            f"WARNING: energies of `{min(free)}` are free energies, which differ from its energies at zero broadening "
            f"by up to {1e3 * largest:.3g} meV/atom, but `{other[0]}` has only one energy; make sure that it is of the "
            "same kind, or set `energy_key: energy`"
        )
    elif largest > _SAME_ENERGY:
        yield (
            "note: energies are free energies, of which forces are the derivatives; energies extrapolated to zero "
            f"broadening differ by up to {1e3 * largest:.3g} meV/atom, and `energy_key: energy` takes those"
        )
