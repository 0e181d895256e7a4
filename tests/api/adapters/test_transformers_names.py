"""Adapters with the names of transformers 4, 5 and of headless models, on bases with others.

The oracle is PEFT's own merge, saved by transformers, read back as the base's tensors.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge, verify
from lora_export.errors import FitError, VerificationError

transformers = pytest.importorskip("transformers", minversion="5.10")
peft = pytest.importorskip("peft")

# What the oracle is warned of is not about the program.
pytestmark = pytest.mark.filterwarnings("ignore:::peft.*", "ignore:`is_gradient_checkpointing`")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SIZES, "intermediate_size": 24, "vocab_size": 40, "max_position_embeddings": 32}
DECODER = {**TEXT, "num_key_value_heads": 2, "tie_word_embeddings": False}
MOE = {"num_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


def mixtral(experts=4):
    config = transformers.MixtralConfig(**DECODER, **{**MOE, "num_experts": experts})
    return transformers.MixtralForCausalLM(config)


def qwen():
    config = transformers.Qwen3MoeConfig(**DECODER, **MOE, moe_intermediate_size=20, head_dim=16)
    return transformers.Qwen3MoeForCausalLM(config)


def gpt_oss():
    config = transformers.GptOssConfig(**DECODER, **MOE, head_dim=16)
    return transformers.GptOssForCausalLM(config)


def vit():
    config = transformers.ViTConfig(**SIZES, intermediate_size=48, image_size=32, patch_size=16)
    return transformers.ViTForImageClassification(config)


def llava(*, tied=False):
    images = {**SIZES, "intermediate_size": 48, "image_size": 32, "patch_size": 16}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**images),
        text_config=transformers.LlamaConfig(**{**DECODER, "tie_word_embeddings": tied}),
        tie_word_embeddings=tied,
    )
    return transformers.LlavaForConditionalGeneration(config)


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT))


def headless_bert():
    return transformers.BertModel(transformers.BertConfig(**TEXT))


VIT_NAMES = (
    ("layers.", "encoder.layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)
LLAVA_NAMES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)


def older(names):
    """A change of names from those of transformers 5 to those of 4."""

    def change(name):
        prefix = "base_model.model." if name.startswith("base_model.model.") else ""
        name = name.removeprefix(prefix)
        for new, old in names:
            name = name.replace(new, old, 1)
        return prefix + name

    return change


def newer(names):
    """The same the other way round."""
    turned = sorted(((old, new) for new, old in names), key=lambda pair: -len(pair[0]))
    return older(turned)


def rewrite(path, change):
    tensors = load_file(path)
    save_file({change(name): tensor for name, tensor in tensors.items()}, path, {"format": "pt"})


class Case:
    """A base, an adapter that PEFT trained on it, and PEFT's own merge."""

    def __init__(self, folder, build, *, dtype=torch.float32, trained=None, **config):
        self.base, self.adapter, self.out = (folder / name for name in ("base", "adapter", "out"))
        torch.manual_seed(0)
        model = build()
        self.trained = trained or type(model)
        self.dtype = dtype
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.to(dtype).save_pretrained(self.base)
        config = {"target_modules": ["q_proj"], "r": 2, "lora_alpha": 8, **config}
        live = peft.get_peft_model(self.load(self.base), peft.LoraConfig(**config))
        for name, parameter in live.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.4)
        live.save_pretrained(self.adapter)

    def load(self, folder):
        return self.trained.from_pretrained(folder, dtype=self.dtype)

    def by_peft(self, *, safe=False):
        live = peft.PeftModel.from_pretrained(self.load(self.base), self.adapter)
        return live.merge_and_unload(safe_merge=safe)

    def change_names(self, base=None, adapter=None):
        for folder, change in ((self.base, base), (self.adapter, adapter)):
            if change:
                rewrite(next(folder.glob("*.safetensors")), change)

    def merge(self, **settings):
        return merge(self.base, [self.adapter], self.out, **settings)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize(
    ("dtype", "recipe"),
    [(torch.float32, "auto"), (torch.bfloat16, "auto"), (torch.float16, "peft-safe")],
)
@pytest.mark.parametrize("build", [mixtral, qwen, gpt_oss])
def test_fused_experts_have_the_bits_of_peft(build, recipe, dtype, tmp_path):
    case = Case(tmp_path, build, dtype=dtype, **EXPERTS)
    case.by_peft(safe=recipe == "peft-safe").save_pretrained(tmp_path / "peft")
    report = case.merge(recipe=recipe)
    # The measure of what rounding does may see a router that chooses another expert.
    assert (report.kept is not None) == (dtype != torch.float32)
    assert any(check.name.endswith("= unmerged (torch)") for check in report.checks)
    assert_same(
        load_file(tmp_path / "peft" / "model.safetensors"),
        load_file(case.out / "model.safetensors"),
    )


def test_the_model_of_experts_is_proven_too(tmp_path):
    report = Case(tmp_path, mixtral, **EXPERTS).merge()
    assert {"merged = unmerged (torch)", "the adapter has an effect"} <= {
        check.name for check in report.checks
    }


def test_a_configuration_of_version_4_that_peft_fused(tmp_path):
    case = Case(tmp_path, mixtral, target_modules=["w1", "w2", "w3", "gate"])
    case.by_peft().save_pretrained(tmp_path / "peft")
    case.merge()
    assert_same(
        load_file(tmp_path / "peft" / "model.safetensors"),
        load_file(case.out / "model.safetensors"),
    )


@pytest.mark.parametrize("part", ["w1", "w2", "w3"])
def test_one_experts_part_that_is_wrong_is_caught(part, tmp_path):
    case = Case(tmp_path, mixtral, **EXPERTS)
    case.merge()
    path = case.out / "model.safetensors"
    tensors = load_file(path)
    names = [f"model.layers.1.block_sparse_moe.experts.{e}.{part}.weight" for e in range(4)]
    tensors[names[2]], tensors[names[3]] = tensors[names[3]], tensors[names[2]]
    save_file(tensors, path, {"format": "pt"})
    (case.out / "lora_export.json").unlink()
    with pytest.raises(VerificationError):
        verify(case.out, base=case.base, adapters=[case.adapter])


LAYERS = r".*language_model.*\.(q|v)_proj"
NAMES = {  # model, targets, change of the base's names, of the adapter's
    "vit 5 on 4": (vit, ["q_proj", "fc1"], None, None),
    "vit 4 on 4": (vit, ["q_proj", "fc2"], None, older(VIT_NAMES)),
    "vit 4 on 5": (vit, ["q_proj", "o_proj"], newer(VIT_NAMES), older(VIT_NAMES)),
    "vit 5 on 5": (vit, ["v_proj"], newer(VIT_NAMES), None),
    "llava 5 on 4": (llava, LAYERS, None, None),
    "llava 4 on 4": (llava, LAYERS, None, older(LLAVA_NAMES)),
    "llava 4 on 5": (llava, LAYERS, newer(LLAVA_NAMES), older(LLAVA_NAMES)),
    "llava 5 on 5": (llava, LAYERS, newer(LLAVA_NAMES), None),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_either_version_find_the_bases_own(name, tmp_path):
    build, targets, base, adapter = NAMES[name]
    case = Case(tmp_path, build, target_modules=targets)
    wanted = case.by_peft().state_dict()
    case.change_names(base, adapter)
    stored = load_file(case.base / "model.safetensors").keys()
    alike = name.split()[1] == name.split()[3]

    report = case.merge()

    assert load_file(case.out / "model.safetensors").keys() == stored
    assert_same(case.load(case.out).state_dict(), wanted)
    told = [choice for choice in report.plan.choices if "table of transformers" in choice]
    assert bool(told) is not alike
    assert any(check.name == "merged = unmerged (torch)" for check in report.checks)


HEADS = {  # built, trained on, targets, change of the adapter's names
    "headless on head": (bert, transformers.BertModel, ["query"], None),
    "head on headless": (
        headless_bert,
        None,
        ["query"],
        lambda name: name.replace("base_model.model.", "base_model.model.bert.", 1),
    ),
    "in sentence-transformers": (
        headless_bert,
        None,
        ["query"],
        lambda name: name.replace("base_model.model.", "base_model.model.0.auto_model.", 1),
    ),
    "headless experts": (mixtral, transformers.MixtralModel, ["q_proj"], None),
    "headless text and images": (llava, transformers.LlavaModel, LAYERS, None),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_level_that_one_side_lacks_is_bridged(name, tmp_path):
    build, trained, targets, change = HEADS[name]
    more = EXPERTS if "experts" in name else {}
    case = Case(tmp_path, build, trained=trained, target_modules=targets, **more)
    wanted = case.by_peft().state_dict()
    case.change_names(adapter=change)
    case.merge()
    assert_same(case.load(case.out).state_dict(), wanted)


def test_a_table_adapted_by_another_name_is_untied_from_its_head(tmp_path):
    case = Case(tmp_path, lambda: llava(tied=True), target_modules=["embed_tokens"])
    report = case.merge()
    merged = load_file(case.out / "model.safetensors")
    base = load_file(case.base / "model.safetensors")
    table = "language_model.model.embed_tokens.weight"
    assert torch.equal(merged["lm_head.weight"], base[table])
    assert not torch.equal(merged[table], base[table])
    assert report.passed


def test_an_adapted_module_that_text_does_not_reach_is_proven_by_weights(tmp_path):
    case = Case(tmp_path, llava, target_modules=["q_proj"])
    wanted = case.by_peft().state_dict()
    report = case.merge()
    assert_same(case.load(case.out).state_dict(), wanted)
    assert any("without pixel_values" in warning for warning in report.warnings)


def test_an_adapter_of_another_model_is_refused_with_its_names(tmp_path):
    case = Case(tmp_path, mixtral, **EXPERTS)
    case.change_names(adapter=lambda name: name.replace(".mlp.", ".feed_forward."))
    with pytest.raises(FitError, match="feed_forward"):
        case.merge()


def test_an_adapter_of_more_experts_is_refused(tmp_path):
    case = Case(tmp_path / "four", mixtral, **EXPERTS)
    other = Case(tmp_path / "two", lambda: mixtral(2), **EXPERTS)
    with pytest.raises(FitError):
        merge(other.base, [case.adapter], other.out)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["query", "value"], "layers_to_transform": [1]},
        {"target_modules": ["query"], "layers_to_transform": 0, "layers_pattern": "layer"},
        {"target_modules": "all-linear", "exclude_modules": ["dense"]},
        {"target_modules": r".*\.(query|key)", "exclude_modules": r".*layer\.1\..*"},
    ],
)
def test_every_way_of_choosing_modules_uses_every_factor(config, tmp_path):
    case = Case(tmp_path, bert, **config)
    wanted = case.by_peft().state_dict()
    report = case.merge()
    assert_same(case.load(case.out).state_dict(), wanted)
    stored = load_file(case.adapter / "adapter_model.safetensors")
    used = {r.spec.name for s in report.plan.steps() for d in s.deltas for r in d.factors.values()}
    assert used == {name for name in stored if "lora_" in name}
    assert not [warning for warning in report.warnings if "targets" in warning]
