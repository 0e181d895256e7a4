"""The precisions an ONNX file can have, and what each does to a weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lora_export.errors import UsageError

KEY = "lora_export.precision"
"""The key of the precision's name in the metadata of a file with rounded weights."""


LEVEL = "accuracy_level"
"""The attribute of MatMulNBits by which activations are rounded; only some precisions have it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How a row of a weight is rounded."""

    bits: int
    """Bits of a code."""
    block: int = 0
    """Elements of a row that share a scale; 0 for the whole row."""
    symmetric: bool = False
    """Whether codes are signed and code 0 is zero; else every block has a zero point."""
    signed: bool = False
    """Whether codes and zero points are stored less 128, as int8. The values are the same."""

    @property
    def levels(self) -> int:
        """Return the steps from the lowest code to the highest; of a symmetric grid, from zero."""
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1


@dataclass(frozen=True, slots=True)
class Precision:
    """A precision that an ONNX file can have."""

    name: str
    """As given to --precision."""
    words: str
    """What it is, for reports."""
    product: Grid | None = None
    """The grid of weights in matrix products; None where none is rounded to codes."""
    dynamic: bool = False
    """Whether the activations of these products are rounded to 8 bits at run time too."""
    level: int = 0
    """The accuracy_level of MatMulNBits; 0 writes none. With 4, ONNX Runtime rounds the activations
    of a product to 8 bits in blocks, and multiplies whole numbers."""

    @property
    def codes(self) -> str:
        """Return how the codes of int8 are stored: "signed" or "unsigned"; "" elsewhere."""
        if not self.dynamic or self.product is None:
            return ""
        return "signed" if self.product.signed else "unsigned"

    def with_codes(self, codes: str) -> Precision:
        """Return int8 with its codes stored as `codes` says: "signed" or "unsigned"."""
        if self.product is None:
            raise AssertionError(self.name)
        return replace(self, product=replace(self.product, signed=codes == "signed"))


TABLE = Grid(bits=8, symmetric=True)
"""The grid of embedding tables in every quantised precision: a row is one token's vector."""

NEGLIGIBLE = 1e-36
"""A step below which a block is stored as zeros: the inverse of such a step overflows float32."""

PRECISIONS = {
    one.name: one
    for one in (
        Precision("fp32", "float32"),
        Precision("fp16", "float16 weights, inputs and outputs"),
        Precision(
            "int8",
            "8-bit weights, one scale an output channel; activations rounded at run time",
            Grid(bits=8),
            dynamic=True,
        ),
        Precision(
            "int8-weights",
            "8-bit weights in blocks of 32; activations rounded in blocks at run time",
            Grid(bits=8, block=32),
            level=4,
        ),
        Precision(
            "int4",
            "4-bit weights in blocks of 32; activations rounded in blocks at run time",
            Grid(bits=4, block=32),
            level=4,
        ),
    )
}


def find_precisions(names: str) -> tuple[Precision, ...]:
    """Find the precisions of a list such as "fp32,int8", in its order.

    Raises:
        UsageError: there is no such precision, or one is named twice.
    """
    found = tuple(map(find_precision, names.split(",")))
    if len(set(found)) < len(found):
        raise UsageError(
            f"{names!r:.80} names a precision twice",
            where="--precision",
            hint="name each once",
            cause="usage/option-value",
        )
    return found


def find_precision(name: str) -> Precision:
    """Find the precision of that name.

    Raises:
        UsageError: there is none, or it is bf16, which cannot be proven here.
    """
    if name == "bf16":
        raise UsageError(
            "ONNX Runtime's CPU provider has no bfloat16 kernels, so a bf16 file could be "
            "neither run nor proven here",
            where="--precision bf16",
            hint="fp16 has the same size and three more bits of precision",
            cause="usage/option-value",
        )
    if name not in PRECISIONS:
        hint = f"one of {', '.join(PRECISIONS)}"
        raise UsageError(
            f"there is no precision {name!r:.80}",
            where="--precision",
            hint=hint,
            cause="usage/option-value",
        )
    return PRECISIONS[name]
