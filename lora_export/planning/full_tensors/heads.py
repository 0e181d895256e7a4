"""New heads, and heads with another number of labels: what config.json must say of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_export.planning.folder.timm_heads import is_timm, plan_timm_heads
from lora_export.records import FLOAT_DTYPES, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.planning.draft import Draft
    from lora_export.records import Adapter, Checkpoint, TensorRef

    Classes = Callable[[Checkpoint, str], str | None]

_SUFFIXES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "CAUSAL_LM": "ForCausalLM",
}
# Where the adapter names no task: PEFT has no names for the first two.
_CLASSIFIERS = (
    "ForImageClassification", "ForAudioClassification", "ForSequenceClassification",
    "ForTokenClassification",
)  # fmt: skip
# What a class of transformers may end in, beside which the others of its model stand.
_CLASS = re.compile(
    r"(?P<model>[A-Z]\w*?)(For(CausalLM|MaskedLM|PreTraining|ConditionalGeneration|MultipleChoice|"
    r"SequenceClassification|TokenClassification|QuestionAnswering)|LMHeadModel|Model)"
)
_OUTPUTS = (
    "score.weight", "classifier.weight", "classifier.out_proj.weight", "qa_outputs.weight",
)  # fmt: skip
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def plan_heads(draft: Draft, adapters: Sequence[Adapter], classes: Classes) -> None:
    """Edit config.json so that the folder loads as the class that has the heads.

    classes: the class of transformers for (base, suffix of the task), None where nobody knows.
    """
    _allow_other_labels(draft)
    if draft.heads:
        draft.choices.append(f"new: {', '.join(sorted(draft.heads))}, as the adapter's own modules")
    if not draft.base.config:
        return
    if is_timm(draft.base.config):
        plan_timm_heads(draft)
        return
    tasks = {adapter.task for adapter in adapters if adapter.task in _SUFFIXES}
    # A head of the same name may be another task's: a classifier of tokens, not of sequences.
    trained = any(f".{name}".endswith(_ENDS) for name in draft.replaced)
    if draft.heads or (trained and tasks):
        _edit_class(draft, tasks, classes)
    _edit_labels(draft)


def head_dtype(draft: Draft, name: str, ref: TensorRef) -> str:
    """A new head is loaded into a model of the base's dtype, and rounded to it."""
    if name not in draft.heads or ref.spec.dtype not in FLOAT_DTYPES:
        return ref.spec.dtype
    said = draft.base.config.get("dtype", draft.base.config.get("torch_dtype"))
    stored = {r.spec.dtype for r in draft.stored.values()} & FLOAT_DTYPES
    if len(stored) == 1:
        return stored.pop()
    return _DTYPES.get(str(said).removeprefix("torch."), ref.spec.dtype)


def _allow_other_labels(draft: Draft) -> None:
    """A module that the adapter brings whole may have another number of rows: of labels.

    All its tensors have them, and one is a matrix. An empty one is one that was not saved.
    """
    for name, (_, is_own) in list(draft.resized.items()):
        new = (draft.replaced.get(name) or draft.added[name]).spec.shape
        old = draft.stored[draft.table_of(name)].spec.shape
        if is_own and len(new) == len(old) and new[1:] == old[1:] and _is_output(draft, name, new):
            del draft.resized[name]
            draft.reshaped.append(f"{name}: {list(old)} -> {list(new)}")
            draft.choices.append(f"{name} has {new[0]} rows instead of {old[0]}")


def _is_output(draft: Draft, name: str, shape: tuple[int, ...]) -> bool:
    whole = {**draft.stored, **draft.added, **draft.replaced}
    module = name.rpartition(".")[0]
    shapes = [r.spec.shape for other, r in whole.items() if other.rpartition(".")[0] == module]
    if 0 in shape:
        return False
    return any(len(one) > 1 for one in shapes) and all(one[:1] == shape[:1] for one in shapes)


def _edit_class(draft: Draft, tasks: set[str], classes: Classes) -> None:
    listed = draft.base.config.get("architectures")
    now = str(listed[0]) if isinstance(listed, list) and listed else ""
    where = f"{draft.base.root}/config.json"
    if len(tasks) != 1:
        if now.endswith((*_SUFFIXES.values(), "Classification")):
            return
        if not tasks and (only := _only_classifier(draft, classes)):
            _write_class(draft, now, only)
            return
        if draft.heads and all(map(draft.options.allows_new, draft.heads)):
            return  # for a class of the user's own
        new = ", ".join(sorted(draft.heads))
        verb, it = ("is", "it") if len(draft.heads) == 1 else ("are", "them")
        message = f"{new} {verb} new, and {now or 'no class'} has no place for {it}"
        hint = (
            "say task_type in adapter_config.json (SEQ_CLS, TOKEN_CLS, QUESTION_ANS), or write the "
            "class that was trained into the base's architectures"
        )
        draft.unfit.append(Problem(message, where, hint))
        return
    suffix = _SUFFIXES[tasks.pop()]
    if now.endswith(suffix) or (suffix == "ForCausalLM" and now.endswith("LMHeadModel")):
        return
    found = _CLASS.fullmatch(now)
    derived = f"{found['model']}{suffix}" if found and suffix != "ForCausalLM" else None
    name = classes(draft.base, suffix) or derived
    if name is None:
        message = f"which class of transformers has the new head is not known (...{suffix})"
        hint = "install the extra hf, or write the class into the base's architectures"
        draft.unfit.append(Problem(message, where, hint))
        return
    _write_class(draft, now, name)


def _only_classifier(draft: Draft, classes: Classes) -> str | None:
    """The one class of the base's model type that classifies, for a new classifier of no task."""
    if not all(
        f".{name}".endswith((".classifier.weight", ".classifier.bias")) for name in draft.heads
    ):
        return None
    found = {name for suffix in _CLASSIFIERS if (name := classes(draft.base, suffix))}
    return found.pop() if len(found) == 1 else None


def _write_class(draft: Draft, now: str, name: str) -> None:
    draft.edit("architectures", [name])
    draft.choices.append(
        f"the tensors that only {now or 'the old class'} reads (its own head) stay in the files"
    )
    draft.reshaped.append(f"architectures: {now or 'none'} -> {name}")


def _edit_labels(draft: Draft) -> None:
    whole = {**draft.added, **draft.replaced}
    heads = {name: ref for name, ref in whole.items() if f".{name}".endswith(_ENDS)}
    numbers = [name for name, ref in heads.items() if not ref.spec.shape]
    draft.unfit += [Problem("is a single number, and no head", name) for name in numbers]
    outputs = {ref.spec.shape[0] for name, ref in heads.items() if name not in numbers}
    if not outputs:
        return
    if len(outputs) > 1:
        message = f"the heads have different numbers of labels: {sorted(outputs)}"
        draft.unfit.append(Problem(message, str(draft.base.root)))
        return
    count, config = outputs.pop(), draft.base.config
    names = config.get("id2label")
    if count == (len(names) if isinstance(names, dict) else config.get("num_labels", 2)):
        return
    labels = [f"LABEL_{number}" for number in range(count)]
    told = f"{count} labels without names (the adapter does not say them)"
    draft.edit("id2label", {str(i): label for i, label in enumerate(labels)}, f"id2label: {told}")
    draft.edit("label2id", {label: i for i, label in enumerate(labels)}, f"label2id: {told}")
    if "num_labels" in config:
        draft.edit("num_labels", count)
    draft.reshaped.append(f"{count} labels")


_ENDS = tuple(f".{name}" for name in _OUTPUTS)
