"""Whether ONNX Runtime's kernels overflow with signed 8-bit codes on this processor.

An x86 processor without VNNI adds pairs of products of unsigned activations and signed weights in
16 bits, and the sum saturates: 255 x 127 x 2 is 64,770, and 32,767 is the most. With unsigned
weights, other and slower instructions are used there. Where the processor has VNNI, and on ARM,
both give the same whole numbers, and signed codes are the fast ones.
"""

from __future__ import annotations

from functools import cache

_WIDTH, _COLUMNS = 64, 32
_LARGEST = (255, 127)


@cache
def signed_codes_overflow() -> bool:
    """Return whether a product of the largest codes is wrong here.

    A product is run instead of asking the processor for its features: what counts is which kernel
    ONNX Runtime takes. True where ONNX Runtime is not installed, since nothing is known then.
    """
    import numpy as np

    try:
        import onnxruntime
    except ImportError:
        return True
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_product(), options, providers=["CPUExecutionProvider"])
    exact = _WIDTH * _LARGEST[0] * _LARGEST[1]
    # One row and several have kernels of their own.
    rows = (np.full((count, _WIDTH), _LARGEST[0], np.uint8) for count in (1, 4))
    return any((session.run(None, {"x": x})[0] != exact).any() for x in rows)


def _product() -> bytes:
    """Return a model that multiplies x, uint8 (rows, _WIDTH), by the largest signed codes."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = np.full((_WIDTH, _COLUMNS), _LARGEST[1], np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["y"])],
        "overflow",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", _WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", _COLUMNS])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    data: bytes = model.SerializeToString()
    return data
