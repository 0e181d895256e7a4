"""A plan as text: the inputs, the facts used for each module, and the tensors of the result."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lora_export.report.columns import WIDTH, counted, first_names, first_rows, laid_out
from lora_export.shown import shown_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_export.records import Adapter, Delta, MergePlan, Step, StepAction

_DONE: dict[StepAction, str] = {
    "copy": "copied",
    "cast": "rounded",
    "merge": "merged",
    "replace": "replaced",
    "add": "added",
}


def plan_text(
    plan: MergePlan,
    *,
    verbose: bool,
    with_edits: bool = True,
    with_copies: bool = False,
    width: int = WIDTH,
) -> str:
    """Return what is merged into what, with the facts used for each module.

    verbose: list every module, and every tensor that changes. with_edits: list the edited side
    files, which an ONNX file lacks. with_copies: list the copied tensors as well, if `verbose`.
    """
    rows = [*_module_rows(plan), *(_whole_row(s) for s in plan.changed() if not s.deltas)]
    edited = plan.edits().items() if with_edits else ()
    edits = [f"{name}: {'; '.join(edits)}" for name, edits in edited]
    return shown_lines(
        [
            *_head(plan),
            *first_rows(rows, verbose=verbose, width=width),
            *(f"  {line}" for line in [*plan.choices, *edits]),
            *(_tensors(plan, with_copies=with_copies, width=width) if verbose else ()),
        ]
    )


def _head(plan: MergePlan) -> Iterator[str]:
    yield f"base     {plan.base.root}: {counted(len(plan.steps()), 'tensor')}: {_actions(plan)}"
    several = len(plan.adapters) > 1
    for number, adapter in enumerate(plan.adapters, 1):
        weight = f", weight {adapter.weight:g}" if adapter.weight != 1 else ""
        yield (
            f"adapter {number if several else ''} {adapter.path}: {adapter.dialect}, "
            f"{counted(len(adapter.updates), 'module')}{_full_tensors(adapter)}{weight}"
        )
    if plan.unmatched:
        names = first_names(plan.unmatched)
        yield f"left out {counted(len(plan.unmatched), 'tensor')}: {names}"


def _actions(plan: MergePlan) -> str:
    """Return how many tensors change, are new, are rounded, and are copied."""
    count = Counter(step.action for step in plan.steps())
    numbers = {
        "changed": count["merge"] + count["replace"],
        "new": count["add"],
        "rounded to another dtype": count["cast"],
        "copied": count["copy"],
    }
    return ", ".join(f"{number:,} {word}" for word, number in numbers.items() if number)


def _full_tensors(adapter: Adapter) -> str:
    """Return the words on full tensors that replace the base's; empty where there are none."""
    number = len(adapter.replacements)
    return f", {counted(number, 'full tensor')} in place of the base's" if number else ""


def _module_rows(plan: MergePlan) -> list[Sequence[str]]:
    """Return a row for each module of each adapter, with its tensors counted where it has more."""
    several = len(plan.adapters) > 1
    numbers = {str(adapter.path): f"adapter {n}" for n, adapter in enumerate(plan.adapters, 1)}
    found = Counter(
        (*_delta_row(delta), numbers.get(delta.adapter, "") if several else "")
        for step in plan.steps()
        for delta in step.deltas
    )
    return [(*row, f"{n} tensors" if n > 1 else "") for row, n in found.items()]


def _delta_row(delta: Delta) -> tuple[str, ...]:
    blocks = ",".join(str(int(block)) for block in delta.enable_lora)
    return (
        delta.module or "(root)",
        delta.kind + (" (in, out)" if delta.fan_in_fan_out else ""),
        f"r={delta.rank}",
        f"alpha={delta.alpha:g}",
        f"scaling={delta.scaling:g}",
        f"enable_lora={blocks}" if blocks else "",
        "n_head={}  n_query_groups={}".format(*delta.heads) if delta.heads else "",
    )


def _whole_row(step: Step) -> Sequence[str]:
    return (step.out.name, _DONE[step.action], step.reason, "", "", "", "", "", "")


def _tensors(plan: MergePlan, *, with_copies: bool, width: int) -> list[str]:
    """Return every tensor that changes, and the number of the copies, or these as well."""
    steps = plan.steps()
    listed = [step for step in steps if with_copies or step.action != "copy"]
    rows = [
        (step.out.name, _DONE[step.action], f"{step.out.dtype} {list(step.out.shape)}")
        for step in listed
    ]
    copies = len(steps) - len(listed)
    more = [f"  {counted(copies, 'other tensor')}: copies of the base's"] if copies else []
    title = "tensors of the result" if with_copies else "tensors that change"
    return [title, *laid_out(rows, width), *more]
