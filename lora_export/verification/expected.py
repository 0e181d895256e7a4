"""The update recomputed in float64 with numpy, on its own path: it shares no code with the merge.

Formulas of loralib 0.1.2's layers written out from their definition, plus the sum of magnitudes
that bounds the rounding of any order of summation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.tensors import iter_chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from lora_export.records import Delta, TensorRef

    Array = npt.NDArray[np.float64]

_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "i1", "U8": "u1", "BOOL": "u1",
}  # fmt: skip


def decode(ref: TensorRef) -> Array:
    """A stored float tensor as float64, read and decoded without torch (bfloat16 by its bits)."""
    import numpy as np

    data = b"".join(bytes(piece) for piece in iter_chunks(ref))
    if ref.spec.dtype == "BF16":
        wide = np.frombuffer(data, "<u2").astype("<u4") << 16
        return wide.view("<f4").astype(np.float64).reshape(ref.spec.shape)
    return np.frombuffer(data, _NUMPY[ref.spec.dtype]).astype(np.float64).reshape(ref.spec.shape)


def expected_update(delta: Delta) -> tuple[Array, Array]:
    """(update, magnitude), both float64 in the base weight's shape, scaled by alpha / rank * w.

    magnitude is the same sum over absolute values: the rounding of a sum of r products in any
    order is at most r units of roundoff of it.
    """
    import numpy as np

    a, b = decode(delta.factors["A"]), decode(delta.factors["B"])
    scale = delta.alpha / delta.rank * delta.weight
    form = FORMULAS[delta.kind]
    return form(delta, a, b) * scale, form(delta, np.abs(a), np.abs(b)) * abs(scale)


def _linear(delta: Delta, a: Array, b: Array) -> Array:
    import numpy as np

    form = "or,ri->io" if delta.fan_in_fan_out else "or,ri->oi"
    update: Array = np.einsum(form, b, a, optimize=True)
    return update


def _embedding(_: Delta, a: Array, b: Array) -> Array:
    import numpy as np

    update: Array = np.einsum("rn,dr->nd", a, b, optimize=True)
    return update


def _conv(delta: Delta, a: Array, b: Array) -> Array:
    """Row-major reshape of the (out//groups*k, in*k) product to the kernel's own shape."""
    import numpy as np

    return np.tensordot(b, a, axes=(1, 0)).reshape(delta.shape)


def _merged_linear(delta: Delta, a: Array, b: Array) -> Array:
    """Block by block: the i-th enabled block is B[i*o:(i+1)*o] @ A[i*r:(i+1)*r]."""
    import numpy as np

    rows, columns = delta.shape[::-1] if delta.fan_in_fan_out else delta.shape
    size, rank = rows // len(delta.enable_lora), delta.rank
    update = np.zeros((rows, columns))
    done = 0
    for block, enabled in enumerate(delta.enable_lora):
        if enabled:
            left = b[done * size : (done + 1) * size]
            update[block * size : (block + 1) * size] = left @ a[done * rank : (done + 1) * rank]
            done += 1
    return update.T if delta.fan_in_fan_out else update


FORMULAS: dict[str, Callable[[Delta, Any, Any], Any]] = {
    "linear": _linear,
    "embedding": _embedding,
    "conv": _conv,
    "merged_linear": _merged_linear,
}
"""One formula a layer kind; a test holds the keys against the kinds."""
