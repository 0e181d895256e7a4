"""Adapters of other trainers are refused by name, with a way out; and only those."""

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import inspect, merge
from lora_export.dialects import all_dialects, foreign_trainer
from lora_export.dialects.foreign import TRAINERS
from lora_export.errors import InputError

A, B = (2, 8), (8, 2)
FILES = {
    # whose: (tensors, header, adapter_config.json, a word of the refusal)
    "kohya": ({"lora_unet_q.lora_down.weight": A, "lora_unet_q.lora_up.weight": B}, "kohya"),
    "LoCon": (
        {"lycoris_q.lora_down.weight": A, "lycoris_q.lora_up.weight": B, "lycoris_q.dora_scale": B},
        "LoCon",
    ),
    "LoHa": ({"lora_unet_q.hada_w1_a": B, "lora_unet_q.hada_w1_b": A}, "LoHa"),
    "LoKr": ({"lora_unet_q.lokr_w1": B, "lora_unet_q.lokr_w2": A}, "LoKr"),
    "LoKr in factors": ({"q.lokr_w1_a": B, "q.lokr_w1_b": A, "q.lokr_w2": A}, "LoKr"),
    "OFT": ({"oft_unet_q.oft_blocks": (2, 4, 4), "oft_unet_q.alpha": ()}, "OFT"),
    "GLoRA": ({f"lora_unet_q.{n}.weight": A for n in ("a1", "a2", "b1", "b2")}, "GLoRA"),
    "full differences": ({"lora_unet_q.diff": B, "lora_unet_q.diff_b": (8,)}, "LyCORIS"),
    "norms": ({"lora_unet_n.w_norm": (8,), "lora_unet_n.b_norm": (8,)}, "LyCORIS"),
    "(IA)^3": ({"lora_unet_q.weight": (8,), "lora_unet_q.on_input": ()}, "LyCORIS"),
    "diffusers, old": ({"unet.q.lora.down.weight": A, "unet.q.lora.up.weight": B}, "diffusers"),
    "diffusers, older": (
        {"q.processor.to_q_lora.down.weight": A, "q.processor.to_q_lora.up.weight": B},
        "diffusers",
    ),
    "diffusers": ({"unet.q.lora_A.weight": A, "unet.q.lora_B.weight": B}, "diffusers"),
    "ai-toolkit": (
        {"diffusion_model.q.lora_A.weight": A, "diffusion_model.q.lora_B.weight": B},
        "ai-toolkit",
    ),
    "mlx-lm": ({"q.lora_a": B, "q.lora_b": A}, "mlx_lm.fuse"),
    "torchtune": ({"q.lora_a.weight": A, "q.lora_b.weight": B}, "torchtune"),
    "NeMo": ({"q.adapter.linear_in.weight": A, "q.adapter.linear_out.weight": B}, "Megatron"),
    "DeepSpeed-Chat": ({"q.lora_right_weight": B, "q.lora_left_weight": A}, "DeepSpeed-Chat"),
    "AdapterHub": ({"q.loras.mine.lora_A": A, "q.loras.mine.lora_B": B}, "merge_adapter"),
    "minLoRA": (
        {"q.parametrizations.weight.0.lora_A": A, "q.parametrizations.weight.0.lora_B": B},
        "merge_lora(model)",
    ),
    "DoRA": ({"q.lora_A": A, "q.lora_B": B, "q.alpha": (), "q.dora_scale": (8, 1)}, "DoRA"),
    "textual inversion": ({"emb_params": (4, 8)}, "textual inversion"),
}


def save(folder, tensors, metadata=None):
    path = folder / "adapter.safetensors"
    ones = {name: torch.full(shape, 0.5) for name, shape in tensors.items()}
    save_file(ones, path, metadata=metadata)
    return path


def base(folder):
    save_file({"q.weight": torch.randn(8, 8), "n.weight": torch.ones(8)}, folder / "base.st")
    return folder / "base.st"


@pytest.mark.parametrize(("tensors", "word"), FILES.values(), ids=FILES)
def test_it_is_refused_by_name_with_a_way_out(tensors, word, tmp_path):
    adapter = save(tmp_path, tensors)
    with pytest.raises(InputError) as caught:
        merge(base(tmp_path), [adapter], tmp_path / "out.safetensors", alpha=4)
    (problem,) = caught.value.problems
    assert "not merged yet" in problem.message
    assert word in str(caught.value)
    assert problem.hint
    assert problem.where == str(adapter)
    assert not (tmp_path / "out.safetensors").exists()
    found = inspect(adapter).facts["found"]
    assert (found["kind"], found["tensors"]) == ("adapter", len(tensors))
    assert problem.hint in found["notes"][0]


def test_every_row_of_the_table_is_seen(tmp_path):
    seen = set()
    for number, (tensors, _) in enumerate(FILES.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(InputError) as caught:
            merge(base(folder), [save(folder, tensors)], folder / "out.safetensors", alpha=4)
        seen |= {row.name for row in TRAINERS if row.name in str(caught.value)}
    assert seen == {row.name for row in TRAINERS}


def test_a_folder_of_mlx_is_known_by_its_configuration(tmp_path):
    adapter = save(tmp_path, {"q.weight": (8, 8)})
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "full", "num_layers": 1}')
    with pytest.raises(InputError, match="mlx-lm"):
        merge(base(tmp_path), [adapter], tmp_path / "out.safetensors")


def test_diffusers_header_is_known(tmp_path):
    tensors = {"anything.q.lora_A.weight": A, "anything.q.lora_B.weight": B}
    adapter = save(tmp_path, tensors, {"lora_adapter_metadata": '{"unet.r": 2}'})
    with pytest.raises(InputError, match="diffusers"):
        merge(base(tmp_path), [adapter], tmp_path / "out.safetensors")


OURS = {
    "a full tensor called diff": {"q.lora_A": A, "q.lora_B": B, "n.diff": (8,)},
    "loralib in a module called loras": {"loras.q.lora_A": A, "loras.q.lora_B": B},
    "a module called lora": {"lora.down.weight": B, "q.lora_A": A, "q.lora_B": B},
}


@pytest.mark.parametrize("tensors", OURS.values(), ids=OURS)
def test_loralibs_files_are_not_taken_for_others(tensors, tmp_path):
    adapter = save(tmp_path, tensors)
    assert inspect(adapter).facts["found"]["dialect"] == "loralib"


PLAIN = {
    "layers called as GLoRA's": {"net.a1.weight": A, "net.b1.weight": B},
    "a parameter called diff": {"net.diff": B, "net.w_norm": (8,)},
    "layers called up and down": {"net.up.weight": A, "net.down.weight": B},
}


@pytest.mark.parametrize("tensors", PLAIN.values(), ids=PLAIN)
def test_a_checkpoint_with_such_names_is_none(tensors, tmp_path):
    path = save(tmp_path, tensors)
    assert inspect(path).facts["found"]["kind"] == "checkpoint"
    with pytest.raises(InputError, match="no low-rank factors found"):
        merge(base(tmp_path), [path], tmp_path / "out.safetensors")


@pytest.mark.parametrize("name", ["transformer.h.0.attn.c_attn", "model.q"])
def test_peft_without_its_configuration_is_told_so(name, tmp_path):
    adapter = save(tmp_path, {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B})
    with pytest.raises(InputError, match=r"PEFT adapter's tensors, but adapter_config\.json"):
        merge(base(tmp_path), [adapter], tmp_path / "out.safetensors")


def test_no_factors_is_only_said_where_there_are_none(tmp_path):
    adapter = save(tmp_path, {"q.weight": (8, 8)})
    with pytest.raises(InputError, match="no low-rank factors found"):
        merge(base(tmp_path), [adapter], tmp_path / "out.safetensors")


def test_a_gguf_file_is_told_by_its_first_bytes(tmp_path):
    (tmp_path / "lora.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(64))
    for call in (inspect, lambda path: merge(base(tmp_path), [path], tmp_path / "out.safetensors")):
        with pytest.raises(InputError, match=r"llama\.cpp") as caught:
            call(tmp_path / "lora.gguf")
        assert "convert_hf_to_gguf.py" in str(caught.value)


def test_no_dialect_is_called_as_a_trainer():
    assert not {row.name for row in TRAINERS} & set(all_dialects())
    assert callable(foreign_trainer)
