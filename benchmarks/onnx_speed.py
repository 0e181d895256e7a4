"""Speed and error of the ONNX files of `lora-export onnx` in every precision, as paired ratios.

The weights are random, in the shapes of BERT-base, ViT-base and a Llama of 125 M parameters. The
yardsticks are the float32 file, and what ONNX Runtime's own `quantize_dynamic` makes of it. All
sessions run in turn within a round, and a ratio is taken within a round, because a shared machine
is faster in one minute than in the next. Time of processor is given beside wall time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.api import export_onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnxruntime
    from numpy.typing import NDArray

    Feed = dict[str, NDArray[Any]]

PEER = "quantize_dynamic"
FORMS: dict[str, dict[str, str]] = {
    "fp32": {},
    "int8 signed": {"precision": "int8", "int8": "signed"},
    "int8 unsigned": {"precision": "int8", "int8": "unsigned"},
    "int8-weights": {"precision": "int8-weights"},
    "int4": {"precision": "int4"},
}
"""The keywords of each file, by its name in the table."""
EXACT = "session.x64quantprecision"
"""ONNX Runtime's option for products of signed codes without overflow on x86 without VNNI."""
TOKENS, PAST = 128, 128


@dataclass(frozen=True, slots=True)
class Case:
    """A network, and what one call of its graph takes."""

    config: Callable[[int], Any]
    """Makes transformers' configuration, of so many layers."""
    head: str
    """The class of the model."""
    targets: tuple[str, ...]
    """The modules that the adapter changes."""
    feed: Callable[[np.random.Generator], Feed]
    kv_cache: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One file's figures."""

    case: str
    form: str
    threads: int
    wall: float
    """Seconds of a call, the median over the rounds."""
    wall_ratio: float
    """The float32 file's wall time by this file's, the median of the rounds' ratios."""
    cpu_ratio: float
    """The same of processor time."""
    peer_ratio: float
    """The peer's processor time by this file's, the median of the rounds' ratios."""
    error: float
    """The root mean square of the first output's change, as a share of its size."""
    size: int
    """Bytes of the file."""


def _bert(layers: int) -> Any:
    from transformers import BertConfig

    return BertConfig(num_hidden_layers=layers)


def _vit(layers: int) -> Any:
    from transformers import ViTConfig

    return ViTConfig(num_hidden_layers=layers)


def _llama(layers: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=32_000, hidden_size=768, intermediate_size=2048, num_hidden_layers=layers,
        num_attention_heads=12, num_key_value_heads=12, tie_word_embeddings=True,
    )  # fmt: skip


def _ids(random: np.random.Generator, count: int) -> NDArray[Any]:
    return random.integers(5, 30_000, (1, count))


def _text(random: np.random.Generator) -> Feed:
    ones = np.ones((1, TOKENS), np.int64)
    return {"input_ids": _ids(random, TOKENS), "attention_mask": ones, "token_type_ids": 0 * ones}


def _image(random: np.random.Generator) -> Feed:
    return {"pixel_values": random.standard_normal((1, 3, 224, 224)).astype(np.float32)}


def _step(random: np.random.Generator) -> Feed:
    """Make the inputs of one step after PAST tokens."""
    past = {
        f"past_key_values.{layer}.{part}": random.standard_normal((1, 12, PAST, 64))
        for layer in range(12)
        for part in ("key", "value")
    }
    return {
        "input_ids": _ids(random, 1),
        "attention_mask": np.ones((1, PAST + 1), np.int64),
        "position_ids": np.array([[PAST]]),
        **{name: array.astype(np.float32) for name, array in past.items()},
    }


def _prompt(random: np.random.Generator) -> Feed:
    """Make the inputs of a prompt, with an empty past."""
    feed = _step(random)
    past = {name: array[:, :, :0] for name, array in feed.items() if "past" in name}
    return {
        **past,
        "input_ids": _ids(random, TOKENS),
        "attention_mask": np.ones((1, TOKENS), np.int64),
        "position_ids": np.arange(TOKENS)[None],
    }


_ATTENTION = ("query", "value")
_LLAMA = ("q_proj", "v_proj")
CASES = {
    "bert": Case(_bert, "BertModel", _ATTENTION, _text),
    "vit": Case(_vit, "ViTForImageClassification", ("q_proj", "v_proj"), _image),
    "llama prompt": Case(_llama, "LlamaForCausalLM", _LLAMA, _prompt, kv_cache=True),
    "llama step": Case(_llama, "LlamaForCausalLM", _LLAMA, _step, kv_cache=True),
}


def make(case: Case, folder: Path, layers: int) -> tuple[Path, Path]:
    """Write a random base and an adapter, as transformers and PEFT save them: (base, adapter)."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = getattr(transformers, case.head)(case.config(layers))
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(target_modules=list(case.targets), r=8))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(str(folder / "adapter"))
    return folder / "base", folder / "adapter"


def export(case: Case, folder: Path, layers: int, forms: Mapping[str, Any]) -> dict[str, Path]:
    """Write the files of one case: name -> path; the peer's is made from the float32 file."""
    base, adapter = make(case, folder, layers)
    files = {}
    for name, settings in forms.items():
        files[name] = folder / f"{name.replace(' ', '-')}.onnx"
        export_onnx(
            base, [adapter], files[name], verify=False, kv_cache=case.kv_cache,
            capture_cache=folder / "captures", **settings,
        )  # fmt: skip
    files[PEER] = folder / "peer.onnx"
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(files["fp32"], files[PEER])
    return files


def open_session(path: Path, threads: int, *, exact: bool = False) -> onnxruntime.InferenceSession:
    """Open a session on the CPU with so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    if exact:
        options.add_session_config_entry(EXACT, "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure(
    name: str, files: Mapping[str, Path], *, threads: int, rounds: int, calls: int
) -> list[Line]:
    """Run every file `rounds` times in turn, `calls` calls at once."""
    sessions = {form: open_session(path, threads) for form, path in files.items()}
    exact = "int8 signed"
    if exact in files:
        sessions[f"{exact}, {EXACT}"] = open_session(files[exact], threads, exact=True)
    names = {value.name for value in sessions["fp32"].get_inputs()}
    full = CASES[name].feed(np.random.default_rng(0))
    feed = {key: array for key, array in full.items() if key in names}
    first = {form: session.run(None, feed)[0] for form, session in sessions.items()}
    wall: dict[str, list[float]] = {form: [] for form in sessions}
    cpu: dict[str, list[float]] = {form: [] for form in sessions}
    for _ in range(rounds):
        for form, session in sessions.items():
            began, spent = time.perf_counter(), time.process_time()
            for _ in range(calls):
                session.run(None, feed)
            wall[form].append((time.perf_counter() - began) / calls)
            cpu[form].append((time.process_time() - spent) / calls)
    size = float(np.sqrt(np.square(first["fp32"]).mean()))
    return [
        Line(
            name,
            form,
            threads,
            median(wall[form]),
            _ratio(wall["fp32"], wall[form]),
            _ratio(cpu["fp32"], cpu[form]),
            _ratio(cpu[PEER], cpu[form]),
            float(np.sqrt(np.square(first[form] - first["fp32"]).mean())) / size,
            files[form.partition(",")[0]].stat().st_size,
        )
        for form in sessions
    ]


def _ratio(left: list[float], right: list[float]) -> float:
    return median(a / b for a, b in zip(left, right, strict=True))


_RATIOS = ("speed, wall", "speed, processor", f"speed by {PEER}'s, processor")


def table(lines: list[Line]) -> str:
    """Return the figures as a table in Markdown."""
    head = ["case", "threads", "file", "size", "ms a call", *_RATIOS, "error"]
    rows = [head, ["---"] * len(head)]
    rows += [
        [
            one.case,
            str(one.threads),
            one.form,
            f"{one.size / 1e6:.0f} MB",
            f"{one.wall * 1e3:.1f}",
            f"{one.wall_ratio:.2f}",
            f"{one.cpu_ratio:.2f}",
            f"{one.peer_ratio:.2f}",
            f"{one.error:.2%}",
        ]
        for one in lines
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Make the files of every case and measure them; print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--form", choices=FORMS, action="append", help="default: all")
    parser.add_argument("--threads", type=int, action="append", help="default: 1 and 2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=3, help="calls of a file in a round")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="where the files go (default: temporary)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    chosen = {name: FORMS[name] for name in dict.fromkeys(["fp32", *(given.form or FORMS)])}
    lines: list[Line] = []
    for name in given.case or CASES:
        with tempfile.TemporaryDirectory(prefix="onnx-speed-", dir=given.folder) as folder:
            files = export(CASES[name], Path(folder), given.layers, chosen)
            for threads in given.threads or (1, 2):
                lines += measure(
                    name, files, threads=threads, rounds=given.rounds, calls=given.calls
                )
    print(json.dumps([asdict(one) for one in lines], indent=2) if given.json else table(lines))


if __name__ == "__main__":
    main()
