"""Which codes an int8 file gets; docs/decisions/0021-int8-codes.md gives the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.onnx_export.precision.grids import Precision

SIGNED = "signed"


def check_codes(precisions: Sequence[Precision], codes: str | None) -> None:
    """Refuse codes where no precision has any.

    codes: of --int8; None where it is not given.

    Raises:
        UsageError: int8 is not among the precisions.
    """
    if codes and not any(precision.codes for precision in precisions):
        names = ",".join(precision.name for precision in precisions)
        raise UsageError(
            f"--precision {names} has no codes that could be {codes}",
            where="--int8",
            hint="leave --int8 out, or take --precision int8",
            cause="usage/options-contradict",
        )


def with_chosen_codes(precisions: Sequence[Precision], codes: str | None) -> tuple[Precision, ...]:
    """Return the precisions, int8 with the codes that are asked for, or that are best here.

    Without a wish, an int8 file has signed codes, the fast ones. Where ONNX Runtime overflows with
    them on this processor it has unsigned ones. Other precisions are returned as they are.
    """
    return tuple(_with_codes(one, codes) if one.codes else one for one in precisions)


def _with_codes(precision: Precision, codes: str | None) -> Precision:
    from lora_export.verification.runtime.overflow import signed_codes_overflow

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


def code_warnings(made: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return a warning where signed codes overflow on the processor that proved a file.

    made: the facts of each file in a lower precision.
    """
    if not any(facts["lowered"].get("overflows") for facts in made):
        return ()
    words = "signed codes overflow on this processor, which costs accuracy: see --int8 unsigned"
    return (words,)
