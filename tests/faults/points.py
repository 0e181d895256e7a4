"""One fault point: break one call of a command, look at what is left, run the command again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from faults.driver import Call, Mode
from faults.scenarios import OWNER, STAGING, content, part, stagings, tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from faults.driver import Outcome, Pool
    from faults.scenarios import Prepared, Tree

T = TypeVar("T")
STORAGE, KILLED = 7, -9
# A failure of these may be got over: the bytes are written or freed in another way, the folder is
# there. What comes out must be right all the same.
OPTIONAL = frozenset({
    "copy_file_range", "sendfile", "splice", "ioctl-clone", "fallocate", "posix_fallocate",
    "sync_file_range", "unlink", "rmdir", "mkdir",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """A call and what happens at it."""

    call: Call
    mode: Mode

    def __str__(self) -> str:
        return f"{self.mode.name} at call {self.call.number}, {self.call.name} {self.call.path}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the fault took place, whether the output was torn, and everything that is wrong."""

    fired: bool
    torn: bool
    faults: tuple[str, ...]


def points(calls: tuple[Call, ...]) -> Iterator[Point]:
    """Every way in which every call may fail."""
    for call in calls:
        modes = [Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.NO_SPACE, Mode.BROKEN, Mode.DEAD]
        if call.moves_data:
            modes += [Mode.SHORT, Mode.KILL_HALFWAY]
        if call.needs_room:
            modes.append(Mode.FULL)
        for mode in modes:
            yield Point(call, mode)


def try_point(pool: Pool, prepared: Prepared, point: Point, case: Path) -> Verdict:
    """Run with the fault, look, run again without; the folders are removed if all is well."""
    prepared.copy(case)
    [broken] = pool.run(prepared.run(case, "broken", point.call.number, point.mode))
    if not broken.hits:
        _remove(case)
        return Verdict(fired=False, torn=False, faults=())
    torn = list(torn_parts(prepared, tree(case / "out")))
    faults = [*torn, *_wrong_end(prepared, point, broken, case)]
    if tree(case / "in") != prepared.inputs:
        faults.append("the inputs have changed")
    faults += wrong_again(pool, prepared, case)
    told = f"{prepared.scenario.name}: {point}: status {broken.status}"
    if not faults:
        _remove(case)
    return Verdict(
        fired=True,
        torn=bool(torn),
        faults=tuple(f"{told}: {fault}\n{broken.stderr}" for fault in faults),
    )


def torn_parts(prepared: Prepared, left: Tree) -> Iterator[str]:
    """The output is absent, old or new. What lies beside it may be ahead of it, never behind."""
    output = prepared.scenario.output
    states = {top: _state(prepared, left, top) for top in _tops(left, prepared.old, prepared.new)}
    for top, state in states.items():
        if not state:
            yield f"{top} is torn"
    if states.get(output) == {"new"} and any("new" not in state for state in states.values()):
        yield f"{output} is new, but not all that belongs to it: {states}"


def _state(prepared: Prepared, left: Tree, top: str) -> set[str]:
    """Which of old and new the entry `top` is; absent counts as old where none was there."""
    found = part(left, top)
    return {
        name
        for name, known in (("old", prepared.old), ("new", prepared.new))
        if found == part(known, top)
    }


def _tops(*trees: Tree) -> set[str]:
    return {name.partition("/")[0] for one in trees for name in one}


def _wrong_end(prepared: Prepared, point: Point, broken: Outcome, case: Path) -> Iterator[str]:
    """Whether status, message and what was left are of the right kind."""
    if "Traceback" in broken.stderr:
        yield "a traceback"
    if broken.status == 0 and tree(case / "out") != prepared.new:
        yield "says that all went well, but the output is not new"
    if point.mode.is_kill:
        if broken.status != KILLED:
            yield "was not killed"
        return
    if point.mode is Mode.SHORT and broken.status:
        yield "a short write was not continued"
    elif point.mode.is_error:
        yield from _wrong_refusal(prepared, point, broken, case)
    if stagings(case / "out") and not any(call.removes for call in broken.hits):
        yield "a staging was left"


def _wrong_refusal(prepared: Prepared, point: Point, broken: Outcome, case: Path) -> Iterator[str]:
    if broken.status == 0:
        if any(call.name not in OPTIONAL for call in broken.hits):
            yield "an error was passed over"
        return
    if broken.status != STORAGE:
        yield f"not status {STORAGE}"
    if not is_named(case, broken.stderr):
        yield "no error names the path"
    # A disk that is gone does not let anything be put back.
    if point.mode is not Mode.DEAD and tree(case / "out") != prepared.old:
        yield "failed, but the output is not as it was before"


def is_named(case: Path, stderr: str) -> bool:
    """Whether an error names a path below the case, or its start: long messages cut paths."""
    lines = [line for line in stderr.splitlines() if line.startswith("error:")]
    for word in (word for line in lines for word in line.split()):
        start, dots, _ = word.partition("...")
        if str(case) in word or (dots and len(start) > 10 and str(case).startswith(start)):
            return True
    return False


def wrong_again(pool: Pool, prepared: Prepared, case: Path) -> tuple[str, ...]:
    """What is wrong with the next run in `case`.

    All that it finds are the files there, and most faults leave the files that another has left. So
    it is run once for each state.
    """
    state = state_of(case)
    if state not in prepared.again:
        prepared.again[state] = tuple(_wrong_again(pool, prepared, case))
    return prepared.again[state]


def state_of(case: Path) -> tuple[tuple[object, ...], ...]:
    """Everything that the next run can find; a staging has a number in the place of its name's."""
    stagings: dict[str, int] = {}
    files: dict[int, int] = {}
    found = []
    for path in sorted(case.rglob("*")):
        name = path.relative_to(case).as_posix()
        name = OWNER.sub(lambda one: str(_number(stagings, one[0])), name)
        status = path.lstat()
        found.append((name, status.st_mode, _number(files, status.st_ino), content(path)))
    return tuple(found)


def _number(known: dict[T, int], key: T) -> int:
    """The same for what is met again: two names of one file, what one process has made."""
    return known.setdefault(key, len(known))


def _wrong_again(pool: Pool, prepared: Prepared, case: Path) -> Iterator[str]:
    """The same command again; where the output is in place already, with --force."""
    run = prepared.run(case, "again")
    there = (case / "out" / prepared.scenario.output).exists()
    if there and "--force" not in run.argv:
        run = replace(run, argv=(*run.argv, "--force"))
    [again] = pool.run(run)
    if again.status:
        yield f"the next run fails: {again.status}\n{again.stderr}"
    elif tree(case / "out") != prepared.new:
        yield "the next run gives something else"
    if stagings(case / "out"):
        yield "the next run leaves a staging"
    litter = [name for name in tree(case) if STAGING.search(name)]
    if litter or tree(case / "in") != prepared.inputs:
        yield f"the next run changes the inputs or leaves {litter}"


def _remove(case: Path) -> None:
    for folder in (case, *(case.with_name(f"{case.name}-{name}") for name in ("broken", "again"))):
        shutil.rmtree(folder, ignore_errors=True)
