"""The paths of an export: where its files go, and where work files lie meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.onnx_export.layout.layouts import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.api.graph.forms import Form
    from lora_export.onnx_export.layout.layouts import Layout
    from lora_export.records import WrittenFile


@dataclass(frozen=True, slots=True)
class Place:
    """The paths of ONNX files: where they are or will be written, and where work files lie."""

    #: The .onnx file, or the folder that holds the files.
    path: Path
    #: A new folder for files that are deleted at the end: merged weights, and the float32 graph
    #: that a lowered file is compared with.
    work: Path
    #: The path as the user named it, for messages.
    shown: str
    #: Whether files are written; otherwise they exist, and are only proven.
    writes: bool
    #: How the files lie in a folder.
    layout: Layout = LAYOUTS["onnx"]

    def file(self, form: Form) -> Path:
        """Return the path of the network's .onnx file in this form."""
        if not self.layout.is_folder:
            return self.path
        return self.path / self.layout.file(form.precision.name)

    def make_folder(self) -> None:
        """Make the folder of the .onnx files inside the output, where there is one."""
        if self.layout.folder:
            (self.path / self.layout.folder).mkdir()

    def listed(self, files: Sequence[WrittenFile]) -> tuple[WrittenFile, ...]:
        """Return written files by their paths inside the output."""
        return tuple(replace(file, path=f"{self.layout.folder}{file.path}") for file in files)

    def files(self) -> list[Path]:
        """Return the .onnx files that are there."""
        if not self.path.is_dir():
            return [self.path]
        return sorted((self.path / self.layout.folder).glob("*.onnx"))
