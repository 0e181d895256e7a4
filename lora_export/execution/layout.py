"""Divides an output file into pieces, in their order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.execution.arithmetic import row_blocks
from lora_export.execution.casting import cast_pieces
from lora_export.execution.rows import Merge, Rows
from lora_export.execution.segments import Dense, Range, cut, header_segment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.execution.segments import Segment
    from lora_export.records import MergePlan, ShardPlan, Step, TensorRef


def segments_of(plan: MergePlan, shard: ShardPlan) -> Iterator[Segment]:
    """Yield all pieces of an output file: the header, then every tensor in order.

    Copied tensors that adjoin in the input become one range, so that one system call copies them.
    """
    yield header_segment([step.out for step in shard.steps], shard.metadata)
    waiting: Range | None = None
    for step in shard.steps:
        piece = _copied(step)
        if piece is not None and waiting is not None and _adjoins(waiting, piece):
            waiting = replace(piece, start=waiting.start, length=waiting.length + piece.length)
            continue
        if waiting is not None:
            yield from cut(waiting)
        waiting = piece
        if piece is None:
            yield from _made(plan, step)
    if waiting is not None:
        yield from cut(waiting)


def _copied(step: Step) -> Range | None:
    """Return the range of a tensor whose bytes are copied; None for any other tensor."""
    ref: TensorRef = step.source
    plain = not step.deltas and ref.strides is None and ref.spec.dtype == step.out.dtype
    if not plain:
        return None
    return Range(ref.file, ref.offset, ref.length, step.out.name, is_new=step.action != "copy")


def _adjoins(left: Range, right: Range) -> bool:
    """Return whether `right` begins where `left` ends, in the same file and of the same sort."""
    same = (left.file, left.is_new) == (right.file, right.is_new)
    return same and left.start + left.length == right.start


def _made(plan: MergePlan, step: Step) -> Iterator[Segment]:
    """Yield the pieces of a tensor that is merged, laid out or rounded."""
    if not step.deltas:
        yield from cast_pieces(step) if step.source.strides is None else [Dense(step)]
        return
    blocks = row_blocks(step)
    merge = Merge(step, plan.recipe, len(blocks))
    for first, stop in blocks:
        yield Rows(merge, first, stop)
