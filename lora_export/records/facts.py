"""What no adapter file holds about a model's modules.

Options, a manifest, litgpt's files and the user's own model give these facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Facts:
    """What a loralib file does not hold about a module; None for what is not known.

    Reproduces the constructor arguments of loralib 0.1.2 layers.
    """

    alpha: float | None = None
    fan_in_fan_out: bool | None = None
    enable_lora: tuple[bool, ...] | None = None
    kind: str | None = None
    """The name of the layer kind."""
    rank: int | None = None
    """Read from a model's own factors, a manifest or litgpt's files."""
    embeds: bool | None = None
    """False for a plain layer that is no embedding."""
    n_head: int | None = None
    """Heads of the query in litgpt's fused query, key and value."""
    n_query_groups: int | None = None
    """Groups of key and value in the same weight."""
    by_group: bool | None = None
    """Whether the rows of the fused weight lie group by group."""
    source: str = ""
    """Where the facts come from, for messages."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a user's own model shows about itself, without its weights; names without wrappers."""

    source: str
    """Where the model comes from, for messages."""
    modules: Mapping[str, Facts]
    """The facts of every loralib module by name, and the storage order of plain ones."""
    tensors: Mapping[str, tuple[int, ...]]
    """The shape of every entry of the state dict except the low-rank factors."""
    ties: tuple[tuple[str, ...], ...] = ()
    """Groups of names that are one parameter."""
    normed: frozenset[str] = frozenset()
    """Embeddings with max_norm, which no merge can reproduce."""
    shared: tuple[tuple[str, ...], ...] = ()
    """Groups of names that are one module."""
    change: tuple[str, str] = ("", "")
    """The prefix of the network's own names, and the base's prefix that replaces it here."""
    outside: frozenset[str] = frozenset()
    """Names of tensors that are the same in both."""
