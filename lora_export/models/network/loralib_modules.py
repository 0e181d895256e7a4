"""loralib's modules in a user's model, known by their attributes: loralib is not imported.

The attributes are those of loralib 0.1.2, layers.LoRALayer and its subclasses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.layers import conv, embedding, linear, merged_linear
from lora_export.planning.names.base_names import without_wrappers
from lora_export.records import Facts, ModelFacts

if TYPE_CHECKING:
    from collections.abc import Container

    from torch import nn

_ATTRIBUTES = ("r", "lora_alpha")
FACTORS = ("lora_A", "lora_B")
"""The names of the factors in a module."""


def is_live(module: nn.Module) -> bool:
    """Return whether a module is loralib's, or alike by its attributes, and holds factors.

    PEFT's layers are not: their `lora_A` is a dict of adapters, not a tensor.
    """
    import torch

    factors = (getattr(module, name, None) for name in FACTORS)
    return all(hasattr(module, name) for name in _ATTRIBUTES) and all(
        isinstance(factor, torch.Tensor) for factor in factors
    )


def read_facts(model: nn.Module, source: str) -> ModelFacts:
    """Read the facts of every module, and the shapes, ties and shared modules of the model.

    Embeddings with max_norm are named. Shapes are those of the state dict without factors. source:
    names where the model comes from, for messages.

    Raises:
        UsageError: the scaling of a module is not lora_alpha / r.
    """
    from torch import nn

    modules = {}
    normed = set()
    named: dict[int, list[str]] = {}
    for wrapped, module in model.named_modules(remove_duplicate=False):
        name = without_wrappers(wrapped)
        named.setdefault(id(module), []).append(name)
        facts = _module_facts(module, f"{source} ({type(module).__name__})")
        if facts is not None:
            modules[name] = facts
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            normed.add(name)
    tensors = {
        without_wrappers(name): tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name.rpartition(".")[2] not in ("lora_A", "lora_B")
    }
    tied = tuple(tuple(map(without_wrappers, group)) for group in ties(model))
    shared = tuple(tuple(names) for names in named.values() if len(names) > 1)
    return ModelFacts(source, modules, tensors, tied, frozenset(normed), shared)


def ties(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """List groups of names that are one parameter, by the model's own names."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _module_facts(module: nn.Module, source: str) -> Facts | None:
    if is_live(module):
        return _live_facts(module, source)
    from torch import nn

    if isinstance(module, nn.Embedding):
        return Facts(kind=embedding.KIND.name, source=source)
    if isinstance(module, nn.Linear):
        transposed = getattr(module, "fan_in_fan_out", False)
        return Facts(fan_in_fan_out=bool(transposed), embeds=False, source=source)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return Facts(fan_in_fan_out=True, embeds=False, source=source)
    return None


def _live_facts(module: Any, source: str) -> Facts:
    scaling = getattr(module, "scaling", module.lora_alpha / module.r)
    # A quotient that was computed in another order may differ in its last bits.
    if abs(scaling - module.lora_alpha / module.r) > 1e-12 * abs(scaling):
        raise UsageError(
            f"scaling {scaling} is not lora_alpha / r = {module.lora_alpha} / {module.r}",
            where=source,
            hint="loralib 0.1.2 defines it so; set lora_alpha instead of scaling",
            cause="usage/model-function",
        )
    enable_lora = getattr(module, "enable_lora", None)
    return Facts(
        alpha=module.lora_alpha,
        fan_in_fan_out=getattr(module, "fan_in_fan_out", None),
        enable_lora=tuple(bool(block) for block in enable_lora) if enable_lora else None,
        kind=_kind(module),
        rank=module.r,
        source=source,
    )


def _kind(module: nn.Module) -> str:
    from torch import nn

    if hasattr(module, "enable_lora"):
        return merged_linear.KIND.name
    if hasattr(module, "conv"):
        return conv.KIND.name
    kind = embedding.KIND if isinstance(module, nn.Embedding) else linear.KIND
    return kind.name


def remove_factors(
    model: nn.Module, keep: Container[nn.Module] = (), *, zeros: bool = False
) -> None:
    """Turn every loralib module that is not in `keep` into the plain layer it is with r = 0.

    zeros: leave factors of zeros behind, outside the state dict. A forward of the user's own may
    read `lora_A` without a look at r, here or in the parent module.

    Raises:
        UsageError: a module is merged already, so its weight is no longer the base's.
    """
    import torch

    for name, module in model.named_modules():
        if is_live(module):
            if getattr(module, "merged", False):
                raise UsageError(
                    "the factory returns merged modules, whose weights are not the base's",
                    where=name,
                    hint="call no model.eval() in the factory: loralib merges in eval mode",
                    cause="usage/model-function",
                )
            if module in keep:
                continue
            plain = {role: torch.zeros_like(getattr(module, role).detach()) for role in FACTORS}
            for role, zero in plain.items():
                delattr(module, role)
                if zeros:
                    module.register_buffer(role, zero, persistent=False)
            module.r = 0


def keep_unmerged(model: nn.Module) -> None:
    """Let loralib's modules stay unmerged in eval mode, in place."""
    for module in model.modules():
        if is_live(module):
            module.merge_weights = False  # type: ignore[assignment]
