"""Tied tensors: an update of one of several names of one tensor must not change the others.

Both loralib and PEFT merge into the shared tensor, which changes the head (or the input table)
as well; equality with the unmerged model needs a tensor for each name from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.planning.names import BaseNames
from lora_export.planning.spaces import homes_of
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lora_export.planning.draft import Draft
    from lora_export.records import Checkpoint, Delta, ModelFacts, NameTable

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
_TABLES = (
    "wte.weight", "embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight",
    "shared.weight", "embed_in.weight",
)  # fmt: skip
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
    tables = [name for name in stored if name.endswith(_TABLES)]
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


def plan_ties(draft: Draft) -> dict[str, object]:
    """Separate what the updates make different; return the edits of config.json this forces.

    A full tensor of the adapter was trained as the shared one, so it replaces all of them. With
    --tied eval the library's own result is reproduced: all names get the same update.
    """
    _refuse_unknown_head(draft)
    separated = False
    for tie in draft.ties:
        if _replaced_together(draft, tie):
            continue
        if any(name in draft.merged for name in tie.names):
            separated = _plan_merged(draft, tie) or separated
    if not separated or not draft.base.config:
        return {}
    for tie in draft.ties:  # the flag in config.json unties all of them
        _write_all(draft, tie)
    return {"tie_word_embeddings": False}


def _replaced_together(draft: Draft, tie: Tie) -> bool:
    given = {
        name: table[name]
        for table in (draft.replaced, draft.added)
        for name in tie.names
        if name in table
    }
    if not given:
        return False
    name, ref = next(iter(given.items()))
    if any(other in draft.merged for other in tie.names):
        message = "a tied tensor is replaced by the adapter and updated under another name"
        draft.unfit.append(Problem(message, ", ".join(tie.names)))
    elif not all(same_content(ref, other) for other in given.values()):
        message = "the names of one tied tensor are replaced by different ones"
        draft.unfit.append(Problem(message, ", ".join(given)))
    for other in tie.names:
        draft.added.pop(other, None)
        if other in draft.stored:
            draft.replaced[other] = ref
    draft.choices.append(f"{name} replaces all of the tied {', '.join(tie.names)}")
    return True


def _plan_merged(draft: Draft, tie: Tie) -> bool:
    """Whether the tie is broken."""
    updates = [draft.merged.get(name, []) for name in tie.names]
    if all(_same_updates(updates[0], other) for other in updates[1:]):
        return False  # a module that is used under several names: it stays one tensor
    mode = draft.options.tied
    if mode == "error":
        message = f"{' and '.join(tie.names)} are tied and are not adapted alike"
        draft.unfit.append(Problem(message, hint="--tied untie writes them separately"))
    elif mode == "eval":
        _couple(draft, tie, [delta for listed in updates for delta in listed])
    else:
        _write_all(draft, tie)
        draft.separated += [name for name in tie.names if name != tie.table]
        others = ", ".join(name for name in tie.names if name != tie.table)
        draft.choices.append(f"{others} is untied from {tie.table} and written separately")
        if not draft.base.config:
            draft.warnings.append(
                f"{' and '.join(tie.names)} are one parameter in your model and several tensors in "
                "the result: untie them in your code before you load it"
            )
        return True
    return False


def _write_all(draft: Draft, tie: Tie) -> None:
    for name in tie.names:
        if name not in draft.stored:
            draft.added.setdefault(name, draft.stored[tie.table])


def _couple(draft: Draft, tie: Tie, updates: list[Delta]) -> None:
    if len(updates) > 1:
        message = f"{' and '.join(tie.names)} are tied and several of them are adapted"
        hint = "loralib merges one after the other into one tensor; use --tied untie"
        draft.unfit.append(Problem(message, hint=hint))
        return
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
        (one.adapter, one.scaling, one.weight) == (other.adapter, other.scaling, other.weight)
        and one.factors.keys() == other.factors.keys()
        and all(same_content(ref, other.factors[role]) for role, ref in one.factors.items())
        for one, other in zip(left, right, strict=True)
    )


def _refuse_unknown_head(draft: Draft) -> None:
    """An adapted input table that may be tied to a head nobody can name."""
    known = {name for tie in draft.ties for name in tie.names}
    adapted = [n for n in draft.merged if n.endswith(_TABLES) and n not in known]
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
