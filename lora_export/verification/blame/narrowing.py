"""Finds the stage that broke a proof, and the module, by running parts of it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.errors import VerificationError
from lora_export.records import Attribution, example_sizes
from lora_export.verification.blame import bisect
from lora_export.verification.blame.attribution import GRAPH, UNREADABLE, by_checks
from lora_export.verification.blame.graph_modules import read_modules
from lora_export.verification.model.probes import make_probes, other_sizes, probe_of_sizes
from lora_export.verification.model.runs import nudge, run
from lora_export.verification.model.witnesses import attach, load_merged, load_unmerged
from lora_export.verification.runtime.sessions import LEVELS, open_session, run_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from lora_export.models.subject import Subject
    from lora_export.records import Check
    from lora_export.verification.model.tolerance import Tolerance
    from lora_export.verification.runtime.sessions import Opener, Optimisation

    Probe = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Suspects:
    """What a proof was about, to run parts of it again."""

    #: The merged network that failed.
    subject: Subject
    #: The inputs on which it was run.
    probes: Sequence[Probe]
    #: The seed that the probes were drawn with.
    seed: int = 0

    def load_merged(self) -> nn.Module:
        """The merged torch model."""
        return load_merged(self.subject)

    def load_unmerged(self) -> nn.Module:
        """The base with live branches."""
        model = load_unmerged(self.subject)
        attach(self.subject.source, model, self.subject.plan)
        return model

    def noisy(self, model: nn.Module) -> Iterable[nn.Module]:
        """The unmerged model with its weights moved by one ulp."""
        nudge(model.float(), self.subject.source, self.subject.plan)
        yield model


@dataclass(frozen=True, slots=True)
class Artifact:
    """The ONNX file that was proven, and what its outputs were held against.

    tolerance: of the outputs. opener: opens a session on the file, as runtime.open_session does.
    """

    path: Path
    tolerance: Tolerance
    opener: Opener = open_session


def attribute_model(suspects: Suspects, failed: Sequence[Check]) -> Attribution | None:
    """The merged torch model is not the unmerged one: in which module, by comparing all of them."""
    for probe in _chosen(suspects.probes, failed):
        gaps = bisect.compare_models(
            suspects.load_unmerged, suspects.noisy, suspects.load_merged, probe
        )
        if gap := bisect.first_diverging(gaps):
            return Attribution("merge", gap.module, detail=str(gap))
    return None


def attribute_file(
    suspects: Suspects, artifact: Artifact, failed: Sequence[Check]
) -> Attribution | None:
    """What is wrong with an ONNX file, whose merged torch model is right.

    Args:
        suspects: what to run again.
        artifact: the file.
        failed: the failed checks of the levels "file" and "runtime".
    """
    found = by_checks(failed)
    if found is not None:
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
    bare = Attribution("export", detail=_told(failed))
    return _placed(suspects, artifact, bare, failed)


def _told(failed: Sequence[Check]) -> str:
    check = failed[0]
    return f"{check.name}: {check.worst:.2g}, allowed {check.tolerance:.2g}, at {check.where}"


def _placed(
    suspects: Suspects, artifact: Artifact, found: Attribution, failed: Sequence[Check]
) -> Attribution:
    """The attribution with module and node, by comparing all modules, where it has none yet."""
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
    """The node that uses the first initializer that is not what it must be."""
    users = read_modules(path).users
    words = " ".join(check.detail for check in failed).replace("'", " ").split()
    return next((users[word][0] for word in words if users.get(word)), "")


def _diverging(
    suspects: Suspects, artifact: Artifact, failed: Sequence[Check]
) -> bisect.Gap | None:
    for probe in _chosen(suspects.probes, failed):
        gaps = bisect.compare_graph(
            suspects.load_merged, artifact.path, probe, opener=artifact.opener
        )
        if gap := bisect.first_diverging(gaps):
            return gap
    return None


def _at_node(artifact: Artifact, found: Attribution, error: VerificationError) -> Attribution:
    """The module of the node that the runtime names in its refusal."""
    problem = error.problems[0]
    node = problem.where.partition(": ")[2]
    module = read_modules(artifact.path).scopes.get(node, "") if node else ""
    return Attribution(found.stage, module, node, f"{found.detail}; {problem.message[:200]}")


def _chosen(probes: Sequence[Probe], failed: Sequence[Check]) -> list[Probe]:
    """The probe that a failed check names, first; then the others."""
    named = [
        at
        for at in range(len(probes))
        if any(check.where.startswith(f"probe {at},") for check in failed)
    ]
    return [probes[at] for at in dict.fromkeys([*named, *range(len(probes))])]


def optimiser_level(suspects: Suspects, artifact: Artifact) -> Optimisation | None:
    """The first level of graph optimisation that breaks what is right without any, if one does."""
    expected = run(suspects.load_merged(), suspects.probes)
    if not _agrees(artifact, suspects.probes, expected, "none"):
        return None
    broken = (one for one in LEVELS if not _agrees(artifact, suspects.probes, expected, one))
    return next(broken, None)


def _in_optimiser(
    suspects: Suspects, artifact: Artifact, level: Optimisation, failed: Sequence[Check]
) -> Attribution:
    told = f"right without graph optimisation, wrong at level {level!r}"
    for probe in _chosen(suspects.probes, failed):
        try:
            gap = bisect.compare_sessions(artifact.path, probe, level, opener=artifact.opener)
        except VerificationError as error:
            return _at_node(artifact, Attribution("runtime optimiser", detail=told), error)
        if gap is not None:
            detail = f"{told}; its output changes by {gap.outputs:.2g}"
            return Attribution("runtime optimiser", gap.module, gap.node, detail)
    return Attribution("runtime optimiser", detail=told)


def _by_sizes(suspects: Suspects, artifact: Artifact) -> Attribution | None:
    """Whether the file is right at the traced sizes alone, and which dimension it has fixed."""
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
        return None  # then it is what the inputs hold, not their sizes
    if wrong and not _fixed(traced, other_sizes(specs), wrong):
        return None  # a size that is fixed is right at no larger one
    told = [
        f"{name} = {size}"
        for sizes in wrong
        for name, size in sizes.items()
        if size != traced[name]
    ]
    sizes = ", ".join(f"{name} = {size}" for name, size in traced.items())
    where = "at " + ", ".join(told) if told else "at several other sizes together"
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
    """The dimensions of which every size tried that is larger than the traced one is wrong."""
    larger = {name: [one for one in tried if one[name] > size] for name, size in traced.items()}
    return [name for name, found in larger.items() if found and all(s in wrong for s in found)]


def _where_fixed(
    suspects: Suspects, artifact: Artifact, found: Attribution, probe: Probe
) -> Attribution:
    """Module and node where the run at other sizes stops, or goes astray."""
    try:
        gaps = bisect.compare_graph(
            suspects.load_merged, artifact.path, probe, opener=artifact.opener
        )
    except VerificationError as error:
        return _at_node(artifact, found, error)
    gap = bisect.first_diverging(gaps)
    if gap is None:
        return found
    return Attribution(found.stage, gap.module, gap.node, f"{gap}; {found.detail}")


def _agrees(
    artifact: Artifact,
    probes: Sequence[Probe],
    expected: Sequence[Mapping[str, NDArray[Any]]],
    level: Optimisation,
) -> bool:
    """Whether the file gives what is expected; one that does not run does not."""
    try:
        outputs = run_model(artifact.path, probes, level=level, opener=artifact.opener)
    except VerificationError:
        return False
    return artifact.tolerance.check("", expected, outputs).passed
