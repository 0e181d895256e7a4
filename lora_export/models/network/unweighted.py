"""Builds a network of the user's code without memory for its weights."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

_REGISTER = nn.Module.register_parameter


@contextmanager
def without_weights() -> Iterator[None]:
    """Put every parameter that a module registers on the meta device, while it is entered.

    Buffers have their true values. accelerate's init_empty_weights does the same.
    """

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        _REGISTER(self, name, param)
        held: Any = self._parameters.get(name)
        if held is not None and held.device.type != "meta":
            self._parameters[name] = nn.Parameter(
                held.detach().to("meta"), requires_grad=held.requires_grad
            )

    nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = _REGISTER  # type: ignore[method-assign]
