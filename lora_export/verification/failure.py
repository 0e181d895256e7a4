"""Turns failed checks into the error that keeps a result from being published."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_export.errors import VerificationError
from lora_export.records import Problem
from lora_export.report.sentences import named_sentence
from lora_export.verification.blame.attribution import by_checks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.records import Attribution, Check, Finding, MergePlan


@contextmanager
def with_facts(facts: Mapping[str, Any]) -> Iterator[None]:
    """Give a VerificationError from inside the block further facts for its report.

    Those that the error has of the same names stay.
    """
    try:
        yield
    except VerificationError as error:
        error.facts = {**facts, **error.facts}
        raise


def refuse_failed(
    checks: Sequence[Check],
    where: str,
    attribution: Attribution | None = None,
    *,
    plan: MergePlan | None = None,
    findings: Sequence[Finding] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Refuse the result if a check failed.

    Args:
        checks: all checks of the proof.
        where: the artefact, for checks that name no place of their own.
        attribution: the result of a closer look at the fault; without it, that of the checks alone.
        plan: what was or should have been merged, for the report.
        findings: the mistakes that explain the failed checks, for the report.
        facts: further results by name, for the report.

    Raises:
        VerificationError: a check failed. It has a problem for each failed check, all checks for
            the report, and the attribution.
    """
    failed = [check for check in checks if not check.passed]
    if not failed:
        return
    problems = [
        Problem(
            named_sentence(check),
            check.where or where,
            check.hint,
            cause="verification/check-failed",
        )
        for check in failed
    ]
    error = VerificationError.of(problems)
    error.checks = tuple(checks)
    error.attribution = attribution or by_checks(failed)
    error.findings = tuple(findings)
    error.artefact, error.plan, error.facts = where, plan, facts or {}
    raise error
