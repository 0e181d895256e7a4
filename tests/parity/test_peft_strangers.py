"""Whatever else PEFT can make: refused, or merged as PEFT merges; never merged wrongly."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import config as lora
from peft_matrix.architectures import ARCHITECTURES
from peft_matrix.making import train
from peft_matrix.oracle import load_adapted, merged
from safetensors.torch import load_file

from lora_export.api import merge
from lora_export.errors import InputError, LoraExportError

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:::peft"),
]

ARCHITECTURE = ARCHITECTURES["llama"]
# By peft_type, what its smallest adapter needs beyond the defaults. Their merges are not offered.
OTHER_TYPES = {
    "ADAMSS": {},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1, "target_modules": "self_attn"},
    "BEFT": {},
    "BOFT": {},
    "C3A": {"block_size": 8},
    "CARTRIDGE": {"num_virtual_tokens": 3},
    "CPT": {},
    "DEFT": {},
    "DELORA": {},
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {},
    "GLORA": {},
    "GRALORA": {},
    "HIRA": {},
    "HRA": {},
    "LILY": {},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {"r": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 3},
    "OFT": {},
    "OSF": {},
    "PEANUT": {},
    "POLY": {},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "PSOFT": {"r": 4},
    "PVERA": {},
    "P_TUNING": {"num_virtual_tokens": 3},
    "RANDLORA": {},
    "ROAD": {"group_size": 8},
    "SHADOW": {},
    "SHIRA": {"r": 4},
    "SUPERTUNING": {},
    "TINYLORA": {},
    "UNILORA": {},
    "VBLORA": {"vector_length": 8},
    "WAVEFT": {"n_frequency": 20},
}
MERGED_TYPES = {"LORA", "ADALORA", "LOHA", "LOKR", "VERA", "IA3", "TRAINABLE_TOKENS"}
UNMAKABLE = {"XLORA"}  # needs adapters that are there already
# Ways to begin and to compute that LoRA has beside its own.
VARIANTS = {
    "aLoRA": {"alora_invocation_tokens": [5, 6]},
    "BD-LoRA": {"use_bdlora": lora.BdLoraConfig(["q_proj"], ["v_proj"], nblocks=2)},
    "KaSA": {"kasa_config": lora.KasaConfig()},
    "MonteCLoRA": {"monteclora_config": lora.MontecloraConfig()},
    "VeLoRA": {"velora_config": lora.VeloraConfig()},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "OLoRA": {"init_lora_weights": "olora"},
    "PiSSA": {"init_lora_weights": "pissa"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    ARCHITECTURE.save(torch.float32, folder)
    return folder


def make(base, folder, config):
    model = ARCHITECTURE.load_base(base)
    adapted = peft.get_peft_model(model, config)
    train(adapted)
    adapted.save_pretrained(folder)


@pytest.mark.parametrize("name", OTHER_TYPES)
def test_other_types_are_refused_by_name(name, base, tmp_path):
    kind = next(c for t, c in PEFT_TYPE_TO_CONFIG_MAPPING.items() if t.value == name)
    settings = {"task_type": "CAUSAL_LM"}
    if "target_modules" in kind.__dataclass_fields__:
        settings["target_modules"] = ["q_proj", "v_proj"]
    make(base, tmp_path / "adapter", kind(**{**settings, **OTHER_TYPES[name]}))
    with pytest.raises(InputError, match=name):
        merge(base, [tmp_path / "adapter"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_lora_are_refused_or_exact(name, base, tmp_path):
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    make(base, tmp_path / "adapter", peft.LoraConfig(**settings, **VARIANTS[name]))
    try:
        merge(base, [tmp_path / "adapter"], tmp_path / "out")
    except LoraExportError:
        assert not (tmp_path / "out").exists()
        return
    adapted = load_adapted(ARCHITECTURE, base, tmp_path / "adapter")
    theirs = merged(adapted, tmp_path / "theirs")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []


def test_every_type_of_peft_is_accounted_for():
    known = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert known == {*OTHER_TYPES} | MERGED_TYPES | UNMAKABLE
