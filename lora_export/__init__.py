"""Merge a trained LoRA into its base, prove the result, and write it without overhead.

Six functions are the library. Each is a command as well, with the same options. This tour runs in
a checkout, on the trained files of samples/:

    import lora_export

    base, adapters = "samples/chargpt/base.safetensors", ["samples/chargpt/lora.pt"]
    # loralib's files hold only factors; a PEFT folder needs none of these facts.
    facts = {"alpha": 32, "enable_lora": "1,0,1"}

    # See what a file holds, and what a merge would write. Neither loads torch.
    found = lora_export.inspect("samples/chargpt/lora.pt").facts["found"]
    planned = lora_export.merge(base, adapters, dry_run=True, **facts)

    # Merge, prove every element, publish. The undo file keeps what the merge changes.
    report = lora_export.merge(
        base, adapters, "merged.safetensors", undo="merged.undo", **facts
    )
    print(report.passed, len(report.checks), *report.warnings)

    # Prove it again later: by its manifest, or from base and adapters.
    lora_export.verify("merged.safetensors")
    lora_export.verify("merged.safetensors", base=base, adapters=adapters)

    # Restore the base, byte for byte.
    lora_export.unmerge("merged.safetensors", "restored.safetensors", undo="merged.undo")

    # Write ONNX, proven in ONNX Runtime.
    lora_export.export_onnx(
        "samples/digits/base.safetensors",
        ["samples/digits/lora.safetensors"],
        "digits.onnx",
        model="samples/digits/model.py:build",
    )

    # Hold many merges to their proofs, in CI. A row that fails raises nothing.
    result = lora_export.parity("samples/parity.toml", case=["vit, DoRA"])
    print(result.passed, *(row.verdict for row in result.rows))

Each of the first five returns a `Report`. Where it raises a class of `lora_export.errors` instead,
it has published nothing. The public names are these six functions, `lora_export.errors`,
`lora_export.testing`, `lora_export.Report` with the records in its fields, and
`lora_export.Progress`, which `progress=` is called with. Every other module is internal, and may
change in any release.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lora_export import version

if TYPE_CHECKING:
    from lora_export import errors
    from lora_export.api import export_onnx, inspect, merge, unmerge, verify
    from lora_export.records import Progress
    from lora_export.report.result import Report
    from lora_export.suites.parity import parity

__all__ = [
    "Progress",
    "Report",
    "errors",
    "export_onnx",
    "inspect",
    "merge",
    "parity",
    "unmerge",
    "verify",
]

_PLACES = {
    "Progress": "lora_export.records",
    "Report": "lora_export.report.result",
    "parity": "lora_export.suites.parity",
}
"""The modules of public names that `lora_export.api` has not."""

__version__ = version.VERSION


def __dir__() -> list[str]:
    """Return the public names, also those that are not loaded yet."""
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker reads the imports above, and refuses any other name

    def __getattr__(name: str) -> object:
        """Return a public name, which is loaded at its first use: the import stays quick."""
        if name not in __all__:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message)
        if name == "errors":
            return import_module("lora_export.errors")
        return getattr(import_module(_PLACES.get(name, "lora_export.api")), name)
