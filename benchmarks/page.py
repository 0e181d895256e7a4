"""The result as Markdown: the printed tables, and the page of docs/ around them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from results import Equality, Figure, Machine, Memory, Result, Timing

HEAD = """\
<!-- Written by benchmarks/page.py from a result; edits are lost. -->

# Benchmarks

How long a merge takes, beside copying the base and beside PEFT's own `merge_and_unload()` and
`save_pretrained()`, how much memory it needs, and whether the result is the same to the bit.

```console
$ tox -e bench
```

makes a Llama-shaped bf16 base of 1.1 B parameters in 5 shards and adapters of rank 16, and prints
the tables below. Options follow `--`: `tox -e bench -- --data /dev/shm --json result.json`. The
data lies in the temp folder, or where `--data FOLDER` says; 7 GB must be free, 17 GB for the base
of 4 B parameters, of which only memory is measured (`--large-data FOLDER`, `--no-large`).
`--json FILE` keeps the result, `--page docs/benchmarks.md` writes this page.

Commands run in turn, each once in a round; a ratio is taken within a round, and its median over the
rounds is given. Memory is anonymous memory: what the machine cannot take back, unlike pages of
mapped files, which are in the high-water mark beside it. Verification is the proof by weights.

## Where the time goes

Measured on one core of the machine below, for a byte or an element of a bf16 weight: SHA-256
0.65 ns a byte; the merge 2.2 ns an element, of which the product is 0.8, the rest conversions, the
addition and the scaling; the proof 2.1 ns. Where a core has AVX-512 (an Intel Xeon) the merge took
1.3 ns, of which the product was 0.2. `import torch` takes two seconds of one core here, one there.
While torch is imported, the other core reserves the output's room, copies the untouched ranges and
hashes input files; merged rows have to wait for torch. From then on both cores are at work for 95 %
of the time: 5 core-seconds for all linear layers, 10 with the proof.

So two limits are out of reach on two cores, as long as the manifest has the SHA-256 of every input
and output. Of all linear layers the digest of the output (1.5 core-seconds), the merge (2.2),
reading and writing (0.8) leave no less than 1.8 times `cp -r`, where 1.5 is asked for. Of q and v,
verified, two digests of 2.2 GB (2.9 core-seconds), the copy, reading it back and reading its source
again (2.4) leave about 1.4 times, where 1.3 is asked for; unverified it is less than one, since
most of the copying is done by the time torch is there.

PEFT's script spends most of its time in the kernel here, on pages of fresh memory, and how long
that takes depends on the hour: with the same files and versions it took 22 to 33 seconds on
2026-11-28. Ratios are taken within a round for that reason, and still differ between hours and
machines: single runs after those below gave 22.6 seconds for PEFT's script, 4.9 for an unverified
and 7.3 for a verified merge of all linear layers, which is 4.6 and 3.1 times.

## ONNX files

```console
$ python benchmarks/onnx_memory.py
```

exports random Llamas of three sizes in bf16 to float32, and prints the peak of anonymous memory of
each. Without verification it may grow by a tenth of the float32 weights, with it by half of them.
It takes 25 GB of disk. The figures were taken with the merge of q and v, that of 1.1 B with all
linear layers. The verified run of 2.5 B took its graph from the cache of captures; capturing alone
peaks at about 0.6 GB.

| parameters | float32 weights | command               | anonymous memory |
| ---------- | --------------- | --------------------- | ---------------- |
| 0.6 B      | 2.46 GB         | onnx --no-verify      | 0.66 GB          |
| 1.1 B      | 4.40 GB         | onnx --no-verify      | 0.77 GB          |
| 2.5 B      | 10.13 GB        | onnx --no-verify      | 0.62 GB          |
| 0.6 B      | 2.46 GB         | onnx                  | 0.80 GB          |
| 2.5 B      | 10.13 GB        | onnx                  | 0.53 GB          |
| 1.1 B      | 4.40 GB         | onnx --kv-cache       | 1.14 GB          |

## The proof as a model

```console
$ python benchmarks/model_proof.py --shape 1b --shape 8b --data FOLDER
```

merges all linear layers of a random bf16 Llama (rank 16) without a proof, and with both levels of
it. The witnesses of the model level run at once and may take 2.5 times the unverified merge; the
memory may exceed torch, the adapter and the activations by 600 MB. The base of 8 B parameters takes
16 GB of disk, and so does its result. Two cores, 2026-11-29; the memory is that of the whole merge.

| parameters | witnesses | unverified merge | ratio | anonymous memory | unverified | adapter |
| ---------- | --------- | ---------------- | ----- | ---------------- | ---------- | ------- |
| 1.1 B      | 18.0 s    | 7.9 s            | 2.21  | 662 MB           | 259 MB     | 48 MB   |
| 8.0 B      | 125.5 s   | 64.2 s           | 1.95  | 720 MB           | 250 MB     | 160 MB  |

The ratio is the median of three rounds for 1.1 B, and of one for 8 B.
"""
UNMEASURED = "\nNo result has been put on this page yet.\n"
QUICK = "\nThis is a quick run on a tiny base: its times and ratios say nothing.\n"
SHAPES = {
    "1b": "1b: 1.1 B parameters",
    "4b": "4b: 4 B parameters",
    "wide": "wide: two tensors of 2 GB",
}
TARGETS = {"qv": "q, v", "all": "all linear", "all+head": "all linear and the head"}


def page(result: Result | None) -> str:
    """Return the page of docs/; without a result it describes how to get one."""
    if result is None:
        return _head() + UNMEASURED
    machine = "\n".join(f"- {line}" for line in _machine(result["machine"]))
    note = QUICK if result["quick"] else ""
    sync = ", each run until its output is on disk" if result["sync"] else ""
    taken = f"\nMeasured on {result['date']}, {result['rounds']} rounds{sync}:\n\n{machine}\n"
    return f"{_head()}{note}{taken}\n```console\n$ {result['command']}\n```\n\n{tables(result)}"


def _head() -> str:
    """Return what stands above the figures, with the section that onnx_speed.py gave."""
    before, mark, after = HEAD.partition("## The proof as a model")
    speed = Path(__file__).with_name("onnx_speed.md").read_text(encoding="utf-8")
    return f"{before}{speed}\n{mark}{after}"


def tables(result: Result) -> str:
    """Return all tables, each under a heading."""
    parts = {
        "Figures to reach": _figures(result["figures"]),
        "Seconds": _seconds(result),
        "Ratios": _ratios(result),
        "Peak memory": _memory(result),
        "Equality": _equality(result),
        "Planning": _planning(result),
    }
    return "\n".join(f"## {title}\n\n{table}" for title, table in parts.items())


def _machine(machine: Machine) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 1e9:.0f} GB",
        f"{machine['system']}, data on {machine['file_system']}",
        f"Python {machine['python']}, {versions}",
    ]


def _figures(found: Sequence[Figure]) -> str:
    rows = [
        (
            one["name"],
            f"{one['value']:.3g} {one['unit']}",
            f"{'at least' if one['least'] else 'at most'} {one['limit']:.3g} {one['unit']}",
            "yes" if one["reached"] else "NO",
        )
        for one in found
    ]
    return _table(("figure", "measured", "limit", "reached"), rows)


def _seconds(result: Result) -> str:
    rows = [
        (_case(one), name, f"{seconds['wall']:.2f}", f"{seconds['cpu']:.2f}")
        for one in result["timing"]
        for name, seconds in one["seconds"].items()
    ]
    return _table(("case", "command", "wall", "processor"), rows)


def _ratios(result: Result) -> str:
    rows = [
        (
            _case(one),
            name,
            f"{ratios['peft_over_merge']:.2f}",
            f"{ratios['merge_over_copy']:.2f}",
            f"{ratios['merge_less_startup_over_copy']:.2f}",
        )
        for one in result["timing"]
        for name, ratios in one["ratios"].items()
    ]
    head = ("case", "command", "PEFT / it", "it / cp -r", "(it - import torch) / cp -r")
    return _table(head, rows)


def _memory(result: Result) -> str:
    rows = [
        (
            _case(one),
            f"{one['run']}, stopped" if one["stopped"] else one["run"],
            _megabytes(one["anonymous"]),
            _megabytes(one["high_water"]),
        )
        for one in result["memory"]
    ]
    return _table(("case", "command", "anonymous", "high-water mark"), rows)


def _equality(result: Result) -> str:
    rows = [
        (_case(one), one["run"], one["against"], f"{one['tensors']}", f"{len(one['unlike'])}")
        for one in result["equality"]
    ]
    return _table(("case", "command", "against", "tensors", "not equal to the bit"), rows)


def _planning(result: Result) -> str:
    rows = [
        (
            f"{one['tensors']:,}",
            f"{one['shards']:,}",
            f"{one['wall']:.2f} s",
            _megabytes(one["anonymous"]),
        )
        for one in result["plan"]
    ]
    return _table(("tensors", "shards", "`merge --dry-run`", "anonymous memory"), rows)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def _case(one: Timing | Memory | Equality) -> str:
    shape, targets = one["shape"], one["targets"]
    return f"{SHAPES.get(shape, shape)}; {TARGETS[targets]}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns, so that a terminal shows it as one too."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(row)} |\n" for row in padded)


def main() -> None:
    """Write the page anew from a JSON of merge_bench.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--json", type=Path, help="the result; without it the page has none")
    given = parser.parse_args()
    result = json.loads(given.json.read_text(encoding="utf-8")) if given.json else None
    given.page.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
