"""Finds the stage and the module that broke a proof, by running parts of it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.errors import VerificationError
from lora_export.records import Attribution, example_sizes
from lora_export.verification.blame import bisect
from lora_export.verification.blame.attribution import GRAPH, UNREADABLE, by_checks
from lora_export.verification.blame.gap import first_diverging
from lora_export.verification.blame.graph_modules import read_modules
from lora_export.verification.model.branches import attach
from lora_export.verification.model.loading import (
    load_merged,
    load_unmerged,
    load_unrounded,
)
from lora_export.verification.model.probes import make_probes, other_sizes, probe_of_sizes
from lora_export.verification.model.runs import nudge, run
from lora_export.verification.runtime.sessions import LEVELS, open_session, run_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from lora_export.models.subject import Subject
    from lora_export.records import Check
    from lora_export.verification.blame.gap import Gap
    from lora_export.verification.model.tolerance import Tolerance
    from lora_export.verification.runtime.sessions import Opener, Optimisation

    Probe = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Suspects:
    """The merged network of a failed proof and its inputs, to run parts of the proof again."""

    subject: Subject
    """The merged network that failed."""
    probes: Sequence[Probe]
    """The inputs on which it was run."""
    seed: int = 0
    """The seed that the probes were drawn with."""

    def load_merged(self) -> nn.Module:
        """Load the merged torch model, with the weights that are stored."""
        return load_merged(self.subject)

    def load_unrounded(self) -> nn.Module:
        """Load the merged torch model before its weights were rounded."""
        return load_unrounded(self.subject)

    def load_unmerged(self) -> nn.Module:
        """Load the base with live branches."""
        model = load_unmerged(self.subject)
        attach(self.subject.source, model, self.subject.plan)
        return model

    def noisy(self, model: nn.Module) -> Iterable[nn.Module]:
        """Yield the unmerged model with its adapted weights moved by one ulp."""
        nudge(model.float(), self.subject.source, self.subject.plan)
        yield model


@dataclass(frozen=True, slots=True)
class Artifact:
    """An ONNX file that failed a proof."""

    path: Path
    tolerance: Tolerance
    """How far its outputs may be from the torch model's."""
    opener: Opener = open_session
    """Opens a session on the file, as runtime.sessions.open_session does."""


def attribute_model(suspects: Suspects, failed: Sequence[Check]) -> Attribution | None:
    """Find the module in which the merged torch model leaves the unmerged one; None if none does.

    Raises:
        UsageError: a model cannot be run.
    """
    for probe in _chosen(suspects.probes, failed):
        gaps = bisect.compare_models(
            suspects.load_unmerged, suspects.noisy, suspects.load_unrounded, probe
        )
        if gap := first_diverging(gaps):
            return Attribution("merge", gap.module, detail=str(gap))
    return None


def attribute_file(
    suspects: Suspects, artifact: Artifact, failed: Sequence[Check]
) -> Attribution | None:
    """Find the stage, module and node of the fault in an ONNX file whose torch model is right.

    The stages are tried from the cheapest to rule out: the audit's checks, the runtime's optimiser,
    fixed sizes. The export is to blame if all others are ruled out.

    Args:
        suspects: what to run again.
        artifact: the file.
        failed: the failed checks of the levels "file" and "runtime".
    """
    found = by_checks(failed)
    if found is not None:
        # A fixed size inside the graph fails no check of the audit but the one of the whole graph.
        names = {check.name for check in failed if check.level == "file"}
        runs_wrong = any(check.level == "runtime" for check in failed)
        fixed = _by_sizes(suspects, artifact) if names == {GRAPH} and runs_wrong else None
        return fixed or _placed(suspects, artifact, found, failed)
    level = optimiser_level(suspects, artifact)
    if level:
        return _in_optimiser(suspects, artifact, level, failed)
    found = _by_sizes(suspects, artifact)
    if found is not None:
        return found
    bare = Attribution("export", detail=_detail_of(failed[0]))
    return _placed(suspects, artifact, bare, failed)


def _detail_of(check: Check) -> str:
    return f"{check.name}: {check.worst:.2g}, allowed {check.tolerance:.2g}, at {check.where}"


def _placed(
    suspects: Suspects, artifact: Artifact, found: Attribution, failed: Sequence[Check]
) -> Attribution:
    """Return the attribution with its module and node, if these can be found.

    An attribution to the export without a module gets one by comparing all modules.
    """
    if found.module:
        return Attribution(found.stage, found.module, _user(artifact.path, failed), found.detail)
    if found.stage != "export" or any(check.name in UNREADABLE for check in failed):
        return found
    try:
        gap = _diverging(suspects, artifact, failed)
    except VerificationError as error:  # what does not load or run has no outputs to compare
        return _at_node(artifact, found, error)
    if gap is None:
        return found
    return Attribution("export", gap.module, gap.node, f"{gap}; {found.detail}")


def _user(path: Path, failed: Sequence[Check]) -> str:
    """Return the node that uses the first wrong initializer; "" if none is known.

    The checks have the initializer's name in their detail, between other words.
    """
    users = read_modules(path).users
    words = " ".join(check.detail for check in failed).replace("'", " ").split()
    return next((users[word][0] for word in words if users.get(word)), "")


def _diverging(suspects: Suspects, artifact: Artifact, failed: Sequence[Check]) -> Gap | None:
    for probe in _chosen(suspects.probes, failed):
        gaps = bisect.compare_graph(
            suspects.load_merged, artifact.path, probe, opener=artifact.opener
        )
        if gap := first_diverging(gaps):
            return gap
    return None


def _at_node(artifact: Artifact, found: Attribution, error: VerificationError) -> Attribution:
    """Return the attribution to the node that the runtime's refusal names, and to its module."""
    problem = error.problems[0]
    node = problem.where.partition(": ")[2]
    module = read_modules(artifact.path).scopes.get(node, "") if node else ""
    return Attribution(found.stage, module, node, f"{found.detail}; {problem.message[:200]}")


def _chosen(probes: Sequence[Probe], failed: Sequence[Check]) -> list[Probe]:
    """Return the probes, those that a failed check names before the others."""
    named = [
        at
        for at in range(len(probes))
        if any(check.where.startswith(f"probe {at},") for check in failed)
    ]
    return [probes[at] for at in dict.fromkeys([*named, *range(len(probes))])]


def optimiser_level(suspects: Suspects, artifact: Artifact) -> Optimisation | None:
    """Find the lowest level of graph optimisation with wrong outputs.

    It is None if all levels are right, or if the outputs are wrong without any optimisation.

    Raises:
        UsageError: the merged torch model cannot be run.
    """
    expected = run(suspects.load_merged(), suspects.probes)
    if not _agrees(artifact, suspects.probes, expected, "none"):
        return None
    broken = (one for one in LEVELS if not _agrees(artifact, suspects.probes, expected, one))
    return next(broken, None)


def _in_optimiser(
    suspects: Suspects, artifact: Artifact, level: Optimisation, failed: Sequence[Check]
) -> Attribution:
    symptom = f"right without graph optimisation, wrong at level {level!r}"
    for probe in _chosen(suspects.probes, failed):
        try:
            gap = bisect.compare_sessions(artifact.path, probe, level, opener=artifact.opener)
        except VerificationError as error:
            return _at_node(artifact, Attribution("runtime optimiser", detail=symptom), error)
        if gap is not None:
            detail = f"{symptom}; its output changes by {gap.outputs:.2g}"
            return Attribution("runtime optimiser", gap.module, gap.node, detail)
    return Attribution("runtime optimiser", detail=symptom)


def _by_sizes(suspects: Suspects, artifact: Artifact) -> Attribution | None:
    """Return the attribution of a file that is right at the traced sizes alone; else None."""
    specs = suspects.subject.source.inputs
    traced = example_sizes(specs)
    if not traced:
        return None
    model = suspects.load_merged()

    def agrees(probes: Sequence[Probe]) -> bool:
        return _agrees(artifact, probes, run(model, probes), "none")

    if not agrees([probe_of_sizes(specs, traced, suspects.seed)]):
        return None
    wrong = [
        sizes
        for sizes in other_sizes(specs)
        if not agrees([probe_of_sizes(specs, sizes, suspects.seed)])
    ]
    if not wrong and agrees(make_probes(specs, suspects.seed)):
        return None  # the fault depends on the values of the inputs, not on their sizes
    if wrong and not _fixed(traced, other_sizes(specs), wrong):
        return None  # a fixed size would be wrong at every larger one
    changed = [
        f"{name} = {size}"
        for sizes in wrong
        for name, size in sizes.items()
        if size != traced[name]
    ]
    sizes = ", ".join(f"{name} = {size}" for name, size in traced.items())
    where = "at " + ", ".join(changed) if changed else "at several other sizes together"
    found = Attribution(
        "shape specialisation", detail=f"right at {sizes}, as traced; wrong {where}"
    )
    if not wrong:
        return found
    return _where_fixed(suspects, artifact, found, probe_of_sizes(specs, wrong[0], suspects.seed))


def _fixed(
    traced: Mapping[str, int],
    tried: Sequence[Mapping[str, int]],
    wrong: Sequence[Mapping[str, int]],
) -> list[str]:
    """Return the dimensions that are wrong at every tried size above the traced one."""
    larger = {name: [one for one in tried if one[name] > size] for name, size in traced.items()}
    return [name for name, found in larger.items() if found and all(s in wrong for s in found)]


def _where_fixed(
    suspects: Suspects, artifact: Artifact, found: Attribution, probe: Probe
) -> Attribution:
    """Return the attribution with the module and node where a run at other sizes first differs.

    If that run stops instead, they are those of the node that the runtime names.
    """
    try:
        gaps = bisect.compare_graph(
            suspects.load_merged, artifact.path, probe, opener=artifact.opener
        )
    except VerificationError as error:
        return _at_node(artifact, found, error)
    gap = first_diverging(gaps)
    if gap is None:
        return found
    return Attribution(found.stage, gap.module, gap.node, f"{gap}; {found.detail}")


def _agrees(
    artifact: Artifact,
    probes: Sequence[Probe],
    expected: Sequence[Mapping[str, NDArray[Any]]],
    level: Optimisation,
) -> bool:
    """Return whether the file runs and its outputs are within the tolerance of `expected`."""
    try:
        outputs = run_model(artifact.path, probes, level=level, opener=artifact.opener)
    except VerificationError:
        return False
    return artifact.tolerance.check("", expected, outputs).passed
