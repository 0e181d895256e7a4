"""Tied embeddings: an update of one of two names of one tensor must not change the other.

Both loralib and PEFT merge into the shared tensor, which changes the head (or the input table)
as well; equality with the unmerged model needs two tensors from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.planning.names import without_wrappers
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.planning.draft import Draft
    from lora_export.records import Checkpoint, ModelFacts

# The head's parameter of transformers 5 by the end of the architecture's name.
_HEADS = {
    "BertForMaskedLM": "cls.predictions.decoder.weight",
    "BertForPreTraining": "cls.predictions.decoder.weight",
    "RobertaForMaskedLM": "lm_head.decoder.weight",
    "RobertaForCausalLM": "lm_head.decoder.weight",
    "DistilBertForMaskedLM": "vocab_projector.weight",
    "AlbertForMaskedLM": "predictions.decoder.weight",
    "GPTNeoXForCausalLM": "embed_out.weight",
    "ForCausalLM": "lm_head.weight",
    "LMHeadModel": "lm_head.weight",
    "ForConditionalGeneration": "lm_head.weight",
}
_TABLES = (
    "wte.weight", "embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight",
    "shared.weight", "embed_in.weight",
)  # fmt: skip


def ties_of(base: Checkpoint, model: ModelFacts | None) -> Mapping[str, str]:
    """Head name -> name of the stored table it is tied to.

    The model's own shared parameters count first; else config.json with the architecture.
    A head may be stored as well (a copy) or not at all.
    """
    stored = base.tensors()
    if model is not None:
        return _shared(model, {without_wrappers(name): name for name in stored})
    architecture = _architecture(base)
    ends = (end for end in _HEADS if architecture.endswith(end))
    head = next((_HEADS[end] for end in ends), None)
    tables = [name for name in stored if name.endswith(_TABLES)]
    if head is None or len(tables) != 1 or not _tied_by_config(base, head):
        return {}
    return {head: tables[0]}


def _shared(model: ModelFacts, stored: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for group in model.ties:
        kept = next((name for name in group if name in stored), None)
        if kept is not None:
            found.update({name: stored[kept] for name in group if name != kept})
    return found


def _architecture(base: Checkpoint) -> str:
    architectures = base.config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _tied_by_config(base: Checkpoint, head: str) -> bool:
    """The flag, or where it is missing, the head's absence from the checkpoint."""
    flag = base.config.get("tie_word_embeddings")
    return bool(flag) if flag is not None else head not in base.tensors()


def plan_ties(draft: Draft) -> dict[str, object]:
    """Separate what the updates make different; return the edits of config.json this forces.

    With --tied eval the libraries' own result is reproduced: both names get the same update.
    """
    _refuse_unknown_head(draft)
    edits: dict[str, object] = {}
    for head, table in draft.ties.items():
        if head in draft.merged or table in draft.merged:
            _separate(draft, head, table, edits)
    return edits


def _separate(draft: Draft, head: str, table: str, edits: dict[str, object]) -> None:
    mode = draft.options.tied
    if mode == "error":
        message = f"{table} and {head} are tied and only one of them is adapted"
        draft.unfit.append(Problem(message, hint="--tied untie writes them separately"))
        return
    if mode == "eval":
        draft.warnings.append(
            f"{head} changes with {table}, as in the library's own merge: the result differs from "
            "the unmerged model, so it is proven by weights only"
        )
        updates = draft.merged.pop(head, []) + draft.merged.get(table, [])
        for name in {table, head} & draft.stored.keys():
            draft.merged[name] = updates
        draft.coupled += [head, table]
        draft.choices.append(f"{head} changes together with {table} (--tied eval)")
        return
    if head not in draft.stored:
        draft.added[head] = draft.stored[table]
    draft.choices.append(f"{head} is untied from {table} and written separately")
    if draft.base.config:
        edits["tie_word_embeddings"] = False
    else:
        draft.warnings.append(
            f"{table} and {head} are one parameter in your model and two in the result: untie "
            "them in your code before you load it"
        )


def _refuse_unknown_head(draft: Draft) -> None:
    """An adapted input table that may be tied to a head nobody can name."""
    known = {*draft.ties, *draft.ties.values()}
    adapted = [n for n in draft.merged if n.endswith(_TABLES) and n not in known]
    if draft.model is not None or draft.options.tied == "eval" or not adapted:
        return
    if not draft.base.config:
        draft.warnings.append(
            f"{adapted[0]} looks like an input embedding; if your model ties its head to it, name "
            "the model with --model so that the head can be written separately"
        )
    elif draft.base.config.get("tie_word_embeddings") and _may_have_head(draft.base):
        hint = "name the model with --model, or accept the library's result with --tied eval"
        message = "config.json ties this table to a head whose name is not known"
        draft.unfit.append(Problem(message, adapted[0], hint))


def _may_have_head(base: Checkpoint) -> bool:
    ends = ("LM", "LMHeadModel", "ForPreTraining", "ForConditionalGeneration")
    return _architecture(base).endswith(ends)
