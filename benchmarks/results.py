"""The types of the benchmarks' results, which are also those of their JSON. Sizes are in bytes."""

from __future__ import annotations

from typing import TypedDict

COPY, PEFT, STARTUP = "cp -r", "PEFT", "import torch"
MERGE, VERIFIED = "merge --no-verify", "merge"
MERGES = (MERGE, VERIFIED)
"""The names of the commands. Verification is lora-export's default."""


class Seconds(TypedDict):
    """The timed runs of one command, and their medians."""

    wall: float
    cpu: float
    walls: list[float]


class Ratios(TypedDict):
    """Medians over the rounds of ratios within a round."""

    peft_over_merge: float
    merge_over_copy: float
    merge_less_startup_over_copy: float


class Timing(TypedDict):
    """One base with one choice of targets: seconds of each command, ratios of each merge."""

    shape: str
    targets: str
    bytes: int
    seconds: dict[str, Seconds]
    ratios: dict[str, Ratios]


class Memory(TypedDict):
    """The peak of one run.

    stopped: it was ended at this peak, for want of memory. allowed: start-up of torch, the adapter,
    and a fixed amount.
    """

    shape: str
    targets: str
    run: str
    anonymous: int
    high_water: int
    stopped: bool
    adapter: int
    allowed: int


class Equality(TypedDict):
    """One output against one library: how many tensors there are, and which are not the same."""

    shape: str
    targets: str
    run: str
    against: str
    tensors: int
    unlike: list[str]


class Planned(TypedDict):
    """A plan of so many tensors: median seconds, and the peak of a run that was sampled."""

    tensors: int
    shards: int
    wall: float
    cpu: float
    anonymous: int


class Figure(TypedDict):
    """A figure to reach. least: whether the limit is a lower one."""

    name: str
    value: float
    limit: float
    least: bool
    unit: str
    reached: bool


class Machine(TypedDict):
    """What the figures were taken on."""

    cpu: str
    cores: int
    memory: int
    system: str
    file_system: str
    python: str
    versions: dict[str, str]


class Result(TypedDict):
    """Everything that one call of merge_bench.py has found; lists may be empty before its end."""

    date: str
    command: str
    quick: bool
    rounds: int
    sync: bool
    machine: Machine
    timing: list[Timing]
    memory: list[Memory]
    equality: list[Equality]
    plan: list[Planned]
    figures: list[Figure]
