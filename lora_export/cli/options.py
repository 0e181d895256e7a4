"""The options that several commands share; each may also be given as LORA_EXPORT_<NAME>."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.api.proving import ProofOptions
    from lora_export.planning.request import AdapterOptions

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

F = TypeVar("F")


def option(*names: str, **settings: Any) -> Decorator:  # noqa: ANN401 - click's own
    """click.option with its environment variable, named after the long option."""
    long = next(name for name in names if name.startswith("--")).partition("/")[0]
    variable = f"LORA_EXPORT_{long.removeprefix('--').replace('-', '_').upper()}"
    return click.option(*names, envvar=variable, show_envvar=False, **settings)


def together(*decorators: Decorator) -> Decorator:
    """Several decorators as one, in the order in which --help shows them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


adapter_options = together(
    option("--alpha", type=float, help="lora_alpha of the training; never guessed."),
    option("--enable-lora", metavar="1,0,1", help="The adapted blocks of every MergedLinear."),
    option(
        "--fan-in-fan-out/--no-fan-in-fan-out",
        default=None,
        help="Square weights are stored (in, out), as by GPT-2's Conv1D, or (out, in).",
    ),
    option(
        "--hparams",
        type=click.Path(path_type=Path),
        help="TOML or JSON file with these facts, also per module ([[module]] match = GLOB).",
    ),
    option("--dialect", help="How to read the adapter, where its file leaves it open."),
    option(
        "--weight", multiple=True, type=float, help="Strength, once for each adapter (default 1)."
    ),
    option(
        "--recipe",
        type=click.Choice(["auto", "peft", "peft-safe", "exact"]),
        default="auto",
        show_default=True,
        help="auto: the bits of loralib's eval() or PEFT's merge_and_unload(); peft-safe: with "
        "safe_merge=True; exact: float32 sum, one rounding.",
    ),
    option(
        "--tied",
        type=click.Choice(["untie", "eval", "error"]),
        default="untie",
        show_default=True,
        help="Tied embeddings of which one is adapted: separate them, do as loralib, or refuse.",
    ),
    option("--rename", metavar="OLD=NEW", help="Change of prefix from adapter to base names."),
    option(
        "--allow-unmatched", multiple=True, metavar="GLOB", help="Adapter tensors to leave out."
    ),
    option("--allow-new", multiple=True, metavar="GLOB", help="Adapter tensors the base may lack."),
    option("--allow-noop", is_flag=True, help="Accept updates that change nothing."),
    option(
        "--unmerged-base",
        is_flag=True,
        help="BASE is a training checkpoint with factors in it, and its weights are unmerged.",
    ),
)

model_options = together(
    option(
        "--model",
        metavar="MODULE:FACTORY",
        help="Your own model: package.module:build or path/to/file.py:build. Its code runs.",
    ),
    option(
        "--input",
        "input_",
        multiple=True,
        metavar="NAME=DTYPE[DIMS]<HIGH",
        help="A model input, e.g. 'input_ids=int64[batch,sequence]<30522'.",
    ),
    option(
        "--inputs",
        type=click.Path(path_type=Path),
        help="Your own probe inputs, as an .npz file; with --model they may declare the inputs.",
    ),
    option("--atol", type=float, help="Absolute tolerance instead of the derived one."),
    option("--rtol", type=float, help="Tolerance relative to the largest output."),
    option("--seed", type=int, default=0, show_default=True, help="Seed of the probes."),
)

lossy_option = option(
    "--allow-lossy", is_flag=True, help="Accept rounding that outweighs what the adapter changes."
)

provider_option = option(
    "--provider",
    multiple=True,
    metavar="NAME",
    help="ONNX Runtime's execution provider to verify with, e.g. cuda (default: cpu).",
)

task_option = option(
    "--task",
    metavar="NAME",
    help="What the model does, e.g. text-classification, where config.json is not to decide.",
)

capture_options = together(
    option(
        "--capture-cache",
        type=click.Path(path_type=Path),
        help="Where captured graphs of Hugging Face folders are kept (default: the user's cache).",
    ),
    option("--no-capture-cache", is_flag=True, help="Capture the graph anew, and keep it nowhere."),
)

jobs_option = option(
    "--jobs", type=click.IntRange(min=1), help="Threads (default: one a processor)."
)

output_options = together(
    option("--json", "as_json", is_flag=True, help="Print one JSON object (docs/json.md)."),
    option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
    option("-v", "--verbose", is_flag=True, help="List every module and tensor."),
    option("--debug", is_flag=True, help="Show the traceback of an error."),
)


def adapter_settings(values: dict[str, Any]) -> AdapterOptions:
    """Take the values of `adapter_options` out of a command's parameters."""
    names = (
        "alpha", "enable_lora", "fan_in_fan_out", "hparams", "dialect", "weight", "recipe", "tied",
        "rename", "allow_unmatched", "allow_new", "allow_noop", "unmerged_base",
    )  # fmt: skip
    settings: AdapterOptions = {name: values.pop(name) for name in names}  # type: ignore[assignment]
    return settings


def given_only(settings: AdapterOptions, given: Sequence[str]) -> AdapterOptions:
    """The settings that the user really gave, for commands that have a manifest to fall back on."""
    kept: AdapterOptions = {k: v for k, v in settings.items() if k in given}  # type: ignore[assignment]
    return kept


def proof_options(values: dict[str, Any]) -> ProofOptions:
    """Take the values of `model_options`, less --model, and of --provider, if a command has it."""
    from lora_export.api.proving import ProofOptions

    return ProofOptions(
        input=tuple(values.pop("input_")),
        inputs=values.pop("inputs"),
        atol=values.pop("atol"),
        rtol=values.pop("rtol"),
        seed=values.pop("seed"),
        provider=tuple(values.pop("provider", ())),
    )
