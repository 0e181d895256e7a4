"""Quantised bases: an adapted quantised weight is refused, everything else is left as it is.

Adding to packed bits is not possible without quantising anew, which nobody can do bit for bit.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.quantization import find_quantization
from lora_export.planning.names.base_names import (
    IDENTITY,
    BaseNames,
    choose_prefix,
    join,
    without_wrappers,
)
from lora_export.planning.names.origin import original_hint
from lora_export.planning.updates.fit import keys_of
from lora_export.planning.updates.parameter_updates import wanted_of
from lora_export.records import Problem
from lora_export.report.columns import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_export.checkpoint.folder.quantization import Quantization
    from lora_export.planning.draft import Draft
    from lora_export.records import Adapter, Checkpoint

_SHOWN = 3


def without_quantized(draft: Draft, adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters that touch no quantised weight; a problem is added for each of the others."""
    found = find_quantization(draft.base)
    if found is None or not found.weights:
        return list(adapters)
    # What is packed under another name is looked for under the name that an adapter knows.
    names = BaseNames(dict.fromkeys([*draft.stored, *found.weights]))
    kept = []
    for adapter in adapters:
        touched = list(dict.fromkeys(_touched(adapter, found, names, draft)))
        if touched:
            more = ", ..." if touched[_SHOWN:] else ""
            message = (
                f"adapts {counted(len(touched), 'weight')} that the base stores quantised "
                f"({found.method}): {', '.join(touched[:_SHOWN])}{more}"
            )
            hint = original_hint(draft.base, adapters)
            draft.unfit.append(Problem(message, str(adapter.path), hint))
        else:
            kept.append(adapter)
    return kept


def _touched(
    adapter: Adapter, found: Quantization, names: BaseNames, draft: Draft
) -> Iterator[str]:
    """The quantised weights, by a plain model's names, that the adapter changes or replaces."""
    globs = draft.options.allow_unmatched
    modules = wanted_of(u for u in adapter.updates if not _is_let_go(keys_of(u), globs))
    full = [r.name for r in adapter.replacements if not _is_let_go([r.name], globs)]
    change, _ = choose_prefix(modules, names, draft.options.rename) if modules else (IDENTITY, [])
    leaves = {weight.rpartition(".")[2] for weight in found.weights}
    asked = [join(module, leaf) for module in modules for leaf in sorted(leaves)]
    for name in [*asked, *full]:
        spellings = (name, change.apply(without_wrappers(name)))
        yield from (hit for way in spellings if way and (hit := _known(way, names, found)))


def _is_let_go(names: Sequence[str], globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def _known(name: str, names: BaseNames, found: Quantization) -> str:
    hit = names.find(name)
    return hit if hit and hit in found.weights else ""


def stale_claims(base: Checkpoint, draft: Draft) -> tuple[str, ...]:
    """The keys of config.json that speak of quantised weights where there are none.

    transformers would build quantised layers for plain weights, and fail or load nonsense.
    """
    found = find_quantization(base)
    if found is None or not found.claims:
        return ()
    if found.remains and not found.weights:
        return ()
    if found.remains:
        stays = f"{counted(len(found.weights), 'weight')} stay quantised ({found.method})"
        draft.choices.append(f"{stays}, byte for byte, and so does {' and '.join(found.claims)}")
        return ()
    draft.choices.append(
        f"config.json speaks of {found.method}, but no tensor is quantised: "
        f"{' and '.join(found.claims)} is left out, as the result could not be loaded with it"
    )
    return found.claims
