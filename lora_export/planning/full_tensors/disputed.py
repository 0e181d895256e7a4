"""Full tensors that the adapter's configuration speaks against, or of which some are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.records import FLOAT_DTYPES, Problem
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.findings import Findings
    from lora_export.planning.full_tensors.targets import FullTensor
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
            "is a tensor of an adapted module, which PEFT calls otherwise: its key has no "
            "base_layer, so PEFT does not load it"
        )
    else:
        message = f"is of a module that {item.outside} in adapter_config.json does not list"
    return Problem(message, where, BOTH)


def refuse_partial_modules(
    adapter: Adapter, tensors: Sequence[FullTensor], given: Given, findings: Findings
) -> None:
    """Refuse a file without some of the tensors of a module that modules_to_save trains whole.

    PEFT 0.21.2 cannot load it. A module of which the file holds nothing may be one that the trained
    network does not have.
    """
    held = {one.target for one in tensors if one.target}
    modules = {_saved_module(name, adapter.heads) for name in held} - {""}
    held |= {given.stored_name(name) for name in held}
    lacking = [
        name
        for name, ref in given.stored.items()
        if _saved_module(name, adapter.heads) in modules
        and name not in held
        and ref.spec.dtype in FLOAT_DTYPES
    ]
    if lacking and given.options.trust_file is not True:
        count = counted(len(lacking), "tensor")
        message = f"the file lacks {count} of modules_to_save: {first_names(lacking)}"
        findings.unfit.append(Problem(message, str(adapter.path), _PARTIAL))


def _saved_module(name: str, heads: Sequence[str]) -> str:
    """Return the outermost module around a tensor that ends in a name of `heads`; else ""."""
    parts = name.split(".")[:-1]
    paths = (".".join(parts[: place + 1]) for place in range(len(parts)))
    return next((path for path in paths if path.endswith(tuple(heads))), "") if heads else ""
