"""Live branches of PEFT's tuners beside LoRA: the forward of each adapted layer (PEFT 0.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.expected import scaling_of

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.expected import Factors


def adalora(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """SVDLinear.forward: through A, the singular values, and B; a convolution by its kernel."""
    down = (factors["A"] * factors["E"]).T
    if len(delta.shape) > 2:  # noqa: PLR2004
        return beside(module, x, (down @ factors["B"].T).T.reshape(delta.shape))
    result: torch.Tensor = x @ down @ factors["B"].T
    return result


def loha(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """LoHaLayer._get_delta_activations: a second layer of the same kind."""
    import torch

    sides = []
    for side in "12":
        a, b, core = factors[f"w{side}_a"], factors[f"w{side}_b"], factors.get(f"t{side}")
        sides.append(a @ b if core is None else torch.einsum("ijkl,ip,jr->prkl", core, a, b))
    return beside(module, x, (sides[0] * sides[1]).reshape(delta.shape))


def lokr(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """LoKrLayer._get_delta_activations: a second layer of the same kind."""
    import torch

    w1 = factors["w1"] if "w1" in factors else factors["w1_a"] @ factors["w1_b"]
    if "w2" in factors:
        w2 = factors["w2"]
    elif "t2" in factors:
        w2 = torch.einsum("ijkl,ip,jr->prkl", factors["t2"], factors["w2_a"], factors["w2_b"])
    else:
        w2 = factors["w2_a"] @ factors["w2_b"]
    if w2.dim() == 4:  # noqa: PLR2004
        w1 = w1[:, :, None, None]
    return beside(module, x, torch.kron(w1, w2.contiguous()).reshape(delta.shape))


def vera(_: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """Linear.forward of tuners.vera."""
    import torch.nn.functional as F  # noqa: N812

    out, in_ = delta.shape[::-1] if delta.fan_in_fan_out else delta.shape
    inner = factors["lambda_d"] * F.linear(x, factors["A"][:, :in_])
    return factors["lambda_b"] * F.linear(inner, factors["B"][:out])


def beside(module: Any, x: Any, weight: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """What the module gives with `weight` and no bias."""
    import torch.nn.functional as F  # noqa: N812

    if weight.dim() == 2:  # noqa: PLR2004
        return F.linear(x, weight)
    layer = module if hasattr(module, "_conv_forward") else module.conv
    result: torch.Tensor = layer._conv_forward(x, weight, None)  # noqa: SLF001
    return result


def ia3(
    _: Any,  # noqa: ANN401
    __: Any,  # noqa: ANN401
    output: torch.Tensor,
    factors: Factors,
    delta: Delta,
) -> torch.Tensor:
    """Linear.forward of tuners.ia3: the output times l, which is the bias's share as well."""
    if delta.parameter == "bias":
        return output
    scales = _strength(factors, delta)
    return output * scales.reshape(-1, *(1 for _ in delta.shape[2:]))


def ia3_feedforward(
    module: Any,  # noqa: ANN401
    x: Any,  # noqa: ANN401
    _: torch.Tensor,
    factors: Factors,
    delta: Delta,
) -> torch.Tensor:
    """Linear.forward of tuners.ia3, of a feed-forward module: the input times l."""
    scales = _strength(factors, delta).reshape(-1, *(1 for _ in delta.shape[2:]))
    result: torch.Tensor = module.forward(x * scales)
    return result


def _strength(factors: Factors, delta: Delta) -> torch.Tensor:
    """The vector l, or with a user's weight w, what W + w * (l W - W) multiplies by."""
    weight = scaling_of(delta)
    scales = factors["L"].reshape(-1)
    return scales if weight == 1.0 else 1.0 + (scales - 1.0) * weight
