"""Declares every option once, for the command line and for the library's keywords.

A command makes its flags of this table, a verb of `lora_export.api` checks its keywords against it.
So both take the same names and the same values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Takes = Literal["text", "path", "number", "whole", "flag", "either", "choice", "blocks"]


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `--name` with dashes on the command line, `name` as a keyword.

    Attributes:
        name: the keyword.
        takes: the kind of value. "flag": True or False. "either": True, False or None, with a flag
            for each of the first two. "blocks": `1,0,1`, or a sequence of bool.
        help: one or two sentences for `--help`.
        default: what counts when the option is not given; `()` where `many` may be given.
        choices: the values of a "choice".
        many: may be given several times; the keyword takes a list.
        least: the smallest value of a "whole", where it has one.
        metavar: what `--help` shows for the value.
        long: the long flag, where it is not the name with dashes.
        short: the one-letter flag.
        opposite: the second flag of an "either", or of a "flag" that is on by default.
        needed: the verb does not run without it.
        shown: whether `--help` tells the default.
    """

    name: str
    takes: Takes
    help: str
    default: object = None
    choices: tuple[str, ...] = ()
    many: bool = False
    least: int | None = None
    metavar: str | None = None
    long: str = ""
    short: str = ""
    opposite: str = ""
    needed: bool = False
    shown: bool = False

    @property
    def flag(self) -> str:
        """The long flag, for messages."""
        return f"--{self.long or self.name.replace('_', '-')}"


_UNMATCHED = "Adapter tensors to leave out."
_NEW = "Adapter tensors the base may lack."
_FAN = "Square weights are stored (in, out), as by GPT-2's Conv1D, or (out, in)."
_HPARAMS = "TOML or JSON file with these facts, also per module ([[module]] match = GLOB)."
_RECIPE = (
    "auto: the bits of loralib's eval() or PEFT's merge_and_unload(); peft-safe: with "
    "safe_merge=True; exact: float32 sum, one rounding."
)
_TRUST = (
    "Where an adapter's file and its configuration disagree: take every tensor of the file, or "
    "leave out what the configuration excludes, as PEFT does."
)

ADAPTER = (
    Option("alpha", "number", "lora_alpha of the training; never guessed."),
    Option("enable_lora", "blocks", "The adapted blocks of every MergedLinear.", metavar="1,0,1"),
    Option("fan_in_fan_out", "either", _FAN, opposite="no-fan-in-fan-out"),
    Option("hparams", "path", _HPARAMS),
    Option("dialect", "text", "How to read the adapter, where its file leaves it open."),
    Option(
        "weight", "number", "Strength, once for each adapter (default 1).", default=(), many=True
    ),
    Option(
        "recipe",
        "choice",
        _RECIPE,
        default="auto",
        choices=("auto", "peft", "peft-safe", "exact"),
        shown=True,
    ),
    Option(
        "tied",
        "choice",
        "Tied embeddings of which one is adapted: separate them, do as loralib, or refuse.",
        default="untie",
        choices=("untie", "eval", "error"),
        shown=True,
    ),
    Option("rename", "text", "Change of prefix from adapter to base names.", metavar="OLD=NEW"),
    Option("allow_unmatched", "text", _UNMATCHED, default=(), many=True, metavar="GLOB"),
    Option("allow_new", "text", _NEW, default=(), many=True, metavar="GLOB"),
    Option("allow_noop", "flag", "Accept updates that change nothing.", default=False),
    Option(
        "unmerged_base",
        "flag",
        "BASE is a training checkpoint with factors in it, and its weights are unmerged.",
        default=False,
    ),
    Option(
        "ignore",
        "text",
        "A weight file in an adapter's folder that takes no part.",
        default=(),
        many=True,
        metavar="FILE",
    ),
    Option("trust_file", "either", _TRUST, opposite="trust-config"),
    Option(
        "strict",
        "flag",
        "Refuse a base other than the one that the adapter names, instead of a note.",
        default=False,
    ),
)
"""How adapters are read and merged."""

PROOF = (
    Option(
        "input",
        "text",
        "A model input, e.g. 'input_ids=int64[batch,sequence]<30522'.",
        default=(),
        many=True,
        metavar="NAME=DTYPE[DIMS]<HIGH",
    ),
    Option(
        "inputs",
        "path",
        "Your own probe inputs, as an .npz file; with --model they may declare the inputs.",
    ),
    Option("atol", "number", "Absolute tolerance instead of the derived one."),
    Option("rtol", "number", "Tolerance relative to the largest output."),
    Option("seed", "whole", "Seed of the probes.", default=0, least=0, shown=True),
)
"""How a model is run to be proven."""

_MODEL = Option(
    "model",
    "text",
    "Your own model: package.module:build or path/to/file.py:build. Its code runs.",
    metavar="MODULE:FACTORY",
)
_TASK = Option(
    "task",
    "text",
    "What the model does, e.g. text-classification, where config.json is not to decide.",
    metavar="NAME",
)
_JOBS = Option("jobs", "whole", "Threads (default: one a processor).", least=1)
_FORCE = Option("force", "flag", "Replace an earlier export, and nothing else.", default=False)
_PROVIDER = Option(
    "provider",
    "text",
    "ONNX Runtime's execution provider to verify with, e.g. cuda (default: cpu).",
    default=(),
    many=True,
    metavar="NAME",
)
_LOSSY = Option(
    "allow_lossy",
    "flag",
    "Accept rounding that outweighs what the adapter changes.",
    default=False,
)
_GRAPH = (
    _TASK,
    Option(
        "kv_cache",
        "flag",
        "A graph that generates text step by step: it takes and gives keys and values.",
        default=False,
    ),
)
_CAPTURE = (
    Option(
        "capture_cache",
        "path",
        "Where captured graphs of Hugging Face folders are kept (default: the user's cache).",
    ),
    Option(
        "no_capture_cache",
        "flag",
        "Capture the graph anew, and keep it nowhere.",
        default=False,
    ),
)


def _verify(text: str) -> Option:
    return Option("verify", "flag", text, default=True, opposite="no-verify", shown=True)


def _output(text: str, *, needed: bool) -> Option:
    return Option("output", "path", text, short="o", needed=needed)


VERBS: Mapping[str, tuple[Option, ...]] = {
    "merge": (
        _output("The file or folder to write.", needed=False),
        *ADAPTER,
        _MODEL,
        *PROOF,
        _TASK,
        _verify("Prove before publishing."),
        Option(
            "dry_run",
            "flag",
            "Print the plan and the room it needs; write nothing.",
            default=False,
        ),
        _FORCE,
        Option(
            "undo", "path", "Keep what the merge changes in this file, for lora-export unmerge."
        ),
        Option(
            "tokenizer",
            "choice",
            "Whose tokenizer a folder gets (default: the base's, unless the vocabulary grew).",
            choices=("base", "adapter"),
        ),
        Option(
            "max_shard_size",
            "text",
            "Lay a folder out in new shards, e.g. of 5GB.",
            metavar="SIZE",
        ),
        _JOBS,
    ),
    "onnx": (
        _output("The .onnx to write (a folder, where it is two).", needed=True),
        *ADAPTER,
        _MODEL,
        *PROOF,
        *_GRAPH,
        Option("opset", "whole", "ONNX operator set (default: the exporter's own)."),
        *_CAPTURE,
        Option(
            "precision",
            "text",
            "What is written; a lower one is made from the proven fp32 and proven too.",
            default="fp32",
            metavar="[fp32|fp16|int8|int8-weights|int4]",
            shown=True,
        ),
        _LOSSY,
        _PROVIDER,
        _verify("Prove in ONNX Runtime before publishing."),
        _FORCE,
    ),
    "verify": (
        Option("base", "path", "What it was merged from."),
        Option(
            "adapters",
            "path",
            "What was merged into it; once for each.",
            default=(),
            many=True,
            long="adapter",
        ),
        *ADAPTER,
        _MODEL,
        *PROOF,
        *_GRAPH,
        Option("opset", "whole", "The operator set an .onnx was written in."),
        Option(
            "precision",
            "text",
            "That of an .onnx (default: by its manifest, or fp32).",
            metavar="NAME",
        ),
        _LOSSY,
        _PROVIDER,
        *_CAPTURE,
    ),
    "unmerge": (
        Option("undo", "path", "What merge --undo FILE wrote.", needed=True),
        _output("Where the base goes.", needed=True),
        Option("force", "flag", "Replace an earlier export.", default=False),
        _JOBS,
    ),
    "inspect": (),
}
"""The options of each verb, in the order in which `--help` shows them."""
