"""Full tensors that the adapter's configuration leaves out, and modules with missing tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.records import FLOAT_DTYPES, Problem
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.findings import Findings
    from lora_export.planning.full_tensors.base_targets import FullTensor
    from lora_export.planning.given import Given
    from lora_export.records import Adapter, Replacement

BOTH = (
    "PEFT ignores these tensors, and --trust-config leaves them out; --trust-file merges every "
    "tensor of the file"
)
_PARTIAL = (
    "saved without gathering, or with another configuration? PEFT cannot load it; --trust-file "
    "merges the tensors that are there"
)


def disputed(item: Replacement, where: str) -> Problem:
    """Return the problem of a full tensor that PEFT ignores and that would change the base."""
    if item.outside == "base_layer":
        message = (
            "is a tensor of an adapted module, for which PEFT has another name: the key has no "
            "base_layer, and PEFT does not load it"
        )
    else:
        message = f"belongs to a module that {item.outside} in adapter_config.json does not list"
    return Problem(message, where, BOTH, cause="usage/disputed")


def refuse_partial_modules(
    adapter: Adapter, tensors: Sequence[FullTensor], given: Given, findings: Findings
) -> None:
    """Refuse a file with only some tensors of a module of modules_to_save.

    PEFT 0.21.2 cannot load such a file. A module without any tensor in the file is accepted: the
    trained network may not have it.
    """
    present = {one.target for one in tensors if one.target}
    modules = {_saved_module(name, adapter.heads) for name in present} - {""}
    present |= {given.stored_name(name) for name in present}
    lacking = [
        name
        for name, ref in given.stored.items()
        if _saved_module(name, adapter.heads) in modules
        and name not in present
        and ref.spec.dtype in FLOAT_DTYPES
    ]
    if lacking and given.options.trust_file is not True:
        count = counted(len(lacking), "tensor")
        message = f"the file lacks {count} of modules_to_save: {first_names(lacking)}"
        findings.unfit.append(Problem(message, str(adapter.path), _PARTIAL, cause="usage/disputed"))


def _saved_module(name: str, heads: Sequence[str]) -> str:
    """Return the outermost module around a tensor whose path ends in a name of `heads`; else ""."""
    parts = name.split(".")[:-1]
    paths = (".".join(parts[: place + 1]) for place in range(len(parts)))
    return next((path for path in paths if path.endswith(tuple(heads))), "") if heads else ""
