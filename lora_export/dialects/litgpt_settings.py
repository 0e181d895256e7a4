"""Reads what litgpt saves beside a LoRA: hyperparameters.yaml and model_config.yaml.

Checked against files of litgpt 0.4.13 and 0.5.13.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.yaml_lines import are_members, members_of
from lora_export.checkpoint.reading import open_for_reading, pread_exact, system_errors
from lora_export.errors import InputError
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Members = dict[str, str | tuple[str, ...] | None]

HYPERPARAMETERS, MODEL_CONFIG = "hyperparameters.yaml", "model_config.yaml"
FLAGS = ("query", "key", "value", "projection", "mlp", "head")
"""What litgpt can adapt; its switches are `lora_query` and so on."""

_MAX_BYTES = 1 << 20
"""Upper bound of such a file; litgpt writes a few kilobytes."""

_WHOLE = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{0,40}(?:e[+-][0-9]{1,3})?)?", re.ASCII)
_WORDS = {"true": True, "false": False}
_NULLS = frozenset({"", "null", "~"})


@dataclass(frozen=True, slots=True)
class Settings:
    """The members of both files that matter to a merge; None where one is missing."""

    alpha: float | None = None
    rank: int | None = None
    flags: dict[str, bool] | None = None
    """Which of FLAGS were adapted; None unless every flag is there."""
    n_head: int | None = None
    """Heads of the query."""
    n_query_groups: int | None = None
    """Groups of key and value."""
    n_layer: int | None = None
    source: str = ""
    """The names of the files that were read, for messages."""


def read_settings(folder: Path) -> Settings:
    """Read the settings in `folder`, with the defaults of litgpt.config.Config (0.5.13).

    Raises:
        InputError: a file holds YAML that is not plain members, or a member of a wrong type; all
            problems are named.
        StorageError: a file cannot be read.
    """
    problems: list[Problem] = []
    hyper = _File.read(folder / HYPERPARAMETERS, problems)
    model = _File.read(folder / MODEL_CONFIG, problems)
    flags = {name: hyper.flag(f"lora_{name}") for name in FLAGS}
    known = {name: value for name, value in flags.items() if value is not None}
    n_head = model.whole("n_head")
    settings = Settings(
        alpha=hyper.number("lora_alpha"),
        rank=hyper.whole("lora_r"),
        flags=known if len(known) == len(flags) else None,
        n_head=n_head,
        # litgpt's Config.__post_init__: without a number there are as many groups as heads.
        n_query_groups=n_head if model.is_null("n_query_groups") else model.whole("n_query_groups"),
        n_layer=model.whole("n_layer"),
        source=" and ".join(file.path.name for file in (hyper, model) if file.members),
    )
    if problems:
        raise InputError.of(problems)
    return settings


@dataclass(frozen=True, slots=True)
class _File:
    """The members of one of the files; none when it does not exist."""

    path: Path
    members: Members
    problems: list[Problem]
    """Where problems are added, for both files."""

    @classmethod
    def read(cls, path: Path, problems: list[Problem]) -> _File:
        """Read the file at `path`."""
        if not path.exists():
            return cls(path, {}, problems)
        lines = _lines(path)
        if not are_members(lines):
            message = "is no YAML of plain members, as litgpt writes it"
            problems.append(
                Problem(
                    message,
                    str(path),
                    "give the facts in --hparams FILE instead",
                    cause="input/adapter-config",
                )
            )
            return cls(path, {}, problems)
        return cls(path, dict(members_of(lines)), problems)

    def is_null(self, key: str) -> bool:
        """Return whether the file exists and the member is missing or null."""
        return bool(self.members) and self._text(key) in _NULLS

    def number(self, key: str) -> float | None:
        """Return a number that is not negative; None when it is missing or refused."""
        text = self._given(key)
        if text is None:
            return None
        if not _NUMBER.fullmatch(text):
            self._refuse(key, "a number")
            return None
        return float(text)

    def whole(self, key: str) -> int | None:
        """Return a whole number above 0; None when it is missing or refused."""
        text = self._given(key)
        if text is None:
            return None
        if not _WHOLE.fullmatch(text) or text == "0":
            self._refuse(key, "a whole number above 0")
            return None
        return int(text)

    def flag(self, key: str) -> bool | None:
        """Return true or false; None when it is missing or refused."""
        text = self._given(key)
        if text is None:
            return None
        if text.lower() not in _WORDS:
            self._refuse(key, "true or false")
            return None
        return _WORDS[text.lower()]

    def _given(self, key: str) -> str | None:
        """Return the text of a member; None when it is missing or null."""
        return None if self._text(key) in _NULLS else self._text(key)

    def _text(self, key: str) -> str:
        """Return the text of a member; "" when it is missing or null.

        members_of yields None for a null, as for every value that it does not understand.
        """
        value = self.members.get(key)
        return value if isinstance(value, str) else "" if value is None else "a list"

    def _refuse(self, key: str, wanted: str) -> None:
        self.problems.append(
            Problem(f"{key} is not {wanted}", str(self.path), cause="input/adapter-config")
        )


def _lines(path: Path) -> Sequence[str]:
    with open_for_reading(path) as descriptor, system_errors(path, "read"):
        content = pread_exact(descriptor, _MAX_BYTES + 1, 0)
    if len(content) > _MAX_BYTES:
        raise InputError(
            f"is larger than {_MAX_BYTES:,} bytes", where=str(path), cause="input/adapter-config"
        )
    return content.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
