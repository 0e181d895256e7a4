"""Tied tensors: an update under one name of a tensor must not change its other names.

loralib and PEFT merge into the shared tensor. This changes the head (or the input table) as well.
To equal the unmerged model, the result needs a tensor for each name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.planning.base.find_ties import HEADS, architecture_of
from lora_export.planning.names.embedding_tables import TABLES
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.config_edits import ConfigEdits
    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given, Tie
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.records import Checkpoint, Delta, TensorRef

# In their config.json, tie_word_embeddings decides whether outputs are scaled, and not whether
# tensors are tied. transformers ties these unless the checkpoint has them with different values.
_SCALED_BY_TIE = frozenset({
    "longt5", "mt5", "pop2piano", "switch_transformers", "t5", "udop", "umt5",
})  # fmt: skip


@dataclass(slots=True)
class TiedNames:
    """The decisions on the names of tied tensors; see MergePlan and Step."""

    #: Names that are tied to another one in the base's model, and no longer in the result.
    separated: list[str] = field(default_factory=list)
    #: Names that change together (--tied eval).
    coupled: list[str] = field(default_factory=list)
    #: Names whose updates are added one after the other, each sum rounded.
    in_turn: set[str] = field(default_factory=set)
    #: Updates that the unmerged model applies under a further name of a tensor that stays tied.
    twins: list[Delta] = field(default_factory=list)


def plan_ties(
    given: Given, changes: TensorChanges, edits: ConfigEdits, findings: Findings
) -> TiedNames:
    """Separate tied names that the adapters change differently, and edit config.json for it.

    A full tensor that was loaded into the shared parameter replaces it under all names. A full
    tensor of the adapter's own module replaces it only under its own name. --tied eval reproduces
    the library's own result instead: all names get the same updates.
    """
    _check_unknown_head(given, changes, findings)
    tied = TiedNames()
    touched = [tie for tie in given.ties if _is_touched(tie, changes)]
    broken = [tie for tie in touched if _is_broken(tie, given, changes, tied, findings)]
    config = edits.config
    unties_all = broken and config and config.get("model_type") not in _SCALED_BY_TIE
    for tie in given.ties:
        if tie in broken:
            tied.separated += _separate(tie, given, changes, findings)
        elif unties_all:
            _write_alike(tie, given, changes)
        elif tie in touched and not set(tied.coupled) & set(tie.names):
            tied.twins += _keep_one(tie, given, changes)
    if unties_all and not edits.edit_everywhere("tie_word_embeddings", value=False):
        edits.edit("tie_word_embeddings", value=False)
    return tied


def _is_touched(tie: Tie, changes: TensorChanges) -> bool:
    tables = (changes.merged, changes.replaced, changes.added, changes.copies)
    return any(name in table for table in tables for name in tie.names)


def _is_broken(
    tie: Tie, given: Given, changes: TensorChanges, tied: TiedNames, findings: Findings
) -> bool:
    """Return whether its names need a tensor each; refuse it where --tied error is given.

    With --tied eval the names stay one, and get the same updates.
    """
    _spread_whole(tie, given, changes, findings)
    _feed_tokens(tie, changes)
    if _stays_one(tie, given, changes):
        return False
    mode = given.options.tied
    if mode == "error":
        message = f"{' and '.join(tie.names)} are tied and are not adapted alike"
        findings.unfit.append(
            Problem(message, hint="--tied untie writes them separately", cause="fit/tied")
        )
    elif mode == "eval" and not changes.own & set(tie.names):
        _couple(tie, given, changes, tied, findings)
    else:
        return True
    return False


def _separate(tie: Tie, given: Given, changes: TensorChanges, findings: Findings) -> list[str]:
    """Add a tensor for each name that the base does not store; return the names that are untied."""
    for name in tie.names:
        if name not in given.stored:
            changes.added.setdefault(name, changes.value_of(given, tie.stored))
    others = [name for name in tie.names if name != tie.stored]
    verb = "is" if len(others) == 1 else "are"
    choice = f"{', '.join(others)} {verb} untied from {tie.stored} and written separately"
    if not changes.own & set(tie.names):
        choice += "; the library's own merge would change both, which --tied eval gives"
    findings.choices.append(choice)
    if not given.base.config:
        findings.warnings.append(
            f"{' and '.join(tie.names)} are one parameter in your model and several tensors in "
            "the result: untie them in your code before you load it"
        )
    return others


def _spread_whole(tie: Tie, given: Given, changes: TensorChanges, findings: Findings) -> None:
    """Enter the full tensor of the shared parameter under all names but the adapter's own."""
    others = [name for name in tie.names if name not in changes.own]
    tables = (changes.replaced, changes.added)
    full = {n: table[n] for table in tables for n in others if n in table}
    if not full:
        return
    name, ref = next(iter(full.items()))
    if any(other in changes.merged for other in others):
        message = "a tied tensor is replaced by the adapter and updated under another name"
        findings.unfit.append(Problem(message, ", ".join(tie.names), cause="fit/tied"))
    elif not all(same_content(ref, other) for other in full.values()):
        message = "the names of one tied tensor are replaced by different ones"
        findings.unfit.append(Problem(message, ", ".join(full), cause="fit/tied"))
    for other in others:
        changes.added.pop(other, None)
        if other in given.stored:
            changes.replaced[other] = changes.copies[other] = ref
    changes.copies[tie.stored] = ref
    findings.choices.append(f"{name} replaces all of the tied {', '.join(others)}")


def _feed_tokens(tie: Tie, changes: TensorChanges) -> None:
    """Apply trained rows of the input table to every module that is tied to it.

    Reproduces PEFT 0.21.2, utils.other.set_additional_trainable_modules. A tied module with trained
    rows of its own keeps these.
    """
    name = next((name for name in tie.names if name.endswith(TABLES)), tie.stored)
    others = [other for other in tie.names if other != name and other not in changes.own]
    named = {delta.adapter for other in others for delta in changes.merged.get(other, [])}
    for delta in changes.merged.get(name, []):
        if not delta.indices or delta.adapter in named:
            continue
        for other in others:
            module = other.removesuffix(".weight")
            changes.merged.setdefault(other, []).append(replace(delta, module=module))


def _stays_one(tie: Tie, given: Given, changes: TensorChanges) -> bool:
    """Return whether every name has the same value and the same updates."""
    values = [_value(name, given, changes) for name in tie.names]
    updates = [changes.merged.get(name, []) for name in tie.names]
    alike = all(_same_updates(updates[0], other) for other in updates[1:])
    return alike and all(same_content(values[0], other) for other in values[1:])


def _value(name: str, given: Given, changes: TensorChanges) -> TensorRef:
    """Return the value of a tied name before its updates."""
    if name in changes.own:
        return changes.full_tensor(name)
    return changes.value_of(given, name)


def _keep_one(tie: Tie, given: Given, changes: TensorChanges) -> list[Delta]:
    """Keep one tensor for all names; return the updates of the names that are not stored."""
    value = _value(tie.names[0], given, changes)
    twins: list[Delta] = []
    for name in tie.names:
        changes.added.pop(name, None)
        if name in given.stored and changes.own & set(tie.names):
            changes.replaced[name] = value
        elif name not in given.stored:
            twins += changes.merged.pop(name, [])
    return twins


def _write_alike(tie: Tie, given: Given, changes: TensorChanges) -> None:
    """Write the same tensor under each name, since the flag in config.json unties every tie."""
    value, updates = _value(tie.stored, given, changes), changes.merged.get(tie.stored)
    for name in tie.names:
        if name not in given.stored:
            changes.added[name] = value
            if updates:
                changes.merged[name] = updates


def _couple(
    tie: Tie, given: Given, changes: TensorChanges, tied: TiedNames, findings: Findings
) -> None:
    """Merge the updates of all names into the one tensor, as the library's own merge does.

    Several updates are added one after the other, each sum rounded. This is reproduced for a single
    adapter of PEFT with weight 1. Several updates of other adapters are refused.
    """
    updates = [delta for name in tie.names for delta in changes.merged.get(name, [])]
    if len(updates) > 1:
        one = {(d.adapter, d.weight, d.recipe == "loralib") for d in updates}
        if len(one) > 1 or updates[0].weight != 1.0 or updates[0].recipe == "loralib":
            message = f"{' and '.join(tie.names)} are tied and several of them are adapted"
            hint = "loralib merges one after the other into one tensor; use --tied untie"
            findings.unfit.append(Problem(message, hint=hint, cause="fit/tied"))
            return
        tied.in_turn.update(tie.names)
    for name in tie.names:
        changes.merged.pop(name, None)
        if name in given.stored:
            changes.merged[name] = updates
    tied.coupled += tie.names
    findings.warnings.append(
        f"{' and '.join(tie.names)} change together, as in the library's own merge: the result "
        "differs from the unmerged model, and is proven by weights only"
    )


def _same_updates(left: Sequence[Delta], right: Sequence[Delta]) -> bool:
    return len(left) == len(right) and all(
        _arithmetic(one) == _arithmetic(other)
        and one.factors.keys() == other.factors.keys()
        and all(same_content(ref, other.factors[role]) for role, ref in one.factors.items())
        for one, other in zip(left, right, strict=True)
    )


def _arithmetic(delta: Delta) -> tuple[object, ...]:
    return delta.adapter, delta.kind, delta.scaling, delta.weight, delta.indices


def _check_unknown_head(given: Given, changes: TensorChanges, findings: Findings) -> None:
    """Refuse an adapted input table that may be tied to a head of unknown name.

    Without config.json it is not known whether there is a tie, and the table gives a warning.
    """
    known = {name for tie in given.ties for name in tie.names}
    changed = [*changes.merged, *changes.replaced, *changes.copies]
    adapted = [n for n in changed if n.endswith(TABLES) and n not in known]
    if given.model is not None or given.options.tied == "eval" or not adapted:
        return
    if not given.base.config:
        findings.warnings.append(
            f"{adapted[0]} looks like an input embedding; if your model ties its head to it, name "
            "the model with --model so that the head can be written separately"
        )
    elif _may_have_tied_head(given.base):
        hint = (
            "install the extra hf (transformers knows the names), name the model with --model, or "
            "accept the library's own result with --tied eval"
        )
        message = "this table may be tied to a head whose name is not known"
        findings.unfit.append(Problem(message, adapted[0], hint, cause="fit/tied"))


def _may_have_tied_head(base: Checkpoint) -> bool:
    """Return whether config.json allows a tie, and the architecture has a language model's head."""
    ends = ("LM", "LMHeadModel", "ForPreTraining", "ForConditionalGeneration")
    tied = base.config.get("tie_word_embeddings", True)
    known_untied = any(architecture_of(base) in known for known in HEADS.values())
    return bool(tied) and architecture_of(base).endswith(ends) and not known_untied
