"""Which stage a failed check points at, told from the checks alone.

Nothing here can turn a failure into a pass: it is asked only after a check has failed, and only
for words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.records import Attribution

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.records import Check, Stage

DYNAMIC = "dynamic dimensions"
GRAPH = "same graph as the base"
UNREADABLE = ("external data", "onnx.checker")
OF_TENSORS = ("every weight bit-equal", "no NaN or infinity", "bindings")
"""Checks of the static audit: what a fixed dimension fails, what any change of the graph fails, of
what must not be opened, and those that name a parameter."""


def blame(
    checks: Sequence[Check], find: Callable[[Sequence[Check]], Attribution | None]
) -> Attribution | None:
    """What `find` says about the failed checks; None where none has failed.

    A fault in here must not hide the failure that is to be told, whatever it is.
    """
    failed = failures(checks)
    if not failed:
        return None
    try:
        return find(failed) or by_checks(failed)
    except Exception as error:  # noqa: BLE001 - the proof's failure is told, whatever this one is
        reason = " ".join(str(error).split())[:300]
        told = f"could not be attributed: {type(error).__name__}: {reason}"
        return by_checks(failed) or Attribution("unknown", detail=told)


def failures(checks: Sequence[Check]) -> list[Check]:
    """The failed checks that a fault fails: a proof that is vacuous is nobody's fault."""
    return [check for check in checks if not check.passed and not check.at_least]


def by_checks(checks: Sequence[Check]) -> Attribution | None:
    """What the checks alone say, of the first level that failed."""
    failed = {check.level: check for check in reversed(failures(checks))}
    if "weights" in failed:
        check = failed["weights"]
        tensor = check.where.partition(",")[0]
        return Attribution("merge", _module_of(tensor), detail=f"{check.name}: {check.where}")
    if "model" in failed:
        return Attribution("merge", detail=f"{failed['model'].name}: {failed['model'].where}")
    if "file" in failed:
        fixed = [check for check in failures(checks) if check.name == DYNAMIC]
        of_graph = failed["file"].name == GRAPH  # which a fixed input changes as well
        return _by_file(fixed[0] if fixed and of_graph else failed["file"])
    return None


def _by_file(check: Check) -> Attribution:
    stage: Stage = "shape specialisation" if check.name == DYNAMIC else "export"
    detail = check.detail or check.where
    module = _module_of(check.where) if check.name in OF_TENSORS else ""
    return Attribution(stage, module, detail=f"{check.name}: {detail}")


def _module_of(tensor: str) -> str:
    return tensor.strip().rpartition(".")[0]
