"""Bounds of what a config.json may ask for: it can name a billion layers in a few bytes.

A model is built on the meta device to learn its names, without a byte of weights. So the work is
compared with the tensors that the checkpoint holds.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_export.errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.records import Checkpoint

MODULES = 10_000
"""Modules, or layers, that need no explanation by the number of tensors."""

MODULES_A_TENSOR = 10
"""Further modules for each tensor; a layer has about two for each of its tensors."""

LABELS = 500_000
"""Labels of a classifier; transformers makes a name of each."""

_LAYERS = re.compile(r"(?:num_|n_)(?:\w+_)?layers?|\w+_layers|depths?")
_LABELS = re.compile(r"(?:num_|n_)(?:\w+_)?labels")


def bound_config(base: Checkpoint) -> None:
    """Refuse a config.json that names more layers or labels than any model has.

    Raises:
        LimitError: as above.
    """
    most = _modules_of(base)
    for key, value in _numbers(base.config):
        bound = most if _LAYERS.fullmatch(key) else LABELS if _LABELS.fullmatch(key) else value
        if value > bound:
            raise _too_many(f"{key} is above {bound:,}", base)


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of an object by key, with those of lists and of objects inside."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        for one in value if isinstance(value, list) else [value]:
            if type(one) is int:
                yield key, one


@contextmanager
def bounded_modules(base: Checkpoint) -> Iterator[None]:
    """Stop the building of a model inside the block that has too many modules.

    Raises:
        LimitError: its modules are too many for the tensors of the checkpoint.
    """
    from torch.nn.modules.module import register_module_module_registration_hook

    most, count = _modules_of(base), 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise _too_many(f"a model of more than {most:,} modules", base)

    hook = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def _modules_of(base: Checkpoint) -> int:
    return MODULES + MODULES_A_TENSOR * len(base.tensors())


def _too_many(what: str, base: Checkpoint) -> LimitError:
    hint = "check where the file comes from, or name a factory with --model"
    where = str(base.root / "config.json")
    text = f"{what}, for {len(base.tensors())} tensors"
    return LimitError(text, where=where, hint=hint, cause="limit/size")
