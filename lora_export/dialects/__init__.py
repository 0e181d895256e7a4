"""Reads adapter files. Each way of writing them is a dialect: one file of this folder.

The folder is walked, so a new dialect needs no list to edit.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lora_export.dialects.dialect import Dialect, Evidence
from lora_export.dialects.foreign import not_merged, trainer_of
from lora_export.errors import InputError, UsageError
from lora_export.plug_ins import find_plug_ins
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.dialects.foreign import Trainer
    from lora_export.records import Adapter, AdapterFile

__all__ = ["Dialect", "Evidence", "all_dialects", "foreign_trainer", "read_adapter"]

_SHOWN = 5


@cache
def all_dialects() -> Mapping[str, Dialect]:
    """Return every dialect by name: the DIALECT of each module of this folder that has one."""
    dialects = find_plug_ins(__name__, __path__, "DIALECT", Dialect)
    return {dialect.name: dialect for dialect in dialects}


def read_adapter(file: AdapterFile, *, dialect: str | None, weight: float = 1.0) -> Adapter:
    """Read `file` with the named dialect, or with the one that recognises it best.

    weight: the user's factor for the adapter; it is only recorded here.

    Raises:
        UsageError: `dialect` is unknown, or two dialects claim the file equally.
        InputError: no dialect recognises the file, or its tensors do not pair up.
        LimitError: its config asks for more than the limits allow.
    """
    if dialect is None:
        return _recognized(file).read(file, weight)
    try:
        chosen = all_dialects()[dialect]
    except KeyError:
        known = ", ".join(sorted(all_dialects()))
        raise UsageError(
            f"unknown dialect {dialect!r}", hint=f"one of: {known}", cause="usage/dialect"
        ) from None
    return chosen.read(file, weight)


def foreign_trainer(file: AdapterFile) -> Trainer | None:
    """Return the trainer whose adapter the file is, if no dialect reads that trainer's files yet.

    PEFT's config outweighs any names. Faint names only count when no dialect recognises the file.
    """
    best = max(dialect.recognizes(file) for dialect in all_dialects().values())
    if best is Evidence.CONFIG:
        return None
    return trainer_of(file, faint=best is Evidence.NONE)


def _recognized(file: AdapterFile) -> Dialect:
    if trainer := foreign_trainer(file):
        raise not_merged(file, trainer)
    graded = [(dialect.recognizes(file), dialect) for dialect in all_dialects().values()]
    best = max(grade for grade, _ in graded)
    if best is Evidence.NONE:
        raise _unrecognized(file)
    winners = [dialect for grade, dialect in graded if grade is best]
    if len(winners) > 1:
        names = ", ".join(dialect.name for dialect in winners)
        raise UsageError(
            f"the file can be read as {names}",
            where=str(file.path),
            hint="choose with --dialect",
            cause="usage/dialect",
        )
    return winners[0]


def _unrecognized(file: AdapterFile) -> InputError:
    """Return the refusal of a file that no dialect recognises."""
    names = sorted(file.tensors)
    is_peft = any(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)
    if is_peft and file.config:
        return InputError(
            "these are a PEFT adapter's tensors, but adapter_config.json beside them has no "
            "peft_type, and its fields do not show that it is LORA's",
            where=str(file.path),
            hint='add "peft_type" to it, with "r" and "lora_alpha" as in training',
            cause="input/adapter-config",
        )
    if is_peft:
        return InputError(
            "these are a PEFT adapter's tensors, but adapter_config.json, which holds alpha and "
            "more, is not beside them",
            where=str(file.path),
            hint="give the folder that save_pretrained wrote, with both files in it",
            cause="input/no-config",
        )
    shown = first_names(names, _SHOWN) or "none"
    return InputError(
        f"no low-rank factors found in {len(names)} tensors ({shown})",
        where=str(file.path),
        hint="a loralib adapter holds <module>.lora_A and <module>.lora_B: save it with "
        "torch.save(loralib.lora_state_dict(model), path) while model.train() is on",
        cause="input/no-factors",
    )
