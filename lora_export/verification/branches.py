"""The unmerged model: live low-rank branches as forward hooks, sharing no code with the merge.

Each branch is the adapted layer's own forward of loralib 0.1.2, added to the layer's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.tensors import read_tensor
from lora_export.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from lora_export.records import Delta


class Branch:
    """A forward hook that adds one update to its layer's output; counts its calls."""

    def __init__(self, module: nn.Module, delta: Delta) -> None:
        """Attach to `module`, whose output dtype the branch follows."""
        self.delta = delta
        self.calls = 0
        self._factors = {role: read_tensor(ref) for role, ref in delta.factors.items()}
        self._form = form_of(module, delta)
        module.register_forward_hook(self, with_kwargs=True)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor:
        """Return the output with the branch added."""
        x = args[0] if args else next(iter(kwargs.values()))
        self.calls += 1
        a, b = (self._factors[role].to(output.dtype) for role in ("A", "B"))
        scale = self.delta.alpha / self.delta.rank * self.delta.weight
        added: torch.Tensor = self._form(module, x, a, b, self.delta) * scale
        return output + added


def form_of(module: nn.Module, delta: Delta) -> Callable[..., torch.Tensor]:
    """The branch for this update on this module.

    An embedding's update has the arithmetic of a transposed Linear's, so the module decides.
    """
    from torch import nn

    kind = "embedding" if isinstance(module, nn.Embedding) else delta.kind
    try:
        return FORMS[kind]
    except KeyError:
        raise FitError(f"no live branch for the layer kind {kind}", where=delta.module) from None


def _linear(_: nn.Module, x: Any, a: Any, b: Any, __: Delta) -> torch.Tensor:  # noqa: ANN401
    result: torch.Tensor = (x @ a.T) @ b.T
    return result


def _embedding(module: nn.Module, ids: Any, a: Any, b: Any, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """By ids, or as a linear layer stored (in, out), whose shapes are an embedding's."""
    import torch.nn.functional as F  # noqa: N812

    if ids.is_floating_point():
        return _linear(module, ids, a, b, delta)

    result: torch.Tensor = F.embedding(ids, a.T) @ b.T
    return result


def _conv(module: Any, x: Any, a: Any, b: Any, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """A second convolution beside the first: convolution is linear in its kernel."""
    layer = module if hasattr(module, "_conv_forward") else module.conv
    result: torch.Tensor = layer._conv_forward(x, (b @ a).reshape(delta.shape), None)  # noqa: SLF001
    return result


def _merged_linear(_: nn.Module, x: Any, a: Any, b: Any, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """Each enabled block has factors of its own; a disabled one adds zeros."""
    import torch

    downs = iter(a.split(delta.rank))
    ups = iter(b.chunk(sum(delta.enable_lora)))
    size = b.shape[0] // sum(delta.enable_lora)
    zeros = x.new_zeros((*x.shape[:-1], size))
    parts = [(x @ next(downs).T) @ next(ups).T if on else zeros for on in delta.enable_lora]
    return torch.cat(parts, dim=-1)


FORMS: dict[str, Callable[..., torch.Tensor]] = {
    "linear": _linear,
    "embedding": _embedding,
    "conv": _conv,
    "merged_linear": _merged_linear,
}
"""One branch a layer kind; a test holds the keys against the kinds."""
