"""Folders of --layout in the clients that they are made for, against the unmerged PEFT model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from lora_export.api import export_onnx

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
PROMPT, NEW, VOCABULARY = [5, 9, 17, 33], 32, 101
ABC = [68, 69, 70]  # the text "abc" in the tokenizer of every folder
SEED = 2  # of texts that have no end within 32 tokens
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODERS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, num_key_value_heads=2, **ENDS)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2,
                     num_attention_heads=4, ffn_dim=96, max_position_embeddings=128,
                     word_embed_proj_dim=64, init_std=0.2, **ENDS)
    ),
}  # fmt: skip
TARGETS = {"llama": ["q_proj", "v_proj"], "opt": ["q_proj", "v_proj"]}


def trained(model, folder, targets, task):
    """Save a base with a tokenizer and an adapter of PEFT; return them and the unmerged model."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    model.save_pretrained(folder / "base")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 4]
    vocabulary = {
        name: number for number, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", *letters])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "base")
    options = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type=task)
    adapted = get_peft_model(type(model).from_pretrained(folder / "base"), options)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    adapted.save_pretrained(folder / "lora")
    unmerged = PeftModel.from_pretrained(
        type(model).from_pretrained(folder / "base"), folder / "lora"
    )
    return folder / "base", folder / "lora", unmerged.eval()


def generated(model):
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        return model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False)[0].tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_onnxruntime_genai_generates_as_the_unmerged_model(name, tmp_path):
    genai = pytest.importorskip("onnxruntime_genai", reason="the extra `clients` has it")
    torch.manual_seed(SEED)
    base, adapter, unmerged = trained(DECODERS[name](), tmp_path, TARGETS[name], "CAUSAL_LM")
    folder = tmp_path / "out"
    assert export_onnx(base, [adapter], folder, layout="genai", kv_cache=True).passed
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(PROMPT) + NEW)
    generator = genai.Generator(model, settings)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    expected = generated(unmerged)
    assert len(expected) == len(PROMPT) + NEW
    assert [int(token) for token in generator.get_sequence(0)] == expected
    assert [int(token) for token in genai.Tokenizer(model).encode("abc")] == ABC


MODULES = "LORA_EXPORT_NODE_MODULES"
"""The variable with the folder of Node packages that holds @huggingface/transformers."""
SCRIPT = """
import { AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Tensor, env }
  from '@huggingface/transformers';
env.allowRemoteModels = false;
env.localModelPath = process.argv[2] + '/';
const rows = JSON.parse(process.argv[3]);
const tensor = (row) => new Tensor('int64', BigInt64Array.from(row.map(BigInt)), [1, row.length]);
const ids = tensor(rows), ones = tensor(rows.map(() => 1));
const found = {};
if (process.argv[4] === 'generate') {
  const settings = { max_new_tokens: 32, do_sample: false };
  const model = await AutoModelForCausalLM.from_pretrained('out', { dtype: 'fp32' });
  const made = await model.generate({ inputs: ids, attention_mask: ones, ...settings });
  found.tokens = Array.from(made.data, Number);
} else {
  for (const dtype of ['fp32', 'q8', 'q4', 'int8']) {
    const model = await AutoModelForSequenceClassification.from_pretrained('out', { dtype });
    const made = await model({ input_ids: ids, attention_mask: ones });
    found[dtype] = Array.from(made.logits.data);
  }
}
const tokenizer = await AutoTokenizer.from_pretrained('out');
found.encoded = Array.from(tokenizer('abc').input_ids.data, Number);
console.log('FOUND ' + JSON.stringify(found));
"""


@pytest.fixture
def node(tmp_path):
    """Return a function that runs the script in Node on the folder `out`."""
    program, modules = shutil.which("node"), os.environ.get(MODULES)
    if not program or not modules or not (Path(modules) / "@huggingface/transformers").is_dir():
        pytest.skip(f"needs Node, and @huggingface/transformers below ${MODULES}")
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "client.mjs").write_text(SCRIPT)

    def run(what):
        done = subprocess.run(
            [program, "client.mjs", str(tmp_path), json.dumps(PROMPT), what],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.partition("FOUND ")[2])

    return run


@pytest.mark.parametrize("name", DECODERS)
def test_transformers_js_generates_as_the_unmerged_model(name, tmp_path, node):
    torch.manual_seed(SEED)
    base, adapter, unmerged = trained(DECODERS[name](), tmp_path, TARGETS[name], "CAUSAL_LM")
    assert export_onnx(base, [adapter], tmp_path / "out", layout="hf", kv_cache=True).passed
    found, expected = node("generate"), generated(unmerged)
    assert len(expected) == len(PROMPT) + NEW
    assert found == {"tokens": expected, "encoded": ABC}


def test_transformers_js_loads_every_precision(tmp_path, node):
    torch.manual_seed(SEED)
    model = hf.BertForSequenceClassification(hf.BertConfig(**SIZES, num_labels=3))
    base, adapter, unmerged = trained(model, tmp_path, ["query", "value"], "SEQ_CLS")
    precisions = "fp32,int8,int8-weights,int4"
    report = export_onnx(base, [adapter], tmp_path / "out", layout="hf", precision=precisions)
    found = node("classify")
    with torch.no_grad():
        expected = unmerged(torch.tensor([PROMPT])).logits[0].numpy()
    np.testing.assert_allclose(found["fp32"], expected, atol=1e-5)
    names = {"int8": "q8", "int8-weights": "int8", "int4": "q4"}
    for lowered in report.facts["precisions"]:
        (loss,) = lowered["loss"]
        far = np.abs(found[names[lowered["precision"]]] - expected).max()
        assert 0 < far <= 3 * loss["worst"]
    assert found["encoded"] == ABC
