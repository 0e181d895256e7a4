"""Tied tensors: an update of one of several names of one tensor must not change the others.

Both loralib and PEFT merge into the shared tensor, which changes the head (or the input table)
as well; equality with the unmerged model needs a tensor for each name from then on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.planning.names import BaseNames
from lora_export.planning.spaces import homes_of
from lora_export.planning.vocabulary import TABLES
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lora_export.planning.draft import Draft
    from lora_export.records import Checkpoint, Delta, ModelFacts, NameTable, TensorRef

    Groups = Sequence[Sequence[str]]
    Lookup = Callable[[Checkpoint], Groups | None]

# Heads of transformers 5 that are tied by weight alone. Whoever is not listed is asked for: a head
# that was written under a wrong name would be drawn at random when the model is loaded.
_HEADS = {
    "lm_head.weight": {
        "FalconForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM",
        "GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM", "OPTForCausalLM",
        "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
    },
    "vocab_projector.weight": {"DistilBertForMaskedLM"},
}  # fmt: skip
# By tie_word_embeddings their config.json says whether outputs are scaled, and not that tensors are
# tied: transformers ties them in any case, unless the checkpoint holds them with other values.
_SCALED_BY_TIE = frozenset({
    "longt5", "mt5", "pop2piano", "switch_transformers", "t5", "udop", "umt5",
})  # fmt: skip
_HEAD_PARTS = {
    "head",
    "decoder",
    "embed_out",
    "predictions",
    "vocab_projector",
    "proj_out",
    "output",
}


@dataclass(frozen=True, slots=True)
class Tie:
    """Names of one parameter, as the base calls them; `table` is one that the base stores."""

    names: tuple[str, ...]
    table: str


def find_ties(
    base: Checkpoint,
    touched: Iterable[str],
    model: ModelFacts | None,
    lookup: Lookup,
    table: Callable[[], NameTable | None] = lambda: None,
) -> tuple[Tie, ...]:
    """Every tie of the base that can be known.

    touched: the adapter's names, to ask `lookup` (which builds the model's skeleton) only where a
    table or a head may be concerned. table: the running model's names, for a base with others.
    """
    names = BaseNames(base.tensors())
    groups: Groups = model.ties if model else ()
    if model is None and any(_may_be_tied(name) for name in touched):
        groups = lookup(base) or _by_architecture(base)
    ties = [
        tie
        for group in groups
        if (tie := _in_base(group, names) or (None if model else _by_table(group, base, table())))
    ]
    if model is None:
        ties = [part for tie in ties for part in _alike(tie, base.tensors())]
    return tuple(_joined([*ties, *_by_storage(base)]))


def _may_be_tied(name: str) -> bool:
    parts = name.lower().split(".")
    return any("emb" in part or "head" in part or part in ("wte", "shared") for part in parts) or (
        not _HEAD_PARTS.isdisjoint(parts)
    )


def _in_base(group: Sequence[str], names: BaseNames) -> Tie | None:
    """A model's tie in the base's own names; unstored names get the prefix of the stored ones."""
    stored = {name: found for name in group if (found := names.find(name))}
    if not stored:
        return None
    plain, table = next(iter(stored.items()))
    prefix = table.removesuffix(plain) if table.endswith(plain) else ""
    return Tie(tuple(stored.get(name, prefix + name) for name in group), table)


def _by_table(group: Sequence[str], base: Checkpoint, table: NameTable | None) -> Tie | None:
    """A tie of names none of which the base uses, by the names it has instead."""
    homes = homes_of(table, base.tensors()) if table else {}
    stored = {name: homes[name].whole[0] for name in group if name in homes and homes[name].whole}
    if not stored:
        return None
    return Tie(tuple(stored.get(name, name) for name in group), next(iter(stored.values())))


def _alike(tie: Tie, stored: Mapping[str, TensorRef]) -> list[Tie]:
    """The tie without the names that the base stores with other values.

    transformers 5 does not tie those, whatever config.json says.
    """
    groups: list[list[str]] = [[tie.table]]
    for name in tie.names:
        if name == tie.table or name not in stored:
            continue
        like = (g for g in groups if same_content(stored[g[0]], stored[name]))
        group = next(like, None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    if len(groups) == 1:
        return [tie]
    groups[0] += [name for name in tie.names if name not in stored]
    return [Tie(tuple(group), group[0]) for group in groups if len(group) > 1]


def _by_storage(base: Checkpoint) -> list[Tie]:
    """Tensors that a torch pickle keeps in one storage are one parameter."""
    places: dict[object, list[str]] = {}
    for name, ref in base.tensors().items():
        if ref.length:
            key = (ref.file, ref.offset, ref.length, ref.strides, ref.spec.shape, ref.spec.dtype)
            places.setdefault(key, []).append(name)
    return [Tie(tuple(names), names[0]) for names in places.values() if len(names) > 1]


def _by_architecture(base: Checkpoint) -> Groups:
    stored = base.tensors()
    architecture = _architecture(base)
    heads = [head for head, known in _HEADS.items() if architecture in known]
    tables = [name for name in stored if name.endswith(TABLES)]
    if not heads or len(tables) != 1 or not _tied_by_config(base, heads[0]):
        return ()
    return ((tables[0], heads[0]),)


def _architecture(base: Checkpoint) -> str:
    architectures = base.config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _tied_by_config(base: Checkpoint, head: str) -> bool:
    """The flag, or where it is missing, the head's absence from the checkpoint."""
    flag = base.config.get("tie_word_embeddings")
    return bool(flag) if flag is not None else head not in base.tensors()


def _joined(ties: Sequence[Tie]) -> list[Tie]:
    """Ties that share a name are one."""
    joined: list[Tie] = []
    for tie in ties:
        others = [other for other in joined if set(other.names) & set(tie.names)]
        names = dict.fromkeys(name for one in [*others, tie] for name in one.names)
        joined = [other for other in joined if other not in others]
        joined.append(Tie(tuple(names), others[0].table if others else tie.table))
    return joined


def plan_ties(draft: Draft) -> None:
    """Separate what the adapters make different, and edit config.json where that forces it.

    A full tensor that was loaded into the shared parameter replaces it under all names; one of a
    module that the adapter has for itself under its own alone. With --tied eval the library's own
    result is reproduced: all names get the same updates.
    """
    _refuse_unknown_head(draft)
    ties = [tie for tie in draft.ties if _is_touched(draft, tie)]
    separated = [_plan_tie(draft, tie) for tie in ties]
    config = draft.base.config
    if not any(separated) or not config or config.get("model_type") in _SCALED_BY_TIE:
        return
    for tie in draft.ties:  # the flag in config.json unties all of them
        _write_all(draft, tie)
    if not draft.edit_everywhere("tie_word_embeddings", value=False):
        draft.edit("tie_word_embeddings", value=False)


def _is_touched(draft: Draft, tie: Tie) -> bool:
    tables = (draft.merged, draft.replaced, draft.added, draft.copies)
    return any(name in table for table in tables for name in tie.names)


def _plan_tie(draft: Draft, tie: Tie) -> bool:
    """Whether the tie is broken."""
    _spread_whole(draft, tie)
    _feed_tokens(draft, tie)
    if _stays_one(draft, tie):
        _keep_one(draft, tie)
        return False
    mode = draft.options.tied
    if mode == "error":
        message = f"{' and '.join(tie.names)} are tied and are not adapted alike"
        draft.unfit.append(Problem(message, hint="--tied untie writes them separately"))
    elif mode == "eval" and not draft.own & set(tie.names):
        _couple(draft, tie)
    else:
        _separate(draft, tie)
        return True
    return False


def _separate(draft: Draft, tie: Tie) -> None:
    _write_all(draft, tie)
    draft.separated += [name for name in tie.names if name != tie.table]
    others = ", ".join(name for name in tie.names if name != tie.table)
    draft.choices.append(f"{others} is untied from {tie.table} and written separately")
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
        if delta.kind != "token_rows" or delta.adapter in named:
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


def _write_all(draft: Draft, tie: Tie) -> None:
    for name in tie.names:
        if name not in draft.stored:
            draft.added.setdefault(name, draft.value_of(tie.table))


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
    known_untied = any(_architecture(base) in known for known in _HEADS.values())
    return bool(tied) and _architecture(base).endswith(ends) and not known_untied
