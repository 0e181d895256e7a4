"""What a model takes, what was proven, and what was written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


SUM = " + "


@dataclass(frozen=True, slots=True)
class Span:
    """The sizes that a dynamic dimension may have: offset + unit * n for n from 1 on, up to `most`.

    A sound must be longer than what one step of its convolutions sees, a text that describes an
    image longer than the image's places, and a table of positions ends.
    """

    offset: int = 0
    unit: int = 1
    most: int | None = None

    def size(self, number: int) -> int:
        """The size of that number."""
        return self.offset + self.unit * number

    def holds(self, number: int) -> bool:
        """Whether the model takes the size of that number."""
        return self.most is None or self.size(number) <= self.most


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A model input: `name=dtype[dim,dim]<high`.

    dims: a positive int is fixed, a str names a dynamic dimension, `a + b` the sum of two. high:
    exclusive upper bound of an integer input (vocabulary size). dtype: torch's name (float32,
    int64, bool). spans: of those dynamic dimensions that cannot have any size. leading: (value,
    count) where every row begins with `count` times `value`, which stands nowhere else: the places
    of an image in a text.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    high: int | None = None
    spans: Mapping[str, Span] = field(default_factory=dict, hash=False)
    leading: tuple[int, int] | None = None


def size_of(dim: int | str, sizes: Mapping[str, int]) -> int:
    """The size of a dimension of an input, where the dynamic ones have these sizes."""
    return dim if isinstance(dim, int) else sum(sizes[part] for part in dim.split(SUM))


def spans_of(specs: Sequence[InputSpec]) -> dict[str, Span]:
    """The span of every dynamic dimension, in the order in which they are first mentioned."""
    dims = [dim for spec in specs for dim in spec.dims if isinstance(dim, str)]
    names = dict.fromkeys(part for dim in dims for part in dim.split(SUM))
    told = {dim: span for spec in reversed(specs) for dim, span in spec.spans.items()}
    return {name: told.get(name, Span()) for name in names}


def example_sizes(specs: Sequence[InputSpec]) -> dict[str, int]:
    """The size of every dynamic dimension while a model is traced: 2, 5, 8, ... by first mention.

    Distinct, so that the tracer cannot take two of them for one, and never 1, which it would fix.
    Where a dimension has a span, the sizes of these numbers. Here, below tracer and probes, because
    a proof needs sizes that the tracer has not seen.
    """
    spans = spans_of(specs)
    numbers = [2 + 3 * place for place in range(2 * len(spans))]
    sizes: dict[str, int] = {}
    for place, (name, span) in enumerate(spans.items()):
        wanted = [*numbers[place:], *numbers[:place]]
        free = (n for n in wanted if span.holds(n) and span.size(n) not in sizes.values())
        sizes[name] = span.size(next(free, numbers[place]))
    return sizes


Level = Literal["", "manifest", "weights", "model", "file", "runtime", "precision"]
"""What a check looks at: the files around and their digests, the merged tensors, the torch models'
outputs, what lies in the ONNX file, what ONNX Runtime computes from it, or a file in a lower
precision. Empty: in no group."""

Stage = Literal["merge", "export", "shape specialisation", "runtime optimiser", "unknown"]
"""What is to blame: the merged weights; the ONNX file (capture, filling, saving); the file at other
sizes than those it was traced with; ONNX Runtime's graph optimisation."""


@dataclass(frozen=True, slots=True)
class Check:
    """One proof: `worst` was seen at `where`, at most `tolerance` was allowed.

    A check of identity has worst = number of differences and tolerance = 0. at_least: `worst`
    must be above `tolerance` instead, as the adapter's effect must be above the noise.
    hint: what to do where it fails.
    """

    name: str
    passed: bool
    worst: float
    tolerance: float
    where: str = ""
    detail: str = ""
    at_least: bool = False
    level: Level = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What broke a proof, and where.

    module: its path in the torch model; node: its name in the graph; empty where they are not
    known. detail: what was seen, in words.
    """

    stage: Stage
    module: str = ""
    node: str = ""
    detail: str = ""

    def __str__(self) -> str:
        place = f"{self.module}: " if self.module else ""
        node = f" (node {self.node})" if self.node else ""
        return f"stage: {self.stage} - {place}{self.detail}{node}"


def at_level(level: Level, checks: Sequence[Check]) -> tuple[Check, ...]:
    """The checks, marked as belonging to this level."""
    return tuple(replace(check, level=level) for check in checks)


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """An output file as written: path relative to the output's folder, digest, size in bytes."""

    path: str
    sha256: str
    size: int
