"""Every option once, for the command line and for the library's keywords.

A command makes its flags from this table. A verb of `lora_export.api` checks its keywords against
it. Both take the same names and the same values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Takes = Literal["text", "path", "factory", "number", "whole", "flag", "either", "choice", "blocks"]


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `--name` with dashes on the command line, `name` as a keyword."""

    name: str
    """The keyword."""
    takes: Takes
    """The kind of value.

    "whole" is a whole number. "flag" is True or False. "either" is True, False or None, with a flag
    for each of the first two. "blocks" is `1,0,1`, or a sequence of bool. "factory" is
    `package.module:function` or `path/to/file.py:function`.
    """
    help: str
    """One or two sentences for `--help`."""
    default: object = None
    """The value when the option is not given; `()` where `many` may be given."""
    choices: tuple[str, ...] = ()
    """The values of a "choice"."""
    many: bool = False
    """Whether the option may be given several times; the keyword takes a list then."""
    least: int | None = None
    """The smallest value of a "whole", where it has one."""
    metavar: str | None = None
    """What `--help` shows for the value."""
    long: str = ""
    """The long flag without dashes in front, where it is not the name with dashes."""
    short: str = ""
    """The one-letter flag."""
    opposite: str = ""
    """The second flag of an "either", or of a "flag" that is on by default."""
    needed: bool = False
    """Whether the verb refuses to run without the option."""
    shown: bool = False
    """Whether `--help` shows the default."""
    likely: tuple[str, ...] = ()
    """Values that a shell completes for a "text"; others may be right."""

    @property
    def flag(self) -> str:
        """Return the long flag with its dashes, for messages."""
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

_FOLLOW_LINKS = Option(
    "follow_links",
    "flag",
    "Accept symbolic links that lead out of a model's or an adapter's folder.",
    default=False,
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
        "Refuse a base other than the one that the adapter names, instead of a warning.",
        default=False,
    ),
    _FOLLOW_LINKS,
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
    Option(
        "proof",
        "choice",
        "How far to prove: the model's outputs as well, or the weights alone.",
        default="model",
        choices=("model", "weights"),
        shown=True,
    ),
    Option(
        "require",
        "choice",
        "The proof that must be made: fail where it cannot be run, instead of a note.",
        choices=("model",),
    ),
)
"""How a model is run to be proven."""

_MODEL = Option(
    "model",
    "factory",
    "Your own model: package.module:build or path/to/file.py:build. Its code runs.",
    metavar="MODULE:FACTORY",
)
_TASK = Option(
    "task",
    "text",
    "What the model does, e.g. text-classification, instead of what config.json names.",
    metavar="NAME",
)
_JOBS = Option("jobs", "whole", "Threads (default: one a processor).", least=1)
_FORCE = Option("force", "flag", "Replace an earlier export, and nothing else.", default=False)
_PRECISIONS = ("fp32", "fp16", "int8", "int8-weights", "int4")
_PROVIDER = Option(
    "provider",
    "text",
    "ONNX Runtime's execution provider to verify with, e.g. cuda (default: cpu).",
    default=(),
    many=True,
    metavar="NAME",
    likely=("cpu", "cuda"),
)
_LAYOUTS = ("onnx", "hf", "genai")
_LOSSY = Option(
    "allow_lossy",
    "flag",
    "Accept rounding that outweighs what the adapter changes.",
    default=False,
)
_REPORT = Option(
    "report",
    "path",
    "Write what was found as one page: FILE.html to look at, FILE.md for a pull request.",
    metavar="FILE",
)
_GRAPH = (
    _TASK,
    Option(
        "static",
        "text",
        "A dimension of the graph's inputs that is fixed, e.g. sequence=512.",
        default=(),
        many=True,
        metavar="NAME=SIZE",
    ),
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
        "Capture the graph again, and keep it nowhere.",
        default=False,
    ),
)


_DTYPE = Option(
    "dtype",
    "choice",
    "Dtype of every floating tensor of the result (default: the base's): merged in float32, "
    "rounded once.",
    choices=("keep", "float32", "float16", "bfloat16"),
)


def _verify(text: str) -> Option:
    return Option("verify", "flag", text, default=True, opposite="no-verify", shown=True)


def _output(text: str, *, needed: bool) -> Option:
    return Option("output", "path", text, short="o", needed=needed)


OUTPUT = (
    Option("as_json", "flag", "Print one JSON object (docs/json.md).", default=False, long="json"),
    Option("quiet", "flag", "Print nothing but errors.", default=False, short="q"),
    Option(
        "verbose",
        "flag",
        "List every module, and every tensor that changes.",
        default=False,
        short="v",
    ),
    Option("debug", "flag", "Show the traceback of an error.", default=False),
)
"""How the command line prints what a verb returns; no keywords of the library."""

INIT = (
    Option(
        "init",
        "flag",
        "Write a first suite for BASE and its ADAPTERS, and run nothing.",
        default=False,
    ),
    _output("The suite that --init writes (default: parity.toml).", needed=False),
)
"""Options of the command `parity` that write a suite; no keywords of the library."""

_DRY_RUN = Option(
    "dry_run", "flag", "Print the plan and the room it needs; write nothing.", default=False
)

VERBS: Mapping[str, tuple[Option, ...]] = {
    "merge": (
        _output("The file or folder to write.", needed=False),
        *ADAPTER,
        _MODEL,
        *PROOF,
        _TASK,
        _verify("Prove before publishing."),
        _DRY_RUN,
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
        _DTYPE,
        Option(
            "max_shard_size",
            "text",
            "Lay a folder out in new shards, e.g. of 5GB.",
            metavar="SIZE",
        ),
        _REPORT,
        _JOBS,
    ),
    "onnx": (
        _output("The .onnx to write (a folder, where there are several).", needed=False),
        *ADAPTER,
        _MODEL,
        *PROOF,
        *_GRAPH,
        Option("opset", "whole", "ONNX operator set (default: the exporter's own)."),
        *_CAPTURE,
        Option(
            "precision",
            "text",
            "Precision of the file; a lower one is made from the proven fp32 and proven too. With "
            "--layout hf several: fp32,int8.",
            default="fp32",
            metavar="[fp32|fp16|int8|int8-weights|int4]",
            likely=_PRECISIONS,
            shown=True,
        ),
        Option(
            "int8",
            "choice",
            "The codes of --precision int8 (default: signed, unless this processor overflows).",
            choices=("signed", "unsigned"),
        ),
        Option(
            "layout",
            "choice",
            "A bare file; or a folder as Hugging Face's clients (transformers.js, Optimum) or "
            "onnxruntime-genai load it.",
            default="onnx",
            choices=_LAYOUTS,
            shown=True,
        ),
        _LOSSY,
        _PROVIDER,
        _verify("Prove in ONNX Runtime before publishing."),
        _REPORT,
        _DRY_RUN,
        _FORCE,
    ),
    "verify": (
        Option("base", "path", "The base it was merged from."),
        Option(
            "adapters",
            "path",
            "An adapter that was merged into it; once for each.",
            default=(),
            many=True,
            long="adapter",
        ),
        *ADAPTER,
        _MODEL,
        *PROOF,
        _DTYPE,
        *_GRAPH,
        Option("opset", "whole", "The operator set an .onnx was written in."),
        Option(
            "precision",
            "text",
            "Precision of an .onnx (default: the manifest's, else fp32).",
            metavar="NAME",
            likely=_PRECISIONS,
        ),
        Option(
            "layout",
            "choice",
            "How a folder of ONNX files lies (default: the manifest's, else onnx).",
            choices=_LAYOUTS,
        ),
        _LOSSY,
        _PROVIDER,
        *_CAPTURE,
        _REPORT,
    ),
    "unmerge": (
        Option("undo", "path", "The file that merge --undo wrote.", needed=True),
        _output("Where the base goes.", needed=True),
        Option("force", "flag", "Replace an earlier export.", default=False),
        _FOLLOW_LINKS,
        _JOBS,
    ),
    "inspect": (),
    "parity": (
        Option("case", "text", "Run these cases alone.", default=(), many=True, metavar="GLOB"),
        Option("junit", "path", "Write the rows as JUnit XML.", metavar="FILE"),
        Option("report", "path", "Write the rows as a page: FILE.html or FILE.md.", metavar="FILE"),
        Option(
            "update",
            "flag",
            "Write the digests, errors and sizes that were found into the goldens.",
            default=False,
        ),
        Option(
            "no_cache",
            "flag",
            "Run rows again that have passed with the same content.",
            default=False,
        ),
        Option("keep", "path", "Keep the outputs in this folder.", metavar="DIR"),
        Option(
            "exitfirst",
            "flag",
            "Stop at the first row that does not hold.",
            default=False,
            short="x",
        ),
        Option("strict", "flag", "Fail where a case is skipped.", default=False),
    ),
}
"""The options of each verb, in the order in which `--help` shows them."""
