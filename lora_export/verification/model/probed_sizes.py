"""The sizes at which a model was run: a proof says nothing of a size that it never met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.records import SUM, spans_of
from lora_export.verification.model.probes import LENGTHS, usable_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lora_export.records import InputSpec


def probed_sizes(
    specs: Sequence[InputSpec], probes: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, list[int]]:
    """List the sizes that each dynamic dimension has in the probes, in their order.

    Args:
        specs: the inputs as declared.
        probes: arrays by input name.
    """
    found: dict[str, list[int]] = {}
    for probe in probes:
        for spec in specs:
            for dim, size in zip(spec.dims, probe[spec.name].shape, strict=True):
                if isinstance(dim, str) and SUM not in dim:
                    sizes = found.setdefault(dim, [])
                    sizes += [] if size in sizes else [size]
    return found


def narrow_warnings(specs: Sequence[InputSpec], sizes: Mapping[str, Sequence[int]]) -> list[str]:
    """Return a warning for each dimension that ends before the usual sizes of probes begin.

    sizes: those that were run, by dimension.
    """
    least = min(LENGTHS)
    return [
        f"{name!r} was proven at the sizes {_joined(sizes[name])} alone: the model takes no more "
        f"than {span.most}"
        for name, span in spans_of(specs).items()
        if name in sizes and max(usable_numbers(name, span)) < least
    ]


def _joined(sizes: Sequence[int]) -> str:
    return " and ".join(map(str, sorted(sizes)))
