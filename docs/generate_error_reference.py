"""Write docs/errors.md from the tables of refusals and checks; --check only compares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from generated_page import head, write_or_check

from lora_export.refusals import causes, checks, statuses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.refusals import Entry

SCRIPT = Path(__file__)
INTRODUCTION = """\
Why `lora-export` refuses, and what to do. A refusal has a line such as
`more: lora-export explain fit/no-module`; `--json` has the same code as `explain` of each problem.
`lora-export explain CODE` prints the entries of this page. CODE is a cause, an exit status or the
name of a check; without CODE all of them are listed.

The word before the stroke is the kind of the problem, and each kind has an exit status. Where
several problems are reported at once, `fit` decides before `usage`.

"""


def reference() -> str:
    """Return the whole page."""
    return (
        "".join(
            [
                head(SCRIPT, "Refusals and checks"),
                INTRODUCTION,
                "## Exit statuses\n\n| status | meaning |\n|---|---|\n",
                *(
                    f"| {entry.name} | {entry.facts['meaning']} |\n"
                    for entry in statuses().values()
                ),
                "\n## Causes of a refusal\n\n",
                *_entries(causes()),
                "## Checks of a proof\n\n",
                "A `*` stands for what changes from run to run, such as a precision.\n\n",
                *_entries(checks()),
            ]
        ).rstrip("\n")
        + "\n"
    )


def _entries(table: Mapping[str, Entry]) -> Iterator[str]:
    for entry in table.values():
        yield f"### `{entry.name}`\n\n"
        for title, text in entry.facts.items():
            shown = f"`{text}`" if title == "example" else text.replace("<", "&lt;")
            yield f"- {title}: {shown}\n"
        yield "\n"


if __name__ == "__main__":
    sys.exit(write_or_check(SCRIPT, SCRIPT.with_name("errors.md"), reference))
