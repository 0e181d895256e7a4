"""From paths and options to a MergePlan: the files are read, then the plan is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from lora_export.checkpoint.folder.recorded import read_manifest
from lora_export.checkpoint.index import read_adapter_file, read_checkpoint
from lora_export.checkpoint.reading import read_json_object
from lora_export.errors import FitError, UsageError
from lora_export.planning.base.prepare_base import refuse_adapter_as_base
from lora_export.planning.checks.beside_base import warnings_of_base
from lora_export.planning.facts.user_facts import FactTable, parse_enable_lora, read_hparams
from lora_export.planning.full_tensors.beside import read_joined, refuse_unused_ignore
from lora_export.planning.make_plan import make_plan
from lora_export.planning.merge_options import Dtype, Options, Recipe, Tied, Tokenizer
from lora_export.planning.prefix_change import PrefixChange
from lora_export.records import Facts
from lora_export.report.columns import counted
from lora_export.shown import shell_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_export.checkpoint.folder.recorded import Recorded
    from lora_export.planning.base.find_ties import Lookup
    from lora_export.planning.facts.architecture import Layers
    from lora_export.planning.full_tensors.heads import Classes
    from lora_export.records import (
        Adapter,
        AdapterFile,
        Checkpoint,
        MergePlan,
        ModelFacts,
        NameTable,
    )

_DAMAGED = "it may name an adapter that is merged already; if none is, move the manifest away"
"""The hint beside a manifest of the base that cannot be read."""


class AdapterOptions(TypedDict, total=False):
    """The options that every verb takes about adapters, named as on the command line."""

    #: One factor an adapter, in their order.
    weight: Sequence[float]
    #: The lora_alpha of training, where no file gives it.
    alpha: float | None
    #: The blocks that loralib's MergedLinear adapts, as "1,0,1" or as booleans.
    enable_lora: str | Sequence[bool] | None
    #: Whether linear weights are stored (in, out), where neither file nor architecture shows it.
    fan_in_fan_out: bool | None
    #: A file of such facts, by module.
    hparams: str | Path | None
    #: The adapter's dialect; None recognises it.
    dialect: str | None
    recipe: Recipe
    tied: Tied
    #: Globs on names of the adapter file that may stay unused.
    allow_unmatched: Sequence[str]
    #: Globs on names of the adapter file that the base may lack.
    allow_new: Sequence[str]
    allow_noop: bool
    #: "OLD=NEW", the one change of prefix from adapter to base.
    rename: str | None
    #: Whether the base is a training checkpoint, whose own factors are left out.
    unmerged_base: bool
    #: The owner of the tokenizer files that a folder gets. None takes the base's, unless the
    #: vocabulary was resized.
    tokenizer: Tokenizer | None
    #: The dtype of all floating tensors of the result; None and "keep" take the base's.
    dtype: Dtype | None
    #: Names of weight files in an adapter's folder that take no part.
    ignore: Sequence[str]
    #: Where an adapter's file and its configuration disagree: True takes the file, False the
    #: configuration, None refuses.
    trust_file: bool | None
    #: Whether another base than the adapter names is refused.
    strict: bool
    #: Whether links of a model's or an adapter's folder may lead out of it.
    follow_links: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A base, its adapters, and the facts and options for their merge."""

    base: Path
    adapters: tuple[Path, ...]
    #: One factor an adapter; empty where each is 1.
    weights: tuple[float, ...]
    #: The facts of the command line.
    facts: Facts
    #: The file of further facts, if one is named.
    hparams: Path | None
    #: The adapters' dialect; None recognises it.
    dialect: str | None
    options: Options


def make_request(
    base: str | Path, adapters: Sequence[str | Path], settings: AdapterOptions
) -> Request:
    """Make the request that `settings` describe.

    Raises:
        UsageError: a setting cannot be read.
    """
    blocks = settings.get("enable_lora")
    rename = settings.get("rename")
    hparams = settings.get("hparams")
    return Request(
        base=Path(base),
        adapters=tuple(Path(adapter) for adapter in adapters),
        weights=_weights(settings.get("weight") or ()),
        facts=Facts(
            alpha=settings.get("alpha"),
            enable_lora=parse_enable_lora(blocks) if isinstance(blocks, str) else _tuple(blocks),
            fan_in_fan_out=settings.get("fan_in_fan_out"),
            source="the options",
        ),
        hparams=Path(hparams) if hparams else None,
        dialect=settings.get("dialect"),
        options=Options(
            recipe=settings.get("recipe", "auto"),
            tied=settings.get("tied", "untie"),
            allow_unmatched=tuple(settings.get("allow_unmatched", ())),
            allow_new=tuple(settings.get("allow_new", ())),
            allow_noop=settings.get("allow_noop", False),
            rename=_rename(rename) if rename else None,
            unmerged_base=settings.get("unmerged_base", False),
            tokenizer=settings.get("tokenizer"),
            dtype=settings.get("dtype"),
            ignore=tuple(settings.get("ignore", ())),
            trust_file=settings.get("trust_file"),
            strict=settings.get("strict", False),
            follow_links=settings.get("follow_links", False),
        ),
    )


def _weights(weights: Sequence[float]) -> tuple[float, ...]:
    for weight in weights:
        if not math.isfinite(weight) or weight == 0:
            message = f"{weight} makes the update meaningless"
            raise UsageError(
                message,
                where="--weight",
                hint="leave the adapter out instead",
                cause="usage/option-value",
            )
    return tuple(weights)


def _tuple(blocks: Sequence[bool] | None) -> tuple[bool, ...] | None:
    return None if blocks is None else tuple(bool(block) for block in blocks)


def _rename(text: str) -> PrefixChange:
    old, equals, new = text.partition("=")
    if not equals:
        raise UsageError(
            f"{text!r} is not OLD=NEW",
            where="--rename",
            hint="transformer.=model.",
            cause="usage/option-value",
        )
    return PrefixChange(*(f"{part.rstrip('.')}." if part else "" for part in (old, new)))


@dataclass(frozen=True, slots=True)
class Inputs:
    """The checkpoint and the adapters of a request, read from their headers."""

    base: Checkpoint
    adapters: tuple[Adapter, ...]
    #: The base's own manifest; None where it has none.
    recorded: Recorded | None = None

    @property
    def merged_before(self) -> tuple[str, ...]:
        """Return the digest of every adapter that the base's manifest names as merged."""
        if self.recorded is None:
            return ()
        digests = [adapter.digest for adapter in self.recorded.adapters]
        return (*self.recorded.merged_before, *digests)


def read_inputs(request: Request) -> Inputs:
    """Read the base and the adapters of `request`.

    Raises:
        InputError, FitError, UsageError: see read_checkpoint and read_adapter. The base's manifest
            is damaged, and may name an adapter that is merged already; or an adapter is named
            twice, or is merged into the base already.
    """
    base = read_checkpoint(request.base, follow_links=request.options.follow_links)
    refuse_adapter_as_base(base)
    adapters = _read_adapters(request, base)
    inputs = Inputs(base, tuple(adapters), read_manifest(base.root, hint=_DAMAGED))
    _refuse_twice(inputs)
    return inputs


def plan_request(
    request: Request,
    model: ModelFacts | None = None,
    *,
    inputs: Inputs | None = None,
    recorded: Mapping[tuple[str, str], Facts] | None = None,
    lookup: Lookup = lambda _: None,
    runtime: Callable[[Checkpoint], NameTable | None] = lambda _: None,
    classes: Classes = lambda _base, _task: None,
    architecture: Callable[[Checkpoint], Layers | None] = lambda _: None,
) -> MergePlan:
    """Make the plan for `request`.

    Args:
        request: the base, the adapters and the options.
        model: the facts of the user's own model; None where --model names none.
        inputs: the result of read_inputs; None reads the files here.
        recorded: facts of an earlier manifest, by the adapter's path and the module. They are used
            where there is no model.
        lookup: see planning.make_plan.make_plan.
        runtime: see planning.make_plan.make_plan.
        classes: see planning.make_plan.make_plan.
        architecture: see planning.make_plan.make_plan.

    Raises:
        InputError, FitError, UsageError: see read_inputs and make_plan.
    """
    inputs = inputs or read_inputs(request)
    top, patterns = read_hparams(request.hparams) if request.hparams else (Facts(), ())
    modules = model.modules if model else {}
    facts = FactTable.joined(request.facts, top, patterns, modules, recorded=recorded)
    plan = make_plan(
        inputs.base,
        inputs.adapters,
        facts,
        request.options,
        model=model,
        lookup=lookup,
        runtime=runtime,
        classes=classes,
        architecture=architecture,
    )
    found = warnings_of_base(inputs.base.root, inputs.adapters, inputs.recorded)
    warnings = (*found, *plan.warnings)
    return replace(plan, warnings=warnings)


def _read_adapters(request: Request, base: Checkpoint) -> list[Adapter]:
    if not request.adapters:
        raise UsageError("no adapter is named", cause="usage/command-line")
    if request.weights and len(request.weights) != len(request.adapters):
        raise UsageError(
            f"{counted(len(request.weights), 'weight')} for "
            f"{counted(len(request.adapters), 'adapter')}",
            where="--weight",
            hint="give --weight once for each adapter, in the order of the adapters",
            cause="usage/option-value",
        )
    weights = request.weights or (1.0,) * len(request.adapters)
    files = [_read_file(path, request) for path in request.adapters]
    refuse_unused_ignore(files, request.options.ignore)
    return [
        read_joined(file, base, request.options.ignore, dialect=request.dialect, weight=weight)
        for file, weight in zip(files, weights, strict=True)
    ]


def _refuse_model(path: Path, base: Path, file: AdapterFile) -> None:
    """Refuse a folder of transformers without factors of any kind as an adapter.

    Raises:
        UsageError: the folder holds a model.
    """
    config = file.path.parent / "config.json"
    if file.config or not path.is_dir() or not config.is_file():
        return
    if any("lora_" in name or "lokr_" in name or "hada_" in name for name in file.tensors):
        return
    listed = read_json_object(config).get("architectures")
    kind = f" ({listed[0]})" if isinstance(listed, list) and listed else ""
    raise UsageError(
        f"this folder holds a full model{kind}, not an adapter",
        where=str(path),
        hint="the base comes first; did you mean: "
        + shell_command(["lora-export", "merge", str(path), str(base)]),
        cause="usage/swapped",
    )


def _read_file(path: Path, request: Request) -> AdapterFile:
    file = read_adapter_file(path, follow_links=request.options.follow_links)
    _refuse_model(path, request.base, file)
    return file


def _refuse_twice(inputs: Inputs) -> None:
    """Refuse an adapter that is named twice, or that the base's manifest names as merged.

    Adapters are compared by their tensors, since the same adapter may be saved in two formats.
    """
    digests = [adapter.digest for adapter in inputs.adapters]
    known = inputs.merged_before
    for position, (adapter, digest) in enumerate(zip(inputs.adapters, digests, strict=True)):
        if digest in digests[:position]:
            hint = "name it once, with --weight for its strength"
            raise FitError(
                "the same adapter is named twice",
                where=str(adapter.path),
                hint=hint,
                cause="fit/merged-already",
            )
        if digest in known:
            raise FitError(
                "this adapter is merged into the base already, by the base's manifest",
                where=str(adapter.path),
                hint="start from the original base",
                cause="fit/merged-already",
            )
