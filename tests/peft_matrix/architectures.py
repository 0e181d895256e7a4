"""Tiny models of real architectures, saved as their users have them: the bases of the matrix.

Every weight is drawn at random, biases and norms too: a zero bias or a norm of ones would hide an
update that went to the wrong place.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import transformers as hf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

VOCABULARY = 96
WIDTH = 32
_IMAGE_TOKEN = 95
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT: dict[str, Any] = {
    **_SPECIAL,
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_IMAGE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_DECODER: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    auto: the class that loads it. attention: the modules a user would adapt first. head: what is
    trained whole beside an adapter, if anything is. table, output_head: the token embedding and
    the output layer, where there are such. conv: a convolution in the input. feed_forward: what IA3
    scales the input of. saved_by: the Auto class that saved the base, if another one. loading,
    saving: for from_pretrained and save_pretrained. settings: for every LoraConfig. merging:
    options of the merge. in_fp32: the weights that transformers keeps in float32 in fp16 models.
    """

    config: Callable[[], Any]
    auto: str
    task: str | None
    attention: tuple[str, ...]
    inputs: Callable[[], dict[str, torch.Tensor]]
    feed_forward: tuple[str, ...] = ()
    head: str = ""
    table: str = ""
    output_head: str = ""
    conv: str = ""
    saved_by: str = ""
    loading: Mapping[str, Any] = field(default_factory=dict)
    saving: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    merging: Mapping[str, Any] = field(default_factory=dict)
    in_fp32: str = ""

    def model_class(self) -> Any:
        """The Auto class with which a user loads the base and the merged folder."""
        return getattr(hf, self.auto)

    def with_layers(self, layers: int) -> Architecture:
        """Return the same architecture with another number of layers."""
        config = self.config()
        config.num_hidden_layers = layers
        return replace(self, config=lambda: config)

    def save(self, dtype: torch.dtype, folder: Path) -> None:
        """Save the base, all of whose weights are drawn anew."""
        torch.manual_seed(5)
        saver = getattr(hf, self.saved_by or self.auto)
        model = saver.from_config(self.config())
        draw = torch.Generator().manual_seed(6)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=draw)
                if parameter.ndim < 2:
                    parameter.add_(noise * 0.1)
                else:
                    one = parameter[0, 0] if ".experts." in name else parameter[0]
                    parameter.copy_(noise * one.numel() ** -0.5)
        model.to(dtype).save_pretrained(folder, **self.saving)

    def load(self, folder: Path) -> tuple[Any, dict[str, Any]]:
        """(the model in the folder's own dtype, what from_pretrained says about its keys)."""
        model, info = self.model_class().from_pretrained(
            folder, dtype="auto", output_loading_info=True, local_files_only=True, **self.loading
        )
        return model.eval(), info

    def load_base(self, folder: Path) -> Any:
        """Return the model of a base that nobody changes: it is read once, and copied."""
        return deepcopy(_load_once(self.auto, folder, *self.loading.items()))


@lru_cache(64)
def _load_once(auto: str, folder: Path, *loading: tuple[str, Any]) -> Any:
    model = getattr(hf, auto).from_pretrained(
        folder, dtype="auto", local_files_only=True, **dict(loading)
    )
    return model.eval()


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _ids(rows: int = 2, length: int = 9) -> torch.Tensor:
    # From 3 on: padding and end markers would be treated apart.
    return torch.randint(3, VOCABULARY, (rows, length), generator=_draw())


def _text() -> dict[str, torch.Tensor]:
    return {"input_ids": _ids(), "attention_mask": torch.ones(2, 9, dtype=torch.long)}


def _pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=_draw())}


def _sequence_to_sequence() -> dict[str, torch.Tensor]:
    return {"input_ids": _ids(), "decoder_input_ids": _ids(2, 5)}


def _speech() -> dict[str, torch.Tensor]:
    features = torch.randn(2, 8, 24, generator=_draw())
    return {"input_features": features, "decoder_input_ids": _ids(2, 5)}


def _pairs() -> dict[str, torch.Tensor]:
    ids = _ids()
    ids[:, -1] = 2  # CLIP reads its text at the end marker
    return {"input_ids": ids, **_pixels()}


def _sound() -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(2, 60, generator=_draw())}


def _text_and_image() -> dict[str, torch.Tensor]:
    ids = _ids()
    ids[ids == _IMAGE_TOKEN] = 3
    ids[:, 1:5] = _IMAGE_TOKEN  # one for each patch
    return {"input_ids": ids, **_pixels()}


def _llava() -> Any:
    return hf.LlavaConfig(
        text_config=hf.LlamaConfig(**_DECODER),
        vision_config=hf.CLIPVisionConfig(**_IMAGE),
        image_token_index=_IMAGE_TOKEN,
        image_seq_length=4,
    )


def _clip() -> Any:
    text = {**_TEXT, "max_position_embeddings": 40, "projection_dim": WIDTH}
    vision = {**_IMAGE, "projection_dim": WIDTH}
    return hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)


_ENCODER: dict[str, Any] = {**_TEXT, "max_position_embeddings": 40, "num_labels": 3}
_CAUSAL = ("AutoModelForCausalLM", "CAUSAL_LM")
_CLASSES = ("AutoModelForSequenceClassification", "SEQ_CLS")
_LLAMA: dict[str, Any] = {
    "attention": ("q_proj", "v_proj"),
    "feed_forward": ("down_proj",),
    "inputs": _text,
    "table": "embed_tokens",
    "output_head": "lm_head",
}

ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(
        lambda: hf.BertConfig(**_ENCODER), *_CLASSES, ("query", "value"), _text,
        feed_forward=("output.dense",), head="classifier", table="word_embeddings",
    ),
    # An encoder as it is published, without the head that the adapter brings.
    "bert encoder": Architecture(
        lambda: hf.BertConfig(**{**_ENCODER, "num_labels": 2}), *_CLASSES, ("query", "value"),
        _text, head="classifier", table="word_embeddings", saved_by="AutoModel",
        # config.json names the encoder's class, in which a head cannot be run.
        merging={"allow_new": ["classifier.*"], "verify": False},
    ),
    "roberta": Architecture(
        lambda: hf.RobertaConfig(**_ENCODER), *_CLASSES, ("query", "value"), _text,
        feed_forward=("output.dense",), head="classifier", table="word_embeddings",
    ),
    "distilbert": Architecture(
        lambda: hf.DistilBertConfig(
            vocab_size=VOCABULARY, dim=WIDTH, hidden_dim=48, n_layers=2, n_heads=4,
            max_position_embeddings=40, num_labels=3, pad_token_id=0,
        ), *_CLASSES, ("q_lin", "v_lin"), _text,
        feed_forward=("lin2",), head="classifier", table="word_embeddings",
        # PEFT saves what ends in "classifier" whole, this too, and then cannot adapt it.
        settings={"exclude_modules": ["pre_classifier"]},
    ),
    # One layer, used twice.
    "albert": Architecture(
        lambda: hf.AlbertConfig(**_ENCODER, embedding_size=24), *_CLASSES, ("query", "value"),
        _text, feed_forward=("ffn_output",), head="classifier", table="word_embeddings",
    ),
    # Its linear layers are Conv1D, stored (in, out).
    "gpt2": Architecture(
        lambda: hf.GPT2Config(
            **{**_SPECIAL, "pad_token_id": None}, vocab_size=VOCABULARY, n_positions=40,
            n_embd=WIDTH, n_layer=2, n_head=4,
        ), *_CAUSAL, ("c_attn",), _text,
        feed_forward=("mlp.c_proj",), table="wte", output_head="lm_head",
        settings={"fan_in_fan_out": True},
    ),
    "gpt-neox": Architecture(
        lambda: hf.GPTNeoXConfig(**_TEXT, max_position_embeddings=40), *_CAUSAL,
        ("query_key_value",), _text,
        feed_forward=("dense_4h_to_h",), table="embed_in", output_head="embed_out",
    ),
    "llama": Architecture(lambda: hf.LlamaConfig(**_DECODER), *_CAUSAL, **_LLAMA),
    "llama tied": Architecture(
        lambda: hf.LlamaConfig(**_DECODER, tie_word_embeddings=True), *_CAUSAL, **_LLAMA
    ),
    "qwen3": Architecture(
        lambda: hf.Qwen3Config(**_DECODER, tie_word_embeddings=True), *_CAUSAL, **_LLAMA,
        saving={"max_shard_size": "30KB"},
    ),
    "gemma3": Architecture(
        lambda: hf.Gemma3TextConfig(**_DECODER, query_pre_attn_scalar=8), *_CAUSAL, **_LLAMA
    ),
    # Fused experts at run time, one tensor an expert and projection on disk. Every expert is asked
    # each time: else a rounding could send a token elsewhere, and outputs would jump.
    "mixtral": Architecture(
        lambda: hf.MixtralConfig(**_DECODER, num_local_experts=3, num_experts_per_tok=3),
        *_CAUSAL, **{**_LLAMA, "feed_forward": ()},
        loading={"experts_implementation": "eager"},  # the default has no float64
    ),
    "t5": Architecture(
        lambda: hf.T5Config(
            vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
            decoder_start_token_id=0,
        ), "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", ("q", "v"), _sequence_to_sequence,
        feed_forward=("wo",), table="shared", output_head="lm_head", in_fp32=".wo.weight",
    ),
    "vit": Architecture(
        lambda: hf.ViTConfig(**_IMAGE, num_labels=3), "AutoModelForImageClassification", None,
        ("q_proj", "v_proj"), _pixels, feed_forward=("fc2",), head="classifier", conv="projection",
    ),
    "clip": Architecture(
        _clip, "AutoModel", None, ("q_proj", "v_proj"), _pairs,
        feed_forward=("fc2",), table="token_embedding", conv="patch_embedding",
    ),
    "whisper": Architecture(
        lambda: hf.WhisperConfig(
            **_SPECIAL, vocab_size=VOCABULARY, d_model=WIDTH, num_mel_bins=8, encoder_layers=2,
            decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=12,
            max_target_positions=16, decoder_start_token_id=1,
        ), "AutoModelForSpeechSeq2Seq", None, ("q_proj", "v_proj"), _speech,
        feed_forward=("fc2",), table="embed_tokens", output_head="proj_out",
    ),
    # PEFT cannot adapt Whisper's convolutions, whose stride the model asks for; these it can.
    "wav2vec2": Architecture(
        lambda: hf.Wav2Vec2Config(
            **_TEXT, conv_dim=(12, 16), conv_stride=(2, 2), conv_kernel=(5, 3),
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        ), "AutoModelForCTC", None, ("q_proj", "v_proj"), _sound,
        feed_forward=("output_dense",), head="lm_head", conv="conv_layers.1.conv",
    ),
    # The parts of the model stand in another order on disk than at run time.
    "llava": Architecture(
        _llava, "AutoModelForImageTextToText", "CAUSAL_LM", ("q_proj", "v_proj"), _text_and_image,
        feed_forward=("down_proj", "fc2"), table="embed_tokens", output_head="lm_head",
        conv="patch_embedding",
    ),
}  # fmt: skip
