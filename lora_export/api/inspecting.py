"""The verb inspect: it reports what a file or folder holds, from headers and JSON alone."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.api.inspecting_adapter import adapter_facts
from lora_export.api.job.command_line import command_words
from lora_export.api.job.keywords import checked
from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG, manifest_path
from lora_export.checkpoint.index import read_adapter_file, read_checkpoint
from lora_export.checkpoint.reading import read_json_object, reading
from lora_export.dialects import Evidence, all_dialects, foreign_trainer
from lora_export.errors import InputError
from lora_export.report.columns import counted
from lora_export.report.result import Report

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

    from lora_export.dialects.foreign import Trainer
    from lora_export.records import (
        AdapterFile,
        Checkpoint,
        TensorSpec,
    )


@checked("inspect")
def inspect(path: str | Path) -> Report:
    """Report what lies at `path`: an adapter, a checkpoint, or an artefact with its manifest.

    Only headers, the structure of pickles, and JSON are read, without torch.

    Example:
        See which modules an adapter adapts, and what its file does not hold::

            found = inspect("lora.pt").facts["found"]
            print([entry["module"] for entry in found["modules"]], found["not_in_the_file"])

    Args:
        path: a weight file, a shard index, a folder, or an .onnx file.

    Returns:
        The report, whose `facts["found"]` has "kind" ("adapter", "checkpoint" or "onnx"), "path",
        and what the kind has: modules with their shapes, tensors, dtypes, a graph's inputs.

    Raises:
        InputError: nothing is there, or the file is damaged, unsafe, or of an unknown format.
        LimitError: the file asks for more than the limits allow.
        StorageError: the file cannot be read.
    """
    place = Path(path)
    with reading(place):
        return _inspected(place)


def _inspected(place: Path) -> Report:
    if place.suffix == ".onnx" and place.is_file():
        return _reported(place, _onnx(place))
    file = _adapter_file(place)
    trainer = foreign_trainer(file) if file else None
    if file and trainer:
        found = _foreign(file, trainer)
    else:
        found = adapter_facts(file, place) if file else _checkpoint(place)
    return _reported(place, {**found, **_manifest(place)})


def _reported(place: Path, found: dict[str, Any]) -> Report:
    """Return the report, with the command that goes on from here where one is complete."""
    words: list[str] = []
    if "manifest" in found:
        words = command_words("verify", {"artifact": place})
    elif found.get("base", {}).get("found") and not found["a_merge_needs"]:
        merge = {"base": found["base"]["found"], "adapters": [place], "dry_run": True}
        words = command_words("merge", merge)
    return Report("inspect", facts={"found": found}, next=shlex.join(words))


def _adapter_file(place: Path) -> AdapterFile | None:
    """Read `place` as an adapter's file, if a dialect recognises it; else return None.

    Raises:
        InputError: a folder that holds adapters cannot be read.
    """
    try:
        file = read_adapter_file(place, follow_links=True)  # nothing of it is copied
    except InputError:
        if _is_adapters_place(place):
            raise
        return None
    grades = (dialect.recognizes(file) for dialect in all_dialects().values())
    is_known = max(grades) > Evidence.NONE or foreign_trainer(file) is not None
    return file if is_known else None


def _is_adapters_place(place: Path) -> bool:
    """Return whether the folder holds an adapter_config.json, and so is meant as an adapter's."""
    if not place.is_dir() or (place / "config.json").exists():
        return False
    return any((folder / ADAPTER_CONFIG).exists() for folder in (place, *place.iterdir()))


def _foreign(file: AdapterFile, trainer: Trainer) -> dict[str, Any]:
    """Return the facts of an adapter whose trainer is known, but whose merge is not supported."""
    specs = [ref.spec for ref in file.tensors.values()]
    return {
        "kind": "adapter",
        "path": str(file.path),
        "wrapper": file.wrapper,
        "dialect": trainer.name,
        "known_by": trainer.mark,
        "tensors": len(specs),
        "bytes": sum(spec.nbytes for spec in specs),
        "dtypes": _dtypes(specs),
        "notes": [f"it is not merged yet: {trainer.hint}"],
    }


def _checkpoint(place: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(place, follow_links=True)
    specs = [ref.spec for ref in checkpoint.tensors().values()]
    return {
        "kind": "checkpoint",
        "path": str(checkpoint.root),
        "wrapper": ", ".join(dict.fromkeys(s.wrapper for s in checkpoint.shards if s.wrapper)),
        "architectures": checkpoint.config.get("architectures", []),
        "files": [shard.file.name for shard in checkpoint.shards],
        "tensors": len(specs),
        "bytes": sum(spec.nbytes for spec in specs),
        "dtypes": _dtypes(specs),
        **_quantized(checkpoint),
    }


def _quantized(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the number of quantised weights with their method; empty where there are none."""
    found = checkpoint.quantization
    if found is None:
        return {}
    return {"quantized": f"{counted(len(found.weights), 'weight')} ({found.method})"}


def _dtypes(specs: Iterable[TensorSpec]) -> dict[str, int]:
    return dict(Counter(spec.dtype for spec in specs).most_common())


def _manifest(place: Path) -> dict[str, Any]:
    path = manifest_path(place)
    if not path.is_file():
        return {}
    return {"manifest": read_json_object(path)}


def _onnx(place: Path) -> dict[str, Any]:
    """Return the size and the interface of the graph at `place`, without reading its weights.

    Raises:
        InputError: the file is no readable ONNX file.
    """
    from lora_export.onnx_export.file.external import read_model

    model = read_model(place)
    return {
        "kind": "onnx",
        "path": str(place),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "nodes": len(model.graph.node),
        "initializers": len(model.graph.initializer),
        "inputs": [_value(value) for value in model.graph.input],
        "outputs": [_value(value) for value in model.graph.output],
        **_manifest(place),
    }


def _value(value: onnx.ValueInfoProto) -> str:
    """Return an input or output in the grammar of --input, as far as the file names its type."""
    import onnx

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return f"{value.name}: {value.type.WhichOneof('value') or 'of unknown type'}"
    dtype = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    if not kind.HasField("shape"):
        return f"{value.name}: {dtype}"
    dims = (
        d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in kind.shape.dim
    )
    return f"{value.name}: {dtype}[{','.join(map(str, dims))}]"
