"""Static audit of a file with rounded weights, against the proven float32 graph it is made from."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from lora_export.errors import InputError
from lora_export.onnx_export.file import external
from lora_export.onnx_export.file.audit import (
    check_readable,
    different_bits,
    dimension_differences,
    is_large_float,
)
from lora_export.onnx_export.file.bindings import read_bindings, write_bindings
from lora_export.onnx_export.file.topology import describe
from lora_export.onnx_export.precision import products
from lora_export.onnx_export.precision.grids import NEGLIGIBLE, TABLE
from lora_export.onnx_export.precision.read_rounded import Reader
from lora_export.records import Check
from lora_export.report.columns import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from lora_export.onnx_export.file.bindings import Bindings
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
class Weights:
    """The parameters by name, with their bytes in float32 and in the file."""

    rounded: Mapping[str, tuple[int, int]]
    """Those that are stored as codes."""
    kept: Mapping[str, tuple[int, int]]
    """The others, bit for bit the merged ones."""


def audit_lowered(
    path: Path, *, full: onnx.ModelProto, precision: Precision, inputs: Sequence[InputSpec]
) -> tuple[tuple[Check, ...], Weights]:
    """Compare a file with rounded weights with the float32 model `full`, which is proven already.

    Every rounded weight is computed back from codes, scales and zero points. It must lie within
    half a step of the merged one; the step is the one that the merged block needs. Every other
    initializer is bit-equal. With the float32 nodes put back, the graph is the float32 one.

    Args:
        path: the `.onnx` file, external data beside it.
        full: with bindings, and its weights in memory. It is not changed.
        precision: of the file, as it was asked for or as its manifest names it.
        inputs: as declared.

    Returns:
        the checks, fewer when the file cannot be read, and what became of the weights.
    """
    checks = check_readable(path)
    if not all(check.passed for check in checks):
        return checks, Weights({}, {})
    model = external.load(path)
    uses = products.find_uses(full.graph, {tensor.name for tensor in full.graph.initializer})
    raised = Reader(model.graph, uses).find()
    found = (
        *checks,
        *_rounded(full, raised, precision),
        _others(model, full, raised),
        external.count_check("bindings", _bindings(model, full, raised)),
        external.count_check("same graph but for the rounding", _graph(model, full, uses, raised)),
        external.count_check("dynamic dimensions", dimension_differences(model, inputs)),
    )
    return found, _weights(model, full, raised)


def _rounded(
    full: onnx.ModelProto, raised: Mapping[str, Raised], precision: Precision
) -> tuple[Check, ...]:
    """Check every rounded weight against the merged one, once: several nodes may use it."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in full.graph.initializer}
    first: dict[tuple[str, str], Raised] = {}
    worst, where = 0.0, ""
    faults = [] if raised else ["graph: no weight is rounded in it"]
    for one in raised.values():
        name = f"{one.use.weight} ({one.use.kind})"
        if first.setdefault(one.key, one) is not one:
            if first[one.key].parts != one.parts:
                faults.append(f"{name}: is stored twice, in {one.parts} as well")
            continue
        merged = numpy_helper.to_array(tensors[one.use.weight])
        rows = merged if one.use.transposed or one.use.kind == "lookup" else merged.T
        wanted = precision.product if one.use.kind == "product" else TABLE
        off, fault = _compare(one.read(), rows, wanted)
        faults += [f"{name}: {fault}"] if fault else []
        if off > worst:
            worst, where = off, name
    detail = f"{counted(len(first), 'weight')}, each value computed back"
    return (
        Check("rounded weights, in steps", worst <= HALF, worst, HALF, where, detail),
        external.count_check("scales of rounded weights", faults),
    )


def _compare(stored: Stored, rows: Array, wanted: Grid | None) -> tuple[float, str]:
    """Return (steps that the farthest value is off, what is wrong with layout or scales)."""
    import numpy as np

    if wanted is None or stored.grid != wanted:
        return inf, f"is stored as {stored.grid}, not as {wanted}"
    if stored.values.shape != rows.shape:
        return inf, f"stands for {stored.values.shape} values, the weight has {rows.shape}"
    steps = _needed_steps(rows, wanted)
    if steps.shape != stored.scales.shape:
        return inf, f"has scales {stored.scales.shape}, needed are {steps.shape}"
    close = np.abs(stored.scales - steps) <= SCALE * steps  # False for a NaN
    fault = f"{close.size - np.count_nonzero(close)} blocks have another scale than they need"
    each = np.repeat(steps, wanted.block or rows.shape[1], axis=1)[:, : rows.shape[1]]
    gap = np.abs(stored.values.astype(np.float64) - rows)
    # A block without a step is stored as zeros: its values must be negligible, else they are lost.
    lost = np.where(gap <= NEGLIGIBLE * wanted.levels, 0.0, inf)
    off = np.divide(gap, each, out=lost, where=each > 0)
    farthest = float(np.nan_to_num(off, nan=inf).max(initial=0.0))
    return farthest, "" if close.all() else fault


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


def _others(model: onnx.ModelProto, full: onnx.ModelProto, raised: Mapping[str, Raised]) -> Check:
    """Check that the other initializers are the float32 model's, bit for bit, and no more."""
    from onnx import numpy_helper

    explained = {name for one in raised.values() for name in one.parts}
    known = {tensor.name: tensor for tensor in full.graph.initializer}
    faults = []
    for tensor in model.graph.initializer:
        if tensor.name in known:
            pair = numpy_helper.to_array(known[tensor.name]), numpy_helper.to_array(tensor)
            if count := different_bits(lambda value: value, *pair):
                faults.append(f"{tensor.name}: {count:.0f} elements differ from the merged ones")
        elif tensor.name not in explained:
            faults.append(f"{tensor.name}: is neither the float32 model's nor a rounded weight")
    faults += [
        f"{tensor.name or 'a Constant node'}: a matrix inside a node"
        for tensor in external.inner_tensors(model.graph)
        if is_large_float(tensor)
    ]
    return external.count_check("every other weight bit-equal", faults)


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


def _weights(
    model: onnx.ModelProto, full: onnx.ModelProto, raised: Mapping[str, Raised]
) -> Weights:
    """Sum the bytes of every parameter in float32 and in the file."""
    sizes = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    before = {tensor.name: len(tensor.raw_data) for tensor in full.graph.initializer}
    holders: dict[str, set[str]] = {}
    for one in raised.values():
        holders.setdefault(one.use.weight, {one.use.weight}).update(one.parts)
    rounded, kept = {}, {}
    for name, initializer in _owners(full):
        if initializer in holders:
            now = sum(sizes.get(part, 0) for part in holders[initializer])
            rounded[name] = before[initializer], now
        else:
            kept[name] = before[initializer], sizes.get(initializer, 0)
    return Weights(rounded, kept)


def _owners(full: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """List (first name, initializer) of every bound initializer; tied names share one."""
    seen = set()
    for name, binding in read_bindings(full).parameters.items():
        if binding.initializer not in seen:
            seen.add(binding.initializer)
            yield name, binding.initializer
