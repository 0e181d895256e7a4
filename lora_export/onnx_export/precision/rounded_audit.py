"""Static audit of a file with rounded weights, against the float32 graph and the merged weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from lora_export.errors import InputError
from lora_export.onnx_export.file import external
from lora_export.onnx_export.file.audit import (
    check_readable,
    different_bits,
    dimension_differences,
    dimension_words,
    graph_words,
    is_large_float,
)
from lora_export.onnx_export.file.bindings import (
    matrices_of,
    place_weights,
    read_bindings,
    write_bindings,
)
from lora_export.onnx_export.file.topology import describe
from lora_export.onnx_export.file.weight_blocks import spans, turn
from lora_export.onnx_export.precision import products
from lora_export.onnx_export.precision.grids import NEGLIGIBLE, TABLE
from lora_export.onnx_export.precision.read_rounded import Reader
from lora_export.onnx_export.precision.rounded_sizes import Weights, sizes_of
from lora_export.records import Check
from lora_export.report.columns import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from lora_export.onnx_export.file.bindings import Bindings, Placed
    from lora_export.onnx_export.file.weight_blocks import Matrix, Weight
    from lora_export.onnx_export.precision.grids import Grid, Precision
    from lora_export.onnx_export.precision.products import Use
    from lora_export.onnx_export.precision.read_rounded import Raised, Stored
    from lora_export.records import InputSpec

    Array = NDArray[Any]

HALF = 0.501
"""Steps by which a rounded value may be off: half a step, and up to 1e-4 of one for arithmetic in
float32."""
SCALE = 1e-5
"""The relative difference allowed between a block's step and the one its merged weights need."""


@dataclass(frozen=True, slots=True)
class FloatGraph:
    """The float32 graph that a file is made from, and its weights."""

    model: onnx.ModelProto
    """With bindings; bound initializers need no data. It is not changed."""
    weights: Mapping[str, Weight]
    """Parameter or buffer name -> value."""


def audit_lowered(
    path: Path, *, full: FloatGraph, precision: Precision, inputs: Sequence[InputSpec]
) -> tuple[tuple[Check, ...], Weights]:
    """Compare a file with rounded weights with the float32 graph and the merged weights.

    Every rounded weight is computed back from codes, scales and zero points, block by block. It
    must lie within half a step of the merged one; the step is the one that the merged block needs.
    Every other initializer is bit-equal. With the float32 nodes put back, the graph is the float32
    one.

    Args:
        path: the `.onnx` file, external data beside it.
        full: what it must be made from.
        precision: of the file, as it was asked for or as its manifest names it.
        inputs: as declared.

    Returns:
        the checks, fewer when the file cannot be read, and what became of the weights.

    Raises:
        FitError: `full` lacks a weight.
    """
    checks = check_readable(path)
    if not all(check.passed for check in checks):
        return checks, Weights({}, {})
    model = external.parse(path)
    uses = products.find_uses(
        full.model.graph, {tensor.name for tensor in full.model.graph.initializer}
    )
    load = partial(external.map_array, path)
    raised = Reader(model.graph, uses, load, precision.level).find()
    found = (
        *checks,
        *_rounded(full, raised, precision),
        _others(path, model, full, raised),
        external.count_check(
            "bindings", _bindings(model, full.model, raised), "those of the float32 graph"
        ),
        external.count_check(
            "same graph but for the rounding",
            _graph(model, full.model, uses, raised),
            graph_words(full.model),
        ),
        external.count_check(
            "dynamic dimensions", dimension_differences(model, inputs), dimension_words(inputs)
        ),
    )
    return found, sizes_of(model, full.model, raised)


def _rounded(
    full: FloatGraph, raised: Mapping[str, Raised], precision: Precision
) -> tuple[Check, ...]:
    """Check every rounded weight against the merged one, once: several nodes may use it."""
    matrices = matrices_of(full.model, full.weights, {one.use.weight for one in raised.values()})
    first: dict[tuple[str, str], Raised] = {}
    worst, where = 0.0, ""
    faults = [] if raised else ["graph: no weight is rounded in it"]
    for one in raised.values():
        name = f"{one.use.weight} ({one.use.kind})"
        if first.setdefault(one.key, one) is not one:
            if first[one.key].parts != one.parts:
                faults.append(f"{name}: is stored twice, in {one.parts} as well")
            continue
        merged = matrices[one.use.weight]
        rows = merged if one.use.transposed or one.use.kind == "lookup" else merged.T
        wanted = precision.product if one.use.kind == "product" else TABLE
        off, fault = _compare(one.find(), rows, wanted)
        faults += [f"{name}: {fault}"] if fault else []
        if off > worst:
            worst, where = off, name
    detail = f"{counted(len(first), 'weight')}, each value computed back"
    if worst > HALF:
        detail = f"a value of {where} is {worst:.3g} steps from the merged one, and half is allowed"
    return (
        Check("rounded weights, in steps", worst <= HALF, worst, HALF, where, detail),
        external.count_check("scales of rounded weights", faults, "as the merged values need"),
    )


def _compare(stored: Stored, rows: Matrix, wanted: Grid | None) -> tuple[float, str]:
    """Return (steps that the farthest value is off, what is wrong with layout or scales)."""
    if wanted is None or stored.grid != wanted:
        return inf, f"is stored as {stored.grid}, not as {wanted}"
    if stored.shape != rows.shape:
        return inf, f"stands for {stored.shape} values, the weight has {rows.shape}"
    blocks = -(-rows.shape[1] // (wanted.block or rows.shape[1]))
    if stored.scales.shape != (rows.shape[0], blocks):
        return inf, f"has scales {stored.scales.shape}, needed are {(rows.shape[0], blocks)}"
    farthest, wrong = 0.0, 0
    # Other blocks than the writer's: a fault at the edges of those would look right in the same.
    for start, stop in spans(rows.shape[0], 2 * rows.shape[1]):
        part = slice(start, stop)
        found = stored.read(part), stored.scales[part]
        off, faults = _compare_rows(*found, rows.rows(start, stop), wanted)
        farthest, wrong = max(farthest, off), wrong + faults
    return farthest, f"{wrong} blocks have another scale than they need" if wrong else ""


def _compare_rows(values: Array, scales: Array, rows: Array, wanted: Grid) -> tuple[float, int]:
    """Return (steps that the farthest value is off, number of wrong scales) of some rows."""
    import numpy as np

    steps = _needed_steps(rows, wanted)
    close = np.abs(scales - steps) <= SCALE * steps  # False for a NaN
    each = np.repeat(steps, wanted.block or rows.shape[1], axis=1)[:, : rows.shape[1]]
    gap = np.abs(values.astype(np.float64) - rows)
    # A block without a step is stored as zeros: its values must be negligible, else they are lost.
    lost = np.where(gap <= NEGLIGIBLE * wanted.levels, 0.0, inf)
    off = np.divide(gap, each, out=lost, where=each > 0)
    farthest = float(np.nan_to_num(off, nan=inf).max(initial=0.0))
    return farthest, int(close.size - np.count_nonzero(close))


def _needed_steps(rows: Array, grid: Grid) -> Array:
    """Compute the step that each block needs, float64 [R, blocks]; every range includes zero.

    In float64 and from the merged weights: not the arithmetic that made the scales.
    """
    import numpy as np

    wide = rows.astype(np.float64)
    edges = np.arange(0, rows.shape[1], grid.block or rows.shape[1])
    high = np.maximum(np.maximum.reduceat(wide, edges, axis=1), 0)
    low = np.minimum(np.minimum.reduceat(wide, edges, axis=1), 0)
    steps = (np.maximum(high, -low) if grid.symmetric else high - low) / grid.levels
    return np.where(steps < NEGLIGIBLE, 0.0, steps)


def _others(
    path: Path, model: onnx.ModelProto, full: FloatGraph, raised: Mapping[str, Raised]
) -> Check:
    """Check that the other initializers are the float32 model's, bit for bit, and no more."""
    explained = {name for one in raised.values() for name in one.parts}
    known = place_weights(full.model, full.weights)
    faults = []
    for tensor in model.graph.initializer:
        if tensor.name in known:
            if count := _different(path, tensor, known[tensor.name]):
                faults.append(f"{tensor.name}: {count:.0f} elements differ from the merged ones")
        elif tensor.name not in explained:
            faults.append(f"{tensor.name}: is neither the float32 model's nor a rounded weight")
    faults += [
        f"{tensor.name or 'a Constant node'}: a matrix inside a node"
        for tensor in external.other_tensors(model)
        if is_large_float(tensor)
    ]
    return external.count_check("every other weight bit-equal", faults, "as in the float32 graph")


def _different(path: Path, tensor: onnx.TensorProto, wanted: Placed) -> float:
    """Count the elements of a tensor whose bits are not the wanted ones."""
    from onnx import numpy_helper

    stored, back = external.map_array(path, tensor), wanted.binding.back
    if wanted.tensor is None:
        return different_bits(numpy_helper.to_array(wanted.slot), stored)
    return (
        different_bits(wanted.tensor, turn(stored, back)) if len(back) in {0, stored.ndim} else inf
    )


def _bindings(
    model: onnx.ModelProto, full: onnx.ModelProto, raised: Mapping[str, Raised]
) -> list[str]:
    """List the parameters whose bindings are not those of the float32 model.

    A weight that the file holds only rounded must have no binding.
    """
    try:
        found = read_bindings(model).parameters
    except InputError as error:
        return [f"metadata: {error.problems[0].message}"]
    present = {tensor.name for tensor in model.graph.initializer}
    rounded = {one.use.weight for one in raised.values()}
    faults = []
    for name, binding in read_bindings(full).parameters.items():
        wanted = None if binding.initializer in rounded - present else binding
        if found.get(name) != wanted:
            faults.append(f"{name}: bound to {found.get(name)}, expected is {wanted}")
    return faults


def _graph(
    model: onnx.ModelProto,
    full: onnx.ModelProto,
    uses: Mapping[str, Use],
    raised: Mapping[str, Raised],
) -> list[str]:
    """Compare the graphs with the float32 nodes put back; list what differs."""
    bindings = read_bindings(full)
    before = _light(full, full, bindings)
    products.canonical(before.graph, uses)
    after = _light(model, full, bindings)
    products.canonical(after.graph, {name: one.use for name, one in raised.items()})
    # Uses that were too small to be rounded are still in their own forms.
    weights = {tensor.name for tensor in after.graph.initializer}
    products.canonical(after.graph, products.find_uses(after.graph, weights))
    try:
        wanted, found = describe(before), describe(after)
    except InputError as error:
        return [str(error.problems[0])]
    if wanted == found:
        return []
    both = f"{found.nodes} nodes and hash {found.hash[:12]}, not {wanted.nodes} and"
    return [f"graph: with the float32 nodes put back it has {both} {wanted.hash[:12]}"]


def _light(model: onnx.ModelProto, full: onnx.ModelProto, bindings: Bindings) -> onnx.ModelProto:
    """Copy `model`'s nodes and `full`'s initializers, bound ones without their data."""
    import onnx

    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.functions.extend(model.functions)
    light.opset_import.extend(e for e in model.opset_import if e.domain != "com.microsoft")
    graph = light.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    bound = {binding.initializer for binding in bindings.parameters.values()}
    for tensor in full.graph.initializer:
        if tensor.name in bound:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            graph.initializer.add().CopyFrom(tensor)
    write_bindings(light, bindings)
    return light
