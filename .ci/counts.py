"""Counts the checks that a run of .ci/run has made; fails where there are fewer than before.

A test that is dropped, skipped or no longer collected makes no noise otherwise. A change that adds
checks raises the number here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

#: (step, what is counted, where its log says so, how many there are at least)
COUNTS = [
    ("tests", "tests", r"([\d,]+) passed", 8700),
    ("tests", "matrix cases", r"PEFT matrix: ([\d,]+) cases passed", 210),
    # 39 on bases in float32; on those in half precision 17 or more, as the seed draws them.
    ("tests", "planted faults", r"detection: ([\d,]+) planted faults", 56),
    ("tests", "clean exports", r"detection: .* ([\d,]+) clean exports", 12),
    ("browser", "tests", r"([\d,]+) passed", 12),
    ("slow", "tests", r"([\d,]+) passed", 810),
    ("slow", "matrix cases", r"PEFT matrix: ([\d,]+) cases passed", 422),
    ("slow", "planted faults", r"detection: ([\d,]+) planted faults", 1290),
    ("slow", "clean exports", r"detection: .* ([\d,]+) clean exports", 234),
    ("parity", "rows that hold", r"PROVED: ([\d,]+) rows hold", 13),
    ("hostile", "malformed inputs", r"hostile: ([\d,]+) malformed inputs", 1533),
    ("hostile", "fuzzed inputs", r"hostile: ([\d,]+) fuzzed inputs", 30_000),
    ("faults", "tests", r"([\d,]+) passed", 56),
    # 3,677 calls and ways to break them, and more than half of 200 kills: how many of these come in
    # time is chance.
    ("faults", "fault points", r"([\d,]+) fault points", 3777),
]

#: The step that is left out where no browser can be installed.
BROWSER = "browser"


def count(log: str, pattern: str) -> int:
    """Return the last number that `pattern` finds in `log`; 0 where it finds none."""
    found = re.findall(pattern, log)
    return int(found[-1].replace(",", "")) if found else 0


def main(folder: Path) -> int:
    """Print every count; return 1 where one has fallen."""
    status = 0
    for step, what, pattern, least in COUNTS:
        log = folder / f"{step}.log"
        if step == BROWSER and not log.exists():
            print(f"{step:10} not run: no browser")
            continue
        found = count(log.read_text(encoding="utf-8"), pattern)
        fallen = "" if found >= least else f", fewer than the {least:,} in .ci/counts.py"
        print(f"{step:10} {found:6,} {what}{fallen}")
        status = 1 if fallen else status
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
