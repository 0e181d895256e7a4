"""Rounded weights have the bits of ONNX Runtime's own tools, and lose at most half a step."""

import numpy as np
import pytest

from lora_export.onnx_export.precision.grids import Grid
from lora_export.onnx_export.precision.quantize import pack, quantize_rows

SHAPES = [(100, 48), (384, 64), (33, 7), (5, 3), (64, 1)]


def weight(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def oracle():
    """ONNX Runtime's quantiser of blocks; its module sets up logging for the whole process."""
    import logging

    handlers, level = logging.root.handlers[:], logging.root.level
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)

    def quantize(array, bits, block):
        config = DefaultWeightOnlyQuantConfig(block_size=block, bits=bits)
        return DefaultWeightOnlyQuantizer(config).qbits_block_quant(array)

    return quantize


def codes_of(packed, bits, width):
    """Without what lies behind a row's end, which nothing multiplies."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1)
    return packed.reshape(len(packed), -1)[:, :width]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_those_of_onnx_runtime(oracle, bits, shape):
    array = weight(shape)
    packed, scales, zeros = oracle(array, bits, 32)
    found = quantize_rows(np.ascontiguousarray(array.T), Grid(bits, 32))
    mine, theirs = (codes_of(array, bits, shape[0]) for array in (pack(found.codes, bits), packed))
    assert np.array_equal(mine, theirs)
    assert np.array_equal(found.scales, scales)
    mine, theirs = (codes_of(z, bits, scales.shape[1]) for z in (pack(found.zeros, bits), zeros))
    assert np.array_equal(mine, theirs)


def test_whole_rows_are_those_of_onnx_runtime():
    from onnxruntime.quantization.quant_utils import QuantType, quantize_data

    array = weight((6, 50))
    found = quantize_rows(array, Grid(8))
    for row, codes, scale, zero in zip(array, found.codes, found.scales, found.zeros, strict=True):
        theirs = quantize_data(row, QuantType.QUInt8.tensor_type, symmetric=False)
        assert (theirs[0], theirs[1]) == (zero[0], pytest.approx(scale[0], rel=1e-6))
        assert np.abs(theirs[2].astype(int) - codes[0]).max() <= 1  # they divide, and we multiply


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(8, 32), Grid(8), Grid(8, symmetric=True)])
def test_no_value_is_off_by_more_than_half_a_step(grid):
    rows = weight((40, 70), seed=1)
    rows[3], rows[4], rows[5, :32] = 0, np.abs(rows[4]) + 5, 1e-40
    found = quantize_rows(rows, grid)
    zeros = 0 if found.zeros is None else found.zeros[..., None].astype(np.float32)
    values = (found.codes.astype(np.float32) - zeros) * found.scales[..., None]
    gap = np.abs(values.reshape(40, -1)[:, :70] - rows)
    steps = np.repeat(found.scales, found.codes.shape[-1], axis=1)[:, :70]
    assert (gap <= 0.501 * steps + 1e-36).all()
    assert not values.reshape(40, -1)[3].any()
    assert np.isfinite(values).all()
