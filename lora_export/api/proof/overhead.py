"""The nodes and parameters that a merge saves: counted on real captures, not estimated."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from lora_export.errors import InputError, UsageError
from lora_export.records import InputSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.onnx_export.capture.captures import Beside
    from lora_export.records import MergePlan
    from lora_export.verification.model.branches import Branch, Site


def saved(
    plan: MergePlan, sites: Sequence[Site], beside: Beside | None = None
) -> dict[str, int] | None:
    """Count the nodes and parameters that live LoRA branches would add to the merged graph.

    One layer of every form is captured with its live branch and without it. The difference is
    multiplied by the number of layers of this form.

    Args:
        plan: its factors are the parameters.
        sites: one layer of every form.
        beside: keeps the counts for the same network and branches; None counts again.

    Returns:
        "nodes" and "parameters". None where no layer has a branch (an update of a bare parameter
        has none), or where a layer cannot be captured alone.
    """
    from lora_export.onnx_export.capture.node_count import count_extra_nodes
    from lora_export.verification.model.live_layer import LiveLayers

    if not sites:
        return None
    inputs = [_input(at, site.branch) for at, site in enumerate(sites)]

    def count() -> list[int]:
        return count_extra_nodes(LiveLayers(sites).eval(), inputs)

    try:
        extra = beside.counts(_key(sites), len(sites), count) if beside else count()
    except (InputError, UsageError):
        return None
    nodes = sum(site.times * more for site, more in zip(sites, extra, strict=True))
    return {"nodes": nodes, "parameters": _parameters(plan)}


def _key(sites: Sequence[Site]) -> str:
    """Return a SHA-256 (hex) of all that decides the branches' nodes, except the network."""
    facts = []
    for site in sites:
        delta = site.branch.delta
        # A graph depends neither on the factors' files nor on their values.
        plain = replace(delta, adapter="", factors={}, alpha=float(delta.alpha))
        shapes = [(role, ref.spec.shape, ref.spec.dtype) for role, ref in delta.factors.items()]
        facts.append((plain, sorted(shapes), site.branch.taken))
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _input(place: int, branch: Branch) -> InputSpec:
    """Return the input that the layer took in the probes; axes whose size varied are dynamic."""
    dtype, shape = branch.taken
    sizes = enumerate(shape)
    dims = tuple(f"x{place}_{axis}" if size is None else size for axis, size in sizes)
    return InputSpec(f"x{place}", dtype, dims, None if dtype == "float32" else 2)


def _parameters(plan: MergePlan) -> int:
    """Return the elements of all factors; a factor that several modules share counts once."""
    refs = {
        (ref.file, ref.spec.name): ref
        for step in plan.steps()
        for delta in step.deltas
        for ref in delta.factors.values()
    }
    return sum(prod(ref.spec.shape) for ref in refs.values())
