"""A network that is larger than a test needs is seen when it is built."""

from __future__ import annotations

import pytest
import transformers

from whole_run.small_networks import Watch

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}


def built(**changes):
    """What is said about a BERT of these sizes."""
    watch, right = Watch(), transformers.PreTrainedModel.post_init
    watch.begin()
    try:
        transformers.BertModel(transformers.BertConfig(**{**SIZES, **changes}))
    finally:
        transformers.PreTrainedModel.post_init = right
    return watch.take()


@pytest.mark.large_network
def test_many_layers_and_many_parameters_are_told():
    assert built(num_hidden_layers=2) == []
    assert "BertModel has 3 layers, more than 2" in built(num_hidden_layers=3)
    [told] = [line for line in built(num_hidden_layers=1, vocab_size=20_000) if "BertModel" in line]
    assert "parameters, more than 200,000" in told


def test_a_small_one_is_not(request):
    assert built(num_hidden_layers=1) == []
