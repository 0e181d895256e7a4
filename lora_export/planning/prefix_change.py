"""One change of prefix, from an adapter's names to the base's (--rename OLD=NEW, or found)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefixChange:
    """`old` at the start of an adapter's name becomes `new`."""

    #: Ends in a dot, or is empty.
    old: str
    #: Ends in a dot, or is empty.
    new: str

    def apply(self, name: str) -> str | None:
        """Return the changed name, or None when it does not start with `old`."""
        return self.new + name[len(self.old) :] if name.startswith(self.old) else None

    def __str__(self) -> str:
        if not self.old and not self.new:
            return "names as they are"
        return f"prefix {self.old or '(none)'} -> {self.new or '(none)'}"

    @classmethod
    def between(cls, old: str, new: str) -> PrefixChange:
        """Make the change without the parts that `old` and `new` both end in."""
        left, right = old.split(".")[:-1], new.split(".")[:-1]
        while left and right and left[-1] == right[-1]:
            left, right = left[:-1], right[:-1]
        return cls("".join(f"{part}." for part in left), "".join(f"{part}." for part in right))

    @property
    def exchanges(self) -> bool:
        """Return whether one prefix replaces another; the base may then be another model."""
        return bool(self.old and self.new)


IDENTITY = PrefixChange("", "")
