"""Small seeded models of every shape of interest, each captured once for the whole session."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lora_export.models.inputs.grammar import parse_inputs
from lora_export.models.network.calling import call_model
from lora_export.onnx_export.capture.trace import capture
from lora_export.onnx_export.file.bindings import place_weights, read_bindings
from lora_export.onnx_export.file.save import save_model
from lora_export.verification.model.probes import make_probes

if TYPE_CHECKING:
    import numpy as np

VOCABULARY = 101
TEXT = (
    f"input_ids=int64[batch,sequence]<{VOCABULARY}",
    "attention_mask=int64[batch,sequence]<2",
)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


class Net(nn.Module):
    """Convolution, batch norm and linear layers; its last weight is square."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4 * 64, 40)
        self.twin = nn.Linear(40, 40)
        self.last = nn.Linear(40, 40)
        self.dead = nn.Linear(3, 3)

    def forward(self, image):
        seen = torch.relu(self.norm(self.conv(image))).flatten(1)
        return self.last(torch.relu(self.twin(torch.relu(self.hidden(seen)))))


class Gpt(nn.Module):
    """A decoder as GPT-2 is: transformers' Conv1D (in, out), a table of positions, a tied head."""

    def __init__(self):
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, 32), nn.Embedding(64, 32)
        self.norm = nn.LayerNorm(32)
        self.c_attn, self.c_proj = Conv1D(96, 32), Conv1D(32, 32)
        self.head = nn.Linear(32, VOCABULARY, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, input_ids, attention_mask=None):
        places = torch.arange(input_ids.shape[1])
        hidden = self.wte(input_ids) + self.wpe(places)
        query, key, value = self.c_attn(self.norm(hidden)).unsqueeze(1).chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.c_proj(mixed.squeeze(1))
        return {"logits": self.head(hidden), "hidden": hidden}


def _bert():
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**SIZES))


def _roberta():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return RobertaForSequenceClassification(RobertaConfig(**SIZES))


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2))


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=64,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    return GPT2LMHeadModel(config)


CASES = {
    "net": (Net, ("image=float32[batch,1,8,8]",), ("output",)),
    "gpt": (Gpt, TEXT[:1], ("logits", "hidden")),
    "bert": (_bert, TEXT, ("last_hidden_state", "pooler_output")),
    "roberta": (_roberta, TEXT, ("logits",)),
    "llama": (_llama, TEXT, ("logits",)),
    "gpt2": (_gpt2, TEXT, ("logits",)),
}
NAMES = tuple(CASES)


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = CASES[name][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


@dataclass
class Captured:
    """A model with its graph; `graph()` and `proto()` are fresh copies."""

    name: str
    model: nn.Module
    specs: tuple
    data: bytes

    def graph(self) -> Any:
        """The graph as captured, without weights."""
        import onnx

        return onnx.ModelProto.FromString(self.data)

    def proto(self, model: nn.Module | None = None) -> Any:
        """The graph with the weights of `model` (default: the captured one) in memory."""
        return fill(self.graph(), self.weights(model))

    @property
    def output_names(self):
        return CASES[self.name][2]

    def weights(self, model: nn.Module | None = None) -> dict[str, np.ndarray]:
        """The bound weights of `model` (default: the captured one) by name."""
        state = (model or self.model).state_dict()
        return {name: state[name].numpy() for name in read_bindings(self.graph()).parameters}

    def probes(self):
        return make_probes(self.specs, seed=1)

    def expected(self, model: nn.Module | None = None):
        return [run_torch(model or self.model, probe) for probe in self.probes()]


def weights_of(model: nn.Module, graph: Any) -> dict[str, torch.Tensor]:
    """The weights of a model that its graph has a place for."""
    unused = read_bindings(graph).unused
    return {name: value for name, value in model.state_dict().items() if name not in unused}


def fill(graph: Any, weights: Any) -> Any:
    """Put weights into a graph in memory, as `save_model` puts them into a file; in place."""
    for placed in place_weights(graph, weights).values():
        placed.slot.raw_data = b"".join(map(bytes, placed.blocks()))
    return graph


def run_torch(model, probe):
    tensors = {name: torch.from_numpy(array) for name, array in probe.items()}
    return {name: value.detach().numpy() for name, value in call_model(model, tensors).items()}


class Zoo:
    """Builds and captures models; `captured` does each once a run, whichever test asks."""

    names = NAMES
    rounding = 2e-5
    """What ONNX Runtime may differ by, of outputs of about 10; other weights differ by 1e-3."""

    def __init__(self, shared):
        self._done = {}
        self._shared = shared

    build = staticmethod(build)
    run_torch = staticmethod(run_torch)
    weights_of = staticmethod(weights_of)
    fill = staticmethod(fill)

    @staticmethod
    def save(model, specs, path, **settings):
        """Capture a model and write it with its own weights; the graph is returned."""
        graph = capture(model, specs, **settings)
        save_model(graph, path, weights_of(model, graph))
        return graph

    @staticmethod
    def specs(name):
        return parse_inputs(CASES[name][1])

    def captured(self, name: str) -> Captured:
        if name not in self._done:
            model, specs = build(name), self.specs(name)
            noise = io.StringIO()
            with redirect_stdout(noise), redirect_stderr(noise), self._shared.for_all():
                data = capture(model, specs).SerializeToString()
            assert not noise.getvalue()  # where it is made; later it is only taken
            self._done[name] = Captured(name, model, specs, data)
        return self._done[name]


@pytest.fixture(scope="session")
def zoo(run_captures):
    return Zoo(run_captures)
