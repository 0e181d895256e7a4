"""A planted fault, what must be said about it, and what was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lora_export.errors import VerificationError
from lora_export.verification.model.runs import run
from lora_export.verification.model.tolerance import FACTOR
from lora_export.verification.runtime.sessions import run_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from detection.bench import Bench, State
    from lora_export.api.proof.model_proof import Proven
    from lora_export.records import Attribution, Checkpoint

SEEN = 1 + 2 / FACTOR
"""Times what is allowed: an effect that noise, at most a tenth of that on both sides, cannot hide.
"""


@dataclass
class Outcome:
    """How the product judged one fault.

    effect: on the outputs, in units of what is allowed. missed: the judges that let it pass though
    they could see it. wrong: attributions to another stage. named: whether the module was.
    """

    name: str
    stage: str
    effect: float
    modules: set[str]
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)

    @property
    def visible(self) -> bool:
        """Whether the outputs show it."""
        return self.effect > SEEN

    def hear(self, judge: str, proven: Proven) -> None:
        """Take down what one judge says."""
        if all(check.passed for check in proven.checks):
            self.missed.append(judge)
            return
        found: Attribution | None = proven.attribution
        said = f"{judge}: {found or 'nobody is blamed'}"
        if found is None or found.stage != self.stage:
            self.wrong.append(said)
        elif found.module not in self.modules:
            self.unnamed.append(said)

    def record(self, architecture: str) -> dict[str, Any]:
        """As plain data, which a worker of a parallel run can send."""
        return {
            "fault": f"{architecture}: {self.stage}: {self.name}",
            "stage": self.stage,
            "caught": not self.missed,
            "attributed": not (self.missed or self.wrong),
            "named": not (self.missed or self.wrong or self.unnamed),
            "visible": self.visible,
        }


def judge_merge(bench: Bench, name: str, changes: State) -> Outcome:
    """A wrong checkpoint: by its weights, and as a model where the outputs show the fault."""
    stored = bench.stored
    assert any(not torch.equal(v.to(stored[n].dtype), stored[n]) for n, v in changes.items()), name
    merged = bench.doctored(changes)
    model = bench.source.load(merged, full={}, untied=bench.job.plan.separated)
    on_disk = {tensor.rpartition(".")[0] for tensor in changes}
    outcome = Outcome(name, "merge", 0.0, _changed(bench, model) | on_disk)
    outcome.effect = _effect(bench, run(model.double(), bench.by_model.suspects.probes))
    outcome.hear("weights", bench.judge_weights(merged))
    if outcome.visible:
        outcome.hear("model", bench.judge_model(merged))
    return outcome


def judge_file(
    bench: Bench, name: str, path: Path, modules: set[str], stage: str = "export"
) -> Outcome:
    """A wrong file: by all checks, and without the audit where the outputs show the fault."""
    outcome = Outcome(name, stage, file_effect(bench, path), modules)
    outcome.hear("audit", bench.judge_file(path))
    if outcome.visible:
        outcome.hear("runtime", bench.judge_file(path, audited=False))
    return outcome


def judge_runtime(
    bench: Bench, name: str, opener: Callable[..., Any], effect: float, modules: set[str]
) -> Outcome:
    """The right file in a runtime whose optimisation is wrong."""
    outcome = Outcome(name, "runtime optimiser", effect, modules)
    outcome.hear("runtime", bench.judge_file(bench.file, opener=opener))
    return outcome


def file_effect(bench: Bench, path: Path) -> float:
    """What a file's outputs are away from the right model's, in units of what is allowed."""
    try:
        outputs = run_model(path, bench.by_model.suspects.probes, level="none")
    except VerificationError:
        return float("inf")
    return _effect(bench, outputs)


def _effect(bench: Bench, outputs: Sequence[Any]) -> float:
    check = bench.by_model.tolerance.check("", bench.reference, outputs)
    return check.worst / check.tolerance if check.tolerance else float("inf")


def changed_modules(bench: Bench, merged: Checkpoint) -> set[str]:
    """The modules whose weights are not the right ones, as the running model calls them."""
    return _changed(bench, bench.source.load(merged, full={}, untied=bench.job.plan.separated))


def _changed(bench: Bench, model: torch.nn.Module) -> set[str]:
    right = bench.loads(bench.merged)
    keys = [k for k, value in model.state_dict().items() if not torch.equal(value, right[k])]
    return {key.rpartition(".")[0] for key in keys}
