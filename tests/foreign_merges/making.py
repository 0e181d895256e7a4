"""How wrong merges are made, with PEFT's and transformers' own code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from foreign_merges.places import Place, changed, layers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ALL = 6
"""Adapted modules of a base: query, key and value of two layers."""


@dataclass(frozen=True)
class Mistake:
    """One wrong merge."""

    make: Callable[[Place], None]
    #: The code of the first finding, and words of its message.
    code: str
    words: str
    #: How many names the finding has, or the names themselves.
    names: int | Sequence[str]
    base: str = "llama"
    adapter: str = "plain"
    dtype: str = "float32"
    #: Further adapters, by name.
    more: Sequence[str] = ()
    #: Keywords of verify.
    options: Mapping[str, Any] = field(default_factory=dict)


def saved(merge: Callable[[Place], Any], **options: Any) -> Callable[[Place], None]:
    return lambda place: merge(place).save_pretrained(place.out, **options)


def without(*names: str) -> Callable[[Place], None]:
    """Return what merges, and then puts the base's tensors of these names back."""

    def make(place: Place) -> None:
        merged, base = place.merge(), place.load().state_dict()
        for name in names:
            merged.get_parameter(name).data = base[name].clone()
        merged.save_pretrained(place.out)

    return make


def swapped(place: Place) -> None:
    """Add the update of the key to the query, and that of the query to the key."""
    model = place.peft()
    updates = {name: layer.get_delta_weight("default") for name, layer in layers(model)}
    merged = place.load()
    for name, update in updates.items():
        other = name.replace("q_proj", "?").replace("k_proj", "q_proj").replace("?", "k_proj")
        weight = merged.get_submodule(other.removeprefix("base_model.model.")).weight
        weight.data += update
    merged.save_pretrained(place.out)


def added(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Place], None]:
    """Return what adds every update by hand, changed before."""

    def make(place: Place) -> None:
        merged, model = place.load(), place.peft()
        for name, layer in layers(model):
            weight = merged.get_submodule(name.removeprefix("base_model.model.")).weight
            weight.data += change(layer.get_delta_weight("default"))
        merged.save_pretrained(place.out)

    return make


def edited(**changes: Any) -> Callable[[Place], None]:
    """Return what merges with another config of the adapter."""

    def make(place: Place) -> None:
        adapter = place.edited(**changes)
        place.peft(adapter=adapter).merge_and_unload().save_pretrained(place.out)

    return make


def combined(*adapters: str) -> Callable[[Place], None]:
    """Return what merges these adapters one after the other; PEFT sums them."""

    def make(place: Place) -> None:
        model = place.load()
        for name in adapters:
            adapter = place.inputs.adapter(place.base, name)
            model = place.peft(model, adapter).merge_and_unload()
        model.save_pretrained(place.out)

    return make


def on_other_base(share: float) -> Callable[[Place], None]:
    """Return what merges into a base whose every tensor is changed by a share, as by training."""

    def make(place: Place) -> None:
        torch.manual_seed(5)
        base = place.load()
        for parameter in base.parameters():
            size = parameter.data.std().nan_to_num() + 1e-3
            parameter.data += torch.randn_like(parameter) * size * share
        place.peft(base).merge_and_unload().save_pretrained(place.out)

    return make


def noisy(tensor: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(6)
    return tensor + 0.01 * torch.randn_like(tensor)


def spotted(tensor: torch.Tensor) -> torch.Tensor:
    tensor[3, 5] += 0.1
    return tensor


def in_four_bits(weight: torch.Tensor) -> torch.Tensor:
    """Quantise in blocks of 64 to 16 levels, as NF4 does, and dequantise."""
    levels = torch.tensor(
        [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0, 0.0796, 0.1609, 0.2461,
         0.3379, 0.4407, 0.5626, 0.7230, 1]
    )  # fmt: skip
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks[..., None] / largest[..., None] - levels).abs().argmin(dim=-1)
    return (levels[nearest] * largest).reshape(weight.shape)


def in_eight_bits(weight: torch.Tensor) -> torch.Tensor:
    largest = weight.abs().amax(dim=1, keepdim=True)
    return (weight / largest * 127).round() * largest / 127


def on_quantised(quantise: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Place], None]:
    return saved(
        lambda place: place.peft(changed(place.load(), quantise, "proj.weight")).merge_and_unload()
    )


def renamed(
    change: Callable[[str], str], cast: Callable[[torch.Tensor], torch.Tensor] = torch.clone
) -> Callable[[Place], None]:
    """Return what merges, and then changes every name, and every tensor by `cast`."""

    def make(place: Place) -> None:
        place.merge().save_pretrained(place.out)
        place.rewrite({change(name): cast(tensor) for name, tensor in place.tensors().items()})

    return make


def never_merged(place: Place) -> None:
    """Save the weights of the PEFT model's own network, with base_layer and factors in them."""
    place.merge().save_pretrained(place.out)
    state = place.peft().base_model.model.state_dict()
    place.rewrite({name: tensor.clone() for name, tensor in state.items()})


def with_file(name: str, content: str | None = None) -> Callable[[Place], None]:
    """Return what merges rightly, and leaves a file of the adapter in the folder."""

    def make(place: Place) -> None:
        place.merge().save_pretrained(place.out)
        there = content if content is not None else (place.adapter / name).read_text()
        (place.out / name).write_text(there)

    return make


def with_config(**values: Any) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        merged = place.merge()
        for key, value in values.items():
            setattr(merged.config, key, value)
        merged.save_pretrained(place.out)

    return make


def tied_head(place: Place) -> None:
    merged = place.merge()
    merged.lm_head.weight.data = merged.model.embed_tokens.weight.data.clone()
    merged.save_pretrained(place.out)


def untied_head(place: Place) -> None:
    """Store the head beside the embedding, of which it is a copy."""
    place.merge().save_pretrained(place.out)
    tensors = place.tensors()
    place.rewrite({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()})


def resized(place: Place) -> None:
    merged = place.merge()
    merged.resize_token_embeddings(96)
    merged.save_pretrained(place.out)
