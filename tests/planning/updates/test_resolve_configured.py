"""What an adapter says itself: orientation of square weights, rank, scaling, contradictions."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from peft_layers import disturb
from safetensors.torch import load_file, save_file

from lora_export.api import merge
from lora_export.errors import FitError, LoraExportError, UsageError
from lora_export.planning.facts.architecture import stores_in_out
from lora_export.planning.updates.orientation import stored_by
from lora_export.planning.updates.readings import Unresolved
from lora_export.planning.updates.resolve_configured import resolve_configured
from lora_export.records import Adapter, Checkpoint, Facts, TensorRef, TensorSpec, Terms, Update

SQUARE = {"A": (2, 8), "B": (8, 2)}


def resolved(shapes, weight, *, config=None, turned=None, given=None, **said):
    factors = {
        role: TensorRef(TensorSpec(role, "F32", shape), Path("x"), 0, 0)
        for role, shape in shapes.items()
    }
    told = Terms(**{"tuner": "lora", "alpha": 6, "rank": 2, "source": "a test", **said})
    update = Update("m", factors, terms=told)
    adapter = Adapter(Path("a"), "peft", (update,), ())
    given = given or Facts()
    base = Checkpoint(Path("x"), "folder", (), config=config or {})
    stored = stored_by(base, "h.c_proj", told, given, turned=turned)
    return resolve_configured(
        adapter, update, told, "m", TensorSpec("m.weight", "BF16", weight),
        by_user=given, stored=stored, recipe="peft",
    )  # fmt: skip


MODEL_TYPES = {None: {}, False: {"model_type": "bert"}, True: {"model_type": "gpt2"}}


@pytest.mark.parametrize("tuner", ["lora", "dora"])
@pytest.mark.parametrize(
    ("weight", "hint", "stored", "turned"),
    [
        ((8, 8), True, False, False),  # nn.Linear, whatever the file says
        ((8, 8), False, True, True),  # Conv1D, whatever the file says
        ((8, 8), None, True, True),
        ((8, 8), False, None, False),  # nobody knows: the file's word
        ((8, 8), None, None, False),
    ],
)
def test_a_square_weight_is_read_as_the_model_stores_it(weight, hint, stored, turned, tuner):
    shapes = {**SQUARE, "M": (8,)} if tuner == "dora" else SQUARE
    config = MODEL_TYPES[stored]
    found = resolved(shapes, weight, config=config, fan_in_fan_out=hint, tuner=tuner)
    assert found.fan_in_fan_out is turned
    assert found.dtype == "BF16"


@pytest.mark.parametrize(
    ("hint", "others", "words"),
    [
        (True, None, "PEFT obeys for Conv1D"),  # and ignores for nn.Linear
        (True, False, r"the adapter's other modules are stored \(out, in\)"),
        (False, True, r"fan_in_fan_out is false .* stored \(in, out\)"),
        (None, True, r"fan_in_fan_out is not in"),
    ],
)
def test_what_two_sources_say_of_a_square_weight_is_asked_for(hint, others, words):
    with pytest.raises(Unresolved) as caught:
        resolved(SQUARE, (8, 8), turned=others, fan_in_fan_out=hint)
    [problem] = caught.value.missing
    assert re.search(words, problem.message)
    assert "--no-fan-in-fan-out for nn.Linear" in problem.hint


def test_other_modules_of_the_name_tell_that_a_true_is_right():
    assert resolved(SQUARE, (8, 8), turned=True, fan_in_fan_out=True).fan_in_fan_out is True


@pytest.mark.parametrize("stored", [None, True, False])
@pytest.mark.parametrize(("weight", "turned"), [((12, 8), False), ((8, 12), True)])
def test_the_shape_decides_where_it_can(weight, turned, stored):
    shapes = {"A": (2, 8), "B": (12, 2)}
    assert resolved(shapes, weight, config=MODEL_TYPES[stored]).fan_in_fan_out is turned


@pytest.mark.parametrize(
    ("shapes", "weight", "tuner", "kind"),
    [
        ({"A": (2, 8), "B": (12, 2)}, (12, 8), "lora", "linear"),
        ({"A": (2, 8), "B": (4, 2)}, (8, 4), "lora_embedding", "embedding"),
        ({"A": (2, 8, 3), "B": (4, 2, 1)}, (4, 8, 3), "lora", "peft_conv"),
        ({"A": (2, 8, 3, 5), "B": (4, 2, 1, 1)}, (4, 8, 3, 5), "lora", "peft_conv"),
        ({"A": (2, 8, 1, 1, 1), "B": (4, 2, 1, 1, 1)}, (4, 8, 1, 1, 1), "lora", "peft_conv"),
        ({"A": (2, 8), "B": (12, 2), "M": (12,)}, (12, 8), "dora", "dora_linear"),
        ({"A": (2, 8), "B": (4, 2), "M": (4,)}, (8, 4), "dora_embedding", "dora_embedding"),
        ({"A": (2, 8, 3), "B": (4, 2, 1), "M": (1, 4, 1)}, (4, 8, 3), "dora", "dora_conv"),
        ({"bias": (12,)}, (12,), "lora_bias", "lora_bias"),
        ({"A": (2, 8), "B": (24, 2)}, (24, 8), "lora_attention_in", "attention_in"),
        ({"A": (2, 8), "B": (8, 2)}, (8, 8), "lora_attention_out", "attention_out"),
    ],
)
def test_the_kind_is_read_from_the_shapes(shapes, weight, tuner, kind):
    found = resolved(shapes, weight, tuner=tuner)
    assert (found.kind, found.rank, found.scaling) == (kind, 2, 3.0)


def test_scalings_are_the_librarys_own_floats():
    assert resolved(SQUARE, (8, 8), rule="alpha / sqrt(rank)").scaling == 6 / math.sqrt(2)
    assert resolved(SQUARE, (8, 8), rule="1").scaling == 1.0
    assert resolved(SQUARE, (8, 8), rule="alpha / (rank + 1e-5)").scaling == 6 / (2 + 1e-5)


@pytest.mark.parametrize(
    ("shapes", "weight", "said", "words"),
    [
        (SQUARE, (8, 9), {}, "fit no layer with a weight"),
        (SQUARE, (8, 8), {"rank": 3}, "rank is 2 in the tensors but 3 in a test"),
        ({"A": (2, 8), "B": (8, 3)}, (8, 8), {}, "fit no layer"),
        # B of a convolution in two groups
        ({"A": (2, 8, 3), "B": (4, 1, 1)}, (4, 4, 3), {}, "one in groups has no weight"),
        ({**SQUARE, "M": (9,)}, (8, 8), {"tuner": "dora"}, "fit no layer"),
        ({"bias": (9,)}, (8,), {"tuner": "lora_bias"}, "fit no layer"),
        ({"A": (2, 8), "B": (16, 2)}, (16, 8), {"tuner": "lora_attention_in"}, "fit no layer"),
    ],
)
def test_what_does_not_fit_is_told(shapes, weight, said, words):
    with pytest.raises(Unresolved) as caught:
        resolved(shapes, weight, **said)
    [problem] = caught.value.unfit
    assert words in str(problem)


def test_an_option_that_contradicts_the_file_is_refused():
    with pytest.raises(Unresolved) as caught:
        resolved(SQUARE, (8, 8), given=Facts(alpha=7, source="--alpha"))
    assert "alpha is 6 in a test but 7 in --alpha" in str(caught.value.missing[0])
    assert resolved(SQUARE, (8, 8), given=Facts(alpha=6)).alpha == 6


WEIGHTS = {
    "bert": (SQUARE, (8, 8), {"config": MODEL_TYPES[False]}, True, "(out, in) as bert has them"),
    "gpt2": (SQUARE, (8, 8), {"config": MODEL_TYPES[True]}, False, "(in, out) as gpt2 has them"),
    "shape": ({"A": (2, 8), "B": (12, 2)}, (12, 8), {}, True, "(out, in) by its shape"),
    "turned": ({"A": (2, 8), "B": (12, 2)}, (8, 12), {}, False, "(in, out) by its shape"),
    "experts": (
        {"A": (4, 8), "B": (8, 4)}, (2, 8, 8), {"tuner": "parameter", "version": "0.18.1"}, False,
        "(in, out) as PEFT 0.18.1 reads them",
    ),
    "other experts": (
        {"A": (4, 8), "B": (8, 4)}, (2, 8, 8), {"tuner": "parameter", "turned": False}, True,
        "(out, in) as the module's other experts are",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_an_orientation_that_is_known_may_be_repeated_only(name):
    shapes, weight, said, wrong, words = WEIGHTS[name]
    with pytest.raises(Unresolved) as caught:
        resolved(shapes, weight, given=Facts(fan_in_fan_out=wrong, source="an option"), **said)
    [problem] = caught.value.missing
    assert f"fan_in_fan_out = {wrong} from an option" in str(problem)
    assert words in str(problem)
    assert problem.hint
    given = Facts(fan_in_fan_out=not wrong)
    assert resolved(shapes, weight, given=given, **said).fan_in_fan_out is not wrong


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("hint", [True, False, None])
def test_an_orientation_that_nobody_knows_is_taken_from_the_option(given, hint):
    found = resolved(SQUARE, (8, 8), fan_in_fan_out=hint, given=Facts(fan_in_fan_out=given))
    assert found.fan_in_fan_out is given


def test_an_orientation_means_nothing_for_an_embedding():
    shapes = {"A": (2, 8), "B": (4, 2)}
    given = Facts(fan_in_fan_out=True)
    assert resolved(shapes, (8, 4), tuner="lora_embedding", given=given).kind == "embedding"


def test_an_orientation_of_embeddings_alone_is_refused(tmp_path):
    save_file({"q.weight": torch.ones(8, 4)}, tmp_path / "base.safetensors")
    factors = {"q.lora_embedding_A": torch.ones(2, 8), "q.lora_embedding_B": torch.ones(4, 2)}
    adapter = peft_folder(tmp_path / "adapter", factors)
    with pytest.raises(UsageError, match=r"--fan-in-fan-out: no weight of the plan"):
        merge(tmp_path / "base.safetensors", [adapter], dry_run=True, fan_in_fan_out=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Facts(kind="embedding"), ["kind = embedding", "this is linear"]),
        (Facts(enable_lora=(True, False)), ["enable_lora", "no meaning for linear"]),
    ],
)
def test_facts_without_a_meaning_are_refused(given, words):
    with pytest.raises(Unresolved) as caught:
        resolved(SQUARE, (8, 8), given=given)
    [problem] = caught.value.missing
    assert [word for word in words if word not in str(problem)] == []


SAYERS = {
    "the option": ({"fan_in_fan_out": True}, {}, "(in, out), by the options"),
    "against the file": (
        {"fan_in_fan_out": True}, {"fan_in_fan_out": False},
        "(in, out), by the options, against adapter_config.json: it is often wrong there",
    ),
    "the file": ({}, {"fan_in_fan_out": False}, "(out, in), by adapter_config.json"),
    "no source": ({}, {}, "(out, in), by default, as no source decides it"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAYERS)
def test_the_plan_tells_who_says_how_a_square_weight_is_stored(name, tmp_path):
    options, members, words = SAYERS[name]
    save_file({"q.weight": torch.ones(8, 8)}, tmp_path / "base.safetensors")
    factors = {"q.lora_A.weight": torch.ones(2, 8), "q.lora_B.weight": torch.ones(8, 2)}
    adapter = peft_folder(tmp_path / "adapter", factors, **members)
    report = merge(tmp_path / "base.safetensors", [adapter], dry_run=True, **options)
    assert f"1 square weight read as Linear stored {words}" in report.plan.choices


def test_an_option_that_contradicts_the_model_type_is_a_usage_error(tmp_path):
    (tmp_path / "base").mkdir()
    save_file({"q.weight": torch.ones(8, 8)}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "bert"}')
    factors = {"q.lora_A.weight": torch.ones(2, 8), "q.lora_B.weight": torch.ones(8, 2)}
    adapter = peft_folder(tmp_path / "adapter", factors)
    with pytest.raises(UsageError, match=r"stored \(out, in\) as bert has them"):
        merge(tmp_path / "base", [adapter], dry_run=True, fan_in_fan_out=True)


@pytest.mark.parametrize(
    ("kind", "module", "stored"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn", True),
        ("gpt2", "h.0.mlp.c_proj", True),
        ("gpt2", "lm_head", False),
        ("bert", "encoder.layer.0.attention.self.query", False),
        ("llama", "model.layers.0.c_proj", False),
        (None, "h.0.attn.c_attn", None),
        (7, "h.0.attn.c_attn", None),
    ],
)
def test_how_a_model_type_stores_its_weights(kind, module, stored):
    config = {} if kind is None else {"model_type": kind}
    assert stores_in_out(Checkpoint(Path("x"), "folder", (), config=config), module) is stored


MODELS = {
    "bert": (
        lambda hf: hf.BertModel(hf.BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
            vocab_size=30, max_position_embeddings=12,
        )),
        ["query"],
    ),
    "gpt2": (
        lambda hf: hf.GPT2LMHeadModel(hf.GPT2Config(
            n_embd=16, n_layer=1, n_head=2, n_inner=16, vocab_size=30, n_positions=12,
            tie_word_embeddings=False,
        )),
        ["c_proj"],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore"
)  # transformers' of names it gives up, PEFT's of the wrong word
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("model_type", MODELS)
def test_a_wrong_word_of_the_file_on_square_weights_is_ignored_as_peft_does(
    model_type, dora, tmp_path
):
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model

    build, targets = MODELS[model_type]
    base = build(transformers)
    base.save_pretrained(tmp_path / "base")
    turned = model_type == "gpt2"
    config = LoraConfig(target_modules=targets, r=2, use_dora=dora, fan_in_fan_out=turned)
    model = get_peft_model(base, config)
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": not turned}))
    merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", verify=False)
    fresh = type(base).from_pretrained(tmp_path / "base")
    peft = PeftModel.from_pretrained(fresh, tmp_path / "adapter").merge_and_unload()
    merged, wanted = load_file(tmp_path / "out" / "model.safetensors"), peft.state_dict()
    assert [key for key in merged if not torch.equal(merged[key], wanted[key])] == []


def peft_folder(folder, tensors, **members):
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **members}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


LINEAR = {"q.lora_A.weight": torch.ones(2, 8), "q.lora_B.weight": torch.ones(12, 2)}


@pytest.mark.parametrize(
    ("base", "tensors", "members", "words"),
    [
        (
            {"q.weight": torch.ones(12, 8)},
            {**LINEAR, "q.lora_B.bias": torch.ones(12)},
            {"lora_bias": True},
            ["the base has no bias", "lora_bias needs a layer with a bias"],
        ),
        ({"q.weight": torch.ones(12, 8)}, LINEAR, {"lora_alpha": 0}, ["the scaling is 0"]),
        (
            {"a.q_proj_weight": torch.ones(8, 8), "a.out_proj.weight": torch.ones(8, 8)},
            {
                "a.lora_A.weight": torch.ones(2, 8),
                "a.lora_B.weight": torch.ones(24, 2),
                "a.base_layer.out_proj.lora_A.weight": torch.ones(2, 8),
                "a.base_layer.out_proj.lora_B.weight": torch.ones(8, 2),
            },
            {},
            ["the base has no a.in_proj_weight"],
        ),
    ],
    ids=["no bias", "alpha 0", "separate projections"],
)
def test_what_the_base_lacks_is_told(base, tensors, members, words, tmp_path):
    save_file(base, tmp_path / "base.safetensors")
    adapter = peft_folder(tmp_path / "adapter", tensors, **members)
    with pytest.raises(FitError) as caught:
        merge(tmp_path / "base.safetensors", [adapter], tmp_path / "out.safetensors")
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text


def test_factors_of_another_dialect_than_the_named_one_are_none(tmp_path):
    save_file({"q.weight": torch.ones(12, 8)}, tmp_path / "base.safetensors")
    adapter = peft_folder(tmp_path / "adapter", LINEAR)
    with pytest.raises(FitError, match="as loralib writes them") as caught:
        merge(tmp_path / "base.safetensors", [adapter], dry_run=True, dialect="loralib", alpha=4)
    assert "--allow-unmatched" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["[]", "7", "{", '{"peft_type": "LORA", "r": ' + "9" * 5000 + "}", '{"peft_type": null}', ""],
)
def test_a_hostile_configuration_is_refused(text, tmp_path):
    save_file({"q.weight": torch.ones(12, 8)}, tmp_path / "base.safetensors")
    adapter = peft_folder(tmp_path / "adapter", LINEAR)
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(LoraExportError) as caught:
        merge(tmp_path / "base.safetensors", [adapter], tmp_path / "out.safetensors")
    assert not isinstance(caught.value, UsageError) or caught.value.problems
