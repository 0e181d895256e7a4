"""A model with its adapters, merged and exported once: what faults are planted in.

The stages are the product's own, carried out and judged by its own functions; only what does not
depend on the fault (the graph, the proof of the right merge) is kept from one fault to the next.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import loralib as lora
import small_gpt
import torch
from peft_matrix.architectures import ARCHITECTURES
from peft_matrix.making import make_adapter
from peft_matrix.options import OPTIONS
from safetensors.torch import load_file, save_file

from lora_export.api.graph.making import merged_checkpoint, traced_model
from lora_export.api.job.chosen_network import Network
from lora_export.api.job.planned_job import make_job
from lora_export.api.proof import file_proof
from lora_export.api.proof.checkpoint_proof import prove_weights
from lora_export.api.proof.file_proof import prove_file
from lora_export.api.proof.model_proof import Proven, prove_model
from lora_export.checkpoint.index import read_checkpoint
from lora_export.models.subject import Subject
from lora_export.onnx_export import export as writing
from lora_export.onnx_export.file import audit as auditing
from lora_export.onnx_export.file.save import save_model
from lora_export.onnx_export.file.weight_blocks import as_array
from lora_export.onnx_export.settings import ExportSettings
from lora_export.verification.blame.attribution import by_checks
from lora_export.verification.model.runs import run
from lora_export.verification.runtime.sessions import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from torch import Tensor

    from lora_export.records import Checkpoint
    from lora_export.verification.runtime.sessions import Opener

    State = dict[str, Tensor]

LORALIB = "loralib"
FACTORY = f"{Path(small_gpt.__file__)}:build"


@dataclass
class Bench:
    """Base, adapters, right merge and right file of one architecture.

    graph: as captured, without weights. external: the right file with its weights beside it. dtype:
    of the base and of the merged checkpoint.
    """

    name: str
    folder: Path
    job: Any
    merged: Checkpoint
    source: Any
    exported: Any
    graph: onnx.ModelProto
    file: Path
    external: Path
    dtype: torch.dtype = torch.float32
    _numbers: Any = field(default_factory=count)

    @property
    def adapters(self) -> list[Path]:
        """The folders or files of its adapters."""
        return [self.folder / name for name in _adapter_names(self.name)]

    @cached_property
    def base(self) -> State:
        """The base's tensors in float32, by their names on disk."""
        return {name: value.float() for name, value in load_state(self.job.plan.base).items()}

    @cached_property
    def right(self) -> State:
        """The merged tensors in float32, before any rounding to half precision."""
        if self.dtype == torch.float32:
            return load_state(self.merged)
        return load_state(self.carried_out(self.adapters))

    @cached_property
    def stored(self) -> State:
        """The merged tensors as they are on disk."""
        return load_state(self.merged)

    @cached_property
    def reference(self) -> Any:
        """The right outputs in float64, of the weights that are stored."""
        if self.dtype == torch.float32:
            return self.by_model.witnesses.exact
        model = self.source.load(self.merged, full={}, untied=self.job.plan.separated)
        return run(model.double(), self.by_model.suspects.probes)

    @cached_property
    def adapted(self) -> list[str]:
        """The names on disk of the tensors that the merge changes."""
        return [step.out.name for step in self.job.plan.steps() if step.deltas]

    @cached_property
    def places(self) -> dict[str, str]:
        """The module, as the running model calls it, of every tensor that the merge changes."""
        model = self.source.load(self.merged, full={}, untied=self.job.plan.separated)
        names = {id(module): name for name, module in model.named_modules()}
        return {
            step.out.name: names[id(self.source.module(model, step.deltas[0].module))]
            for step in self.job.plan.steps()
            if step.deltas
        }

    @cached_property
    def last(self) -> State:
        """What the last adapter alone makes of the base."""
        return load_state(self.carried_out([self.adapters[-1]]))

    @cached_property
    def other(self) -> State:
        """What another adapter of the same kind makes of the base."""
        return load_state(self.carried_out([self.folder / _other_name(self.name)]))

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """What the right file holds, by parameter."""
        weights = self.exported.weights().items()
        return {name: torch.from_numpy(as_array(weight).copy()) for name, weight in weights}

    @cached_property
    def by_model(self) -> Any:
        """The proof of the right merge, which every fault in a file shares."""
        return prove_model(self.job, self.subject(self.merged))

    def subject(self, merged: Checkpoint) -> Subject:
        """The network with these weights, said to be the merged ones."""
        return Subject(self.source, self.job.plan, merged)

    def place(self) -> Path:
        """A new folder."""
        path = self.folder / f"fault-{next(self._numbers)}"
        path.mkdir()
        return path

    def carried_out(self, adapters: Sequence[Path]) -> Checkpoint:
        """What the product makes of the base in float32 with other adapters."""
        wide = self.folder if self.dtype == torch.float32 else self.folder / "wide"
        return merged_checkpoint(make(wide, adapters, self.name), self.place() / "merged")

    def loads(self, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
        """A checkpoint's tensors by the running model's names."""
        model = self.source.load(checkpoint, full={}, untied=self.job.plan.separated)
        return model.state_dict()

    def doctored(self, changes: State) -> Checkpoint:
        """The merged checkpoint with other tensors in it, rounded once to the dtypes on disk."""
        root = self.place() / "merged"
        if self.merged.layout == "folder":
            shutil.copytree(self.merged.root, root)
        else:
            root.mkdir()
        for shard in self.merged.shards:
            tensors = load_file(shard.file)
            found = {n: v.to(tensors[n].dtype) for n, v in changes.items() if n in tensors}
            target = root / shard.file.name
            if found or not target.exists():
                changed = {k: v.contiguous() for k, v in {**tensors, **found}.items()}
                save_file(changed, target, metadata={"format": "pt"})
        return read_checkpoint(root if self.merged.layout == "folder" else target)

    def filled(self, weights: Mapping[str, Tensor], *, external: bool = False) -> Path:
        """The right graph, filled with these."""
        path = self.place() / "out.onnx"
        save_model(self.graph, path, weights, external_threshold=0 if external else 1 << 30)
        return path

    def judge_weights(self, merged: Checkpoint) -> Proven:
        """What the proof by weights says."""
        checks, *_ = prove_weights(self.job, merged)
        return Proven(checks, attribution=by_checks(checks))

    def judge_model(self, merged: Checkpoint) -> Proven:
        """What the proof as a model says, whatever the weights' would."""
        return prove_model(self.job, self.subject(merged)).proven()

    def judge_file(
        self, path: Path, *, audited: bool = True, opener: Opener | None = None
    ) -> Proven:
        """What is said about an ONNX file; without the audit, by ONNX Runtime alone."""
        with ExitStack() as stack:
            put = stack.enter_context
            put(mock.patch.object(file_proof, "prove_model", return_value=self.by_model))
            put(mock.patch.object(file_proof, "saved", return_value=None))
            if not audited:
                put(mock.patch.object(auditing, "audit", return_value=()))
            return prove_file(
                path, self.exported, self.job, self.subject(self.merged),
                opener=opener or open_session,
            )  # fmt: skip


def make(folder: Path, adapters: Sequence[Path], name: str) -> Any:
    """The product's own plan."""
    if name == LORALIB:
        base, model = folder / "base.safetensors", FACTORY
    else:
        base, model = folder / "base", None
    return make_job(base, adapters, network=Network(model), proof=None, settings={})


def set_up(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Bench:
    """Make base and adapters, merge and export."""
    _make_files(name, folder, dtype)
    adapters = [folder / one for one in _adapter_names(name)]
    job = make(folder, adapters, name)
    merged = merged_checkpoint(job, folder / "right")
    source = traced_model(job, merged)
    file, external, seen = folder / "out.onnx", folder / "external" / "out.onnx", []
    external.parent.mkdir()

    def save_both(
        graph: onnx.ModelProto, path: Path, weights: Mapping[str, Tensor], **how: Any
    ) -> Any:
        seen.append(graph)
        save_model(graph, external, weights, external_threshold=0)
        return save_model(graph, path, weights, **how)

    with mock.patch.object(writing, "save_model", save_both):
        exported = writing.export(Subject(source, job.plan, merged), file, ExportSettings())
    return Bench(name, folder, job, merged, source, exported, seen[0], file, external, dtype)


# Two adapters are summed in these.
_SUMMED = ("llama", "gpt-neox", "t5", "whisper")


def _adapter_names(name: str) -> list[str]:
    suffix = ".pt" if name == LORALIB else ""
    return [f"adapter-{at}{suffix}" for at in range(2 if name in _SUMMED else 1)]


def _other_name(name: str) -> str:
    return "other.pt" if name == LORALIB else "other"


def _make_files(name: str, folder: Path, dtype: torch.dtype) -> None:
    """Write the base in `dtype`, the same values in float32 under `wide`, and the adapters."""
    wanted = [*_adapter_names(name), _other_name(name)]
    wide = folder / "wide"
    wide.mkdir()
    if name == LORALIB:
        model = small_gpt.trained()
        state = {k: v.contiguous() for k, v in model.state_dict().items() if "lora_" not in k}
        rounded = {k: v.to(dtype) for k, v in state.items()}
        save_file(rounded, folder / "base.safetensors")
        save_file({k: v.float() for k, v in rounded.items()}, wide / "base.safetensors")
        for seed, adapter in enumerate(wanted):
            torch.save(lora.lora_state_dict(small_gpt.trained(seed)), folder / adapter)
        return
    architecture = ARCHITECTURES[name]
    architecture.save(dtype, folder / "base")
    _widen(folder / "base", wide / "base")
    for seed, adapter in enumerate(wanted):
        make_adapter(architecture, OPTIONS["plain"], folder / "base", folder / adapter, seed=seed)


def _widen(base: Path, wide: Path) -> None:
    """Copy a base, with its tensors in float32."""
    shutil.copytree(base, wide)
    for file in wide.glob("*.safetensors"):
        tensors = load_file(file).items()
        floats = {n: t.float() if t.is_floating_point() else t for n, t in tensors}
        save_file(floats, file, metadata={"format": "pt"})
    path = wide / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "dtype": "float32"}))


def load_state(checkpoint: Checkpoint) -> State:
    """All tensors of a checkpoint on disk."""
    return {k: v for shard in checkpoint.shards for k, v in load_file(shard.file).items()}


def with_alpha(adapter: Path, module: str, factor: float, folder: Path) -> Path:
    """A copy of a PEFT adapter whose configuration gives one module another alpha."""
    copy = folder / "adapter"
    shutil.copytree(adapter, copy)
    path = copy / "adapter_config.json"
    config = json.loads(path.read_text())
    config["alpha_pattern"] = {module: config["lora_alpha"] * factor}
    path.write_text(json.dumps(config))
    return copy
