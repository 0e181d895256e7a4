"""Makes an output appear whole or not at all: staged beside its place, synced, then renamed.

At every instant the output path is absent, the complete old one, or the complete new one.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.checkpoint.output.durable import settle, sync_folder
from lora_export.checkpoint.output.interrupts import Interrupts, orderly_interrupts
from lora_export.checkpoint.output.locks import (
    lock_staging,
    one_writer,
    remove_stale,
    staging_folder,
)
from lora_export.checkpoint.output.rename import exchange, rename_new
from lora_export.checkpoint.output.targets import check_output, is_empty_folder, is_left_over
from lora_export.checkpoint.reading import system_errors
from lora_export.errors import LoraExportError, OutputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_export.checkpoint.output.targets import Kind


@dataclass(slots=True)
class Staging:
    """A hidden folder beside the output, in which the output is written."""

    output: Path
    """Where the artefact will be put; its folder is resolved."""
    kind: Kind
    """Whether the artefact is a file or a folder."""
    folder: Path
    """The hidden folder: the artefact itself if that is a folder, else what holds the file."""
    names: tuple[str, ...]
    """Files that are put in place with a file artefact, just before it."""
    force: bool
    """Whether an output that exists may be replaced."""
    interrupts: Interrupts
    is_published: bool = False

    @property
    def path(self) -> Path:
        """Return where to write the artefact: a folder that exists, or a file that does not."""
        return self.folder if self.kind == "folder" else self.folder / self.output.name

    def beside(self, name: str) -> Path:
        """Return where to write a file that goes beside a file artefact.

        Raises:
            LoraExportError: the name was not announced, so nothing would put the file in place.
        """
        if name not in self.names:
            raise LoraExportError(f"{name!r} was not announced to staging", where=str(self.output))
        return self.folder / name

    def announce(self, name: str) -> None:
        """Add a file beside a file artefact whose name is only known when it is written.

        Raises:
            OutputError: it exists already and may not be replaced.
        """
        if not self.force and (self.output.parent / name).exists():
            hint = "choose another name, or replace it with --force"
            raise OutputError(
                "exists already",
                where=str(self.output.parent / name),
                hint=hint,
                cause="output/exists",
            )
        self.names = (*self.names, name)

    def publish(self, *, is_last: bool = True) -> Path:
        """Sync everything, put it in place and return the output's path.

        After an error the output path is as it was before. A signal that came before the first
        rename is raised, also one that was lost; after the last rename it comes too late.

        is_last: False where the run publishes more, so that a signal may still stop it.

        Raises:
            OutputError: another run has taken the name meanwhile, or is publishing there too long.
            StorageError: the system refuses.
        """
        # Synced before the lock is taken: it may take minutes, and other runs would wait.
        with system_errors(self.output, "publish"):
            settle(self.folder)
            self._check_complete()
        with one_writer(self.output):
            self.interrupts.raise_waiting()
            # A signal between two renames would leave a manifest without its file.
            with self.interrupts.held_back():
                self._put_in_place()
                self.is_published = True
                if is_last:
                    self.interrupts.settle()
        return self.output

    def _check_complete(self) -> None:
        expected = {self.output.name, *self.names}
        if self.kind == "file" and {item.name for item in self.folder.iterdir()} != expected:
            message = f"the staging does not hold exactly {', '.join(sorted(expected))}"
            raise LoraExportError(message, where=str(self.folder))

    def _put_in_place(self) -> None:
        """Rename everything to its place; the artefact last, so that it never stands alone."""
        parent = self.output.parent
        moves = [(self.folder / name, parent / name) for name in self.names]
        moves.append((self.path, self.output))
        undo: list[tuple[Path, Path, bool]] = []
        try:
            with system_errors(self.output, "publish"), _lost_race(self.output):
                for source, target in moves:
                    force = self.force or is_left_over(target, self.output)
                    undo.append((source, target, _move(source, target, force=force)))
                sync_folder(parent)
        except BaseException as error:
            self._put_back(undo, error)
            raise

    def _put_back(self, undo: Sequence[tuple[Path, Path, bool]], error: BaseException) -> None:
        """Undo the moves, the last first.

        Raises:
            StorageError: some moves cannot be undone; the cause is `error`.
        """
        kept = [
            target.name
            for source, target, was_exchanged in reversed(undo)
            if not _move_back(source, target, was_exchanged=was_exchanged)
        ]
        if kept:
            reason = error.problems[0].message if isinstance(error, LoraExportError) else str(error)
            text = f"{reason}; the new {' and '.join(kept)} could not be taken back"
            raise StorageError(text, where=str(self.output), cause="storage/left") from error


@contextmanager
def staging(
    output: Path,
    *,
    force: bool,
    inputs: Sequence[Path],
    kind: Kind,
    beside: Sequence[str] = (),
) -> Iterator[Staging]:
    """Yield a place to write an output that `Staging.publish` makes visible in one step.

    First removes what dead processes left of the same output. Leaving the block without publishing
    removes the staging, also after an exception or a signal to stop.

    Args:
        output: the path of the artefact.
        force: replace an output that exists.
        inputs: files and folders that the output may not touch.
        kind: whether the artefact is a file or a folder.
        beside: names of files for `Staging.beside`, of a file artefact only.

    Raises:
        OutputError: the output may not be written there (`targets.check_output`).
        StorageError: the system refuses.
    """
    check_output(output, kind, force=force, inputs=inputs, beside=beside)
    output = output.parent.resolve() / output.name
    with orderly_interrupts() as interrupts:
        remove_stale(output)
        folder = staging_folder(output)
        lock = None
        try:
            with system_errors(output, "write beside it"):
                folder.mkdir()
                lock = lock_staging(folder)
            with system_errors(output, "write"):
                yield Staging(output, kind, folder, tuple(beside), force, interrupts)
        finally:
            with interrupts.held_back():
                shutil.rmtree(folder, ignore_errors=True)
                if lock is not None:
                    os.close(lock)


@contextmanager
def _lost_race(output: Path) -> Iterator[None]:
    """Turn FileExistsError inside the block into an OutputError about the file that appeared."""
    try:
        yield
    except FileExistsError as error:
        raise OutputError(
            f"{Path(str(error.filename or output)).name} has appeared meanwhile",
            where=str(output),
            hint="another run has written it: check it, or replace it with --force",
            cause="output/exists",
        ) from error


def _move(source: Path, target: Path, *, force: bool) -> bool:
    """Put a staged file or folder in place; return whether an old one now lies at `source`."""
    if source.is_dir() and is_empty_folder(target):
        source.rename(target)  # rename(2) replaces an empty folder, and refuses any other
        return False
    if force and os.path.lexists(target):
        exchange(source, target)
        return True
    rename_new(source, target)
    return False


def _move_back(source: Path, target: Path, *, was_exchanged: bool) -> bool:
    """Undo `_move`; return whether the system allowed it."""
    try:
        if was_exchanged:
            exchange(source, target)
        else:
            target.rename(source)
    except OSError:
        return False
    return True
