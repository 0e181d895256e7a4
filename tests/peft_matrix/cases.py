"""Which adapters are made for which models, in which precision; and what of it runs by default.

Every option meets the architectures of its row in every precision. The default test run takes one
precision of each such pair, in turn, and proves a third of these as models; `-m slow` takes all of
them, and proves them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from peft_matrix.architectures import ARCHITECTURES, DTYPES, Architecture
from peft_matrix.options import OPTIONS, Option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.mark import ParameterSet

# Where merge_and_unload(safe_merge=True) takes another way to the same weights.
_SAFE = ("plain", "dora", "conv", "table", "experts", "ia3", "loha", "half")
_FEW = 3
_SLOW = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """One adapter for one base; `safe`: merged with PEFT's safe_merge=True."""

    architecture: str
    option: str
    dtype: str
    safe: bool = False

    @property
    def name(self) -> str:
        """What pytest calls it."""
        return f"{self.architecture}-{self.option}-{self.dtype}{'-safe' if self.safe else ''}"

    @property
    def why_wrong(self) -> str:
        """Why PEFT's merge is no oracle for it; empty if it is one."""
        return OPTIONS[self.option].peft_is_wrong

    def parts(self) -> tuple[Architecture, Option]:
        """What the names stand for."""
        return ARCHITECTURES[self.architecture], OPTIONS[self.option]


def _parameters() -> Iterator[ParameterSet]:
    precisions = [*DTYPES]
    for row, (name, option) in enumerate(OPTIONS.items()):
        for place, architecture in enumerate(option.on):
            by_default = precisions[(row + place) % len(precisions)]
            for dtype in precisions:
                marks = () if dtype == by_default else _SLOW
                for safe in (False, True):
                    case = Case(architecture, name, dtype, safe=safe)
                    if not safe or (name in _SAFE and place < _FEW and dtype != "fp32"):
                        yield pytest.param(case, id=case.name, marks=marks)
                        if not marks:
                            yield pytest.param(case, id=f"{case.name}-proven", marks=_SLOW)


CASES = [*_parameters()]
