"""The edits of the base's config.json without which the result would not load."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(slots=True)
class ConfigEdits:
    """The base's config.json, its edits, and how they change the model's shape."""

    #: The base's config.json as it is; empty where there is none.
    config: Mapping[str, object] = field(default_factory=dict)
    #: The new values, by the keys that lead to them.
    values: dict[tuple[str, ...], object] = field(default_factory=dict)
    #: The same edits in words.
    words: dict[tuple[str, ...], str] = field(default_factory=dict)
    #: How the model's shape changes, in words; see MergePlan.
    reshaped: list[str] = field(default_factory=list)

    def edit(self, key: str, value: object, words: str = "", *, inside: str = "") -> None:
        """Set a value, or one of the object that config.json holds under `inside`.

        words: the edit in words, where `value` is long.
        """
        self.edit_at((inside, key) if inside else (key,), value, words)

    def edit_at(self, path: tuple[str, ...], value: object, words: str = "") -> None:
        """Set the value that these keys lead to, through objects that are there.

        words: the edit in words, where `value` is long.
        """
        self.values[path] = value
        self.words[path] = words or f"{'.'.join(path)}: {json.dumps(value)}"

    def nested(self, key: str, inside: str = "text_config") -> Mapping[str, object] | None:
        """Return the object under `inside` of config.json; None where it has no `key`."""
        value = self.config.get(inside)
        return value if isinstance(value, dict) and key in value else None

    def edit_everywhere(self, key: str, value: object) -> bool:
        """Set `key` in config.json and in its text_config, where they have it.

        Returns:
            Whether one of them has it.
        """
        is_inside = self.nested(key) is not None
        if is_inside:
            self.edit(key, value, inside="text_config")
        if key in self.config:
            self.edit(key, value)
        return is_inside or key in self.config

    def result(self) -> Mapping[str, object]:
        """Return the edited config.json, without the edits of objects inside it."""
        return {**self.config, **{path[0]: v for path, v in self.values.items() if not path[1:]}}
