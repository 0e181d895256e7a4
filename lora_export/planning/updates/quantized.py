"""Quantised bases: an adapted quantised weight is refused, and every other tensor is copied.

An update of packed bits would need another quantisation, which cannot be done bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.planning.names.base_names import (
    BaseNames,
    choose_prefix,
    join,
    without_wrappers,
)
from lora_export.planning.names.factor_keys import keys_of
from lora_export.planning.names.locating import wanted_of
from lora_export.planning.names.origin import original_hint
from lora_export.planning.prefix_change import IDENTITY
from lora_export.records import Problem
from lora_export.report.columns import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.planning.merge_options import Options
    from lora_export.records import Adapter, Quantization

_SHOWN = 3


def without_quantized(given: Given, findings: Findings) -> list[Adapter]:
    """Return the adapters that touch no quantised weight; refuse each of the others."""
    found = given.base.quantization
    if found is None or not found.weights:
        return list(given.adapters)
    # A packed weight has another name in the file; an adapter knows the name of the plain weight.
    names = BaseNames(dict.fromkeys([*given.stored, *found.weights]))
    kept = []
    for adapter in given.adapters:
        touched = list(dict.fromkeys(_touched(adapter, found, names, given.options)))
        if touched:
            more = ", ..." if touched[_SHOWN:] else ""
            message = (
                f"adapts {counted(len(touched), 'weight')} that the base stores quantised "
                f"({found.method}): {', '.join(touched[:_SHOWN])}{more}"
            )
            hint = original_hint(given.base, given.adapters)
            findings.unfit.append(Problem(message, str(adapter.path), hint, cause="fit/quantised"))
        else:
            kept.append(adapter)
    return kept


def _touched(
    adapter: Adapter, found: Quantization, names: BaseNames, options: Options
) -> Iterator[str]:
    """Yield the quantised weights that the adapter changes or replaces, by plain names."""
    modules = wanted_of(u for u in adapter.updates if not options.allows_unmatched(keys_of(u)))
    full = [r.name for r in adapter.replacements if not options.allows_unmatched([r.name])]
    change, _ = choose_prefix(modules, names, options.rename) if modules else (IDENTITY, [])
    leaves = {weight.rpartition(".")[2] for weight in found.weights}
    asked = [join(module, leaf) for module in modules for leaf in sorted(leaves)]
    for name in [*asked, *full]:
        spellings = (name, change.apply(without_wrappers(name)))
        yield from (hit for way in spellings if way and (hit := _known(way, names, found)))


def _known(name: str, names: BaseNames, found: Quantization) -> str:
    hit = names.find(name)
    return hit if hit and hit in found.weights else ""
