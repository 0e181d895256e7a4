"""The inputs of a folder are known from forward and configurations, and the model runs on them."""

import json

import numpy as np
import pytest
import torch
import transformers as tr

from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import InputError
from lora_export.models.choose import folder_model
from lora_export.models.network.calling import call_model
from lora_export.verification.model.probes import make_probes

LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {**LAYERS, "hidden_size": 8, "image_size": 16, "patch_size": 8}
WORDS = {**LAYERS, "hidden_size": 8, "vocab_size": 40, "max_position_embeddings": 32}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BLIP = {
    "text_config": {**WORDS, **SPECIAL, "encoder_hidden_size": 8, "sep_token_id": 3},
    "vision_config": VISION,
    "projection_dim": 8,
    "image_text_hidden_size": 8,
}
TIMES = {
    "prediction_length": 4, "context_length": 8, "lags_sequence": [1, 3], "num_time_features": 2,
    "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8,
}  # fmt: skip
IMAGES = ("batch", 3, 16, 16)
PIXELS = {"pixel_values": IMAGES}
TEXT = {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}
SERIES = {
    "past_values": ("batch", 11), "past_time_features": ("batch", 11, 2),
    "past_observed_mask": ("batch", 11), "future_values": ("batch", 4),
    "future_time_features": ("batch", 4, 2),
}  # fmt: skip


def trocr():
    return tr.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        tr.ViTConfig(**VISION),
        tr.TrOCRConfig(
            vocab_size=40, d_model=8, decoder_layers=1, decoder_attention_heads=2,
            decoder_ffn_dim=8, max_position_embeddings=32, cross_attention_hidden_size=8,
        ),
    )  # fmt: skip


def segformer():
    return tr.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8],
        patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[1, 1],
        decoder_hidden_size=8,
    )  # fmt: skip


def detr():
    backbone = tr.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
        out_features=["stage2"],
        layer_type="basic",
    )
    return tr.DetrConfig(
        backbone_config=backbone, d_model=8, encoder_layers=1, decoder_layers=1, num_queries=3,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8,
    )  # fmt: skip


def sam():
    return tr.SamConfig(
        vision_config={
            "hidden_size": 8, "output_channels": 8, "num_hidden_layers": 1, "mlp_dim": 8,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "window_size": 2,
            "global_attn_indexes": [0], "num_pos_feats": 4,
        },
        prompt_encoder_config={"hidden_size": 8, "image_size": 32, "patch_size": 8},
        mask_decoder_config={
            "hidden_size": 8, "mlp_dim": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
            "iou_head_hidden_dim": 8,
        },
    )  # fmt: skip


def speech2text():
    return tr.Speech2TextConfig(
        vocab_size=40, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, conv_channels=8,
        input_feat_per_channel=6, max_target_positions=32, **SPECIAL,
    )  # fmt: skip


def wav2vec2_bert():
    return tr.Wav2Vec2BertConfig(
        **LAYERS, vocab_size=40, hidden_size=8, feature_projection_input_dim=6,
        output_hidden_size=8, conv_depthwise_kernel_size=3, pad_token_id=0,
    )  # fmt: skip


def patch_tst():
    return tr.PatchTSTConfig(
        num_input_channels=3, context_length=16, prediction_length=4, patch_length=4,
        patch_stride=4, d_model=8, num_attention_heads=2, num_hidden_layers=1, ffn_dim=8,
    )  # fmt: skip


# Each class, its configuration, and the inputs that it takes.
KINDS = {
    "BLIP, captions": ("BlipForConditionalGeneration", lambda: tr.BlipConfig(**BLIP),
                       {**TEXT, **PIXELS}),
    "BLIP, retrieval": ("BlipForImageTextRetrieval", lambda: tr.BlipConfig(**BLIP),
                        {**TEXT, **PIXELS}),
    "TrOCR": ("VisionEncoderDecoderModel", trocr,
              {**PIXELS, "decoder_input_ids": ("batch", "answer")}),
    "SegFormer": ("SegformerForSemanticSegmentation", segformer,
                  {"pixel_values": ("batch", 3, 224, 224)}),
    "DETR": ("DetrForObjectDetection", detr, {"pixel_values": ("batch", 3, 224, 224)}),
    "SAM": ("SamModel", sam,
            {"pixel_values": ("batch", 3, 32, 32), "input_points": ("batch", 1, "points", 2),
             "input_labels": ("batch", 1, "points")}),
    "Speech2Text": ("Speech2TextForConditionalGeneration", speech2text,
                    {"input_features": ("batch", "frames", 6),
                     "attention_mask": ("batch", "frames"),
                     "decoder_input_ids": ("batch", "answer")}),
    "Wav2Vec2-BERT": ("Wav2Vec2BertForCTC", wav2vec2_bert,
                      {"input_features": ("batch", "frames", 6),
                       "attention_mask": ("batch", "frames")}),
    "PatchTST": ("PatchTSTForPrediction", patch_tst, {"past_values": ("batch", 16, 3)}),
    "TimeSeriesTransformer": (
        "TimeSeriesTransformerForPrediction", lambda: tr.TimeSeriesTransformerConfig(**TIMES),
        SERIES,
    ),
    "TimeSeriesTransformer of several values, with facts of the series": (
        "TimeSeriesTransformerForPrediction",
        lambda: tr.TimeSeriesTransformerConfig(
            **TIMES, input_size=2, num_static_categorical_features=1, cardinality=[5],
            embedding_dimension=[2], num_static_real_features=1, num_dynamic_real_features=1,
        ),
        {
            "past_values": ("batch", 11, 2), "past_time_features": ("batch", 11, 3),
            "past_observed_mask": ("batch", 11, 2), "future_values": ("batch", 4, 2),
            "future_time_features": ("batch", 4, 3), "static_categorical_features": ("batch", 1),
            "static_real_features": ("batch", 1),
        },
    ),
    "Informer": ("InformerForPrediction", lambda: tr.InformerConfig(**TIMES), SERIES),
}  # fmt: skip


def folder(path, config, name):
    """Return the model of a folder without weights."""
    config.architectures = [name]
    config.save_pretrained(path)
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder_model(read_checkpoint(path), ())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_runs_on_the_inputs_that_are_known(kind, tmp_path):
    name, config, inputs = KINDS[kind]
    source = folder(tmp_path, config(), name)
    assert {spec.name: spec.dims for spec in source.inputs} == inputs
    torch.manual_seed(0)
    model = source.model_class(source.config).eval()
    for probe in make_probes(source.inputs, seed=0):
        outputs = call_model(model, {key: torch.from_numpy(each) for key, each in probe.items()})
        floats = [each.numpy() for each in outputs.values() if each.is_floating_point()]
        assert floats
        assert all(np.isfinite(each).all() for each in floats)


PROCESSORS = {
    "both sides": ({"size": {"height": 64, "width": 96}}, (64, 96)),
    "one number": ({"size": 48}, (48, 48)),
    "two numbers": ({"size": [32, 64]}, (32, 64)),
    "the shortest edge": ({"size": {"shortest_edge": 80, "longest_edge": 133}}, (80, 80)),
    "cut out": (
        {
            "size": {"shortest_edge": 80},
            "do_center_crop": True,
            "crop_size": {"height": 64, "width": 64},
        },
        (64, 64),
    ),
    "not cut out": ({"size": 80, "do_center_crop": False, "crop_size": 64}, (80, 80)),
    "another form": ({"size": {"max_pixels": 9}}, (224, 224)),
    "none": ({}, (224, 224)),
}


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("form", PROCESSORS)
def test_a_size_that_the_image_processor_alone_names(form, file, tmp_path):
    processor, size = PROCESSORS[form]
    held = processor if file.startswith("pre") else {"image_processor": processor}
    (tmp_path / file).write_text(json.dumps(held))
    source = folder(tmp_path, segformer(), "SegformerForSemanticSegmentation")
    assert source.inputs[0].dims == ("batch", 3, *size)


def test_a_broken_processor_is_refused_where_its_size_is_needed_alone(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    source = folder(tmp_path, segformer(), "SegformerForSemanticSegmentation")
    with pytest.raises(InputError, match="JSON"):
        _ = source.inputs
    source = folder(tmp_path, tr.ViTConfig(**VISION), "ViTForImageClassification")
    assert source.inputs[0].dims == IMAGES


def test_a_size_inside_a_backbone(tmp_path):
    config = tr.UperNetConfig(backbone_config=tr.SwinConfig(image_size=64, num_channels=4))
    source = folder(tmp_path, config, "UperNetForSemanticSegmentation")
    assert source.inputs[0].dims == ("batch", 4, 64, 64)
