"""One way to call a model by input names and to name what it returns.

The tracer names the graph's outputs by it. The checks that compare torch with the graph call the
model by it. Both then mean the same outputs by a name.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_export.errors import InputError, LoraExportError, UsageError
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from torch import Tensor, nn

FAILURES = (
    RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError,
    ArithmeticError, ImportError,
)  # fmt: skip
"""The errors that user models and torch's exporter raise; torch's own are RuntimeErrors."""

SINGLE = "output"
"""The name of an output that is the only one."""

_NO_FACTORS = re.compile(r"no attribute 'lora_[AB]'")
_FACTORS_HINT = (
    "a graph is made of plain layers, without factors: let forward ask `if layer.r > 0` before it "
    "reads the factors of a layer, as loralib's layers do"
)
_INPUTS_HINT = "describe the inputs with --input, or give working ones with --inputs FILE.npz"


@contextmanager
def user_code(problem: str, where: str = "", hint: str = "--debug shows where") -> Iterator[None]:
    """Run code of the user; its prints go to stderr, as stdout holds the results.

    Args:
        problem: begins the message of an error, before what the code raised.
        where: the function or the option that the code comes from.
        hint: what the user can do about an error.

    Raises:
        UsageError: the code raised anything, or called sys.exit.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except LoraExportError:
        raise
    except (Exception, SystemExit) as error:
        reason = reason_of(error)
        message = f"{problem} {type(error).__name__}: {reason}"
        if isinstance(error, AttributeError) and _NO_FACTORS.search(reason):
            hint = _FACTORS_HINT
        raise UsageError(message, where=where, hint=hint, cause="usage/model-run") from error


def call_model(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Call the model, without gradients and without a key-value cache, and name its outputs.

    Inputs are passed by name when the names are parameters of `forward`, else by position in the
    order given. Outputs are named by `name_outputs`.

    Raises:
        UsageError: some, but not all names are parameters of `forward`, or the model raises.
        InputError: it returns something else than tensors.
    """
    import torch

    shapes = ", ".join(f"{name}{list(tensor.shape)}" for name, tensor in inputs.items())
    call = bind_call(model, list(inputs), model)
    problem, hint = f"the model cannot be called with {shapes}:", _INPUTS_HINT
    with torch.no_grad(), without_cache(model), user_code(problem, hint=hint):
        return name_outputs(call(inputs), taken=inputs)


def bind_call(
    model: nn.Module, names: Sequence[str], called: Callable[..., object] | None = None
) -> Callable[[Mapping[str, Tensor]], object]:
    """Return a function that calls `model` with inputs of these names, by keyword or by position.

    called: the callable to call; by default `model.forward`. The model itself also runs its hooks.

    Raises:
        UsageError: some, but not all names are parameters of `forward`.
    """
    forward = model.forward if called is None else called
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    known = [name for name in names if name in parameters]
    if len(known) == len(names) or (known and open_ended):
        return lambda inputs: forward(**inputs)
    if known:
        unknown = [name for name in names if name not in parameters]
        raise UsageError(
            f"the model's forward has no parameter {', '.join(unknown)}",
            where="--input",
            hint=f"its parameters are: {', '.join(parameters)}",
            cause="usage/model-inputs",
        )
    return lambda inputs: forward(*(inputs[name] for name in names))


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Switch `config.use_cache` off in the block: the cache is state, not a result.

    The configurations of inner models are switched off too. Of a model of text and images the text
    model's decides.
    """
    configs = {id(found): found for found in map(_config_of, model.modules())}
    cached: list[Any] = [found for found in configs.values() if getattr(found, "use_cache", False)]
    for config in cached:
        config.use_cache = False
    try:
        yield
    finally:
        for config in cached:
            config.use_cache = True


def _config_of(module: nn.Module) -> object:
    return getattr(module, "config", None)


def name_outputs(returned: object, *, taken: Container[str] = ()) -> dict[str, Tensor]:
    """Flatten the result of a model into named tensors.

    A single tensor is named `output`. A mapping or ModelOutput gives its keys (logits,
    last_hidden_state, ...), a named tuple its fields, a tuple or list `output_0`, `output_1`, ...
    Deeper levels are joined by a dot. None is left out. A name in `taken` (the inputs') gets the
    prefix `output.`, as a graph has one space of names.

    Raises:
        InputError: there is no tensor, or something that is neither tensor nor container.
    """
    outputs = {
        f"{SINGLE}.{name}" if name in taken else name: tensor
        for name, tensor in _leaves(returned, "")
    }
    if not outputs:
        raise InputError(
            "the model returns no tensor",
            hint="forward must return its results",
            cause="input/model-output",
        )
    return outputs


def _leaves(value: object, path: str) -> Iterator[tuple[str, Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield path or SINGLE, value
    elif value is not None:
        for key, item in _items(value, path):
            yield from _leaves(item, key)


def _items(value: object, path: str) -> list[tuple[str, Any]]:
    """List the members of a container, each with its path."""
    if isinstance(value, Mapping):
        return [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _items(dict(zip(value._fields, value, strict=True)), path)
    if isinstance(value, Sequence) and not isinstance(value, str):
        stem = path or SINGLE
        return [(f"{stem}_{place}", item) for place, item in enumerate(value)]
    raise InputError(
        f"the model returns a {type(value).__name__} where a tensor is expected",
        where=path,
        hint="wrap the model so that it returns tensors, tuples or dicts of tensors",
        cause="input/model-output",
    )
