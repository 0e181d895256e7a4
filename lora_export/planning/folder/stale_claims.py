"""The entries of config.json about quantised weights, where the base has none any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.report.columns import counted

if TYPE_CHECKING:
    from lora_export.planning.findings import Findings
    from lora_export.records import Checkpoint


def stale_claims(base: Checkpoint, findings: Findings) -> tuple[str, ...]:
    """Return the keys of config.json that describe quantised weights where there are none.

    With them, transformers would build quantised layers for plain weights, and fail or load wrong
    values.
    """
    found = base.quantization
    if found is None or not found.claims:
        return ()
    if found.remains and not found.weights:
        return ()
    if found.remains:
        stays = f"{counted(len(found.weights), 'weight')} stay quantised ({found.method})"
        findings.choices.append(f"{stays}, byte for byte, and so does {' and '.join(found.claims)}")
        return ()
    findings.choices.append(
        f"config.json names {found.method}, but no tensor is quantised: "
        f"{' and '.join(found.claims)} is left out, as the result could not be loaded with it"
    )
    return found.claims
