"""Dimensions that the user fixes by name, for networks that no tracer can leave open.

Funnel, Mamba and RWKV loop over a length or branch on it: a graph has one of them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.errors import UsageError
from lora_export.records import SUM, spans_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.records import InputSpec

OPTION = "--static"

_USUAL = 512
"""The size that a hint names, unless a table of positions ends before."""

_STATIC = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<size>[1-9]\d*)")


def parse_static(texts: Sequence[str]) -> dict[str, int]:
    """Read all `--static NAME=SIZE` values of a command, as sizes by dimension.

    Raises:
        UsageError: a text is no name and positive number, or two texts name one dimension.
    """
    sizes: dict[str, int] = {}
    for text in texts:
        found = _STATIC.fullmatch(text.replace(" ", ""))
        if not found:
            raise _mistake(f"{text!r} is not a dimension and its size", "write sequence=512")
        if found["name"] in sizes:
            raise _mistake(
                f"the dimension {found['name']!r} has two sizes", "leave one of them out"
            )
        sizes[found["name"]] = int(found["size"])
    return sizes


def with_static(specs: tuple[InputSpec, ...], sizes: Mapping[str, int]) -> tuple[InputSpec, ...]:
    """Return the inputs with these sizes in the place of the named dimensions.

    Raises:
        UsageError: no input has the dimension, or the model does not take the size.
    """
    spans = spans_of(specs)
    for name, size in sizes.items():
        if name not in spans:
            known = ", ".join(spans) or "none"
            raise _mistake(f"no input has a dynamic dimension {name!r}", f"there are: {known}")
        span = spans[name]
        if not (span.size(1) <= size and (span.most is None or size <= span.most)):
            most = "" if span.most is None else f" to {span.most}"
            message = f"{name}={size} is no size that the model takes"
            raise _mistake(message, f"it takes sizes from {span.size(1)}{most}")
    return tuple(
        replace(
            spec,
            dims=tuple(_fixed(dim, sizes) for dim in spec.dims),
            # By its size: what a mask hides leaves as much as the model takes at least.
            spans={str(sizes.get(name, name)): span for name, span in spec.spans.items()},
        )
        for spec in specs
    )


def _fixed(dim: int | str, sizes: Mapping[str, int]) -> int | str:
    if isinstance(dim, int) or SUM in dim:
        return dim
    return sizes.get(dim, dim)


def static_hint(specs: Sequence[InputSpec]) -> str:
    """Return the options that fix every dynamic size but the number of samples; "" for none."""
    words = [
        f"{OPTION} {name}={min(_USUAL, span.most or _USUAL)}"
        for name, span in spans_of(specs).items()
        if name != "batch"
    ]
    return " ".join(words)


def _mistake(message: str, hint: str) -> UsageError:
    return UsageError(message, where=OPTION, hint=hint, cause="usage/dimensions")
