"""What a model takes as input, what was proven, and what was written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from lora_export.shown import HINT_MOST, shown_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


CHANGED = "every target changed"
"""The check that every update has changed its tensor; --allow-noop leaves it out."""

ELEMENTS = "merged elements"
"""The check that every element is within its rounding of the recomputation."""

SUM = " + "
"""Joins two dynamic dimensions whose sum is the size of one."""


@dataclass(frozen=True, slots=True)
class Span:
    """The sizes that a dynamic dimension may have: offset + unit * n, for n from 1 on.

    A sound must be longer than the window of its convolutions, a text with an image longer than the
    image's places. A table of positions ends.
    """

    offset: int = 0
    unit: int = 1
    most: int | None = None
    """The largest size; None for no bound."""

    def size(self, number: int) -> int:
        """Return the size for n = `number`."""
        return self.offset + self.unit * number

    def holds(self, number: int) -> bool:
        """Return whether the model takes the size for n = `number`."""
        return self.most is None or self.size(number) <= self.most


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A model input: `name=dtype[dim,dim]<high`."""

    name: str
    dtype: str
    """torch's name (float32, int64, bool)."""
    dims: tuple[int | str, ...]
    """A positive int is fixed, a str names a dynamic dimension, `a + b` is the sum of two."""
    high: int | None = None
    """Exclusive upper bound of an integer input (vocabulary size)."""
    spans: Mapping[str, Span] = field(default_factory=dict, hash=False)
    """The sizes of those dynamic dimensions that cannot have any size."""
    leading: tuple[int, int] | None = None
    """(value, count): every row begins with `count` times `value`, which occurs nowhere else.

    These are the places of an image in a text.
    """


def size_of(dim: int | str, sizes: Mapping[str, int]) -> int:
    """Return the size of a dimension of an input, given the sizes of the dynamic ones."""
    return dim if isinstance(dim, int) else sum(sizes[part] for part in dim.split(SUM))


def spans_of(specs: Sequence[InputSpec]) -> dict[str, Span]:
    """Return the span of every dynamic dimension, in the order of their first mention."""
    dims = [dim for spec in specs for dim in spec.dims if isinstance(dim, str)]
    names = dict.fromkeys(part for dim in dims for part in dim.split(SUM))
    # Reversed, so that the first input that gives a dimension its span wins.
    given = {dim: span for spec in reversed(specs) for dim, span in spec.spans.items()}
    return {name: given.get(name, Span()) for name in names}


def example_sizes(specs: Sequence[InputSpec]) -> dict[str, int]:
    """Return the size of every dynamic dimension while a model is traced.

    The sizes are 2, 5, 8, ... by first mention, or those of a span for these numbers. All differ,
    so that the tracer cannot take two dimensions for one. None is 1, which the tracer would fix.

    The function is here, below tracer and proof, because a proof needs sizes that the tracer has
    not seen.
    """
    spans = spans_of(specs)
    numbers = [2 + 3 * place for place in range(2 * len(spans))]
    sizes: dict[str, int] = {}
    for place, (name, span) in enumerate(spans.items()):
        wanted = [*numbers[place:], *numbers[:place]]
        free = (n for n in wanted if span.holds(n) and span.size(n) not in sizes.values())
        sizes[name] = span.size(next(free, numbers[place]))
    return sizes


Level = Literal[
    "",  # none of the following
    "manifest",  # the files around the weights, and their digests
    "weights",  # the merged tensors
    "model",  # the torch models' outputs
    "file",  # the content of the ONNX file
    "runtime",  # what ONNX Runtime computes from the file
    "precision",  # a file in a lower precision
]
"""What a check is about."""

Stage = Literal[
    "merge",  # the merged weights
    "export",  # the ONNX file: capture, filling, saving
    "shape specialisation",  # the file at other sizes than it was traced with
    "runtime optimiser",  # ONNX Runtime's graph optimisation
    "unknown",
]
"""What a failed proof comes from."""


@dataclass(frozen=True, slots=True)
class Check:
    """One result of the verification."""

    name: str
    """What is compared, the same in every run: "merged elements"."""
    passed: bool
    """Whether the result is what it must be."""
    worst: float
    """The worst value that was measured; in a check of identity, the number of differences."""
    tolerance: float
    """The largest `worst` that passes; 0 in a check of identity."""
    where: str = ""
    """The tensor or output that has the worst value."""
    detail: str = ""
    """What was found, in words; of a failed check one whole sentence without a full stop."""
    basis: str = ""
    """Where `tolerance` comes from; empty where it needs no reason."""
    at_least: bool = False
    """Whether `worst` must be above `tolerance` instead; the adapter's effect must exceed noise."""
    level: Level = ""
    """What the check is about: "manifest", "weights", "model", "file", "runtime", "precision"."""
    hint: str = ""
    """What to do if the check fails."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What broke a proof, and where."""

    stage: Stage
    """The step that went wrong: "merge", "export", "shape specialisation", "runtime optimiser"."""
    module: str = ""
    """The module's path in the torch model; "" if it is not known."""
    node: str = ""
    """The node's name in the graph; "" if it is not known."""
    detail: str = ""
    """What was observed, for the user."""

    def __str__(self) -> str:
        place = f"{self.module}: " if self.module else ""
        node = f" (node {self.node})" if self.node else ""
        return shown_line(f"stage: {self.stage} - {place}{self.detail}{node}", HINT_MOST)


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake that explains failed checks, such as modules that were not merged."""

    code: str
    """The kind of the mistake, a word or two for programs: "not-merged", "merged-twice"."""
    message: str
    """What is wrong, in one sentence without the names: "2 of 24 modules were not merged"."""
    names: tuple[str, ...] = ()
    """All modules, tensors or files concerned; a report shows the first three and the number."""


@dataclass(frozen=True, slots=True)
class KeptEffect:
    """How much of the adapter's effect on the outputs is left in the stored weights."""

    dtype: str
    """torch's name of the dtype that the merged weights were rounded to; several with "and"."""
    share: float
    """From 0 to 1, of the output that keeps the least."""
    output: str
    """The name of that output."""

    def __str__(self) -> str:
        return (
            f"stored in {self.dtype} the adapter keeps {self._words()} of its effect on the outputs"
        )

    def _words(self) -> str:
        if self.share <= 0:
            return "none"
        # Rounded down: 100 % would be more than is left.
        tenths = int(1000 * self.share)
        return f"{tenths / 10:.1f} %" if tenths else "less than 0.1 %"


def at_level(level: Level, checks: Sequence[Check]) -> tuple[Check, ...]:
    """Return the checks with their level set."""
    return tuple(replace(check, level=level) for check in checks)


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """An output file as it was written."""

    path: str
    """Relative to the output's folder."""
    sha256: str
    """In hexadecimal, of the bytes that were written."""
    size: int
    """In bytes."""
