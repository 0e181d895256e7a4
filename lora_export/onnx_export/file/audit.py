"""Static audit of a saved ONNX file: a proof of its contents without running it."""

from __future__ import annotations

from math import inf, prod
from typing import TYPE_CHECKING, Any

from lora_export.errors import InputError
from lora_export.onnx_export.capture import dimensions
from lora_export.onnx_export.file import external
from lora_export.onnx_export.file.bindings import element_dtype, read_bindings
from lora_export.onnx_export.file.topology import describe
from lora_export.onnx_export.file.weight_blocks import Cast, as_array, dtype_of, parts, turn
from lora_export.records import Check, spans_of
from lora_export.report.columns import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnx
    from numpy.typing import NDArray
    from torch import Tensor

    from lora_export.onnx_export.file.bindings import Bindings
    from lora_export.onnx_export.file.topology import Topology
    from lora_export.onnx_export.file.weight_blocks import Weight
    from lora_export.records import InputSpec

PARAMETER_SIZE = 1024
"""Elements from which an unexplained float tensor may be a weight."""


def audit(
    path: Path,
    *,
    expected: Callable[[], Mapping[str, Weight]],
    base: Topology,
    inputs: Sequence[InputSpec],
) -> tuple[Check, ...]:
    """Compare a saved file with what must be in it; every check runs that can.

    Args:
        path: the `.onnx` file, external data beside it.
        expected: gives the value of EVERY bound parameter and buffer: merged where the adapter
            changes it, the base's elsewhere. Dtypes are those of the file. It is called when the
            values are needed. Both sides are read block by block.
        base: `describe` of the captured base.
        inputs: as declared; named dimensions must be symbolic in the file, under these names.

    Returns:
        the checks; in each, `worst` counts differences and `tolerance` is 0. When the file cannot
        be read, only the checks up to there.
    """
    checks = check_readable(path)
    if not all(check.passed for check in checks):
        return checks
    model = external.parse(path)
    try:
        bindings = read_bindings(model)
    except InputError as error:
        return (*checks, external.count_check("bindings", [error.problems[0].message]))
    external.bring_in(model, path, but={one.initializer for one in bindings.parameters.values()})
    wanted = expected()
    return (
        *checks,
        external.count_check(
            "bindings",
            _unbound(model, bindings, wanted),
            f"{counted(len(bindings.parameters), 'initializer')} with the parameter's name",
        ),
        *_values(path, model, bindings, wanted),
        external.count_check(
            "no unexplained weights",
            _unexplained(model, bindings),
            "every other constant is small",
        ),
        external.count_check(
            "same graph as the base", _graph_differences(model, base), graph_words(model)
        ),
        external.count_check(
            "dynamic dimensions", dimension_differences(model, inputs), dimension_words(inputs)
        ),
    )


def graph_words(model: onnx.ModelProto) -> str:
    """Return the size of a graph that passed."""
    return f"{counted(len(model.graph.node), 'node')}, none added and none changed"


def dimension_words(inputs: Sequence[InputSpec]) -> str:
    """Return the dynamic dimensions of declared inputs."""
    return f"dynamic as declared: {', '.join(spans_of(inputs)) or 'none'}"


def check_readable(path: Path) -> tuple[Check, ...]:
    """Check the external data of a file, then the file itself where that passed.

    The order matters: onnx.checker follows references to external data.
    """
    external_check = external.check(path)
    return (external_check, _well_formed(path)) if external_check.passed else (external_check,)


def _well_formed(path: Path) -> Check:
    """Check that onnx.checker accepts the file."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        return external.count_check(
            "onnx.checker", [f"{path.name}: {' '.join(str(error).split())[:300]}"]
        )
    return external.count_check("onnx.checker", [], "accepts the file")


def _unbound(
    model: onnx.ModelProto, bindings: Bindings, expected: Mapping[str, object]
) -> list[str]:
    """List bindings to no initializer, and names that are only bound or only expected."""
    present = {tensor.name for tensor in model.graph.initializer}
    bound = bindings.parameters
    return [
        *(
            f"{name}: bound to {binding.initializer!r}, which is no initializer"
            for name, binding in bound.items()
            if binding.initializer not in present
        ),
        *(f"{name}: expected, but not bound" for name in expected if name not in bound),
        *(f"{name}: bound, but not expected" for name in bound if name not in expected),
    ]


def _values(
    path: Path, model: onnx.ModelProto, bindings: Bindings, expected: Mapping[str, Weight]
) -> tuple[Check, Check]:
    """Check that every bound initializer has the expected bits, and that parameters are finite.

    `worst` of the first check is the number of elements whose bits differ. Buffers may hold
    infinities, as masks do.
    """
    slots = {tensor.name: tensor for tensor in model.graph.initializer}
    total, first, faults = 0.0, "", []
    for name, binding in bindings.parameters.items():
        if binding.initializer not in slots:
            continue
        stored = external.map_array(path, slots[binding.initializer])
        if binding.kind == "parameter" and not _is_finite(stored):
            faults.append(f"{name}: holds a NaN or an infinity")
        if name not in expected:
            continue
        fits = len(binding.perm) in {0, stored.ndim}
        count = different_bits(expected[name], turn(stored, binding.back)) if fits else inf
        total += count
        if count and not first:
            first = f"{name}: {count:.0f} elements of {binding.initializer!r} differ"
    bits = f"{counted(len(bindings.parameters), 'initializer')} with the bits of the merge"
    equal = Check("every weight bit-equal", passed=not total, worst=total, tolerance=0.0,
                  where=first.partition(":")[0], detail=first or bits)  # fmt: skip
    finite = external.count_check("no NaN or infinity", faults, "every parameter is finite")
    return equal, finite


def _is_finite(array: NDArray[Any]) -> bool:
    import numpy as np

    if array.dtype.kind not in "fV":
        return True
    return all(bool(np.isfinite(p.astype(np.float32, copy=False)).all()) for p in parts(array))


def different_bits(wanted: Weight, stored: NDArray[Any]) -> float:
    """Count the elements whose bits differ; infinity where dtype or shape differ.

    A weight that is cast is rounded by NumPy here, and by torch where the file is written. The
    stored axes are put back here, and the weight's own are turned there.

    Args:
        wanted: a parameter's value.
        stored: the initializer's value with the parameter's axes; it may be a mapped file.
    """
    if tuple(wanted.shape) != stored.shape or dtype_of(wanted) != stored.dtype:
        return inf
    inner = wanted.tensor if isinstance(wanted, Cast) else wanted
    pairs = zip(parts(inner), parts(stored), strict=True)
    return sum(_different(_rounded(left, stored.dtype), right) for left, right in pairs)


def _rounded(part: Tensor | NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    import numpy as np

    # NumPy warns of the infinities of masks. half.refuse_too_large has refused those of weights.
    with np.errstate(over="ignore"):
        return as_array(part).astype(dtype, copy=False)


def _different(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Count the elements of two arrays of one shape and dtype whose bits differ."""
    import numpy as np

    width = left.dtype.itemsize
    first, second = (np.asarray(one, order="C").reshape(-1).view(np.uint8) for one in (left, right))
    if np.array_equal(first, second):
        return 0.0
    differing = first.reshape(-1, width) != second.reshape(-1, width)
    return float(np.count_nonzero(differing.any(axis=1)))


def _unexplained(model: onnx.ModelProto, bindings: Bindings) -> list[str]:
    """List large float tensors that are neither bound nor constants of the model's code."""
    explained = {binding.initializer for binding in bindings.parameters.values()}
    explained.update(bindings.constants)
    loose = [tensor for tensor in model.graph.initializer if tensor.name not in explained]
    # A name inside a node is free text: it explains nothing, even where it is a parameter's.
    suspects = [*loose, *external.other_tensors(model)]
    return [
        f"{tensor.name or 'a Constant node'}: {element_dtype(tensor)}{list(tensor.dims)} is bound "
        "to no parameter"
        for tensor in suspects
        if is_large_float(tensor)
    ]


def is_large_float(tensor: onnx.TensorProto) -> bool:
    """Return whether a tensor is a float one of at least PARAMETER_SIZE elements.

    ml_dtypes' bfloat16 is of numpy's kind "V".
    """
    return element_dtype(tensor).kind in "fV" and prod(tensor.dims) >= PARAMETER_SIZE


def _graph_differences(model: onnx.ModelProto, base: Topology) -> list[str]:
    try:
        found = describe(model)
    except InputError as error:
        return [str(error.problems[0])]
    if found == base:
        return []
    counts = (
        f"{found.nodes} nodes and {found.initializers} initializers, the base has {base.nodes} "
        f"and {base.initializers}"
    )
    return [f"graph: differs from the base's: {counts}; hash {found.hash[:12]}, {base.hash[:12]}"]


def dimension_differences(model: onnx.ModelProto, inputs: Sequence[InputSpec]) -> list[str]:
    """List, in words, inputs with other dimensions than declared and undeclared inputs."""
    faults = [
        f"{spec.name}: has {list(found)}, declared is {list(spec.dims)}"
        for spec, found in dimensions.differences(model, inputs)
    ]
    declared = {spec.name for spec in inputs}
    faults += [
        f"{value.name}: is an input that was not declared"
        for value in model.graph.input
        if value.name not in declared
    ]
    return faults
