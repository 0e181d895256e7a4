"""A vocabulary that training has resized: every table and head over it, and config.json.

New rows are only in the adapter file, since transformers draws them at random when it resizes a
model. For a vocabulary that was cut, the file must have every table and head as well, since no
other file shows which rows are left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.planning.folder.special_tokens import check_special_tokens
from lora_export.planning.names.embedding_tables import TABLES
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.planning.config_edits import ConfigEdits
    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.records import TensorRef

_HEADS = frozenset({
    "lm_head", "embed_out", "decoder", "predictions", "vocab_projector", "output_projection",
    "proj_out",
})  # fmt: skip
_KEY = "vocab_size"


def plan_vocabulary(
    given: Given, changes: TensorChanges, edits: ConfigEdits, findings: Findings
) -> tuple[int, int] | None:
    """Check that every table and head over the vocabulary was resized alike, and edit config.json.

    Returns:
        The numbers of tokens before and after the merge; None where both are the same, or where
        there is a problem.
    """
    found = _resized(given, changes, edits)
    if not found:
        return None
    sizes = {(given.tensor(n).spec.shape[0], ref.spec.shape[0]) for n, ref in found}
    names = list(dict.fromkeys(name for name, _ in found))
    if len(sizes) > 1:
        listed = ", ".join(f"{old} to {new}" for old, new in sorted(sizes))
        message = f"the vocabulary is resized in several ways: {listed}"
        findings.unfit.append(Problem(message, names[0], cause="fit/vocabulary"))
        return None
    ((old, new),) = sizes
    for name in names:
        changes.resized.pop(name, None)
    findings.unfit += _missing_rows(given, edits, names, old, new)
    if new < old:
        check_special_tokens(given.base, old, new, findings)
    _edit(given, edits, findings, old, new)
    findings.choices.append(f"the vocabulary {_verb(old, new)}: {', '.join(names)}")
    edits.reshaped.append(f"vocabulary: {old} -> {new}")
    return old, new


def _verb(old: int, new: int) -> str:
    return f"{'grows' if new > old else 'is cut'} from {old} to {new} tokens"


def _resized(
    given: Given, changes: TensorChanges, edits: ConfigEdits
) -> list[tuple[str, TensorRef]]:
    """List the full tensors and copies over the vocabulary that have another number of rows."""
    whole = changes.whole()
    resized = [
        (n, whole[n])
        for n in changes.resized
        if _is_over_vocabulary(given, edits, n) and _has_other_rows(given, n, whole[n])
    ]
    copies = [
        (name, ref)
        for name, ref in changes.copies.items()
        if ref.spec.shape != given.stored[name].spec.shape
    ]
    return [*resized, *copies]


def _has_other_rows(given: Given, name: str, ref: TensorRef) -> bool:
    """Return whether only the number of rows differs; an empty table was not saved."""
    new, old = ref.spec.shape, given.tensor(name).spec.shape
    return 0 not in new and len(new) == len(old) and new[1:] == old[1:]


def _is_over_vocabulary(given: Given, edits: ConfigEdits, name: str) -> bool:
    """Return whether `name` is a table or a head with as many rows as config.json has tokens."""
    tied = any(name in tie.names for tie in given.ties)
    named = name.endswith(TABLES) or name.split(".")[-2:-1] == ["lm_head"]
    owner = name.split(".")[-2:-1]
    if not (tied or named or (owner and owner[0] in _HEADS)):
        return False
    rows = given.tensor(name).spec.shape[:1]
    inner = edits.nested(_KEY) or {}
    known = [size for size in (edits.config.get(_KEY), inner.get(_KEY)) if size is not None]
    return not known or (bool(rows) and rows[0] in known)


def _missing_rows(
    given: Given, edits: ConfigEdits, names: list[str], old: int, new: int
) -> Iterator[Problem]:
    """Yield a problem for each tensor over the vocabulary that the adapter lacks.

    names: the resized ones. old, new: the numbers of tokens before and after.
    """
    tied = {name for tie in given.ties for name in tie.names if set(tie.names) & set(names)}
    covered = tied | set(names)
    for name, ref in given.stored.items():
        sizes = ref.spec.shape
        if name in covered or not sizes or old not in (sizes[0], sizes[-1]):
            continue
        over = sizes[0] == old and _is_over_vocabulary(given, edits, name)
        if over or name.endswith("final_logits_bias"):
            lost = (
                "for the new ones are not in the file: they were drawn when the model was resized"
            )
            if new < old:
                lost = "that are left are not in the file"
            message = f"the vocabulary {_verb(old, new)}, and the rows of {name} {lost}"
            hint = "save the adapter with save_pretrained(..., save_embedding_layers=True)"
            yield Problem(message, names[0], hint, cause="fit/vocabulary")


def _edit(given: Given, edits: ConfigEdits, findings: Findings, old: int, new: int) -> None:
    config = edits.config
    if not config:
        advice = f"build the model with a vocabulary of {new} tokens before the result is loaded"
        findings.warnings.append(f"the vocabulary {_verb(old, new)}: {advice}")
        return
    inner = edits.nested(_KEY)
    if inner is not None and inner[_KEY] == old:
        edits.edit(_KEY, new, inside="text_config")
    elif config.get(_KEY) != old:
        message = f"config.json has {_KEY} {config.get(_KEY)}, but the tables have {old} rows"
        findings.unfit.append(Problem(message, str(given.base.root), cause="fit/vocabulary"))
    if config.get(_KEY) == old:
        edits.edit(_KEY, new)
