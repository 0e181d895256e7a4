"""Runs the witnesses of a model one after the other, so that one model is in memory at a time."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lora_export.models.network.casting import to_float32
from lora_export.verification.model.branches import attach, distinct_sites
from lora_export.verification.model.loading import (
    base_is_unmerged,
    load_base,
    load_merged,
    load_unmerged,
    load_unrounded,
)
from lora_export.verification.model.runs import (
    nudge,
    refuse_random,
    run,
    run_exact,
    run_otherwise,
    run_split,
)
from lora_export.verification.model.silent_modules import (
    load_own_modules,
    missing_media,
    silent_modules,
)
from lora_export.verification.unrounded.unrounded_model import has_rounding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.models.subject import Subject
    from lora_export.records import InputSpec
    from lora_export.report.stopwatch import Advance
    from lora_export.verification.model.runs import Probe

_WITNESSES = 7
"""The unmerged model as it is, its rows alone, exact and nudged; merged, unrounded, the others."""


def run_in_turn(
    subject: Subject, probes: Sequence[Probe], specs: Sequence[InputSpec], progress: Advance
) -> dict[str, Any]:
    """Run every witness; see witnesses.call_witnesses for arguments and errors.

    The base is the unmerged model before its branches are attached, unless a full tensor of an
    adapter replaces one of the base's.

    progress: called with the number of witnesses that have run, and of all.

    Returns:
        the fields of witnesses.Witnesses, by name.
    """
    import torch

    source, plan = subject.source, subject.plan
    found: dict[str, Any] = {}
    model = load_unmerged(subject)
    if base_is_unmerged(subject):
        found["base"] = run(model, probes)
    if "torch._dynamo" in sys.modules:  # compiled code of the bare base would not call the branches
        torch.compiler.reset()
    branches = attach(source, model, plan)
    unmerged = run(model, probes)
    silent = silent_modules(branches)
    if silent:
        model = load_own_modules(source, plan, silent, missing_media(model, probes[0]))
        unmerged = run(model, probes)
    progress(1, _WITNESSES)
    refuse_random(model, probes[0], unmerged[0])
    found["silent"], found["unmerged"] = silent, unmerged
    found["split"] = [
        run_split(model, probe, whole, specs) for probe, whole in zip(probes, unmerged, strict=True)
    ]
    progress(2, _WITNESSES)
    found["exact"], found["narrow"] = run_exact(model, probes)
    found["others"] = run_otherwise(model, probes) if found["narrow"] else []
    progress(3, _WITNESSES)
    nudge(to_float32(model), source, plan)  # last: the weights stay moved
    found["nudged"] = run(model, probes)
    progress(4, _WITNESSES)
    found["sites"] = distinct_sites(branches)
    del model, branches
    merged = found["merged"] = run(load_merged(subject), probes)
    progress(5, _WITNESSES)
    found["unrounded"] = run(load_unrounded(subject), probes) if has_rounding(plan) else merged
    progress(6, _WITNESSES)
    if "base" not in found:
        found["base"] = run(load_base(subject), probes)
    live = None if plan.reshaped else source.load_live(plan)
    found["live"] = run(live, probes) if live is not None else []
    progress(_WITNESSES, _WITNESSES)
    return found
