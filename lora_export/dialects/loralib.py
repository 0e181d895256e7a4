"""Reads loralib checkpoints (loralib 0.1.2, `lora_state_dict`): factors by module, full tensors.

A full tensor (a bias, a classifier head) replaces the base's. The file holds neither alpha nor
orientation nor enabled blocks; planning finds them elsewhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.elsewhere import EMPTY
from lora_export.dialects.dialect import Dialect, Evidence
from lora_export.errors import InputError
from lora_export.records import FLOAT_DTYPES, Adapter, Problem, Replacement, Update

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import AdapterFile, TensorRef

# A factor is a last path component, not a substring: `flora_net.weight` is an ordinary tensor.
_FACTOR = re.compile(r"(?:(?P<module>.+)\.)?lora_(?P<role>[AB])")


def factor_key(name: str) -> tuple[str, str] | None:
    """Return (module, role) when `name` is a loralib factor, else None. The root module is ""."""
    match = _FACTOR.fullmatch(name)
    return (match["module"] or "", match["role"]) if match else None


def _recognizes(file: AdapterFile) -> Evidence:
    named = any(factor_key(name) for name in file.tensors)
    return Evidence.TENSOR_NAMES if named else Evidence.NONE


def read_factors(file: AdapterFile, weight: float, dialect: str) -> Adapter:
    """Read an adapter with loralib's names: one update a pair of factors, all else full tensors.

    Raises:
        InputError: a factor lacks its partner, or is no matrix of floats; all problems are named.
    """
    factors: dict[str, dict[str, TensorRef]] = {}
    replacements = []
    for name, ref in file.tensors.items():
        if key := factor_key(name):
            factors.setdefault(key[0], {})[key[1]] = ref
        else:
            replacements.append(Replacement(name, ref))
    problems = [p for module, pair in factors.items() for p in pair_problems(file, module, pair)]
    if problems:
        raise InputError.of(problems)
    updates = tuple(Update(module, pair) for module, pair in factors.items())
    return Adapter(file.path, dialect, updates, tuple(replacements), weight, file.wrapper)


def pair_problems(
    file: AdapterFile, module: str, pair: Mapping[str, TensorRef], *, matrices: bool = True
) -> list[Problem]:
    """Return what is wrong with a pair of factors: a missing partner, dtype or shape.

    matrices: both must have two sizes, as in loralib; else at least two (convolutions).
    """
    where = f"{file.path}: {module or '(root module)'}"
    if missing := {"A", "B"} - pair.keys():
        return [
            Problem(
                f"lora_{missing.pop()} is missing; its partner is there",
                where,
                "a factor without its partner cannot be merged: save the adapter again",
                cause="input/factors",
            )
        ]
    problems = []
    for role, ref in pair.items():
        odd = len(ref.spec.shape) != 2 if matrices else len(ref.spec.shape) < 2
        if odd or 0 in ref.spec.shape:
            problems.append(
                Problem(
                    f"lora_{role} has shape {list(ref.spec.shape)}, not two positive sizes",
                    where,
                    EMPTY if 0 in ref.spec.shape else "",
                    cause="input/factors",
                )
            )
        if ref.spec.dtype not in FLOAT_DTYPES:
            problems.append(
                Problem(
                    f"lora_{role} is stored as {ref.spec.dtype}, not a float type",
                    where,
                    cause="input/factors",
                )
            )
    return problems


def _read(file: AdapterFile, weight: float) -> Adapter:
    return read_factors(file, weight, DIALECT.name)


DIALECT = Dialect("loralib", _recognizes, _read)
