"""Convolutions as PEFT adapts them: a convolution with A, then one with B of size 1 x 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import FitError
from lora_export.verification.formulas.live_output import adds
from lora_export.verification.formulas.second_layer import convolution_of
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def kernel_update(_: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of the unscaled update, (rows, in * kernel): B is 1 x 1, so it is a product.

    The arguments are those of signatures.Formula.
    """
    a, b = factors["A"], factors["B"]
    return b.reshape(b.shape[:2])[rows] @ a.reshape(len(a), -1)


def live_kernel(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:
    """Run lora_B(lora_A(x)) of PEFT 0.21.2, tuners.lora.layer._ConvNd.

    PEFT gives lora_A the layer's stride and padding, but neither its dilation nor its padding mode.
    The arguments are those of signatures.LivePart.

    Raises:
        FitError: the layer has a dilation or a padding mode.
    """
    ignored = [name for name in ("dilation", "padding_mode") if not _is_usual(module, name)]
    if ignored:
        message = f"the layer has {ignored[0]} = {getattr(module, ignored[0])}, which PEFT leaves "
        hint = "the merged layer cannot be equal to what was trained: leave the layer out"
        raise FitError(
            f"{message}out of its lora_A", where=delta.module, hint=hint, cause="fit/unusable-layer"
        )
    convolve = convolution_of(module)
    between = convolve(x, factors["A"], None, module.stride, module.padding)
    result: torch.Tensor = convolve(between, factors["B"])
    return result


def _is_usual(module: Any, name: str) -> bool:
    value = getattr(module, name)
    return value == "zeros" if isinstance(value, str) else all(size == 1 for size in value)


PROOF = ProofOfKind("peft_conv", formula=kernel_update, live_output=adds(live_kernel))
