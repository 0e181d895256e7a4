"""The places of an adapter's full tensors in the result, and the refusals where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.checkpoint.folder.elsewhere import EMPTY
from lora_export.dialects.peft.whole_tensors import is_in
from lora_export.planning.fitted import Promise
from lora_export.planning.full_tensors.copies import put, put_copy
from lora_export.planning.full_tensors.disputed import disputed
from lora_export.planning.names.base_names import without_wrappers
from lora_export.records import FLOAT_DTYPES, Problem
from lora_export.report.columns import counted, first_names
from lora_export.shown import shell_word

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.planning.findings import Findings
    from lora_export.planning.fitted import Fitted
    from lora_export.planning.full_tensors.base_targets import FullTensor
    from lora_export.planning.given import Given
    from lora_export.planning.prefix_change import PrefixChange
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.records import Adapter

_INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U8"})
_BASE = "is this the base it was trained on?"
_DOUBLE = (
    "a state dict saved in eval mode already holds the update in its weights (it is the finished "
    "model); else save loralib.lora_state_dict(model) with model.train() on"
)


def fit_whole(
    adapter: Adapter,
    tensors: Sequence[FullTensor],
    *,
    change: PrefixChange,
    given: Given,
    changes: TensorChanges,
    fitted: Fitted,
) -> list[Problem]:
    """Place every full tensor that replaces a tensor of the base, or is new; return problems.

    Tensors of the adapter's own modules come first: under such a name, a tensor of the shared
    parameter is then the value of the parameter's other names.

    change: the change of prefix, which applies to every tensor of the file.
    """
    problems: list[Problem] = []
    for one in sorted(tensors, key=lambda one: not one.is_own):
        origin = one.replacement.origin
        if origin == "base" or (origin == "under" and one.target):
            continue
        same = given.names.tensor(without_wrappers(one.name)) if one.target is None else None
        if same:
            problems.append(_of_other_space(one, same, change))
        elif one.target is None:
            is_head = given.model is None and one.is_own and _is_head(adapter, one, tensors)
            problems += _fit_new(one, given, changes, fitted, is_head=is_head)
        else:
            fitted.promised.append(_promise(one, one.target, given))
            problems += _fit_replacement(one, one.target, given, changes, fitted)
    return problems


def _is_head(adapter: Adapter, one: FullTensor, tensors: Sequence[FullTensor]) -> bool:
    """Return whether the tensor belongs to a head that the base lacks under this name."""
    heads = [head for head in adapter.heads if is_in(one.name, [head])]
    known = any(other.target and is_in(other.target, heads) for other in tensors if heads)
    return bool(heads) and not known


def _promise(one: FullTensor, name: str, given: Given) -> Promise:
    return Promise(one.where, one.ref, name, given.tied_to(name), one.is_own)


def _fit_replacement(
    one: FullTensor, target: str, given: Given, changes: TensorChanges, fitted: Fitted
) -> Sequence[Problem]:
    """Replace the base's tensor with a full tensor, unless the two are equal."""
    ref, base = one.ref, given.tensor(target)
    target = target if one.is_own else given.stored_name(target)
    if not _same_sort(ref.spec.dtype, base.spec.dtype):
        message = f"is stored as {ref.spec.dtype}, the base's {target} as {base.spec.dtype}"
        return [Problem(message, one.where, given.way_out(ref, _BASE), cause="fit/full-tensor")]
    if same_content(ref, base):
        fitted.kept.append(one.name)
        return []
    if one.replacement.outside and given.options.trust_file is None:
        return [disputed(one.replacement, one.where)]
    if not one.is_own and target in changes.own:  # the value of the other names of a tied tensor
        return put_copy(target, ref, one.where, given, changes)
    if target in changes.merged:
        return [_double(one, given)]
    if ref.spec.shape != base.spec.shape:
        changes.resized[target] = (one.where, one.is_own)
    if one.is_own:
        changes.own.add(target)
    into = changes.replaced if target in given.stored else changes.added
    return put(into, target, ref, one.where)


def _same_sort(one: str, other: str) -> bool:
    """Return whether the dtypes are equal, both floats, or both integers."""
    pair = {one, other}
    return len(pair) == 1 or pair <= FLOAT_DTYPES or pair <= _INTEGERS


def _double(one: FullTensor, given: Given) -> Problem:
    """Return the problem of a module with factors and with a full weight unlike the base's."""
    if one.ref.file in given.joined:
        message = (
            "differs from the base's, and the adapter updates it: "
            "whether it contains the update already is not in the file"
        )
        hint = given.way_out(one.ref, "the merged model, or another base?")
        return Problem(message, one.where, hint, cause="fit/two-values")
    message = (
        "the file holds factors and a full weight that is not the base's: "
        "whether it already contains the update is not in the file"
    )
    return Problem(message, one.where, _DOUBLE, cause="fit/two-values")


def _fit_new(
    one: FullTensor, given: Given, changes: TensorChanges, fitted: Fitted, *, is_head: bool
) -> Sequence[Problem]:
    """Add a full tensor that the base lacks, if the model is known to have it, or refuse it."""
    name, ref = one.name, one.ref
    if 0 in ref.spec.shape:
        message = f"has shape {list(ref.spec.shape)}: it is empty"
        return [Problem(message, one.where, given.way_out(ref, EMPTY), cause="fit/shape")]
    if is_head:
        changes.heads.add(name)
    if is_head or _is_in_model(one, given) or given.options.allows_new(name):
        fitted.promised.append(_promise(one, name, given))
        return put(changes.added, name, ref, one.where)
    if ref.file in given.joined:
        fitted.foreign.setdefault(ref.file, []).append(name)
        return []
    return [_unknown(one, given)]


def _is_in_model(one: FullTensor, given: Given) -> bool:
    """Return whether the user's model has a tensor of this name and shape."""
    if given.model is None:
        return False
    return given.model.tensors.get(without_wrappers(one.name)) == one.ref.spec.shape


def _unknown(one: FullTensor, given: Given) -> Problem:
    """Return the problem of a full tensor without a known place."""
    near = ", ".join(given.names.nearest(one.name))
    dtype = one.ref.spec.dtype
    word = shell_word(one.name, always=True)
    kind = "" if dtype in FLOAT_DTYPES else f" ({dtype}: a mask buffer?)"
    return Problem(
        f"the base holds no such tensor{kind}; nearest: {near or 'nothing'}",
        one.where,
        f"a new head: --allow-new {word}, or name the model with --model; "
        f"not needed: --allow-unmatched {word}",
        cause="fit/full-tensor",
    )


def refuse_foreign(foreign: Mapping[Path, list[str]], given: Given, findings: Findings) -> None:
    """Refuse each file beside an adapter with tensors that the base lacks.

    foreign: their names, by file.
    """
    for file, names in foreign.items():
        message = f"{counted(len(names), 'tensor')} that the base lacks: {first_names(names)}"
        near = ", ".join(given.names.nearest(names[0]))
        ignored = shell_word(given.joined[file], always=True)
        hint = (
            f"--ignore {ignored} leaves the file out, --allow-unmatched GLOB these "
            f"tensors alone; --allow-new GLOB adds them; nearest to the first: {near or 'nothing'}"
        )
        findings.unfit.append(Problem(message, str(file), hint, cause="fit/full-tensor"))


def _of_other_space(one: FullTensor, same: str, change: PrefixChange) -> Problem:
    """Return the problem of a name that fits the base only without the change of prefix."""
    word = shell_word(one.name, always=True)
    message = f"fits the base's {same} only without the change of names that the factors need"
    hint = (
        "a tensor of the network around the base's? give the base all of that network, by its "
        f"names; not needed: --allow-unmatched {word}"
    )
    return Problem(f"{message} ({change})", one.where, hint, cause="fit/full-tensor")


def refuse_other_shapes(given: Given, changes: TensorChanges, findings: Findings) -> None:
    """Refuse every full tensor of another shape that vocabulary and heads do not explain.

    Vocabulary and heads must be planned before: they remove the shapes that they explain.
    """
    for name, (where, _) in changes.resized.items():
        ref = changes.full_tensor(name)
        base = given.tensor(name).spec
        message = f"has shape {list(ref.spec.shape)}, the base's {name} {list(base.shape)}"
        hint = EMPTY if 0 in ref.spec.shape else _BASE
        findings.unfit.append(Problem(message, where, given.way_out(ref, hint), cause="fit/shape"))


def refuse_replaced_updates(changes: TensorChanges, findings: Findings) -> None:
    """Refuse a tensor that one adapter replaces and another one updates."""
    brought = {name: ref for name, ref in changes.added.items() if name in changes.own}
    replaced = {**changes.replaced, **brought}
    for name in replaced.keys() & changes.merged.keys():
        others = ", ".join(dict.fromkeys(delta.adapter for delta in changes.merged[name]))
        message = f"replaces {name}, which {others} updates: it is not known which weight was meant"
        hint = "leave one of them out with --allow-unmatched, or merge the adapters one by one"
        findings.unfit.append(
            Problem(message, str(replaced[name].file), hint, cause="fit/two-values")
        )


def warn_of_biases(
    adapter: Adapter, given: Given, changes: TensorChanges, findings: Findings
) -> None:
    """Warn where the configuration has trained biases, the base has biases, and the file none."""
    if adapter.bias == "none":
        return
    own = [item for item in adapter.replacements if item.origin != "module"]
    if any(f".{item.name}".endswith(".bias") for item in own):
        return
    adapted = {delta.module for delta in changes.deltas()}
    every = [name for name in given.stored if f".{name}".endswith(".bias")]
    mine = [name for name in every if name.removesuffix("bias").removesuffix(".") in adapted]
    if every if adapter.bias == "all" else mine:
        findings.warnings.append(
            f"{adapter.path.name}: by bias = {adapter.bias!r} biases were trained, and the file "
            "holds none of them: saved under ZeRO-3 or FSDP without gathering?"
        )


def warn_of_weight(adapter: Adapter, changes: TensorChanges, findings: Findings) -> None:
    """Warn where --weight is given and full tensors replace the base's: it does not scale them."""
    if adapter.weight == 1:
        return
    used = {id(ref) for ref in (*changes.replaced.values(), *changes.added.values())}
    names = [item.name for item in adapter.replacements if id(item.ref) in used]
    if names:
        findings.warnings.append(
            f"{adapter.path.name}: --weight {adapter.weight:g} scales the update alone; "
            f"{counted(len(names), 'full tensor')} replaced as trained ({first_names(names)})"
        )
