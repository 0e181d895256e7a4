"""The base before the merge: without factors of its own, and with its layers repeated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.dialects.loralib import factor_key
from lora_export.errors import InputError, UsageError
from lora_export.planning.base.replication import repeat_layers
from lora_export.planning.names.base_names import weight_names
from lora_export.report.columns import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.planning.config_edits import ConfigEdits
    from lora_export.planning.findings import Findings
    from lora_export.planning.merge_options import Options
    from lora_export.records import Adapter, Checkpoint, TensorRef


@dataclass(frozen=True, slots=True)
class PreparedBase:
    """The base's tensors that take part, by the names that they have in the result."""

    #: The base without low-rank factors of its own.
    base: Checkpoint
    #: Its tensors by the names of the result, in shard order.
    stored: Mapping[str, TensorRef]
    #: The names under which a tensor of a repeated layer is written; () for one that is left out.
    layers: Mapping[str, tuple[str, ...]]
    #: The base's tensors that are not written, and why.
    dropped: Mapping[str, str]


def prepare_base(
    base: Checkpoint,
    adapters: Sequence[Adapter],
    options: Options,
    edits: ConfigEdits,
    findings: Findings,
) -> PreparedBase:
    """Leave out the base's own factors, and repeat its layers as the adapters ask.

    Raises:
        InputError: the base holds low-rank factors, and no option states that it is unmerged.
    """
    factors = [name for name in base.tensors() if factor_key(name)]
    if factors:
        base = _without_factors(base, factors, options, findings)
    stored = base.tensors()
    layers = repeat_layers(base, adapters, edits, findings)
    dropped = dict.fromkeys(factors, "a factor inside the base (--unmerged-base)")
    gone = [name for name, copies in layers.items() if not copies]
    dropped |= dict.fromkeys(gone, "a layer that layer_replication leaves out")
    if layers:
        stored = {copy: ref for name, ref in stored.items() for copy in layers.get(name, (name,))}
    return PreparedBase(base, stored, layers, dropped)


def _without_factors(
    base: Checkpoint, factors: Sequence[str], options: Options, findings: Findings
) -> Checkpoint:
    """Return the base without lora_A and lora_B.

    No file shows whether its weights contain the update already, so the user must state it.

    Raises:
        InputError: the options do not state that the base is unmerged.
    """
    if not options.unmerged_base:
        raise InputError(
            f"the base itself holds {len(factors)} low-rank factors ({factors[0]}, ...): whether "
            "its weights already contain the update is not in the file",
            where=str(base.root),
            hint="saved in train() mode or with merge_weights=False: give --unmerged-base; saved "
            "in eval() mode: its weights are merged already, merging again would double them, and "
            "without its lora_* keys it is the finished model (docs/formats-loralib.md shows how)",
            cause="input/training-checkpoint",
        )
    findings.choices.append(f"{counted(len(factors), 'low-rank factor')} of the base are left out")
    findings.warnings.append(
        "that the base's weights are unmerged is taken from --unmerged-base and cannot be checked: "
        "if it was saved in eval() mode, the result contains the update twice"
    )
    out = set(factors)
    shards = tuple(
        replace(shard, tensors=tuple(r for r in shard.tensors if r.spec.name not in out))
        for shard in base.shards
    )
    return replace(base, shards=shards)


def refuse_adapter_as_base(base: Checkpoint) -> None:
    """Refuse a base that holds factors without any of their weights: it is an adapter.

    Raises:
        UsageError: the base is an adapter.
    """
    stored = base.tensors()
    modules = [key[0] for name in stored if (key := factor_key(name))]
    if modules and not any(name in stored for m in modules for name in weight_names(m)):
        raise UsageError(
            "is named as the base, but holds low-rank factors without weights",
            where=str(base.root),
            hint="the base comes first, then the adapter: are the two swapped?",
            cause="usage/swapped",
        )
