"""Tied tensors: an update of one of several names of one tensor must not change the others.

Both loralib and PEFT merge into the shared tensor, which changes the head (or the input table)
as well; equality with the unmerged model needs a tensor for each name from then on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.planning.full_tensors.find_ties import HEADS, architecture_of
from lora_export.planning.full_tensors.vocabulary import TABLES
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.draft import Draft
    from lora_export.planning.full_tensors.find_ties import Tie
    from lora_export.records import Checkpoint, Delta, TensorRef

# By tie_word_embeddings their config.json says whether outputs are scaled, and not that tensors are
# tied: transformers ties them in any case, unless the checkpoint holds them with other values.
_SCALED_BY_TIE = frozenset({
    "longt5", "mt5", "pop2piano", "switch_transformers", "t5", "udop", "umt5",
})  # fmt: skip


def plan_ties(draft: Draft) -> None:
    """Separate what the adapters make different, and edit config.json where that forces it.

    A full tensor that was loaded into the shared parameter replaces it under all names; one of a
    module that the adapter has for itself under its own alone. With --tied eval the library's own
    result is reproduced: all names get the same updates.
    """
    _refuse_unknown_head(draft)
    ties = [tie for tie in draft.ties if _is_touched(draft, tie)]
    broken = [tie for tie in ties if _is_broken(draft, tie)]
    config = draft.base.config
    unties_all = broken and config and config.get("model_type") not in _SCALED_BY_TIE
    for tie in draft.ties:
        if tie in broken:
            _separate(draft, tie)
        elif unties_all:
            _write_alike(draft, tie)
        elif tie in ties and not set(draft.coupled) & set(tie.names):
            _keep_one(draft, tie)
    if unties_all and not draft.edit_everywhere("tie_word_embeddings", value=False):
        draft.edit("tie_word_embeddings", value=False)


def _is_touched(draft: Draft, tie: Tie) -> bool:
    tables = (draft.merged, draft.replaced, draft.added, draft.copies)
    return any(name in table for table in tables for name in tie.names)


def _is_broken(draft: Draft, tie: Tie) -> bool:
    """Whether its names need a tensor each; where they may not have one, that is a problem."""
    _spread_whole(draft, tie)
    _feed_tokens(draft, tie)
    if _stays_one(draft, tie):
        return False
    mode = draft.options.tied
    if mode == "error":
        message = f"{' and '.join(tie.names)} are tied and are not adapted alike"
        draft.unfit.append(Problem(message, hint="--tied untie writes them separately"))
    elif mode == "eval" and not draft.own & set(tie.names):
        _couple(draft, tie)
    else:
        return True
    return False


def _separate(draft: Draft, tie: Tie) -> None:
    for name in tie.names:
        if name not in draft.stored:
            draft.added.setdefault(name, draft.value_of(tie.table))
    others = [name for name in tie.names if name != tie.table]
    draft.separated += others
    verb = "is" if len(others) == 1 else "are"
    told = f"{', '.join(others)} {verb} untied from {tie.table} and written separately"
    if not draft.own & set(tie.names):
        told += "; the library's own merge would change both, which --tied eval gives"
    draft.choices.append(told)
    if not draft.base.config:
        draft.warnings.append(
            f"{' and '.join(tie.names)} are one parameter in your model and several tensors in "
            "the result: untie them in your code before you load it"
        )


def _spread_whole(draft: Draft, tie: Tie) -> None:
    """A full tensor for the shared parameter is the value of all names but the adapter's own."""
    others = [name for name in tie.names if name not in draft.own]
    tables = (draft.replaced, draft.added)
    given = {n: table[n] for table in tables for n in others if n in table}
    if not given:
        return
    name, ref = next(iter(given.items()))
    if any(other in draft.merged for other in others):
        message = "a tied tensor is replaced by the adapter and updated under another name"
        draft.unfit.append(Problem(message, ", ".join(tie.names)))
    elif not all(same_content(ref, other) for other in given.values()):
        message = "the names of one tied tensor are replaced by different ones"
        draft.unfit.append(Problem(message, ", ".join(given)))
    for other in others:
        draft.added.pop(other, None)
        if other in draft.stored:
            draft.replaced[other] = draft.copies[other] = ref
    draft.copies[tie.table] = ref
    draft.choices.append(f"{name} replaces all of the tied {', '.join(others)}")


def _feed_tokens(draft: Draft, tie: Tie) -> None:
    """Trained rows of the input table reach every module that is tied to it, as in PEFT.

    PEFT 0.21.2, utils.other.set_additional_trainable_modules, unless a tied module has rows of
    its own.
    """
    name = next((name for name in tie.names if name.endswith(TABLES)), tie.table)
    others = [other for other in tie.names if other != name and other not in draft.own]
    named = {delta.adapter for other in others for delta in draft.merged.get(other, [])}
    for delta in draft.merged.get(name, []):
        if not delta.indices or delta.adapter in named:
            continue
        for other in others:
            module = other.removesuffix(".weight")
            draft.merged.setdefault(other, []).append(replace(delta, module=module))


def _stays_one(draft: Draft, tie: Tie) -> bool:
    """Every name has the same value and the same updates."""
    values = [_value(draft, name) for name in tie.names]
    updates = [draft.merged.get(name, []) for name in tie.names]
    alike = all(_same_updates(updates[0], other) for other in updates[1:])
    return alike and all(same_content(values[0], other) for other in values[1:])


def _value(draft: Draft, name: str) -> TensorRef:
    """What a name of a tie holds before its updates."""
    if name in draft.own:
        return draft.replaced.get(name) or draft.added[name]
    return draft.value_of(name)


def _keep_one(draft: Draft, tie: Tie) -> None:
    """One tensor for all names; what is new about the unstored ones is in it."""
    value = _value(draft, tie.names[0])
    for name in tie.names:
        draft.added.pop(name, None)
        if name in draft.stored and draft.own & set(tie.names):
            draft.replaced[name] = value
        elif name not in draft.stored:
            draft.twins += draft.merged.pop(name, [])


def _write_alike(draft: Draft, tie: Tie) -> None:
    """A tensor for each name, all of them the same: the flag in config.json unties every tie."""
    value, updates = _value(draft, tie.table), draft.merged.get(tie.table)
    for name in tie.names:
        if name not in draft.stored:
            draft.added[name] = value
            if updates:
                draft.merged[name] = updates


def _couple(draft: Draft, tie: Tie) -> None:
    """The library's own result: each module's update is merged into the one tensor in its turn."""
    updates = [delta for name in tie.names for delta in draft.merged.get(name, [])]
    if len(updates) > 1:
        one = {(d.adapter, d.weight, d.recipe == "loralib") for d in updates}
        if len(one) > 1 or updates[0].weight != 1.0 or updates[0].recipe == "loralib":
            message = f"{' and '.join(tie.names)} are tied and several of them are adapted"
            hint = "loralib merges one after the other into one tensor; use --tied untie"
            draft.unfit.append(Problem(message, hint=hint))
            return
        draft.in_turn.update(tie.names)
    for name in tie.names:
        draft.merged.pop(name, None)
        if name in draft.stored:
            draft.merged[name] = updates
    draft.coupled += tie.names
    draft.warnings.append(
        f"{' and '.join(tie.names)} change together, as in the library's own merge: the result "
        "differs from the unmerged model, so it is proven by weights only"
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


def _refuse_unknown_head(draft: Draft) -> None:
    """An adapted input table that may be tied to a head nobody can name."""
    known = {name for tie in draft.ties for name in tie.names}
    changed = [*draft.merged, *draft.replaced, *draft.copies]
    adapted = [n for n in changed if n.endswith(TABLES) and n not in known]
    if draft.model is not None or draft.options.tied == "eval" or not adapted:
        return
    if not draft.base.config:
        draft.warnings.append(
            f"{adapted[0]} looks like an input embedding; if your model ties its head to it, name "
            "the model with --model so that the head can be written separately"
        )
    elif _may_have_tied_head(draft.base):
        hint = (
            "install the extra hf (transformers knows the names), name the model with --model, or "
            "accept the library's own result with --tied eval"
        )
        message = "this table may be tied to a head whose name is not known"
        draft.unfit.append(Problem(message, adapted[0], hint))


def _may_have_tied_head(base: Checkpoint) -> bool:
    """The flag does not say no, and the architecture is one with a head over the vocabulary."""
    ends = ("LM", "LMHeadModel", "ForPreTraining", "ForConditionalGeneration")
    tied = base.config.get("tie_word_embeddings", True)
    known_untied = any(architecture_of(base) in known for known in HEADS.values())
    return bool(tied) and architecture_of(base).endswith(ends) and not known_untied
