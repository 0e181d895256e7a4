"""The checkpoint that the authors of LoRA published merges as loralib itself merges it."""

import pytest
import torch
from safetensors.torch import load_file

from lora_export.api import merge, verify
from lora_export.errors import UsageError

pytestmark = pytest.mark.large_network  # the adapter is for the published sizes
RANK, ALPHA = 8, 16  # known only from the authors' training script


@pytest.fixture(scope="module")
def published(shared_data):
    return shared_data / "microsoft_lora" / "roberta_base_lora_mnli.bin"


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=200, max_position_embeddings=66, num_labels=3)
    model = RobertaForSequenceClassification(config)
    folder = tmp_path_factory.mktemp("roberta")
    model.save_pretrained(folder)
    return folder


def evaluated(folder, published):
    """The same model with loralib's modules in the place of query and value, after eval()."""
    import loralib as lora
    from transformers import RobertaForSequenceClassification

    model = RobertaForSequenceClassification.from_pretrained(folder)
    for layer in model.roberta.encoder.layer:
        attention = layer.attention.self
        for name in ("query", "value"):
            plain = getattr(attention, name)
            adapted = lora.Linear(768, 768, r=RANK, lora_alpha=ALPHA)
            adapted.load_state_dict(plain.state_dict(), strict=False)
            setattr(attention, name, adapted)
    state = torch.load(published, map_location="cpu", weights_only=True)
    missing, unexpected = model.train().load_state_dict(state, strict=False)
    assert not unexpected  # the oracle consumed every key of the adapter
    assert not any("lora_" in name or "classifier" in name for name in missing)
    model.eval()
    return {name: tensor for name, tensor in model.state_dict().items() if "lora_" not in name}


def test_merge_equals_loralib(roberta, published, tmp_path, proven_by_weights):
    # The merge proves its weights while it writes them; the model is run once, by verify.
    proven_by_weights()
    report = merge(roberta, [published], tmp_path / "out", alpha=ALPHA)
    assert report.passed

    merged, expected = (
        load_file(tmp_path / "out" / "model.safetensors"),
        evaluated(roberta, published),
    )
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert (tmp_path / "out" / "config.json").read_bytes() == (roberta / "config.json").read_bytes()
    report = verify(tmp_path / "out", base=roberta, adapters=[published])
    assert report.passed
    assert any(check.name == "merged = unmerged (torch)" for check in report.checks)


def test_square_weights_of_a_file_without_its_folder_are_asked_for(roberta, published, tmp_path):
    with pytest.raises(UsageError) as caught:
        merge(roberta / "model.safetensors", [published], tmp_path / "o.safetensors", alpha=ALPHA)
    assert "--no-fan-in-fan-out" in str(caught.value)
    assert "24 places" in str(caught.value)


def test_an_option_that_contradicts_the_folder_is_refused(roberta, published, tmp_path):
    with pytest.raises(UsageError, match="model_type roberta"):
        merge(roberta, [published], tmp_path / "out", alpha=ALPHA, fan_in_fan_out=True)
