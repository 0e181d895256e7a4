"""Choices and warnings about the inputs, and about tensors and facts that options decide on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.planning.names.base_names import INNER_WRAPPERS
from lora_export.planning.names.misfit import other_bases, why_not_compared
from lora_export.planning.updates.orientation import square_weights
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_export.planning.findings import Findings
    from lora_export.planning.fitted import Fitted
    from lora_export.planning.given import Given
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.records import Adapter, Checkpoint


def note_inputs(
    base: Checkpoint, adapters: Sequence[Adapter], findings: Findings, *, strict: bool
) -> None:
    """Note how the files were read, which wrappers their names have, and which base is named.

    strict: another base than the adapters name is a problem.
    """
    _note_wrappers(base, adapters, findings)
    _note_prefixes(base, adapters, findings)
    _note_other_bases(base, adapters, findings, strict=strict)


def _note_wrappers(base: Checkpoint, adapters: Sequence[Adapter], findings: Findings) -> None:
    """Note under which keys torch pickles hold their tensors, with the notes of the readers."""
    wrapped = [(shard.file, shard.wrapper) for shard in base.shards]
    wrapped += [(adapter.path, adapter.wrapper) for adapter in adapters]
    findings.choices += [f"{path.name}: read from its {key!r}" for path, key in wrapped if key]
    findings.choices += [note for shard in base.shards for note in shard.notes]
    findings.choices += [note for adapter in adapters for note in adapter.notes]
    findings.warnings += [f"{a.path.name}: {doubt}" for a in adapters for doubt in a.doubts]


def _note_prefixes(base: Checkpoint, adapters: Sequence[Adapter], findings: Findings) -> None:
    """Note prefixes of DataParallel or torch.compile that are ignored, or stay in the result."""
    in_base = _wrappers(base.tensors())
    for adapter in adapters:
        bridged = _wrappers(adapter.names()) ^ in_base
        if bridged:
            prefixes = " and ".join(f"'{prefix}'" for prefix in sorted(bridged))
            findings.choices.append(f"{adapter.path.name}: names are compared without {prefixes}")
    if in_base:
        prefixes = " and ".join(f"'{prefix}'" for prefix in sorted(in_base))
        findings.warnings.append(
            f"the base's own names carry {prefixes}, as DataParallel, FSDP and torch.compile add "
            "it; the result keeps them, so a plain model loads it only when they are taken off"
        )


def _wrappers(names: Iterable[str]) -> set[str]:
    """Return the wrapper parts in `names`: `module.` where all begin with it, others anywhere."""
    parts = [name.split(".") for name in names]
    found = {f"{wrapper}." for wrapper in INNER_WRAPPERS if any(wrapper in one for one in parts)}
    inner = [[part for part in one if part not in INNER_WRAPPERS] for one in parts]
    outer = bool(inner) and all(one[:1] == ["module"] and one[1:] for one in inner)
    return found | ({"module."} if outer else set())


def _note_other_bases(
    base: Checkpoint, adapters: Sequence[Adapter], findings: Findings, *, strict: bool
) -> None:
    """Warn of a base that an adapter does not name: its shapes may fit, and its weights not."""
    found = other_bases(base, adapters)
    if strict:
        findings.unfit += found
        if why := why_not_compared(base, adapters):
            findings.warnings.append(f"--strict compared nothing: {why}")
    else:
        findings.warnings += [f"{problem.message} (--strict refuses it)" for problem in found]


def note_fitted(given: Given, changes: TensorChanges, fitted: Fitted, findings: Findings) -> None:
    """Note tensors that take no part, the sources of facts, and how square weights are read."""
    _warn_of_keys(fitted, findings)
    if taken := given.facts.taken:
        keys = ", ".join(dict.fromkeys(key for keys in taken.values() for key in keys))
        findings.warnings.append(
            f"{keys} of {len(taken)} modules: taken from the manifest of what is verified"
        )
    deltas = changes.deltas()
    findings.choices += given.facts.overridden(dict.fromkeys(delta.module for delta in deltas))
    if given.model is None:  # else the model shows how weights are stored
        findings.choices += square_weights(deltas, fitted.turned_by)
    for adapter in given.adapters:
        for why in dict.fromkeys(adapter.left_out.values()):
            same = [key for key, reason in adapter.left_out.items() if reason == why]
            verb = "takes" if len(same) == 1 else "take"
            findings.choices.append(f"{first_names(same)} {verb} no part: {why}")
    if fitted.kept:
        equal = counted(len(fitted.kept), "full tensor")
        names = first_names(fitted.kept)
        findings.choices.append(f"{equal} equal to the base's, which is kept ({names})")


def _warn_of_keys(fitted: Fitted, findings: Findings) -> None:
    """Warn of keys that options leave out, or use against the adapter's configuration."""
    if fitted.unmatched:
        findings.warnings.append(
            f"{len(fitted.unmatched)} tensors of the adapters are left out (--allow-unmatched): "
            f"{first_names(fitted.unmatched)}"
        )
    if fitted.disbelieved:
        findings.warnings.append(
            f"{len(fitted.disbelieved)} tensors are left out, as by adapter_config.json "
            f"(--trust-config): {first_names(fitted.disbelieved)}"
        )
    if fitted.believed:
        findings.warnings.append(
            f"{len(fitted.believed)} tensors are merged that adapter_config.json leaves out "
            f"(--trust-file): {first_names(fitted.believed)}"
        )
