"""Files of digests that a result must have, in the form of sha256sum."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import MANIFEST_NAME
from lora_export.errors import InputError
from lora_export.records import WrittenFile
from lora_export.suites.running.call import stem_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.report.result import Report
    from lora_export.suites.running.content_key import Digests
    from lora_export.suites.suite import Asked

CARD = "README.md"
_HEX = frozenset("0123456789abcdef")


def digested(asked: Asked, report: Report, digests: Digests) -> dict[str, WrittenFile]:
    """Return the files of a result by name, as a golden has them.

    Manifest and model card are left out: they name the versions of the libraries. A name begins
    with that of the output, so that rows of one case share a file.

    Raises:
        OSError, StorageError: a verified file cannot be read.
    """
    stem = stem_of(asked)
    files = report.files if asked.verb != "verify" else _files_of(Path(report.output), digests)
    kept = (file for file in files if not file.path.endswith(MANIFEST_NAME) and file.path != CARD)
    return {_named(file.path, stem): file for file in kept}


def _named(path: str, stem: str) -> str:
    return path if _belongs(path, stem) else f"{stem}/{path}"


def _belongs(name: str, stem: str) -> bool:
    data = re.escape(stem.removesuffix(".onnx")) + r"-[0-9a-f]{8}\.onnx\.data"  # see save_model
    return (
        name == stem or name.startswith((f"{stem}.", f"{stem}/")) or bool(re.fullmatch(data, name))
    )


def _files_of(path: Path, digests: Digests) -> list[WrittenFile]:
    whole = path.is_dir()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if whole else [path]
    if path.suffix == ".onnx" and not whole:
        from lora_export.onnx_export.file.external import data_files

        files += data_files(path)
    root = path if whole else path.parent
    return [
        WrittenFile(str(file.relative_to(root)), digests.of(file), file.stat().st_size)
        for file in files
    ]


def read_golden(path: Path) -> dict[str, str]:
    """Return the digests in a file of lines `SHA-256  NAME`, by name; empty where there is none.

    Raises:
        InputError: a line is none of these.
    """
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not _HEX.issuperset(digest) or not name:
            message = "is no line of sha256sum: SHA-256, two spaces, name"
            raise InputError(
                message,
                where=f"{path}:{number}",
                hint="--update writes the file again",
                cause="input/golden",
            )
        found[name] = digest
    return found


def differing(asked: Asked, path: Path, files: Mapping[str, WrittenFile]) -> list[str]:
    """Return what differs between a golden and the files of a result, in words.

    Raises:
        InputError: see read_golden.
    """
    listed = read_golden(path)
    own = {name: digest for name, digest in listed.items() if _belongs(name, stem_of(asked))}
    if not own:
        return [f"{path} lists no file of it; --update writes them"]
    found = {name: file.sha256 for name, file in files.items()}
    words = [
        f"{name} has another digest than in {path}" for name in own if _other(name, own, found)
    ]
    words += [f"{name} is listed in {path} and was not written" for name in own.keys() - found]
    return words + [f"{name} is not listed in {path}" for name in found.keys() - own]


def _other(name: str, listed: Mapping[str, str], found: Mapping[str, str]) -> bool:
    return name in found and found[name] != listed[name]


def golden_text(asked: Asked, path: Path, files: Mapping[str, WrittenFile]) -> str:
    """Return the golden with the digests of this row, and those of the other rows as they are.

    Raises:
        InputError: see read_golden.
    """
    stem = stem_of(asked)
    others = {name: d for name, d in read_golden(path).items() if not _belongs(name, stem)}
    whole = {**others, **{name: file.sha256 for name, file in files.items()}}
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(whole.items()))
