"""What a model takes, what was proven, and what was written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A model input: `name=dtype[dim,dim]<high`.

    dims: a positive int is fixed, a str names a dynamic dimension. high: exclusive upper bound of
    an integer input (vocabulary size). dtype: torch's name (float32, int64, bool).
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    high: int | None = None


def example_sizes(specs: Sequence[InputSpec]) -> dict[str, int]:
    """The size of every dynamic dimension while a model is traced: 2, 5, 8, ... by first mention.

    Distinct, so that the tracer cannot take two of them for one, and never 1, which it would fix.
    Here, below tracer and probes, because a proof needs sizes that the tracer has not seen.
    """
    names = dict.fromkeys(dim for spec in specs for dim in spec.dims if isinstance(dim, str))
    return {name: 2 + 3 * place for place, name in enumerate(names)}


Level = Literal["", "manifest", "weights", "model", "file", "runtime"]
"""What a check looks at: the files around and their digests, the merged tensors, the torch models'
outputs, what lies in the ONNX file, or what ONNX Runtime computes from it. Empty: in no group."""

Stage = Literal["merge", "export", "shape specialisation", "runtime optimiser", "unknown"]
"""What is to blame: the merged weights; the ONNX file (capture, filling, saving); the file at other
sizes than those it was traced with; ONNX Runtime's graph optimisation."""


@dataclass(frozen=True, slots=True)
class Check:
    """One proof: `worst` was seen at `where`, at most `tolerance` was allowed.

    A check of identity has worst = number of differences and tolerance = 0. at_least: `worst`
    must be above `tolerance` instead, as the adapter's effect must be above the noise.
    """

    name: str
    passed: bool
    worst: float
    tolerance: float
    where: str = ""
    detail: str = ""
    at_least: bool = False
    level: Level = ""


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
