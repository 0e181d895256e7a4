"""Full tensors of an adapter: what they take the place of, and what stands in their way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content, same_first_rows
from lora_export.checkpoint.folder.elsewhere import EMPTY
from lora_export.dialects.peft.whole_tensors import is_in
from lora_export.planning.facts.contested import disputed
from lora_export.planning.full_tensors.account import Promise
from lora_export.planning.names.base_names import BaseNames, without_wrappers
from lora_export.records import FLOAT_DTYPES, Problem
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.planning.draft import Draft
    from lora_export.planning.names.base_names import PrefixChange
    from lora_export.records import Adapter, Replacement, TensorRef

    Targets = Mapping[str, str | None]

_INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U8"})
_BASE = "is this the base it was trained on?"
_DOUBLE = (
    "a state dict saved in eval mode already holds the update in its weights (it is the finished "
    "model); else save loralib.lora_state_dict(model) with model.train() on"
)


def fit_copies(draft: Draft, replacements: Sequence[Replacement], targets: Targets) -> None:
    """The copies of layers under an update: the base's own, or a table of another length."""
    for replacement in replacements:
        where = f"{replacement.ref.file}: {replacement.ref.spec.name}"
        target = targets[replacement.name]
        if replacement.origin == "base":
            _fit_copy(draft, replacement, target, where)
        elif replacement.origin == "under" and target and target in draft.stored:
            _fit_under(draft, replacement, target, where)


def _fit_copy(draft: Draft, replacement: Replacement, target: str | None, where: str) -> None:
    if target is None:
        hint = draft.way_out(replacement.ref, _BASE)
        draft.unfit.append(Problem("the base holds no such tensor", where, hint))
        return
    ref, base = replacement.ref, draft.stored[draft.table_of(target)]
    sizes, old = ref.spec.shape, base.spec.shape
    alike = len(sizes) == len(old) and sizes[1:] == old[1:]
    floats = {ref.spec.dtype, base.spec.dtype} <= FLOAT_DTYPES
    likeness = same_first_rows(ref, base) if alike and floats else ""
    if not likeness:
        message = f"is a copy {list(sizes)} of another base: here {target} is {list(old)}"
        if sizes == old:
            message = f"is a copy of another base: {target} has other values here"
        draft.unfit.append(Problem(message, where, draft.way_out(ref, _BASE)))
    elif sizes == old and likeness == "same":
        draft.kept.append(replacement.name)
    else:
        if likeness == "rounded":
            told = f"{target}: rounded to {ref.spec.dtype} as in the adapter's copy of it"
            draft.choices.append(told)
        _put_copy(draft, target, ref, where)


def _fit_under(draft: Draft, replacement: Replacement, target: str, where: str) -> None:
    """A trained tensor to which an update of the same adapter is added."""
    ref, base = replacement.ref, draft.stored[target]
    if replacement.outside and draft.options.trust_file is None:
        draft.unfit.append(disputed(replacement, where))
    elif ref.spec.shape != base.spec.shape or ref.spec.dtype not in FLOAT_DTYPES:
        message = f"is {ref.spec.dtype} {list(ref.spec.shape)}, the base's {target} otherwise"
        draft.unfit.append(Problem(message, where, _BASE))
    else:
        _put_copy(draft, target, ref, where)


def _put_copy(draft: Draft, target: str, ref: TensorRef, where: str) -> None:
    """Under every name of a tied tensor; a second copy must be the same."""
    table = draft.table_of(target)
    tied = next((tie.names for tie in draft.ties if table in tie.names), (table,))
    for name in tied:
        if name in draft.stored:
            _put(draft, draft.copies, name, ref, where)


def fit_whole(
    draft: Draft,
    adapter: Adapter,
    replacements: Sequence[Replacement],
    targets: Targets,
    change: PrefixChange,
) -> None:
    """Everything that takes the place of a tensor of the base, or is new.

    change: of prefix, which holds for every tensor of the file.
    """
    names = BaseNames(draft.stored)
    own_first = sorted(replacements, key=lambda replacement: replacement.origin != "module")
    for replacement in own_first:
        where = f"{replacement.ref.file}: {replacement.name}"
        target = targets[replacement.name]
        if replacement.origin == "base" or (replacement.origin == "under" and target):
            continue
        same = names.tensor(without_wrappers(replacement.name)) if target is None else None
        if same:
            draft.unfit.append(_of_other_space(same, change, where, replacement.name))
        elif target is None:
            _fit_new(draft, adapter, replacement, where, targets)
        else:
            _promise(draft, replacement, target, where)
            _fit_replacement(draft, replacement, target, where)


def _promise(draft: Draft, replacement: Replacement, target: str, where: str) -> None:
    tied = next((tie.names for tie in draft.ties if target in tie.names), ())
    is_own = replacement.origin == "module"
    draft.promised.append(Promise(where, replacement.ref, target, tied, is_own))


def _fit_replacement(draft: Draft, replacement: Replacement, target: str, where: str) -> None:
    is_own = replacement.origin == "module"
    table = draft.table_of(target)
    target = target if is_own else table
    ref, base = replacement.ref, draft.stored[table]
    pair = {ref.spec.dtype, base.spec.dtype}
    if len(pair) > 1 and not (pair <= FLOAT_DTYPES or pair <= _INTEGERS):
        message = f"is stored as {ref.spec.dtype}, the base's {target} as {base.spec.dtype}"
        draft.unfit.append(Problem(message, where, draft.way_out(ref, _BASE)))
        return
    if same_content(ref, base):
        draft.kept.append(replacement.name)
        return
    if replacement.outside and draft.options.trust_file is None:
        draft.unfit.append(disputed(replacement, where))
        return
    if not is_own and target in draft.own:  # what the other names of a tied tensor hold
        _put_copy(draft, target, ref, where)
        return
    if target in draft.merged:
        draft.unfit.append(_double(draft, ref, where))
        return
    if ref.spec.shape != base.spec.shape:
        draft.resized[target] = (where, is_own)
    if is_own:
        draft.own.add(target)
    table_of_names = draft.replaced if target in draft.stored else draft.added
    _put(draft, table_of_names, target, ref, where)


def _double(draft: Draft, ref: TensorRef, where: str) -> Problem:
    """Factors and another full weight of one module."""
    if ref.file in draft.joined:
        message = (
            "differs from the base's, and the adapter updates it: whether this weight contains the "
            "update already is not in the file"
        )
        return Problem(message, where, draft.way_out(ref, "the merged model, or another base?"))
    message = (
        "the file holds low-rank factors and a full weight for this module, and the weight "
        "differs from the base's: whether it already contains the update is not in the file"
    )
    return Problem(message, where, _DOUBLE)


def refuse_other_shapes(draft: Draft) -> None:
    """Whatever nobody has found a reason for, after vocabulary and heads have looked."""
    for name, (where, _) in draft.resized.items():
        ref = draft.replaced.get(name) or draft.added[name]
        base = draft.stored[draft.table_of(name)].spec
        message = f"has shape {list(ref.spec.shape)}, the base's {name} {list(base.shape)}"
        hint = EMPTY if 0 in ref.spec.shape else _BASE
        draft.unfit.append(Problem(message, where, draft.way_out(ref, hint)))


def refuse_contested(draft: Draft) -> None:
    """A tensor that one adapter replaces and another one updates."""
    brought = {name: ref for name, ref in draft.added.items() if name in draft.own}
    replaced = {**draft.replaced, **brought}
    for name in replaced.keys() & draft.merged.keys():
        others = ", ".join(dict.fromkeys(delta.adapter for delta in draft.merged[name]))
        message = f"replaces {name}, which {others} updates: of which weight is not known"
        hint = "leave one of them out with --allow-unmatched, or merge the adapters one by one"
        draft.unfit.append(Problem(message, str(replaced[name].file), hint))


def _fit_new(
    draft: Draft, adapter: Adapter, replacement: Replacement, where: str, targets: Targets
) -> None:
    """A full tensor the base does not hold: right only if the model is known to have it."""
    name, ref = replacement.name, replacement.ref
    if 0 in ref.spec.shape:
        message = f"has shape {list(ref.spec.shape)}: it is empty"
        draft.unfit.append(Problem(message, where, draft.way_out(ref, EMPTY)))
        return
    plain = without_wrappers(name)
    in_model = draft.model is not None and draft.model.tensors.get(plain) == ref.spec.shape
    is_own = replacement.origin == "module" and draft.model is None
    is_head = is_own and _is_head(adapter, name, targets)
    if is_head:
        draft.heads.add(name)
    if in_model or is_head or draft.options.allows_new(name):
        _promise(draft, replacement, name, where)
        _put(draft, draft.added, name, ref, where)
        return
    if ref.file in draft.joined:
        draft.foreign.setdefault(ref.file, []).append(name)
        return
    near = ", ".join(BaseNames(draft.stored).nearest(name))
    kind = "" if ref.spec.dtype in FLOAT_DTYPES else f" ({ref.spec.dtype}: a mask buffer?)"
    draft.unfit.append(
        Problem(
            f"the base holds no such tensor{kind}; nearest: {near or 'nothing'}",
            where,
            f"a new head: --allow-new '{name}', or name the model with --model; "
            f"not needed: --allow-unmatched '{name}'",
        )
    )


def refuse_foreign(draft: Draft) -> None:
    """One problem for each file beside an adapter with tensors that the base lacks."""
    for file, names in draft.foreign.items():
        message = f"{counted(len(names), 'tensor')} that the base lacks: {first_names(names)}"
        near = ", ".join(BaseNames(draft.stored).nearest(names[0]))
        hint = (
            f"--ignore '{draft.joined[file]}' leaves the file out, --allow-unmatched GLOB these "
            f"tensors alone; --allow-new GLOB adds them; nearest to the first: {near or 'nothing'}"
        )
        draft.unfit.append(Problem(message, str(file), hint))


def _of_other_space(same: str, change: PrefixChange, where: str, name: str) -> Problem:
    """The base has a tensor of this name, which is another one by the names of the factors."""
    message = f"fits the base's {same} only without the change of names that the factors need"
    hint = (
        "a tensor of the network around the base's? give the base all of that network, by its "
        f"names; not needed: --allow-unmatched '{name}'"
    )
    return Problem(f"{message} ({change})", where, hint)


def _is_head(adapter: Adapter, name: str, targets: Targets) -> bool:
    """The head is new: the file has none of that name for a module of the base."""
    heads = [head for head in adapter.heads if is_in(name, [head])]
    return bool(heads) and not any(target and is_in(target, heads) for target in targets.values())


def _put(draft: Draft, table: dict[str, TensorRef], name: str, ref: TensorRef, where: str) -> None:
    """Enter `ref`, unless another adapter wants something else there."""
    other = table.setdefault(name, ref)
    if other is not ref and not same_content(other, ref):
        message = f"{name} is replaced by {other.file} as well, with other values"
        draft.unfit.append(Problem(message, where, "leave one out with --allow-unmatched"))


def tell_biases(draft: Draft, adapter: Adapter) -> None:
    """Where the adapter says that it trained biases, the base has them, and the file none."""
    if adapter.bias == "none":
        return
    held = [item for item in adapter.replacements if item.origin != "module"]
    if any(f".{item.name}".endswith(".bias") for item in held):
        return
    adapted = {d.module for listed in draft.merged.values() for d in listed}
    every = [name for name in draft.stored if f".{name}".endswith(".bias")]
    mine = [name for name in every if name.removesuffix("bias").removesuffix(".") in adapted]
    if every if adapter.bias == "all" else mine:
        draft.warnings.append(
            f"{adapter.path.name}: bias = {adapter.bias!r} says that biases were trained, and the "
            "file holds none of them: saved under ZeRO-3 or FSDP without gathering?"
        )


def tell_unweighted(draft: Draft, adapter: Adapter) -> None:
    """A full tensor has no strength: it takes the place of the base's, whatever --weight says."""
    if adapter.weight == 1:
        return
    used = {id(ref) for ref in (*draft.replaced.values(), *draft.added.values())}
    names = [item.name for item in adapter.replacements if id(item.ref) in used]
    if names:
        draft.warnings.append(
            f"{adapter.path.name}: --weight {adapter.weight:g} scales the update alone; "
            f"{counted(len(names), 'full tensor')} replaced as trained ({first_names(names)})"
        )
