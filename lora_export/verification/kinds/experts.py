"""LoRA on a parameter itself (PEFT's target_parameters): stacked experts, or one matrix.

The formula follows the layout of PEFT's factors, with no reshape and no einsum. The live branch is
the forward of PEFT 0.21.2, tuners.lora.layer.ParamWrapper: while the module runs, it sees the
parameter plus its update. The module may use the parameter as it likes, so there is no output to
which a branch could be added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.tensors import read_tensor
from lora_export.verification.formulas.scaling import scaling_of
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def _formula(delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of the unscaled update, each from its own expert's factors.

    Expert e has rows e*r to (e+1)*r of A, and the columns of B whose number is e modulo E.
    """
    import torch

    a, b = factors["A"], factors["B"]
    count = len(a) // delta.rank
    height = a.shape[1] if delta.fan_in_fan_out else len(b)
    places = rows + delta.start
    found = a.new_empty(len(rows), len(b) if delta.fan_in_fan_out else a.shape[1])
    for expert in torch.unique(places // height).tolist():
        mine = places // height == expert
        inside = places[mine] - expert * height
        down, up = a[expert * delta.rank : (expert + 1) * delta.rank], b[:, expert::count]
        found[mine] = down[:, inside].T @ up.T if delta.fan_in_fan_out else up[inside] @ down
    return found


class ParameterBranch:
    """Hooks that replace a parameter while its module's forward runs, and count the calls."""

    def __init__(self, module: nn.Module, delta: Delta) -> None:
        """Attach to the module that owns the parameter."""
        self.delta = delta
        self.calls = 0
        self._factors = {role: read_tensor(ref) for role, ref in delta.factors.items()}
        self._own: nn.Parameter | None = None
        module.register_forward_pre_hook(self._lend)
        module.register_forward_hook(self._return, prepend=True, always_call=True)

    def _lend(self, module: nn.Module, _: Any) -> None:
        from torch import nn

        self.calls += 1
        own = self._own = module.get_parameter(self.delta.parameter)
        updated = nn.Parameter(self._updated(own), requires_grad=False)
        setattr(module, self.delta.parameter, updated)

    def _return(self, module: nn.Module, _: Any, __: Any) -> None:
        if self._own is not None:
            setattr(module, self.delta.parameter, self._own)
            self._own = None

    def _updated(self, own: torch.Tensor) -> torch.Tensor:
        """Compute `baddbmm` of the parameter and both factors, as PEFT's _LoraFactorsProxy does."""
        import torch

        a, b = (self._factors[role].to(own.dtype) for role in "AB")
        down = a.view(-1, self.delta.rank, a.shape[1])
        up = b.reshape(len(b), self.delta.rank, -1).permute(2, 0, 1)
        left, right = (down.mT, up.mT) if self.delta.fan_in_fan_out else (up, down)
        stack = own if own.ndim > 2 else own[None]
        updated = torch.baddbmm(stack, left, right, alpha=scaling_of(self.delta))
        return updated.view_as(own)


PROOF = ProofOfKind("experts", formula=_formula, live_parameter=ParameterBranch)
