"""What fitting the adapters gave beside the changes of tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.records import TensorRef


@dataclass(frozen=True, slots=True)
class Promise:
    """What a full tensor of an adapter stands for: the value of `name`."""

    #: The tensor's place, for messages.
    where: str
    ref: TensorRef
    name: str
    #: Names that stand for it where nothing is written under its own, or anywhere else where it is
    #: the value of what several names share.
    others: tuple[str, ...]
    #: It belongs to a module of the adapter's own.
    is_own: bool


@dataclass(slots=True)
class Fitted:
    """The account of the adapters' tensors: what is not among the changes, and what must be."""

    #: Keys that --allow-unmatched let go.
    unmatched: list[str] = field(default_factory=list)
    #: Keys that the adapter's configuration leaves out, merged all the same (--trust-file).
    believed: list[str] = field(default_factory=list)
    #: Keys that the adapter's configuration leaves out, and the merge too (--trust-config).
    disbelieved: list[str] = field(default_factory=list)
    #: Full tensors that are equal to the base's, which stays.
    kept: list[str] = field(default_factory=list)
    #: Full tensors that the base lacks, by the file beside the adapter that holds them.
    foreign: dict[Path, list[str]] = field(default_factory=dict)
    #: The full tensors that the result must hold.
    promised: list[Promise] = field(default_factory=list)
    #: Who says how a square weight is stored, by adapter and module.
    turned_by: dict[tuple[str, str], str] = field(default_factory=dict)
