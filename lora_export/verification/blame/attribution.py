"""Names the stage that a failed check points at, from the checks alone.

It runs only after a check has failed, and its result is only words. A failure cannot become a pass
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.records import Attribution
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.records import Check, Stage

DYNAMIC = "dynamic dimensions"
"""The check of the static audit that a fixed dimension fails."""

GRAPH = "same graph as the base"
"""The check of the static audit that any change of the graph fails."""

UNREADABLE = ("external data", "onnx.checker")
"""Checks of the static audit; a file that fails one must not be opened for a closer look."""

OF_TENSORS = ("every weight bit-equal", "no NaN or infinity", "bindings")
"""Checks of the static audit whose `where` is the name of a parameter."""


def blame(
    checks: Sequence[Check], find: Callable[[Sequence[Check]], Attribution | None]
) -> Attribution | None:
    """Return the attribution of the failed checks; None if none failed or no stage is known.

    An exception of `find` must not hide the failed check. It becomes an attribution to "unknown",
    unless the checks alone point at a stage.

    find: looks closer at the failed checks; it returns None if it finds nothing.
    """
    failed = failures(checks)
    if not failed:
        return None
    try:
        return find(failed) or by_checks(failed)
    except Exception as error:  # noqa: BLE001 - the report needs the failed check in any case
        reason = reason_of(error)
        detail = f"could not be attributed: {type(error).__name__}: {reason}"
        return by_checks(failed) or Attribution("unknown", detail=detail)


def failures(checks: Sequence[Check]) -> list[Check]:
    """Return the failed checks that point at a fault.

    A check with `at_least` shows that the proof is vacuous. That has no stage to blame.
    """
    return [check for check in checks if not check.passed and not check.at_least]


def by_checks(checks: Sequence[Check]) -> Attribution | None:
    """Return the attribution that the checks alone give, from the first level that failed.

    It is None if only the level "runtime" failed: that may have its cause in any earlier stage.
    """
    # Reversed, so that the first failed check of a level stays in the dict.
    failed = {check.level: check for check in reversed(failures(checks))}
    if "weights" in failed:
        check = failed["weights"]
        tensor = check.where.partition(",")[0]
        return Attribution("merge", _module_of(tensor), detail=f"{check.name}: {check.where}")
    if "model" in failed:
        return Attribution("merge", detail=f"{failed['model'].name}: {failed['model'].where}")
    if "file" in failed:
        fixed = [check for check in failures(checks) if check.name == DYNAMIC]
        # A fixed input changes the graph as well, and is the closer description of the fault.
        of_graph = failed["file"].name == GRAPH
        return _by_file(fixed[0] if fixed and of_graph else failed["file"])
    return None


def _by_file(check: Check) -> Attribution:
    stage: Stage = "shape specialisation" if check.name == DYNAMIC else "export"
    detail = check.detail or check.where
    module = _module_of(check.where) if check.name in OF_TENSORS else ""
    return Attribution(stage, module, detail=f"{check.name}: {detail}")


def _module_of(tensor: str) -> str:
    return tensor.strip().rpartition(".")[0]
