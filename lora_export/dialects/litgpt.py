"""Reads litgpt's LoRA files (0.2.0 to 0.5.13): factors with loralib's names, of other layers.

The weight `attn.qkv` (`attn.attn` up to 0.5.4) holds query, key and value in blocks of unequal
size. A loralib MergedLinear cuts into equal blocks and would merge it wrongly. alpha, the blocks
and their sizes are in two files that litgpt saves beside the LoRA.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.dialects.dialect import Dialect, Evidence
from lora_export.dialects.litgpt_settings import (
    HYPERPARAMETERS,
    MODEL_CONFIG,
    Settings,
    read_settings,
)
from lora_export.dialects.loralib import factor_key, read_factors
from lora_export.errors import InputError
from lora_export.records import Facts, Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from lora_export.records import Adapter, AdapterFile, Update

_FUSED = re.compile(r"(?:.+\.)?transformer\.h\.[0-9]+\.attn\.(?P<name>qkv|attn)")
_LAYER = re.compile(r"(?:.+\.)?transformer\.h\.[0-9]+\.(?P<part>attn\.proj|mlp\..+)|lm_head")
_QKV_FLAGS = ("query", "key", "value")
_BY_GROUP = "attn"
"""The name of the fused weight up to 0.5.4, where its rows lie group by group."""


def _recognizes(file: AdapterFile) -> Evidence:
    """Grade a file: the fused weight's name shows litgpt, or its own files beside its layers."""
    modules = [key[0] for name in file.tensors if (key := factor_key(name))]
    if any(_FUSED.fullmatch(module) for module in modules):
        return Evidence.TRAINERS_NAMES
    if modules and all(_LAYER.fullmatch(module) for module in modules):
        beside = (file.path.with_name(HYPERPARAMETERS), file.path.with_name(MODEL_CONFIG))
        return Evidence.TRAINERS_NAMES if all(path.exists() for path in beside) else Evidence.NONE
    return Evidence.NONE


def _read(file: AdapterFile, weight: float) -> Adapter:
    settings = read_settings(file.path.parent)
    adapter = read_factors(file, weight, DIALECT.name)
    problems = list(_contradictions(file, settings, [u.module for u in adapter.updates]))
    if problems:
        raise InputError.of(problems)
    updates = tuple(_with_facts(update, settings) for update in adapter.updates)
    notes = (f"{file.path.name}: facts from {settings.source}",) if settings.source else ()
    return replace(adapter, updates=updates, notes=notes, doubts=_doubts(adapter, settings))


def _doubts(adapter: Adapter, settings: Settings) -> tuple[str, ...]:
    """Return a doubt about an old fused weight without settings.

    lit-gpt before litgpt#891 (February 2024) put an update's rows in another order. It saved no
    hyperparameters.yaml, so the file does not show which order was trained.
    """
    fused = [found for u in adapter.updates if (found := _FUSED.fullmatch(u.module))]
    if settings.flags or not any(found["name"] == _BY_GROUP for found in fused):
        return ()
    doubt = (
        f"the update is spread over the query groups as litgpt 0.2.0 to 0.5.4 does; without "
        f"{HYPERPARAMETERS} it may be of lit-gpt before February 2024, which did not"
    )
    return (doubt,)


def _with_facts(update: Update, settings: Settings) -> Update:
    fused = _FUSED.fullmatch(update.module)
    flags = settings.flags
    own = Facts(
        alpha=settings.alpha,
        fan_in_fan_out=False,
        enable_lora=tuple(flags[name] for name in _QKV_FLAGS) if flags else None,
        kind="litgpt_qkv" if fused else "linear",
        rank=settings.rank,
        n_head=settings.n_head,
        n_query_groups=settings.n_query_groups,
        by_group=fused["name"] == _BY_GROUP if fused else None,
        source=settings.source,
    )
    return replace(update, family="litgpt", own=own)


def _part(module: str) -> str:
    """Return the name of the litgpt switch that adapts the module."""
    if _FUSED.fullmatch(module):
        return "query"  # stands for key and value too: one weight holds all three
    found = _LAYER.fullmatch(module)
    part = found["part"] if found else None
    return "head" if part is None else "projection" if part == "attn.proj" else "mlp"


def _contradictions(
    file: AdapterFile, settings: Settings, modules: Collection[str]
) -> Iterator[Problem]:
    """Yield where litgpt's switches and number of layers differ from what the file holds."""
    flags = settings.flags
    if flags is None:
        return
    held = {_part(module) for module in modules}
    fused = any(flags[name] for name in _QKV_FLAGS)
    hint = "save the LoRA again: the files are of different trainings, or a part is missing"
    for part, wanted in {**flags, "query": fused}.items():
        if part in ("key", "value") or wanted == (part in held):
            continue
        name = "query, lora_key or lora_value" if part == "query" else part
        verb = "is on, but the file holds no factors" if wanted else "is off, but it holds factors"
        message = f"lora_{name} in {HYPERPARAMETERS} {verb} for it"
        yield Problem(message, str(file.path), hint, cause="input/factors")
    count = sum(_FUSED.fullmatch(module) is not None for module in modules)
    if fused and settings.n_layer not in (None, count):
        message = f"the file adapts {count} layers, but n_layer in {MODEL_CONFIG} is "
        yield Problem(f"{message}{settings.n_layer}", str(file.path), hint, cause="input/factors")


DIALECT = Dialect("litgpt", _recognizes, _read)
