"""A vocabulary that training has resized: every table and head over it, and config.json.

New rows are nowhere but in the adapter file: what it does not hold nobody can know, as
transformers draws new rows at random when it resizes a model. Of a vocabulary that was cut, the
file must hold every table and head as well: which rows are left is said nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.planning.folder.special_tokens import check_special_tokens
from lora_export.records import Problem

if TYPE_CHECKING:
    from lora_export.planning.draft import Draft
    from lora_export.records import TensorRef

TABLES = (
    "wte.weight", "embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight",
    "shared.weight", "embed_in.weight",
)  # fmt: skip
_HEADS = frozenset({
    "lm_head", "embed_out", "decoder", "predictions", "vocab_projector", "output_projection",
    "proj_out",
})  # fmt: skip
_KEY = "vocab_size"


def plan_vocabulary(draft: Draft) -> None:
    """Check that everything over the vocabulary was resized alike, and edit config.json."""
    found = _resized(draft)
    if not found:
        return
    sizes = {(draft.stored[draft.table_of(n)].spec.shape[0], ref.spec.shape[0]) for n, ref in found}
    names = list(dict.fromkeys(name for name, _ in found))
    if len(sizes) > 1:
        listed = ", ".join(f"{old} to {new}" for old, new in sorted(sizes))
        message = f"the vocabulary is resized in several ways: {listed}"
        draft.unfit.append(Problem(message, names[0]))
        return
    ((old, new),) = sizes
    for name in names:
        draft.resized.pop(name, None)
    _refuse_missing(draft, names, old, new)
    if new < old:
        check_special_tokens(draft, old, new)
    _edit(draft, old, new)
    draft.choices.append(f"the vocabulary {_verb(old, new)}: {', '.join(names)}")
    draft.reshaped.append(f"vocabulary: {old} -> {new}")
    draft.vocabulary = (old, new)


def _verb(old: int, new: int) -> str:
    return f"{'grows' if new > old else 'is cut'} from {old} to {new} tokens"


def _resized(draft: Draft) -> list[tuple[str, TensorRef]]:
    whole = {**draft.added, **draft.replaced}
    resized = [
        (n, whole[n])
        for n in draft.resized
        if _is_over_vocabulary(draft, n) and _has_other_rows(draft, n, whole[n])
    ]
    copies = [
        (name, ref)
        for name, ref in draft.copies.items()
        if ref.spec.shape != draft.stored[name].spec.shape
    ]
    return [*resized, *copies]


def _has_other_rows(draft: Draft, name: str, ref: TensorRef) -> bool:
    """Whether only the number of rows is another one; an empty table is one that was not saved."""
    new, old = ref.spec.shape, draft.stored[draft.table_of(name)].spec.shape
    return 0 not in new and len(new) == len(old) and new[1:] == old[1:]


def _is_over_vocabulary(draft: Draft, name: str) -> bool:
    """A table or a head by its name or its ties, with as many rows as config.json says tokens."""
    tied = any(name in tie.names for tie in draft.ties)
    named = name.endswith(TABLES) or name.split(".")[-2:-1] == ["lm_head"]
    owner = name.split(".")[-2:-1]
    if not (tied or named or (owner and owner[0] in _HEADS)):
        return False
    rows = draft.stored[draft.table_of(name)].spec.shape[:1]
    inner = draft.nested(_KEY) or {}
    known = [size for size in (draft.base.config.get(_KEY), inner.get(_KEY)) if size is not None]
    return not known or (bool(rows) and rows[0] in known)


def _refuse_missing(draft: Draft, names: list[str], old: int, new: int) -> None:
    tied = {name for tie in draft.ties for name in tie.names if set(tie.names) & set(names)}
    covered = tied | set(names)
    for name, ref in draft.stored.items():
        sizes = ref.spec.shape
        if name in covered or not sizes or old not in (sizes[0], sizes[-1]):
            continue
        over = sizes[0] == old and _is_over_vocabulary(draft, name)
        if over or name.endswith("final_logits_bias"):
            lost = (
                "for the new ones are not in the file: they were drawn when the model was resized"
            )
            if new < old:
                lost = "that are left are not in the file"
            message = f"the vocabulary {_verb(old, new)}, and the rows of {name} {lost}"
            hint = "save the adapter with save_pretrained(..., save_embedding_layers=True)"
            draft.unfit.append(Problem(message, names[0], hint))


def _edit(draft: Draft, old: int, new: int) -> None:
    config = draft.base.config
    if not config:
        told = f"build the model with a vocabulary of {new} tokens before the result is loaded"
        draft.warnings.append(f"the vocabulary {_verb(old, new)}: {told}")
        return
    inner = draft.nested(_KEY)
    if inner is not None and inner[_KEY] == old:
        draft.edit(_KEY, new, inside="text_config")
    elif config.get(_KEY) != old:
        message = f"config.json has {_KEY} {config.get(_KEY)}, but the tables have {old} rows"
        draft.unfit.append(Problem(message, str(draft.base.root)))
    if config.get(_KEY) == old:
        draft.edit(_KEY, new)
