"""Runs the witnesses of a large model at once: each weight is read and cast once for all of them.

Each witness is a copy of the network without weights. What it computes is what it would compute
alone; see witnesses.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from lora_export.verification.model.branches import attach, distinct_sites
from lora_export.verification.model.compare import join_batches
from lora_export.verification.model.loading import (
    load_merged,
    load_shown_base,
    load_unmerged,
    load_unrounded,
)
from lora_export.verification.model.probes import split_batch
from lora_export.verification.model.runs import (
    nudge,
    refuse_differing,
    run,
    run_exact,
    run_otherwise,
)
from lora_export.verification.model.silent_modules import (
    load_own_modules,
    missing_media,
    silent_modules,
)
from lora_export.verification.unrounded.unrounded_model import has_rounding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from lora_export.models.subject import Subject
    from lora_export.records import Checkpoint, InputSpec
    from lora_export.report.stopwatch import Advance
    from lora_export.verification.formulas.signatures import LiveBranch
    from lora_export.verification.model.runs import Probe


def run_together(
    subject: Subject,
    probes: Sequence[Probe],
    specs: Sequence[InputSpec],
    progress: Advance,
) -> dict[str, Any]:
    """Run every witness in lockstep; see witnesses.call_witnesses for arguments and errors.

    progress: called with the bytes of weights that were read so far, and with those in all.

    Returns:
        the fields of witnesses.Witnesses, by name.
    """
    import torch

    from lora_export.models.streaming.lockstep import Lockstep

    state = torch.get_rng_state()
    live = Live(subject)
    unmerged = live.model()
    tasks: dict[str, Callable[[], Any]] = {
        "base": partial(run, load_shown_base(subject), probes),
        "unmerged": partial(run, unmerged, probes),
        "again": partial(run, live.model(), probes[:1]),
        "exact": partial(run_exact, live.model(), probes),
        "nudged": partial(run, live.nudged(), probes),
        "merged": partial(run, load_merged(subject), probes),
    }
    if has_rounding(subject.plan):
        tasks["unrounded"] = partial(run, load_unrounded(subject), probes)
    samples = [split_batch(specs, probe) for probe in probes]
    singles = [
        [partial(run, live.model(), [one]) for one in each] if len(each) > 1 else []
        for each in samples
    ]
    every: list[Callable[[], Any]] = [*tasks.values(), *(task for each in singles for task in each)]
    read = Reading(progress, [subject.plan.base, subject.merged])
    results = iter(Lockstep(read).run(every))
    found: dict[str, Any] = {name: next(results) for name in tasks}
    refuse_differing(found["unmerged"][0], found.pop("again")[0], state)
    found["exact"], found["narrow"] = found["exact"]
    parts = [[next(results)[0] for _ in each] for each in singles]
    found["split"] = [
        join_batches(part, whole) if part else {}
        for part, whole in zip(parts, found["unmerged"], strict=True)
    ]
    if silent := silent_modules(live.branches):
        load_own_modules(subject.source, subject.plan, silent, missing_media(unmerged, probes[0]))
    found["others"] = run_otherwise(live.model(), probes) if found["narrow"] else []
    found["sites"] = distinct_sites(live.branches)
    found.setdefault("unrounded", found["merged"])
    return found


class Reading:
    """Reports the bytes that were read of the products' weights."""

    def __init__(self, progress: Advance, checkpoints: Sequence[Checkpoint]) -> None:
        """Take the function to call, and the checkpoints each of which is read once."""
        self._progress = progress
        refs = [ref for checkpoint in checkpoints for ref in checkpoint.tensors().values()]
        self._total = sum(ref.length for ref in refs if len(ref.spec.shape) > 1)
        self._done = 0

    def __call__(self, size: int) -> None:
        """Add the bytes of one weight."""
        self._done = min(self._done + size, self._total)
        self._progress(self._done, self._total)


class Live:
    """Makes unmerged models of one subject, whose live branches share their factors."""

    def __init__(self, subject: Subject) -> None:
        """Take the merged network; nothing is read."""
        self._subject = subject
        #: The live branches of the first model.
        self.branches: list[LiveBranch] = []

    def model(self) -> nn.Module:
        """Return the base with live branches."""
        source, plan = self._subject.source, self._subject.plan
        model = load_unmerged(self._subject)
        branches = attach(source, model, plan, self.branches)
        self.branches = self.branches or branches
        return model

    def nudged(self) -> nn.Module:
        """Return the same with every adapted weight moved by one ulp of float32."""
        model = self.model()
        nudge(model, self._subject.source, self._subject.plan)
        return model
