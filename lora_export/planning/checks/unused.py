"""Options that changed nothing: a typing error, or a wrong assumption about the adapter."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lora_export.layers import all_kinds
from lora_export.planning.names.base_names import join
from lora_export.planning.names.factor_keys import keys_of
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.records import Delta, Facts


def refuse_unused(given: Given, changes: TensorChanges, findings: Findings) -> None:
    """Refuse every option that fits nothing, after all adapters were fitted."""
    findings.missing += _unused_globs(given)
    if findings.unfit:
        return  # a module that does not fit was not looked up, so its pattern may seem unused
    unmatched = [p for p, _ in given.facts.patterns if p not in given.facts.matched]
    findings.missing += [
        Problem(
            "fits no module of the adapters",
            f"[[module]] match = {pattern!r}",
            _MODULES,
            cause="usage/no-effect",
        )
        for pattern in dict.fromkeys(unmatched)
    ]
    if not findings.missing:
        top, deltas = given.facts.top, changes.deltas()
        findings.missing += [*_unused_blocks(top, deltas), *_unused_orientation(top, deltas)]


_MODULES = "a glob on the base's name of the module; --dry-run -v lists the modules"


def _unused_globs(given: Given) -> Iterator[Problem]:
    full = [one.name for adapter in given.adapters for one in adapter.replacements]
    factors = [key for adapter in given.adapters for u in adapter.updates for key in keys_of(u)]
    modules = given.model.modules if given.model else {}
    forgotten = [join(name, f"lora_{role}") for name in modules for role in "AB"]
    options = given.options
    known = [*factors, *full, *forgotten]
    yield from _without_match("--allow-unmatched", options.allow_unmatched, known)
    yield from _without_match("--allow-new", options.allow_new, full)


def _without_match(option: str, globs: Sequence[str], names: Iterable[str]) -> Iterator[Problem]:
    listed = list(names)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in listed):
            what = "full tensor" if option == "--allow-new" else "tensor"
            hint = "lora-export inspect lists what the adapter holds"
            yield Problem(
                f"{glob!r} fits no {what} of the adapters", option, hint, cause="usage/no-effect"
            )


def _unused_blocks(top: Facts, deltas: Sequence[Delta]) -> Iterator[Problem]:
    """Yield a problem for blocks that no layer has; a single block fits every Linear."""
    listed = ", ".join(sorted({delta.kind for delta in deltas}))
    blocks = any(delta.enable_lora for delta in deltas)
    heads = any(delta.heads for delta in deltas)
    if top.enable_lora is not None and len(top.enable_lora) > 1 and not blocks:
        message = f"no MergedLinear is in the plan, only {listed}"
        yield Problem(
            message, "--enable-lora", "leave it out, also of --hparams", cause="usage/no-effect"
        )
    if (top.n_head is not None or top.n_query_groups is not None) and not heads:
        message = f"no fused query, key and value of litgpt is in the plan, only {listed}"
        yield Problem(
            message,
            "n_head, n_query_groups",
            "leave them out of --hparams",
            cause="usage/no-effect",
        )


def _unused_orientation(top: Facts, deltas: Sequence[Delta]) -> Iterator[Problem]:
    """Yield a problem for fan_in_fan_out where PEFT adapts only embeddings and convolutions."""
    turned = top.fan_in_fan_out
    if turned is None or any(delta.recipe == "loralib" for delta in deltas):
        return  # in loralib's files it distinguishes a Linear from an embedding
    if deltas and not any(all_kinds()[delta.kind].is_oriented(delta.shape) for delta in deltas):
        kinds = ", ".join(sorted({delta.kind for delta in deltas}))
        message = f"no weight of the plan is stored (in, out) or (out, in), only {kinds}"
        option = f"--{'' if turned else 'no-'}fan-in-fan-out"
        yield Problem(message, option, "leave it out, also of --hparams", cause="usage/no-effect")
