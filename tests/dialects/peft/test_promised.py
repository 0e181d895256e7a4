"""What a configuration promises and the file lacks: refused, or told."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.dialects import read_adapter
from lora_export.errors import InputError
from lora_export.records import AdapterFile, TensorRef, TensorSpec

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
LINEAR = {"q.lora_A.weight": (2, 8), "q.lora_B.weight": (8, 2)}
HEAD = {"score.weight": (3, 8)}
ROWS = {"emb.token_adapter.trainable_tokens_delta": (2, 8)}


def read(tensors, members):
    refs = {
        name: TensorRef(TensorSpec(name, "F32", shape), Path("x"), 0, 0)
        for name, shape in tensors.items()
    }
    return read_adapter(AdapterFile(Path("x"), refs, config={**CONFIG, **members}), dialect=None)


REFUSED = {
    "module": ({"modules_to_save": ["lm_head"]}, LINEAR, "lists lm_head, of which"),
    "modules": ({"modules_to_save": ["lm_head", "emb"]}, LINEAR, "lists lm_head, emb, of which"),
    "another module": ({"modules_to_save": ["lm_head"]}, {**LINEAR, **HEAD}, "lists lm_head"),
    "heads of the task": (
        {"modules_to_save": ["classifier", "score"], "task_type": "SEQ_CLS"}, LINEAR,
        "lists classifier, score",
    ),
    "rows": ({"trainable_token_indices": [1, 2]}, LINEAR, "the file holds no rows"),
    "rows by module": ({"trainable_token_indices": {"emb": [1]}}, LINEAR, "holds no rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_promise_of_which_the_file_holds_nothing_is_refused(name):
    members, tensors, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as caught:
        read(tensors, members)
    assert all("save the adapter again" in problem.hint for problem in caught.value.problems)


TOLD = {
    "one of two": ({"modules_to_save": ["score", "emb"]}, HEAD, "lists emb, of which"),
    "beside those of the task": (
        {"modules_to_save": ["emb", "classifier", "score"], "task_type": "SEQ_CLS"}, HEAD,
        "lists emb, of which",
    ),
    "rows of one of two": (
        {"trainable_token_indices": {"emb": [1, 2], "head": [3]}}, ROWS, "names head, of which",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_a_promise_of_which_the_file_holds_a_part_is_told(name):
    members, tensors, words = TOLD[name]
    [doubt] = read({**LINEAR, **tensors}, members).doubts
    assert words in doubt


KEPT = {
    "one head of the task": (
        {"modules_to_save": ["classifier", "score"], "task_type": "SEQ_CLS"}, HEAD,
    ),
    "an old form": ({"modules_to_save": ["score"]}, {"score.modules_to_save.weight": (3, 8)}),
    "rows": ({"trainable_token_indices": [1, 2]}, ROWS),
    "nothing": ({"modules_to_save": [], "trainable_token_indices": None, "bias": "all"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_a_promise_that_is_kept(name):
    members, tensors = KEPT[name]
    assert read({**LINEAR, **tensors}, members).doubts == ()


@pytest.mark.parametrize(
    ("bias", "base", "held", "is_told"),
    [
        ("all", ["q.weight", "k.bias"], [], True),
        ("lora_only", ["q.weight", "q.bias"], [], True),
        ("lora_only", ["q.weight", "k.bias"], [], False),
        ("all", ["q.weight"], [], False),
        ("none", ["q.weight", "q.bias"], [], False),
        ("lora_only", ["q.weight", "q.bias"], ["q.bias"], False),
        ("lora_only", ["q.weight", "q.bias", "score.bias"], ["score.bias"], True),
    ],
)
def test_biases_that_the_file_lacks_are_told(bias, base, held, is_told, tmp_path):
    def made(names):
        return {n: torch.ones(8, 8) if n.endswith("weight") else torch.ones(8) for n in names}

    save_file(made(base), tmp_path / "base.safetensors")
    (tmp_path / "lora").mkdir()
    factors = {name: torch.ones(shape) for name, shape in LINEAR.items()}
    save_file({**factors, **made(held)}, tmp_path / "lora" / "adapter_model.safetensors")
    saved = ["score"] if "score.bias" in held else []
    members = {**CONFIG, "bias": bias, "modules_to_save": saved}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(members))
    plan = merge(tmp_path / "base.safetensors", [tmp_path / "lora"], dry_run=True).plan
    told = [text for text in plan.warnings if f"bias = {bias!r}" in text]
    assert bool(told) is is_told
