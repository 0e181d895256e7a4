"""Live branches of PEFT 0.21.2's layers that are no plain product: DoRA, convolutions, biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import FitError
from lora_export.verification.expected import scaling_of
from lora_export.verification.token_rows import embed_scale

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from lora_export.records import Delta
    from lora_export.verification.expected import Factors


def _convolution(module: Any) -> Callable[..., torch.Tensor]:  # noqa: ANN401
    import torch.nn.functional as F  # noqa: N812

    convolve: Callable[..., torch.Tensor] = (F.conv1d, F.conv2d, F.conv3d)[module.weight.dim() - 3]
    return convolve


def conv_branch(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """lora_B(lora_A(x)) of tuners.lora.layer._ConvNd.

    PEFT gives lora_A the layer's stride and padding, and neither its dilation nor its padding mode.
    """
    ignored = [name for name in ("dilation", "padding_mode") if not _is_usual(module, name)]
    if ignored:
        message = f"the layer has {ignored[0]} = {getattr(module, ignored[0])}, which PEFT leaves "
        hint = "the merged layer cannot be equal to what was trained: leave the layer out"
        raise FitError(f"{message}out of its lora_A", where=delta.module, hint=hint)
    convolve = _convolution(module)
    between = convolve(x, factors["A"], None, module.stride, module.padding)
    result: torch.Tensor = convolve(between, factors["B"])
    return result


def _is_usual(module: Any, name: str) -> bool:  # noqa: ANN401
    value = getattr(module, name)
    return value == "zeros" if isinstance(value, str) else all(size == 1 for size in value)


def bias_branch(module: Any, _: Any, factors: Factors, __: Delta) -> torch.Tensor:  # noqa: ANN401
    """The bias of lora_B, for every place of a convolution's output."""
    return factors["bias"].view(-1, *(1,) * (module.weight.dim() - 2))


def dora_linear(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """tuners.lora.dora.DoraLinearLayer.forward, on the base's own output without its bias."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    scaling = scaling_of(delta)
    weight = module.weight.T if delta.fan_in_fan_out else module.weight
    low_rank = factors["B"] @ factors["A"]
    factor = factors["M"] / torch.linalg.vector_norm(weight + scaling * low_rank, dim=1)
    branch = F.linear(F.linear(x, factors["A"]), factors["B"]) * scaling
    change: torch.Tensor = (factor - 1) * F.linear(x, weight) + factor * branch
    return change


def dora_embedding(module: Any, ids: Any, factors: Factors, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """tuners.lora.variants.DoraEmbeddingVariant.forward."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    scaling = scaling_of(delta)
    low_rank = factors["B"] @ factors["A"]
    length = torch.linalg.vector_norm(module.weight.T + scaling * low_rank, dim=1)
    factor = factors["M"] / length
    branch = F.embedding(ids, factors["A"].T) @ factors["B"].T * scaling
    change = (factor - 1) * F.embedding(ids, module.weight) + factor * branch
    scaled: torch.Tensor = change * embed_scale(module)
    return scaled


def dora_conv(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """tuners.lora.dora._DoraConvNdLayer.forward, which takes its lengths of a product B A."""
    import torch

    scaling = scaling_of(delta)
    a, b = factors["A"], factors["B"]
    low_rank = (b.reshape(-1, len(a)) @ a.reshape(len(a), -1)).reshape(module.weight.shape)
    moved = (module.weight + scaling * low_rank).flatten(1)
    ones = (1,) * (module.weight.dim() - 2)
    factor = (factors["M"].flatten() / torch.linalg.vector_norm(moved, dim=1)).view(-1, *ones)
    base = _convolution(module)(
        x, module.weight, None, module.stride, module.padding, module.dilation
    )
    branch = conv_branch(module, x, factors, delta) * scaling
    change: torch.Tensor = (factor - 1) * base + factor * branch
    return change
