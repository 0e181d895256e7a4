"""Publish small outputs, and list what lies in a folder: for the tests of staging."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import manifest_beside
from lora_export.checkpoint.output.publish import staging

if TYPE_CHECKING:
    from pathlib import Path


def put_file(output: Path, text: str, *, force: bool = False) -> None:
    name = manifest_beside(output)
    with staging(output, force=force, inputs=(), kind="file", beside=[name]) as staged:
        staged.path.write_text(text)
        staged.beside(name).write_text(f"manifest of {text}")
        staged.publish()


def put_folder(output: Path, text: str, *, force: bool = False) -> None:
    with staging(output, force=force, inputs=(), kind="folder") as staged:
        (staged.path / "lora_export.json").write_text(text)
        (staged.path / "sub").mkdir()
        (staged.path / "sub" / "file").write_text(text)
        assert output.exists() == force
        assert staged.publish() == output


def listing(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
