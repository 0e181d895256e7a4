"""Every error raised on purpose. The class gives the exit status; the tree lists the statuses.

LoraExportError
├── UsageError            2   a fact or option is missing, unknown or contradicts another
├── InputError            3   a file cannot be trusted: damaged, unsafe, of an unknown format
├── FitError              4   adapter and base do not belong together
├── VerificationError     5   the result is not what it must be; nothing was published
├── OutputError           6   the output may not be written there: exists, inside an input, in use
├── StorageError          7   the system refused: disk full, permission, input/output error
├── LimitError            8   the input asks for more than the limits allow
└── MissingExtraError    15   an optional dependency is needed; the extra is named

Every error carries one or more Problems: one run reports all faults of one input.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Self

    from lora_export.records import Attribution, Check, Finding, MergePlan


MOST_PROBLEMS = 20
"""How many problems of one error are shown; `problems` and --json have all."""


class LoraExportError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what is wrong, one sentence.
        where: file, tensor or option concerned; empty when the message names it.
        hint: what to do about it; empty when nothing can be done.
        cause: the entry of `lora-export explain` about it, such as "fit/no-module".
    """

    status: ClassVar[int] = 1
    """The exit status of the command."""
    code: ClassVar[str] = "error"
    """The word for the class in JSON output."""

    def __init__(self, message: str, *, where: str = "", hint: str = "", cause: str = "") -> None:
        super().__init__(message)
        #: Every fault of the input, at least one.
        self.problems: tuple[Problem, ...] = (Problem(message, where, hint, cause=cause),)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Self:
        """Make one error that carries all `problems`, at least one."""
        error = cls(problems[0].message, where=problems[0].where, hint=problems[0].hint)
        error.problems = tuple(problems)
        return error

    def __str__(self) -> str:
        return "\n".join(first_problems(self.problems))


def first_problems(problems: Sequence[Problem]) -> list[str]:
    """Return the first `MOST_PROBLEMS` as text that may be shown, and the number of the others."""
    texts = [str(problem) for problem in problems[:MOST_PROBLEMS]]
    more = len(problems) - len(texts)
    return [*texts, f"... and {more:,} more problems"] if more else texts


class UsageError(LoraExportError):
    """A fact or option is missing, unknown, or contradicts another."""

    status = 2
    code = "usage"


class InputError(LoraExportError):
    """A file cannot be trusted: damaged, unsafe, or of an unknown format."""

    status = 3
    code = "input"


class FitError(LoraExportError):
    """Adapter and base do not belong together, or the merge would change nothing."""

    status = 4
    code = "fit"


class VerificationError(LoraExportError):
    """The result is not what it must be; nothing was published."""

    status = 5
    code = "verification"
    checks: tuple[Check, ...] = ()
    """All checks that were made, passed or not."""
    attribution: Attribution | None = None
    """The stage and the place that the fault comes from; None where they were not found."""
    findings: tuple[Finding, ...] = ()
    """The mistakes that explain the failed checks, the one that explains most first."""
    artefact: str = ""
    """The file or folder that failed."""
    plan: MergePlan | None = None
    """What was or should have been merged; None where it is not known."""
    facts: Mapping[str, Any] = MappingProxyType({})
    """Further results by name, as in a report: docs/json.md."""


class OutputError(LoraExportError):
    """The output may not be written there: it exists, lies inside an input, or is in use."""

    status = 6
    code = "output"


class StorageError(LoraExportError):
    """The operating system refused a read or a write."""

    status = 7
    code = "storage"


class LimitError(LoraExportError):
    """The input asks for more memory, time or names than the limits allow."""

    status = 8
    code = "limit"


class MissingExtraError(LoraExportError):
    """An optional dependency is needed and not installed; the hint names the extra."""

    status = 15
    code = "missing-extra"
