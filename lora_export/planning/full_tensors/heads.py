"""New heads, and heads with another number of labels: their class and labels in config.json."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_export.planning.base.find_ties import architecture_of
from lora_export.planning.folder.timm_heads import is_timm, plan_timm_heads
from lora_export.records import FLOAT_DTYPES, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from lora_export.planning.config_edits import ConfigEdits
    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.records import Checkpoint, TensorRef

    Classes = Callable[[Checkpoint, str], str | None]

_SUFFIXES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "CAUSAL_LM": "ForCausalLM",
}
# Candidates where the adapter names no task; PEFT has no task names for the first two.
_CLASSIFIERS = (
    "ForImageClassification", "ForAudioClassification", "ForSequenceClassification",
    "ForTokenClassification",
)  # fmt: skip
# The names of transformers' classes: the model's own name, then an ending for the task.
_CLASS = re.compile(
    r"(?P<model>[A-Z]\w*?)(For(CausalLM|MaskedLM|PreTraining|ConditionalGeneration|MultipleChoice|"
    r"SequenceClassification|TokenClassification|QuestionAnswering)|LMHeadModel|Model)"
)
_OUTPUTS = (
    "score.weight", "classifier.weight", "classifier.out_proj.weight", "qa_outputs.weight",
)  # fmt: skip
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def plan_heads(
    given: Given,
    changes: TensorChanges,
    edits: ConfigEdits,
    findings: Findings,
    classes: Classes,
) -> None:
    """Edit config.json so that the folder loads as the class that has the heads.

    classes: returns the class of transformers for (base, suffix of the task), None where unknown.
    """
    _allow_other_labels(given, changes, edits, findings)
    if changes.heads:
        new = ", ".join(sorted(changes.heads))
        findings.choices.append(f"new: {new}, as the adapter's own modules")
    if not edits.config:
        return
    if is_timm(edits.config):
        plan_timm_heads(given, changes, edits, findings)
        return
    tasks = {adapter.task for adapter in given.adapters if adapter.task in _SUFFIXES}
    # A head may have the name that another task's head has, such as a classifier of tokens.
    trained = any(f".{name}".endswith(_ENDS) for name in changes.replaced)
    if changes.heads or (trained and tasks):
        name = _class_with(changes.heads, tasks, given, findings, classes)
        if name:
            _write_class(architecture_of(given.base), name, edits, findings)
    _edit_labels(given, changes, edits, findings)


def head_dtype(given: Given, changes: TensorChanges, name: str, ref: TensorRef) -> str:
    """Return the dtype in which an added tensor is written: a new head gets that of the base."""
    if name not in changes.heads or ref.spec.dtype not in FLOAT_DTYPES:
        return ref.spec.dtype
    named = given.base.config.get("dtype", given.base.config.get("torch_dtype"))
    stored = {r.spec.dtype for r in given.stored.values()} & FLOAT_DTYPES
    if len(stored) == 1:
        return stored.pop()
    return _DTYPES.get(str(named).removeprefix("torch."), ref.spec.dtype)


def _allow_other_labels(
    given: Given, changes: TensorChanges, edits: ConfigEdits, findings: Findings
) -> None:
    """Accept another number of rows (labels) in a module that the adapter holds whole.

    All tensors of the module must have this number of rows, and one of them must be a matrix.
    """
    for name, (_, is_own) in list(changes.resized.items()):
        new = changes.full_tensor(name).spec.shape
        old = given.tensor(name).spec.shape
        other_rows = len(new) == len(old) and new[1:] == old[1:]
        if is_own and other_rows and _is_output(given, changes, name, new):
            del changes.resized[name]
            edits.reshaped.append(f"{name}: {list(old)} -> {list(new)}")
            findings.choices.append(f"{name} has {new[0]} rows instead of {old[0]}")


def _is_output(given: Given, changes: TensorChanges, name: str, shape: tuple[int, ...]) -> bool:
    """Return whether all tensors of the module have these rows, and one is a matrix.

    An empty tensor was not saved, and is no output.
    """
    whole = {**given.stored, **changes.whole()}
    module = name.rpartition(".")[0]
    shapes = [r.spec.shape for other, r in whole.items() if other.rpartition(".")[0] == module]
    if 0 in shape:
        return False
    return any(len(one) > 1 for one in shapes) and all(one[:1] == shape[:1] for one in shapes)


def _class_with(
    heads: Collection[str],
    tasks: set[str],
    given: Given,
    findings: Findings,
    classes: Classes,
) -> str | None:
    """Return the class that has the heads; None where config.json already names a fitting one.

    It is None as well where no class is found, which is a problem. Without a single task, it is no
    problem if --allow-new names all new heads.
    """
    now = architecture_of(given.base)
    where = f"{given.base.root}/config.json"
    if len(tasks) != 1:
        if now.endswith((*_SUFFIXES.values(), "Classification")):
            return None
        if not tasks and (only := _only_classifier(heads, given.base, classes)):
            return only
        if not heads or not all(map(given.options.allows_new, heads)):
            findings.unfit.append(_no_place(heads, now, where))
        return None
    suffix = _SUFFIXES[next(iter(tasks))]
    if now.endswith(suffix) or (suffix == "ForCausalLM" and now.endswith("LMHeadModel")):
        return None
    found = _CLASS.fullmatch(now)
    derived = f"{found['model']}{suffix}" if found and suffix != "ForCausalLM" else None
    name = classes(given.base, suffix) or derived
    if name is None:
        message = f"which class of transformers has the new head is not known (...{suffix})"
        hint = "install the extra hf, or write the class into the base's architectures"
        findings.unfit.append(Problem(message, where, hint, cause="fit/new-head"))
    return name


def _no_place(heads: Collection[str], now: str, where: str) -> Problem:
    """Return the problem of new heads that the class of config.json does not have."""
    new = ", ".join(sorted(heads))
    verb, it = ("is", "it") if len(heads) == 1 else ("are", "them")
    message = f"{new} {verb} new, and {now or 'no class'} has no place for {it}"
    hint = (
        "set task_type in adapter_config.json (SEQ_CLS, TOKEN_CLS, QUESTION_ANS), or write the "
        "class that was trained into the base's architectures"
    )
    return Problem(message, where, hint, cause="fit/new-head")


def _only_classifier(heads: Collection[str], base: Checkpoint, classes: Classes) -> str | None:
    """Return the only classifier class of the base's model type; None where there are several."""
    ends = (".classifier.weight", ".classifier.bias")
    if not all(f".{name}".endswith(ends) for name in heads):
        return None
    found = {name for suffix in _CLASSIFIERS if (name := classes(base, suffix))}
    return found.pop() if len(found) == 1 else None


def _write_class(now: str, name: str, edits: ConfigEdits, findings: Findings) -> None:
    edits.edit("architectures", [name])
    findings.choices.append(
        f"the tensors that only {now or 'the old class'} reads (its own head) stay in the files"
    )
    edits.reshaped.append(f"architectures: {now or 'none'} -> {name}")


def _edit_labels(
    given: Given, changes: TensorChanges, edits: ConfigEdits, findings: Findings
) -> None:
    """Edit config.json so that it has as many labels as the heads have rows."""
    heads = {n: ref for n, ref in changes.whole().items() if f".{n}".endswith(_ENDS)}
    numbers = [name for name, ref in heads.items() if not ref.spec.shape]
    findings.unfit += [
        Problem("is a single number, and no head", name, cause="fit/new-head") for name in numbers
    ]
    outputs = {ref.spec.shape[0] for name, ref in heads.items() if name not in numbers}
    if not outputs:
        return
    if len(outputs) > 1:
        message = f"the heads have different numbers of labels: {sorted(outputs)}"
        findings.unfit.append(Problem(message, str(given.base.root), cause="fit/new-head"))
        return
    count, config = outputs.pop(), edits.config
    names = config.get("id2label")
    if count == (len(names) if isinstance(names, dict) else config.get("num_labels", 2)):
        return
    labels = [f"LABEL_{number}" for number in range(count)]
    words = f"{count} labels without names (the adapter has none)"
    edits.edit("id2label", {str(i): label for i, label in enumerate(labels)}, f"id2label: {words}")
    edits.edit("label2id", {label: i for i, label in enumerate(labels)}, f"label2id: {words}")
    if "num_labels" in config:
        edits.edit("num_labels", count)
    edits.reshaped.append(f"{count} labels")


_ENDS = tuple(f".{name}" for name in _OUTPUTS)
