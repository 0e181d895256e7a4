"""A model that is read while it runs gives the bits of the same model in memory."""

import pytest
import torch
from peft_matrix.architectures import ARCHITECTURES, DTYPES

from lora_export.checkpoint.index import read_checkpoint
from lora_export.models.hf.huggingface import HuggingFaceModel
from lora_export.models.network.calling import call_model
from lora_export.models.network.casting import to_float64
from lora_export.models.streaming.lockstep import Lockstep
from lora_export.models.streaming.streamed_weight import StreamedWeight


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request):
    return ARCHITECTURES[request.param]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_bits_are_those_of_the_model_in_memory(architecture, dtype, tmp_path, streamed):
    architecture.save(DTYPES[dtype], tmp_path)
    base = read_checkpoint(tmp_path)
    source = HuggingFaceModel(base, ())
    whole, streamed = (way(base, full={}, untied=()) for way in (source.load, source.stream))
    inputs = architecture.inputs()
    assert any(isinstance(weight, StreamedWeight) for weight in streamed.parameters())
    expected = call_model(whole, inputs)
    assert same(expected, call_model(streamed, inputs))
    wide = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    exact = call_model(to_float64(whole), wide)
    assert same(exact, call_model(to_float64(streamed), wide))
    again = source.stream(base, full={}, untied=())
    both = Lockstep().run([lambda: call_model(again, inputs), lambda: call_model(streamed, wide)])
    for one, other in zip((expected, exact), both, strict=True):
        for name in one:  # joined inputs may have other last bits
            torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-5)
