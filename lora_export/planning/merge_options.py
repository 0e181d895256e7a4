"""The options of a merge, without the facts about modules."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_export.planning.prefix_change import PrefixChange

Tied = Literal["untie", "eval", "error"]
Recipe = Literal["auto", "peft", "peft-safe", "exact"]
Tokenizer = Literal["base", "adapter"]
Dtype = Literal["keep", "float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a merge, named as on the command line."""

    #: The library whose arithmetic and rounding is used; "auto" takes each adapter's own.
    recipe: Recipe = "auto"
    #: What happens to tied tensors that are not adapted alike.
    tied: Tied = "untie"
    #: Globs on names of the adapter file that may stay unused.
    allow_unmatched: tuple[str, ...] = ()
    #: Globs on names of the adapter file that the base may lack.
    allow_new: tuple[str, ...] = ()
    #: Whether an update that changes nothing is accepted.
    allow_noop: bool = False
    #: The one change of prefix from adapter to base; None searches for it.
    rename: PrefixChange | None = None
    #: Whether the base is a training checkpoint, whose own factors are left out.
    unmerged_base: bool = False
    #: The owner of the tokenizer files that the result gets. None takes the base's, unless the
    #: vocabulary was resized.
    tokenizer: Tokenizer | None = None
    #: Names of weight files in an adapter's folder that take no part.
    ignore: tuple[str, ...] = ()
    #: The dtype of all floating tensors of the result; None and "keep" take the base's.
    dtype: Dtype | None = None
    #: Where an adapter's file and its configuration disagree: True takes the file, False the
    #: configuration, None refuses.
    trust_file: bool | None = None
    #: Whether another base than the adapter names is refused.
    strict: bool = False
    #: Whether links of a model's or an adapter's folder may lead out of it.
    follow_links: bool = False

    def allows_new(self, name: str) -> bool:
        """Return whether a full tensor of this name may be new in the result."""
        return any(fnmatchcase(name, glob) for glob in self.allow_new)

    def allows_unmatched(self, names: Iterable[str]) -> bool:
        """Return whether --allow-unmatched names one of these keys."""
        return any(fnmatchcase(name, glob) for name in names for glob in self.allow_unmatched)
