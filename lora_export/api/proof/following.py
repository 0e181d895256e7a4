"""The proof of a merge by another tool: every recipe is tried, to find the one that it follows.

A right merge by PEFT's safe_merge, or one that changes tied tables together, has other bits than
the default. Without the recipe's name, a refusal would call such a merge damaged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, cast

from lora_export.api.proof.checkpoint_proof import prove_checkpoint, prove_weights
from lora_export.errors import LoraExportError
from lora_export.records import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.api.job.planned_job import Job
    from lora_export.api.proof.model_proof import Proven
    from lora_export.planning.request import AdapterOptions
    from lora_export.records import Checkpoint


class PlanAgain(Protocol):
    """A function that plans the same base and adapters again; raises as make_job does."""

    def __call__(self, *, settings: AdapterOptions) -> Job:
        """Return the job with these settings."""


RECIPES = {
    "auto": "the library's own merge",
    "peft-safe": "PEFT's merge with safe_merge=True",
    "exact": "a sum in float32, rounded once",
}


def prove_foreign(job: Job, merged: Checkpoint, plan_again: PlanAgain) -> tuple[Job, Proven]:
    """Prove a merge without a manifest, and return the job whose recipe it follows.

    Without --recipe, every recipe that gives the unmerged model's outputs passes, and a warning
    names it. With --recipe or --tied, a merge that follows another one fails. The failed check
    names the one that it follows.

    plan_again: plans with other settings; a recipe that it refuses is skipped.

    Returns:
        (the job that was proven, its proof).
    """
    proven = prove_checkpoint(job, merged, foreign=True)
    wrong = [check for check in proven.checks if check.level == "weights" and not check.passed]
    found = _followed(job, merged, plan_again) if wrong else None
    if found is None:
        return job, proven
    recipe = found.plan.recipe
    if found.plan.coupled == job.plan.coupled and job.settings.get("recipe") is None:
        other = prove_checkpoint(found, merged, foreign=True)
        warning = f"it follows --recipe {recipe} ({RECIPES[recipe]}), not auto: found by trying"
        return found, replace(other, warnings=(warning, *other.warnings))
    hint = _named(found, job)
    checks = tuple(replace(one, hint=hint) if one is wrong[0] else one for one in proven.checks)
    finding = Finding("other-recipe", f"the merge is right by other options: {hint}")
    return job, replace(proven, checks=checks, findings=(finding,))


def _followed(job: Job, merged: Checkpoint, plan_again: PlanAgain) -> Job | None:
    """Return the job with the first other recipe whose weights are those of `merged`."""
    for settings in _others(job):
        try:
            other = plan_again(settings=settings)
        except LoraExportError:  # the adapter's library has no such recipe, or the plan is refused
            continue
        same = (other.plan.coupled, other.plan.recipe) == (job.plan.coupled, job.plan.recipe)
        if not same and all(check.passed for check in prove_weights(other, merged)[0]):
            return other
    return None


def _others(job: Job) -> Iterator[AdapterOptions]:
    """Yield the settings with each recipe, first with the choice of --tied, then the other one.

    The order decides which recipe is named where two give the same weights.
    """
    asked = job.settings.get("tied") or "untie"
    for tied in (asked, "untie" if asked == "eval" else "eval"):
        for recipe in RECIPES:
            yield cast("AdapterOptions", {**job.settings, "recipe": recipe, "tied": tied})


def _named(found: Job, job: Job) -> str:
    """Return a hint with the options that the merge follows, and what they do to its outputs."""
    recipe, coupled = found.plan.recipe, found.plan.coupled
    options = [f"--recipe {recipe} ({RECIPES[recipe]})"] if recipe != job.plan.recipe else []
    if coupled != job.plan.coupled:
        options.append(f"--tied {found.settings['tied']}")
    hint = f"it follows {' and '.join(options)}; name that"
    if not coupled:
        return hint
    return (
        f"{hint} to accept it: {' and '.join(coupled)} change together, as in the library's own "
        "merge, and the outputs differ from the unmerged model's"
    )
