"""Makes an output appear whole or not at all: staged beside its place, synced, then renamed.

At every instant the output path is absent, the complete old one, or the complete new one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.checkpoint.output.interrupts import Interrupts, orderly_interrupts
from lora_export.checkpoint.output.rename import exchange, rename_new
from lora_export.checkpoint.output.targets import check_output, is_empty_folder, is_left_over
from lora_export.checkpoint.reading import system_errors
from lora_export.errors import LoraExportError, OutputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_export.checkpoint.output.targets import Kind

_STAGING = ".{name}.lora-export-{pid}-{random}"
_PATIENCE = 60
_STAGING_TAIL = r"\.lora-export-(\d+)-[0-9a-f]{16}(\.old)?"


@dataclass(slots=True)
class Staging:
    """A hidden folder beside the output. `path` is what to write: a file in it, or itself.

    kind: "file" or "folder". names: of a file artefact, the files put in place just before it.
    """

    output: Path
    kind: Kind
    folder: Path
    names: tuple[str, ...]
    force: bool
    interrupts: Interrupts
    is_published: bool = False

    @property
    def path(self) -> Path:
        """Where the artefact is to be written: a folder that exists, or a file that does not."""
        return self.folder if self.kind == "folder" else self.folder / self.output.name

    def beside(self, name: str) -> Path:
        """Where a file that goes beside a file artefact is to be written."""
        if name not in self.names:
            raise LoraExportError(f"{name!r} was not announced to staging", where=str(self.output))
        return self.folder / name

    def announce(self, name: str) -> None:
        """A file beside a file artefact whose name is only known when it is written.

        Raises OutputError when it is there already and may not be replaced.
        """
        if not self.force and (self.output.parent / name).exists():
            raise OutputError("exists already", where=str(self.output.parent / name))
        self.names = (*self.names, name)

    def publish(self) -> Path:
        """Sync everything and put it in place; the output's path.

        Raises OutputError when another writer has taken the name meanwhile, StorageError when
        the system refuses; the output path is then as it was before.
        """
        with system_errors(self.output, "publish"):
            _settle(self.folder)
            self._check_complete()
        with self.interrupts.held_back(), _one_at_a_time(self.output):
            self._put_in_place()
            self.is_published = True
        return self.output

    def _check_complete(self) -> None:
        expected = {self.output.name, *self.names}
        if self.kind == "file" and {item.name for item in self.folder.iterdir()} != expected:
            raise LoraExportError(f"not {sorted(expected)} were staged", where=str(self.folder))

    def _put_in_place(self) -> None:
        parent = self.output.parent
        moves = [(self.folder / name, parent / name) for name in self.names]
        moves.append((self.path, self.output))
        undo: list[tuple[Path, Path, bool]] = []
        try:
            with system_errors(self.output, "publish"), _lost_race(self.output):
                for source, target in moves:
                    force = self.force or is_left_over(target, self.output)
                    undo.append((source, target, _move(source, target, force=force)))
                _sync_folder(parent)
        except BaseException as error:
            self._put_back(undo, error)
            raise

    def _put_back(self, undo: Sequence[tuple[Path, Path, bool]], error: BaseException) -> None:
        """Undo the moves; StorageError, caused by `error`, names those that cannot be undone."""
        kept = [
            target.name
            for source, target, was_exchanged in reversed(undo)
            if not _move_back(source, target, was_exchanged=was_exchanged)
        ]
        if kept:
            reason = error.problems[0].message if isinstance(error, LoraExportError) else str(error)
            text = f"{reason}; the new {' and '.join(kept)} could not be taken back"
            raise StorageError(text, where=str(self.output)) from error


@contextmanager
def staging(
    output: Path,
    *,
    force: bool,
    inputs: Sequence[Path],
    kind: Kind,
    beside: Sequence[str] = (),
) -> Iterator[Staging]:
    """A place to write an output that `Staging.publish` makes visible in one step.

    Checks the output first (`targets.check_output`, OutputError), then removes what dead
    processes left of the same output. Leaving the block without publishing, by an exception,
    SIGINT or SIGTERM too, removes the staging. beside: names of files for `Staging.beside`; those
    of a file artefact only. Raises StorageError when the system refuses.
    """
    check_output(output, kind, force=force, inputs=inputs, beside=beside)
    output = output.parent.resolve() / output.name
    with orderly_interrupts() as interrupts:
        _remove_stale(output)
        name = _STAGING.format(name=output.name, pid=os.getpid(), random=secrets.token_hex(8))
        folder = output.with_name(name)
        lock = None
        try:
            with system_errors(output, "write beside it"):
                folder.mkdir()
                lock = _lock(folder)
            with system_errors(output, "write"):
                yield Staging(output, kind, folder, tuple(beside), force, interrupts)
        finally:
            with interrupts.held_back():
                shutil.rmtree(folder, ignore_errors=True)
                if lock is not None:
                    os.close(lock)


@contextmanager
def _one_at_a_time(output: Path) -> Iterator[None]:
    """Let no other writer into the output's folder: what lies beside an output belongs to it.

    Where the folder cannot be locked, writers go on without. Raises OutputError when the lock is
    not free in time.
    """
    descriptor = None
    end = time.monotonic() + _PATIENCE
    with suppress(OSError):
        descriptor = os.open(output.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while descriptor is not None and not _try_lock(descriptor):
            if time.monotonic() > end:
                message = f"another run has been publishing there for {_PATIENCE} seconds"
                raise OutputError(message, where=str(output))
            time.sleep(0.01)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Whether no other process holds the lock; True too where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _lock(folder: Path) -> int | None:
    """A lock that says, as long as this process lives, that the staging is in use.

    It tells more than the process number, which a container or a later process may have as well.
    None when another process holds it, or the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_stale(output: Path) -> None:
    """Remove stagings of the same output whose process is dead; never one that is in use."""
    pattern = re.compile(re.escape(f".{output.name}") + _STAGING_TAIL)
    with suppress(PermissionError):  # a folder that may be written, but not listed
        for entry in list(output.parent.iterdir()):
            found = pattern.fullmatch(entry.name)
            if found and not _is_alive(int(found[1])):
                _remove_unlocked(entry)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove_unlocked(folder: Path) -> None:
    with suppress(OSError):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _settle(folder: Path) -> None:
    """Give everything below the usual rights and bring it to the disk, folders last."""
    rights = stat.S_IMODE(folder.stat().st_mode) & 0o777
    for place, _folders, names in os.walk(folder, topdown=False):
        for name in names:
            _settle_file(Path(place, name), rights & 0o666)
        if Path(place) != folder:
            Path(place).chmod(rights)
        _sync_folder(Path(place))


def _settle_file(path: Path, rights: int) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise LoraExportError("a staged file is a link or no regular file", where=str(path))
    path.chmod(rights)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _lost_race(output: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise OutputError(
            f"{Path(str(error.filename or output)).name} has appeared meanwhile",
            where=str(output),
            hint="another run has written it; look at it, or replace it with --force",
        ) from error


def _move(source: Path, target: Path, *, force: bool) -> bool:
    """Put a staged file or folder in place; whether an old one now lies in the staging's place."""
    if source.is_dir() and is_empty_folder(target):
        source.rename(target)  # the system puts a folder over an empty one, and over no other
        return False
    if force and os.path.lexists(target):
        exchange(source, target)
        return True
    rename_new(source, target)
    return False


def _move_back(source: Path, target: Path, *, was_exchanged: bool) -> bool:
    """Undo `_move`; whether the system let it."""
    try:
        if was_exchanged:
            exchange(source, target)
        else:
            target.rename(source)
    except OSError:
        return False
    return True
