"""One row a layer kind: small shapes that it explains, and where its merge is held to the bit.

A kind has three places: a file in lora_export/layers, one in lora_export/verification/kinds, and a
row here. tests/verification/kinds/test_kinds_are_complete.py fails when one of them is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.records import Delta, TensorRef, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    Sizes = tuple[int, ...]

BY_LORALIB = "tests/execution/test_exactness.py"
BY_PEFT = "tests/execution/test_peft_tuners.py"
BY_LITGPT = "tests/api/adapters/test_litgpt.py"
IN_OUT = {"fan_in_fan_out": True}


@dataclass(frozen=True)
class Row:
    """Small shapes of one kind."""

    #: (rank) -> the shapes of the factors, by role.
    factors: Callable[[int], dict[str, Sizes]]

    #: The shape of the base tensor.
    weight: Sizes

    #: What holds the merge against the library bit for bit: a layer of tests/peft_layers.py and how
    #: it is trained, which tests/layers/test_peft_bits.py merges, or another test file.
    oracle: tuple[str, dict[str, bool]] | str

    #: Further fields of the update.
    fields: dict[str, object] = field(default_factory=dict)

    def delta(self, kind: str, rank: int) -> Delta:
        """The update of a float32 weight, with factors that lie nowhere."""
        refs = {
            role: TensorRef(TensorSpec(role, "F32", shape), Path("x"), 0, 0)
            for role, shape in self.factors(rank).items()
        }
        given = {"rule": "alpha / rank", "recipe": "peft", "alpha": 1.7, **self.fields}
        scaling = 1.0 if given["rule"] == "1" else 1.7 / rank
        return Delta("x", "m", kind, refs, self.weight, rank, scaling=scaling, **given)


def _a_b(first: int, second: int) -> Callable[[int], dict[str, Sizes]]:
    """Factors A (r, first) and B (second, r)."""
    return lambda rank: {"A": (rank, first), "B": (second, rank)}


def _a_b_m(first: int, second: int, *magnitude: int) -> Callable[[int], dict[str, Sizes]]:
    return lambda rank: {"A": (rank, first), "B": (second, rank), "M": magnitude}


def _kernels(rank: int) -> dict[str, Sizes]:
    return {"A": (rank, 5, 2, 2), "B": (24, rank, 1, 1)}


# The first word is the kind; others say what is special about the shapes.
ROWS = {
    "linear": Row(_a_b(40, 24), (24, 40), ("linear", {})),
    "linear turned": Row(_a_b(24, 40), (24, 40), ("linear", {}), IN_OUT),
    "embedding": Row(_a_b(24, 40), (24, 40), ("embedding", {})),
    "conv": Row(
        lambda r: {"A": (r * 3, 18), "B": (30, r * 3)}, (10, 6, 3, 3), BY_LORALIB,
        {"recipe": "loralib"},
    ),
    "merged_linear": Row(
        lambda r: {"A": (r * 2, 40), "B": (16, r)}, (24, 40), BY_LORALIB,
        {"recipe": "loralib", "enable_lora": (True, False, True)},
    ),
    "merged_linear turned": Row(
        lambda r: {"A": (r * 2, 40), "B": (16, r)}, (40, 24), BY_LORALIB,
        {"recipe": "loralib", "enable_lora": (False, True, True), **IN_OUT},
    ),
    "litgpt_qkv": Row(
        lambda r: {"A": (r * 2, 40), "B": (18, r)}, (24, 40), BY_LITGPT,
        {"recipe": "loralib", "enable_lora": (True, False, True), "heads": (4, 2)},
    ),
    "litgpt_qkv by group": Row(
        lambda r: {"A": (r * 2, 40), "B": (12, r)}, (24, 40), BY_LITGPT,
        {"recipe": "loralib", "enable_lora": (False, True, True), "heads": (4, 2),
         "by_group": True},
    ),
    "peft_conv": Row(_kernels, (24, 5, 2, 2), ("conv2d", {})),
    "lora_bias": Row(lambda _: {"bias": (24,)}, (24,), ("linear", {"lora_bias": True})),
    "experts": Row(
        lambda r: {"A": (r * 3, 40), "B": (24, r * 3)}, (3, 24, 40), "tests/layers/test_experts.py"
    ),
    "experts turned": Row(
        lambda r: {"A": (r * 3, 40), "B": (24, r * 3)}, (3, 40, 24),
        "tests/layers/test_experts.py", IN_OUT,
    ),
    "attention_in": Row(_a_b(8, 24), (24, 8), ("attention", {})),
    "attention_out": Row(_a_b(24, 24), (24, 24), ("attention", {})),
    "dora_linear": Row(_a_b_m(40, 24, 24), (24, 40), ("linear", {"use_dora": True})),
    "dora_linear turned": Row(
        _a_b_m(24, 40, 40), (24, 40), ("linear", {"use_dora": True}), IN_OUT
    ),
    "dora_embedding": Row(_a_b_m(24, 40, 40), (24, 40), ("embedding", {"use_dora": True})),
    "dora_conv": Row(
        lambda r: {**_kernels(r), "M": (1, 24, 1, 1)}, (24, 5, 2, 2),
        ("conv2d", {"use_dora": True}),
    ),
    "adalora": Row(
        lambda r: {"A": (r, 40), "B": (24, r), "E": (r, 1)}, (24, 40), BY_PEFT,
        {"rule": "alpha / (rank + 1e-5)"},
    ),
    "loha": Row(
        lambda r: {"w1_a": (24, r), "w1_b": (r, 40), "w2_a": (24, r), "w2_b": (r, 40)},
        (24, 40), BY_PEFT,
    ),
    "loha of cores": Row(
        lambda r: {"w1_a": (r, 24), "w1_b": (r, 5), "w2_a": (r, 24), "w2_b": (r, 5),
                   "t1": (r, r, 2, 2), "t2": (r, r, 2, 2)},
        (24, 5, 2, 2), BY_PEFT,
    ),
    "lokr": Row(
        lambda r: {"w1_a": (4, r), "w1_b": (r, 5), "w2_a": (6, r), "w2_b": (r, 8)},
        (24, 40), BY_PEFT,
    ),
    "lokr of a core": Row(
        lambda r: {"w1_a": (4, r), "w1_b": (r, 5), "t2": (r, r, 3, 3), "w2_a": (r, 6),
                   "w2_b": (r, 2)},
        (24, 10, 3, 3), BY_PEFT,
    ),
    "lokr of a line": Row(lambda _: {"w1": (4, 5), "w2": (6, 2, 3)}, (24, 10, 3), BY_PEFT),
    "vera": Row(
        lambda r: {"lambda_b": (24,), "lambda_d": (r,), "A": (r, 50), "B": (30, r)},
        (24, 40), BY_PEFT, {"rule": "1"},
    ),
    "ia3": Row(lambda _: {"L": (24, 1)}, (24, 40), BY_PEFT, {"rule": "1"}),
    "ia3 turned": Row(lambda _: {"L": (40, 1)}, (24, 40), BY_PEFT, {"rule": "1", **IN_OUT}),
    "ia3_feedforward": Row(lambda _: {"L": (1, 40)}, (24, 40), BY_PEFT, {"rule": "1"}),
    "ia3_feedforward turned": Row(
        lambda _: {"L": (1, 24)}, (24, 40), BY_PEFT, {"rule": "1", **IN_OUT}
    ),
    "ia3_feedforward of a convolution": Row(
        lambda _: {"L": (1, 10, 1, 1)}, (24, 5, 2, 2), BY_PEFT, {"rule": "1"}
    ),
    "token_rows": Row(
        lambda _: {"rows": (3, 40)}, (24, 40), "tests/api/adapters/test_peft_whole.py",
        {"rule": "1", "indices": (5, 2, 20)},
    ),
}  # fmt: skip


def kind_of(case: str) -> str:
    """The layer kind that a row is of."""
    return case.split(maxsplit=1)[0]
