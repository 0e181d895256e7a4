"""The form of an undo file's description: anyone may have written the file, and it names paths.

A name that leads out of the result's folder would have a file written or read anywhere.
"""

from __future__ import annotations

import base64
from typing import Any

from lora_export.checkpoint.folder.side_files import is_plain_path

FORMAT = 1
"""The format of the description."""

RESULT = "result"
"""The member of the description with the SHA-256 of the result's weight files.

Files of earlier versions lack it."""


def check_description(description: Any) -> dict[str, Any]:
    """Return the description, whose members are all of their types and name plain paths.

    Raises:
        ValueError, TypeError, KeyError: it is of another form.
    """
    if description["format"] != FORMAT or description["layout"] not in {"folder", "file"}:
        raise ValueError("another format or layout")
    if not isinstance(description["shards"], list) or not description["shards"]:
        raise TypeError("no list of weight files")
    for shard in description["shards"]:
        _check_shard(shard)
    if index := description["index"]:
        _check_name(index["name"], is_file=True)
        base64.b64decode(index["content"], validate=True)
    _check_side_files(description["edited"], description["kept"])
    for digest in description.get(RESULT, []):
        _check_text(digest)
    return dict(description)


def _check_shard(shard: Any) -> None:
    _check_name(shard["file"], is_file=True)
    _check_text(shard["sha256"])
    base64.b64decode(shard["header"], validate=True)


def _check_side_files(edited: object, kept: object) -> None:
    if not isinstance(edited, dict) or not isinstance(kept, list):
        raise TypeError("no side files")
    for content in edited.values():
        base64.b64decode(content, validate=True)
    for name in (*edited, *kept):
        _check_name(name)


def _check_text(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")


def _check_name(value: object, *, is_file: bool = False) -> None:
    """Refuse what is no plain relative path; `is_file`: one without folders."""
    _check_text(value)
    if not is_plain_path(str(value)) or (is_file and "/" in str(value)):
        raise ValueError(f"{value!r:.40} is no plain name")
