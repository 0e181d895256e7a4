"""Options that changed nothing: a slip of the keyboard, or a wrong idea of the adapter."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lora_export.layers import all_kinds
from lora_export.planning.names.base_names import join
from lora_export.planning.updates.fit import keys_of
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lora_export.planning.draft import Draft
    from lora_export.records import Adapter


def refuse_unused(draft: Draft, adapters: Sequence[Adapter]) -> None:
    """Add a problem for every option that fits nothing, when all adapters were looked at."""
    draft.missing += _unused_globs(draft, adapters)
    if draft.unfit:
        return  # not every module was asked for
    unmatched = [p for p, _ in draft.facts.patterns if p not in draft.facts.matched]
    draft.missing += [
        Problem("fits no module of the adapters", f"[[module]] match = {pattern!r}", _MODULES)
        for pattern in dict.fromkeys(unmatched)
    ]
    if not draft.missing:
        draft.missing += [*_unused_blocks(draft), *_unused_orientation(draft)]


_MODULES = "a glob on the base's name of the module; --dry-run -v lists the modules"


def _unused_globs(draft: Draft, adapters: Sequence[Adapter]) -> Iterator[Problem]:
    full = [replacement.name for adapter in adapters for replacement in adapter.replacements]
    factors = [key for adapter in adapters for u in adapter.updates for key in keys_of(u)]
    modules = draft.model.modules if draft.model else {}
    forgotten = [join(name, f"lora_{role}") for name in modules for role in "AB"]
    options = draft.options
    known = [*factors, *full, *forgotten]
    yield from _without_match("--allow-unmatched", options.allow_unmatched, known)
    yield from _without_match("--allow-new", options.allow_new, full)


def _without_match(option: str, globs: Sequence[str], names: Iterable[str]) -> Iterator[Problem]:
    listed = list(names)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in listed):
            what = "full tensor" if option == "--allow-new" else "tensor"
            hint = "lora-export inspect lists what the adapter holds"
            yield Problem(f"{glob!r} fits no {what} of the adapters", option, hint)


def _unused_blocks(draft: Draft) -> Iterator[Problem]:
    """enable_lora that no MergedLinear takes; of one block it says what every Linear does."""
    top = draft.facts.top
    planned = [delta for deltas in draft.merged.values() for delta in deltas]
    listed = ", ".join(sorted({delta.kind for delta in planned}))
    blocks = any(delta.enable_lora for delta in planned)
    heads = any(delta.heads for delta in planned)
    if top.enable_lora is not None and len(top.enable_lora) > 1 and not blocks:
        message = f"no MergedLinear is in the plan, only {listed}"
        yield Problem(message, "--enable-lora", "leave it out, also of --hparams")
    if (top.n_head is not None or top.n_query_groups is not None) and not heads:
        message = f"no fused query, key and value of litgpt is in the plan, only {listed}"
        yield Problem(message, "n_head, n_query_groups", "leave them out of --hparams")


def _unused_orientation(draft: Draft) -> Iterator[Problem]:
    """fan_in_fan_out beside a PEFT adapter of embeddings and convolutions alone."""
    deltas = [delta for listed in draft.merged.values() for delta in listed]
    said = draft.facts.top.fan_in_fan_out
    if said is None or any(delta.recipe == "loralib" for delta in deltas):
        return  # of loralib's, it tells a Linear from an embedding
    if deltas and not any(all_kinds()[delta.kind].is_oriented(delta.shape) for delta in deltas):
        kinds = ", ".join(sorted({delta.kind for delta in deltas}))
        message = f"no weight of the plan is stored (in, out) or (out, in), only {kinds}"
        option = f"--{'' if said else 'no-'}fan-in-fan-out"
        yield Problem(message, option, "leave it out, also of --hparams")
