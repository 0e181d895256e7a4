"""The results of fitting the adapters, other than the changes of tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.records import TensorRef


@dataclass(frozen=True, slots=True)
class Promise:
    """A full tensor of an adapter that must be the value of `name` in the result."""

    #: The tensor's place, for messages.
    where: str
    #: The adapter's tensor.
    ref: TensorRef
    #: The result's name for it.
    name: str
    #: Names of the same parameter. One of them may hold the value instead, unless the tensor
    #: belongs to a module of the adapter's own that is written under `name`.
    others: tuple[str, ...]
    #: Whether it belongs to a module of the adapter's own.
    is_own: bool


@dataclass(slots=True)
class Fitted:
    """The account of the adapters' tensors: those that take no part, and those that must."""

    #: Keys that --allow-unmatched leaves out.
    unmatched: list[str] = field(default_factory=list)
    #: Keys that the adapter's configuration leaves out, merged all the same (--trust-file).
    believed: list[str] = field(default_factory=list)
    #: Keys that the adapter's configuration leaves out, and the merge too (--trust-config).
    disbelieved: list[str] = field(default_factory=list)
    #: Full tensors that are equal to the base's, which is kept.
    kept: list[str] = field(default_factory=list)
    #: Full tensors that the base lacks, by the file beside the adapter that holds them.
    foreign: dict[Path, list[str]] = field(default_factory=dict)
    #: The full tensors that the result must hold.
    promised: list[Promise] = field(default_factory=list)
    #: The source that decides how a square weight is stored, by adapter and module.
    turned_by: dict[tuple[str, str], str] = field(default_factory=dict)
