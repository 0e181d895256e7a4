"""One function for each command. Its keyword arguments have the names of the options."""

from lora_export.api.exporting import export_onnx
from lora_export.api.inspecting import inspect
from lora_export.api.merging import merge
from lora_export.api.unmerging import unmerge
from lora_export.api.verifying import verify

__all__ = ["export_onnx", "inspect", "merge", "unmerge", "verify"]
