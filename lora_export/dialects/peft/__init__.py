"""Reads adapters of Hugging Face PEFT (0.21.2): adapter_config.json defines the tensors' meaning.

A tuner is one file in this folder. An adapter that no tuner can merge is refused with the reason.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.elsewhere import EMPTY
from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.dialects.dialect import Dialect, Evidence
from lora_export.dialects.peft.config import PeftConfig
from lora_export.dialects.peft.fields import unknown_fields
from lora_export.dialects.peft.keys import plain_key, sort_keys
from lora_export.dialects.peft.outside import mark_updates, mark_whole
from lora_export.dialects.peft.promised import lacking_modules, lacking_rows
from lora_export.dialects.peft.refusals import refuse_type
from lora_export.dialects.peft.selection import Selection
from lora_export.dialects.peft.target_parameters import missing_targets
from lora_export.dialects.peft.trainable_tokens import STEM, token_updates
from lora_export.dialects.peft.tuner import Tuner
from lora_export.dialects.peft.untyped import notes, typed
from lora_export.dialects.peft.whole_tensors import (
    replication_of,
    saved_modules,
    task_of,
    whole_tensors,
)
from lora_export.errors import InputError
from lora_export.plug_ins import find_plug_ins
from lora_export.records import FLOAT_DTYPES, Adapter, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.records import AdapterFile, Update


@cache
def all_tuners() -> Mapping[str, Tuner]:
    """Return every tuner by peft_type: the TUNER of each module of this folder that has one."""
    return {tuner.peft_type: tuner for tuner in find_plug_ins(__name__, __path__, "TUNER", Tuner)}


def _recognizes(file: AdapterFile) -> Evidence:
    return Evidence.CONFIG if typed(file).get("peft_type") else Evidence.NONE


def _read(file: AdapterFile, weight: float) -> Adapter:
    """Read an adapter of PEFT; every tensor of the file is used once, or its reason is given.

    Token rows are taken out before the tuner reads the factors, as every tuner may have them. The
    checks against the config come after all tensors are sorted.
    """
    config = PeftConfig(file.path.with_name(ADAPTER_CONFIG), typed(file))
    tuner = all_tuners().get(config.peft_type)
    if tuner is None:
        refuse_type(config)
    if refusals := tuner.refusals(config):
        raise InputError.of(refusals)
    found = sort_keys(file, tuner.stems | {STEM})
    tokens = {module: stems for module, stems in found.factors.items() if STEM in stems}
    factors = {module: stems for module, stems in found.factors.items() if module not in tokens}
    updates, problems = tuner.read(config, factors)
    rows, wrong = token_updates(config, tokens)
    updates, problems = [*updates, *rows], [*problems, *wrong, *_unusable(file, [*updates, *rows])]
    replacements, left_out, wrong = whole_tensors(config, found.others, found.adapters, file.joined)
    problems += wrong
    whole = [*(item.name for item in replacements), *map(plain_key, left_out)]
    checks = [lacking_modules(config, whole), lacking_rows(config, list(tokens))]
    problems += [problem for lacking, _ in checks for problem in lacking]
    if not updates and not problems:
        message = f"holds no factors of {config.peft_type}"
        problems = [
            Problem(
                message, str(file.path), "give the adapter's weight file", cause="input/no-factors"
            )
        ]
    if problems:
        raise InputError.of(problems)
    doubts = (
        *unknown_fields(config),
        *tuner.notes(found.factors),
        *missing_targets(config, updates),
    )
    doubts += tuple(doubt for _, lacking in checks for doubt in lacking)
    selection = Selection.of(config)
    updates = mark_updates(selection, updates)
    return Adapter(
        file.path,
        DIALECT.name,
        tuple(updates),
        tuple(mark_whole(config, selection, replacements, updates, file.joined)),
        weight,
        file.wrapper,
        config_file=config.path,
        doubts=doubts,
        task=task_of(config),
        heads=saved_modules(config),
        replication=replication_of(config),
        left_out={**found.twice, **left_out},
        bias=config.text("bias", "none"),
        notes=notes(file),
        leaves_out=selection.leaves_out,
    )


def _unusable(file: AdapterFile, updates: Sequence[Update]) -> list[Problem]:
    """Return a problem for every factor that is empty or holds no floats."""
    problems = []
    for ref in (ref for update in updates for ref in update.factors.values()):
        where = f"{file.path}: {ref.spec.name}"
        if ref.spec.dtype not in FLOAT_DTYPES:
            problems.append(
                Problem(
                    f"is stored as {ref.spec.dtype}, not a float type", where, cause="input/factors"
                )
            )
        if 0 in ref.spec.shape:
            message = f"has shape {list(ref.spec.shape)}: it is empty"
            problems.append(Problem(message, where, EMPTY, cause="input/factors"))
    return problems


DIALECT = Dialect("peft", _recognizes, _read)
