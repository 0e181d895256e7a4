"""Which codes an int8 file gets; docs/decisions/0020-int8-codes.md gives the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.onnx_export.precision.grids import Precision

SIGNED = "signed"


def check_codes(precision: Precision, codes: str | None) -> None:
    """Refuse codes of a precision that has none.

    codes: of --int8; None where it is not given.

    Raises:
        UsageError: the precision is not int8.
    """
    if codes and not precision.codes:
        raise UsageError(
            f"--precision {precision.name} has no codes that could be {codes}",
            where="--int8",
            hint="leave --int8 out, or take --precision int8",
            cause="usage/options-contradict",
        )


def with_chosen_codes(precision: Precision, codes: str | None) -> Precision:
    """Return the precision with the codes that are asked for, or that are best here.

    Without a wish, an int8 file has signed codes, the fast ones. Where ONNX Runtime overflows with
    them on this processor it has unsigned ones. Other precisions are returned as they are.
    """
    from lora_export.verification.runtime.overflow import signed_codes_overflow

    if not precision.codes:
        return precision
    if codes is None:
        codes = "unsigned" if signed_codes_overflow() else SIGNED
    return precision.with_codes(codes)


def code_facts(precision: Precision, *, ran: bool) -> dict[str, Any]:
    """Return the codes of an int8 file for the report; nothing for other precisions.

    ran: whether the file was run, so that "overflows" is of the processor that proved it.
    """
    from lora_export.verification.runtime.overflow import signed_codes_overflow

    if not precision.codes:
        return {}
    known = {"overflows": signed_codes_overflow()} if ran and precision.codes == SIGNED else {}
    return {"codes": precision.codes, **known}


def cure_of(precision: Precision) -> str:
    """Return what to do where the rounding of a file outweighs the adapter."""
    facts = code_facts(precision, ran=True)
    first = "--int8 unsigned does not overflow here; or " if facts.get("overflows") else ""
    return f"{first}take a higher precision, or accept it with --allow-lossy"


def code_warnings(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a warning where signed codes overflow on the processor that proved the file.

    facts: of the report.
    """
    if not facts.get("lowered", {}).get("overflows"):
        return ()
    words = "signed codes overflow on this processor, which costs accuracy: see --int8 unsigned"
    return (words,)
