"""Measure `lora-export merge` against copying the base and against PEFT's own script.

In every round each command runs once, in turn, and every second round is run backwards. A ratio is
taken within a round, and the median over the rounds is what is reported, so that a slow minute of
the machine cancels out. Each command's first run is not timed: it warms the caches, its memory is
sampled, and its output is held against PEFT's and loralib's, bit for bit.

Nothing is asserted but equality: the exit status does not depend on any time. `--page FILE` writes
the page of docs/ from the result.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from equality import unlike_folder, unlike_loralib
from figures import ALLOWANCE, figures
from machine import file_system, machine
from make_llama import ALPHA, SHAPES, make_adapters, make_base
from page import page, tables
from plan_bench import measure_plans
from results import (
    COPY,
    MERGE,
    MERGES,
    PEFT,
    STARTUP,
    VERIFIED,
    Equality,
    Memory,
    Planned,
    Ratios,
    Result,
    Seconds,
    Timing,
)
from running import Run, lora_export, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROUNDS = 5
TIMED = "1b"
LARGE = (("4b", "all"), ("wide", "all+head"))
CHOICES = ("qv", "all")
QUICK_TIMED = "tiny"
QUICK_CHOICES = ("all",)
QUICK_LARGE = (("tiny", "all+head"),)


@dataclass(frozen=True, slots=True)
class Case:
    """One base with one adapter, and the output that every command writes in its turn."""

    shape: str
    targets: str
    base: Path
    loralib: Path
    peft: Path
    output: Path

    def command(self, name: str) -> list[str]:
        """Return the command of this name."""
        base, output = str(self.base), str(self.output)
        facts = ["--alpha", str(ALPHA), "--no-fan-in-fan-out", "--quiet"]
        merge = [*lora_export(), "merge", base, str(self.loralib), "-o", output, *facts]
        script = str(Path(__file__).with_name("peft_script.py"))
        return {
            COPY: ["cp", "-r", base, output],
            MERGE: [*merge, "--no-verify"],
            PEFT: [sys.executable, script, base, str(self.peft), output],
            VERIFIED: merge,
            STARTUP: [sys.executable, "-c", "import torch"],
        }[name]

    def run(self, name: str, *, sampled: bool = False, sync: bool = False) -> Run:
        """Run one command where no output is yet."""
        shutil.rmtree(self.output, ignore_errors=True)
        place = self.base if sync else None
        return run(self.command(name), sampled=sampled, sync=place)


class Bench:
    """What has been measured so far, and how to go on."""

    def __init__(self, given: argparse.Namespace) -> None:
        """Take the options of the command line."""
        self.given = given
        self.started = datetime.now(timezone.utc)
        self.system = file_system(given.data or Path(tempfile.gettempdir()))
        self.rounds: int = given.rounds or (1 if given.quick else ROUNDS)
        self.timing: list[Timing] = []
        self.memory: list[Memory] = []
        self.equality: list[Equality] = []
        self.plan: list[Planned] = []
        self.startup = 0

    def time(self, folder: Path, shape: str, choices: Sequence[str]) -> None:
        """Time one base with each choice of targets."""
        say(f"making {shape}")
        base = folder / "base"
        size = make_base(SHAPES[shape], base)
        for targets in choices:
            files = make_adapters(SHAPES[shape], folder, targets)
            case = Case(shape, targets, base, *files, folder / "merged")
            self._warm_up(case, folder / "reference")
            self.timing.append(timed(case, size, self._rounds(case)))

    def large(self, folder: Path, shape: str, targets: str) -> None:
        """Measure only memory and equality, for a base that is large, or large in one tensor."""
        say(f"making {shape}")
        base = folder / "base"
        make_base(SHAPES[shape], base)
        loralib, peft = make_adapters(SHAPES[shape], folder, targets)
        case = Case(shape, targets, base, loralib, peft, folder / "merged")
        against = partial(unlike_loralib, base=base, adapter=loralib)
        for name in MERGES:
            if self._sampled(case, name):
                self._compare(case, name, "loralib", against)

    def result(self) -> Result:
        """Return the object that --json writes."""
        return Result(
            date=f"{self.started:%Y-%m-%d}",
            command=" ".join(["python", *sys.argv]),
            quick=self.given.quick,
            rounds=self.rounds,
            sync=self.given.sync,
            machine=machine(self.system),
            timing=self.timing,
            memory=self.memory,
            equality=self.equality,
            plan=self.plan,
            figures=figures(self.timing, self.memory, self.equality, self.plan),
        )

    def _warm_up(self, case: Case, reference: Path) -> None:
        self.startup = case.run(STARTUP, sampled=True).anonymous
        case.run(COPY)
        self._needed(case, PEFT)
        case.output.rename(reference)
        for name in MERGES:
            self._needed(case, name)
            self._compare(case, name, PEFT, partial(unlike_folder, reference=reference))
            against = partial(unlike_loralib, base=case.base, adapter=case.loralib)
            self._compare(case, name, "loralib", against)
        shutil.rmtree(reference)

    def _needed(self, case: Case, name: str) -> None:
        if not self._sampled(case, name):
            sys.exit(f"there is not enough memory for {name}, {case.shape}, {case.targets}")

    def _sampled(self, case: Case, name: str) -> bool:
        """Return whether there is an output, that is, whether memory was enough."""
        say(f"{case.shape}, {case.targets}: memory of {name}")
        found = case.run(name, sampled=True)
        adapter = case.loralib.stat().st_size
        self.memory.append(
            Memory(
                shape=case.shape,
                targets=case.targets,
                run=name,
                anonymous=found.anonymous,
                high_water=found.high_water,
                stopped=found.stopped,
                adapter=adapter,
                allowed=self.startup + adapter + ALLOWANCE,
            )
        )
        return not found.stopped

    def _compare(
        self, case: Case, name: str, library: str, unlike: Callable[[Path], list[str]]
    ) -> None:
        self.equality.append(
            Equality(
                shape=case.shape,
                targets=case.targets,
                run=name,
                against=library,
                tensors=len(SHAPES[case.shape].weights()),
                unlike=unlike(case.output),
            )
        )

    def _rounds(self, case: Case) -> list[dict[str, Run]]:
        names = (COPY, MERGE, PEFT, VERIFIED, STARTUP)
        found = []
        for number in range(self.rounds):
            say(f"{case.shape}, {case.targets}: round {number + 1} of {self.rounds}")
            order = names if number % 2 == 0 else names[::-1]
            found.append({name: case.run(name, sync=self.given.sync) for name in order})
        shutil.rmtree(case.output, ignore_errors=True)
        return found


def timed(case: Case, size: int, rounds: Sequence[dict[str, Run]]) -> Timing:
    """Return the medians of the runs, and of the ratios within each round."""
    return Timing(
        shape=case.shape,
        targets=case.targets,
        bytes=size,
        seconds={name: _seconds([one[name] for one in rounds]) for name in rounds[0]},
        ratios={name: _ratios(name, rounds) for name in MERGES},
    )


def _seconds(runs: Sequence[Run]) -> Seconds:
    return Seconds(
        wall=median(one.wall for one in runs),
        cpu=median(one.cpu for one in runs),
        walls=[round(one.wall, 3) for one in runs],
    )


def _ratios(name: str, rounds: Sequence[dict[str, Run]]) -> Ratios:
    walls = [{run: taken.wall for run, taken in one.items()} for one in rounds]
    return Ratios(
        peft_over_merge=median(one[PEFT] / one[name] for one in walls),
        merge_over_copy=median(one[name] / one[COPY] for one in walls),
        merge_less_startup_over_copy=median(
            (one[name] - one[STARTUP]) / one[COPY] for one in walls
        ),
    )


def measure(bench: Bench) -> Iterator[Result]:
    """Yield the result so far after every part, since a long benchmark may be stopped."""
    given = bench.given
    shape, choices = (QUICK_TIMED, QUICK_CHOICES) if given.quick else (TIMED, CHOICES)
    with scratch(given.data) as folder:
        bench.time(Path(folder), shape, choices)
    yield bench.result()
    with scratch(given.data) as folder:
        say("planning")
        bench.plan = measure_plans(Path(folder), quick=given.quick)
    yield bench.result()
    if not given.no_large:
        for large, targets in QUICK_LARGE if given.quick else LARGE:
            with scratch(given.large_data or given.data) as folder:
                bench.large(Path(folder), large, targets)
            yield bench.result()


def scratch(data: Path | None) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder that is removed at the end, also when a command fails."""
    return tempfile.TemporaryDirectory(prefix="merge-bench-", dir=data)


def say(text: str) -> None:
    """Print progress to stderr, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="where to write, 7 GB free (default: the temp folder); the speed is this disk's",
    )
    parser.add_argument(
        "--large-data",
        type=Path,
        metavar="FOLDER",
        help="where to write the bases of which only memory is measured, 17 GB free (default: as "
        "--data); a folder in memory is not needed for these",
    )
    parser.add_argument("--rounds", type=int, help=f"timed runs of each command ({ROUNDS})")
    parser.add_argument(
        "--sync",
        action="store_true",
        help="let every run end on disk: cp and PEFT leave that to the kernel, lora-export waits",
    )
    parser.add_argument("--no-large", action="store_true", help="leave out the large bases")
    parser.add_argument("--quick", action="store_true", help="a tiny base, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to FILE")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the results page to FILE")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write the result; return 1 if a tensor differs from the libraries'."""
    bench = Bench(options())
    for result in measure(bench):
        write(result, bench.given.json, bench.given.page)
    print(tables(bench.result()))
    return 1 if any(one["unlike"] for one in bench.equality) else 0


def write(result: Result, file: Path | None, page_file: Path | None) -> None:
    """Write the JSON and the page, where they are asked for."""
    if file:
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if page_file:
        page_file.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
