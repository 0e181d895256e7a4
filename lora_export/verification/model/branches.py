"""The unmerged model: live low-rank branches as forward hooks, sharing no code with the merge.

Each branch is the adapted layer's own forward, of loralib 0.1.2 or PEFT 0.21.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import ref

from lora_export.errors import FitError
from lora_export.verification import branches_peft, branches_tuners, fused_qkv, token_rows
from lora_export.verification.expected import factors_of, scaling_of
from lora_export.verification.parameter_branches import ParameterBranch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    import torch
    from torch import nn

    from lora_export.records import Delta
    from lora_export.verification.branches_attention import AttentionBranch
    from lora_export.verification.expected import Factors

    Form = Callable[[nn.Module, Any, torch.Tensor, Factors, Delta], torch.Tensor]
    Live: TypeAlias = "Branch | ParameterBranch | AttentionBranch"


def branch_of(module: nn.Module, delta: Delta) -> Live:
    """The live branch of `delta`, attached to `module`."""
    kind = PARAMETERS.get(delta.kind)
    return kind(module, delta) if kind else Branch(module, delta)


class Branch:
    """A forward hook that does one update's work on its layer's output; counts its calls.

    taken: dtype and shape of what the layer was given; None for an axis that differed.
    """

    def __init__(self, module: nn.Module, delta: Delta) -> None:
        """Attach to `module`, whose output dtype the branch follows."""
        self.delta = delta
        self._module = ref(module)  # which holds the branch: a circle would outlive the model
        self.calls = 0
        self.taken: tuple[str, tuple[int | None, ...]] = ("", ())
        self._factors = factors_of(delta, exact=False)
        self.form = form_of(module, delta)
        module.register_forward_hook(self, with_kwargs=True)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor:
        """Return the output as the unmerged layer gives it."""
        x = args[0] if args else next(iter(kwargs.values()))
        self._note(x)
        self.calls += 1
        factors = {role: factor.to(output.dtype) for role, factor in self._factors.items()}
        return self.form(module, x, output, factors, self.delta)

    def key(self) -> tuple[object, ...]:
        """Equal where a graph of two layers with their branches would have the same nodes."""
        delta = self.delta
        shapes = tuple((role, held.spec.shape) for role, held in delta.factors.items())
        return (
            type(self._module()), delta.kind, delta.shape, shapes, delta.fan_in_fan_out,
            delta.enable_lora, delta.heads, delta.by_group, delta.rule, delta.weight, self.taken,
        )  # fmt: skip

    def _note(self, x: torch.Tensor) -> None:
        """Remember what is taken, of the first runs, which are in float32."""
        dtype, shape = str(x.dtype).removeprefix("torch."), tuple(x.shape)
        seen = self.taken[1]
        if not self.calls:
            self.taken = (dtype, shape)
        elif dtype == self.taken[0] and len(seen) == len(shape):
            same = [old if old == new else None for old, new in zip(seen, shape, strict=True)]
            self.taken = (dtype, tuple(same))


@dataclass(frozen=True, slots=True)
class Site:
    """A layer with its live branch, and how many of the same form there are."""

    module: nn.Module
    branch: Branch
    times: int


def distinct_sites(branches: Sequence[Live]) -> list[Site]:
    """One layer of every form; empty where a branch is not on a layer, but on a parameter.

    A layer that is never called is none: an export with the LoRA in the graph would lack it, too.
    """
    groups: dict[tuple[object, ...], list[Branch]] = {}
    for branch in branches:
        if not isinstance(branch, Branch):
            return []
        if branch.calls:
            groups.setdefault(branch.key(), []).append(branch)
    sites = []
    for group in groups.values():
        module = group[0]._module()  # noqa: SLF001 - of the same file
        sites += [Site(module, group[0], len(group))] if module is not None else []
    return sites


def form_of(module: nn.Module, delta: Delta) -> Form:
    """The branch for this update on this module.

    An embedding's update has the arithmetic of a transposed Linear's, so the module decides.
    """
    from torch import nn

    looks_up = delta.kind == "linear" and isinstance(module, nn.Embedding)
    kind = "embedding" if looks_up else delta.kind
    try:
        return FORMS[kind]
    except KeyError:
        raise FitError(f"no live branch for the layer kind {kind}", where=delta.module) from None


def _adds(part: Callable[..., torch.Tensor]) -> Form:
    """A branch whose scaled result is added to the layer's output."""

    def form(
        module: nn.Module,
        x: Any,  # noqa: ANN401
        output: torch.Tensor,
        factors: Factors,
        delta: Delta,
    ) -> torch.Tensor:
        added: torch.Tensor = part(module, x, factors, delta) * scaling_of(delta)
        return output + added

    return form


def _changes(part: Callable[..., torch.Tensor]) -> Form:
    """A branch that changes the layer's output; the user's weight is of the whole change."""

    def form(
        module: nn.Module,
        x: Any,  # noqa: ANN401
        output: torch.Tensor,
        factors: Factors,
        delta: Delta,
    ) -> torch.Tensor:
        alone = replace(delta, weight=1.0)
        return output + part(module, x, factors, alone) * delta.weight

    return form


def _linear(_: nn.Module, x: Any, factors: Factors, __: Delta) -> torch.Tensor:  # noqa: ANN401
    result: torch.Tensor = (x @ factors["A"].T) @ factors["B"].T
    return result


def _embedding(module: nn.Module, ids: Any, factors: Factors, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """By ids, or as a linear layer stored (in, out), whose shapes are an embedding's."""
    import torch.nn.functional as F  # noqa: N812

    if ids.is_floating_point():
        return _linear(module, ids, factors, delta)

    result: torch.Tensor = F.embedding(ids, factors["A"].T) @ factors["B"].T
    scaled: torch.Tensor = result * token_rows.embed_scale(module)
    return scaled


def _conv(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """A second convolution beside the first: convolution is linear in its kernel."""
    return branches_tuners.beside(module, x, (factors["B"] @ factors["A"]).reshape(delta.shape))


def _merged_linear(_: nn.Module, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:  # noqa: ANN401
    """Each enabled block has factors of its own; a disabled one adds zeros."""
    import torch

    b = factors["B"]
    downs = iter(torch.split(factors["A"], delta.rank))
    ups = iter(b.chunk(sum(delta.enable_lora)))
    size = b.shape[0] // sum(delta.enable_lora)
    zeros = x.new_zeros((*x.shape[:-1], size))
    parts = [(x @ next(downs).T) @ next(ups).T if on else zeros for on in delta.enable_lora]
    return torch.cat(parts, dim=-1)


FORMS: dict[str, Form] = {
    "linear": _adds(_linear),
    "embedding": _adds(_embedding),
    "conv": _adds(_conv),
    "merged_linear": _adds(_merged_linear),
    "litgpt_qkv": _adds(fused_qkv.branch),
    "peft_conv": _adds(branches_peft.conv_branch),
    "lora_bias": _adds(branches_peft.bias_branch),
    "dora_linear": _changes(branches_peft.dora_linear),
    "dora_embedding": _changes(branches_peft.dora_embedding),
    "dora_conv": _changes(branches_peft.dora_conv),
    "adalora": _adds(branches_tuners.adalora),
    "loha": _adds(branches_tuners.loha),
    "lokr": _adds(branches_tuners.lokr),
    "vera": _adds(branches_tuners.vera),
    "ia3": branches_tuners.ia3,
    "ia3_feedforward": branches_tuners.ia3_feedforward,
    "token_rows": token_rows.branch,
}
"""One branch a layer kind: (module, its input, its output, factors, delta) -> the unmerged layer's
output. A test holds the keys against the kinds."""


def attention_branch(module: nn.Module, delta: Delta) -> AttentionBranch:
    """See branches_attention, which needs torch to be imported."""
    from lora_export.verification.branches_attention import AttentionBranch

    return AttentionBranch(module, delta)


PARAMETERS: dict[str, Callable[[nn.Module, Delta], Live]] = {
    "experts": ParameterBranch,
    "attention_in": attention_branch,
    "attention_out": attention_branch,
}
"""Kinds whose update the module's own forward must see, instead of a form."""
