"""Trained tensors in weight files beside an adapter's own: they join it, or the merge is refused.

Trainers write fully trained tensors beside the low-rank factors: LLaVA's non_lora_trainables.bin,
LongLoRA's trainable_params.bin, ms-swift's vit.safetensors, a value head. PEFT does not read these
files. A merge without them would be another model than the trained one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import file_sha256, same_content, tensors_sha256
from lora_export.checkpoint.shards import read_weights
from lora_export.checkpoint.torch_save.containers import NoTensorsError
from lora_export.dialects import read_adapter
from lora_export.dialects.peft.keys import plain_key
from lora_export.errors import InputError, LimitError, UsageError
from lora_export.records import Problem
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_export.records import Adapter, AdapterFile, Checkpoint, TensorRef, WeightSet

UNDO = "lora_export.undo"
"""The metadata of an undo file of this tool, which holds tensors of a base."""


@dataclass(slots=True)
class Joined:
    """An adapter with the tensors of all weights in its folder that take part."""

    file: AdapterFile
    #: The further files, each with the name that --ignore takes.
    names: dict[Path, str] = field(default_factory=dict)
    #: SHA-256 of the further tensors; "" where there are none.
    digest: str = ""
    #: The sets of weights that --ignore leaves out.
    ignored: list[str] = field(default_factory=list)
    #: What was done with the other files, in words.
    notes: list[str] = field(default_factory=list)


def read_joined(
    file: AdapterFile,
    base: Checkpoint,
    ignore: Sequence[str],
    *,
    dialect: str | None,
    weight: float,
) -> Adapter:
    """Read the adapter in `file`, with all trained tensors of its folder.

    Raises:
        InputError, UsageError: see join_beside and read_adapter.
    """
    joined = join_beside(file, base, ignore)
    adapter = read_adapter(joined.file, dialect=dialect, weight=weight)
    trained_on, revision = map(file.config.get, ("base_model_name_or_path", "revision"))
    ignored = [f"{name} in its folder is left out (--ignore)" for name in joined.ignored]
    return replace(
        adapter,
        digest=tensors_sha256(file.tensors.values()),
        trained_on=trained_on if isinstance(trained_on, str) else "",
        revision=revision if isinstance(revision, str) else "",
        notes=(*file.notes, *adapter.notes, *joined.notes),
        doubts=(*adapter.doubts, *ignored),
        own_files=file.files,
        joined=joined.file.joined,
        joined_digest=joined.digest,
        ignored=tuple(joined.ignored),
    )


def join_beside(file: AdapterFile, base: Checkpoint, ignore: Sequence[str]) -> Joined:
    """Read the weights beside `file`, and join their tensors to it.

    Files that --ignore names and the base's own files are left out. So are tensors that equal a
    tensor of the same name in the base or in the adapter.

    Raises:
        InputError: a file cannot be read, or has other values than the adapter under the same name.
        LimitError: a file asks for more than the limits allow.
    """
    joined = Joined(file)
    own = {shard.file.resolve() for shard in base.shards}
    tensors = dict(file.tensors)
    problems: list[Problem] = []
    for one in file.beside:
        if any(_is_named(one, name) for name in ignore):
            joined.ignored.append(one.name)
        elif not own >= {path.resolve() for path in one.files}:
            try:
                _join(joined, tensors, one, base)
            except InputError as error:
                problems += [_with_way_out(problem, one.name) for problem in error.problems]
            except LimitError as error:
                raise LimitError.of(
                    [_with_way_out(problem, one.name) for problem in error.problems]
                ) from error
    if problems:
        raise InputError.of(problems)
    further = [ref for name, ref in tensors.items() if name not in file.tensors]
    joined.digest = tensors_sha256(further) if further else ""
    joined.file = replace(file, tensors=tensors, joined=joined.names)
    return joined


def _join(joined: Joined, tensors: dict[str, TensorRef], one: WeightSet, base: Checkpoint) -> None:
    if "/" in one.name:
        joined.notes.append(_same_module(joined, one, base))
        return
    try:
        shards = read_weights(one)
    except NoTensorsError:
        return
    if any(UNDO in shard.metadata for shard in shards):
        return
    refs = [ref for shard in shards for ref in shard.tensors]
    stored = base.tensors()
    left = [ref for ref in refs if not _is_in_base(ref, stored)]
    known = [(ref, tensors[ref.spec.name]) for ref in left if ref.spec.name in tensors]
    other = [(ref, mine) for ref, mine in known if not same_content(ref, mine)]
    if other:
        names = first_names([ref.spec.name for ref, _ in other])
        files = first_names(list(dict.fromkeys(mine.file.name for _, mine in other)))
        message = f"holds other values than {files} for {counted(len(other), 'tensor')}: {names}"
        raise InputError(message, where=str(other[0][0].file), cause="input/adapter-folder")
    new = [ref for ref in left if ref.spec.name not in tensors]
    tensors.update({ref.spec.name: ref for ref in new})
    joined.names.update({shard.file: one.name for shard in shards if new})
    joined.notes.append(f"{one.name} beside the adapter: {_counts(refs, left, new)}")


def _same_module(joined: Joined, one: WeightSet, base: Checkpoint) -> str:
    """Return the note that a further module of sentence-transformers equals the base's.

    Raises:
        InputError: the base has another such module or none. The result would get the base's files.
    """
    root = joined.file.path.parent
    for path in one.files:
        same = base.root / path.relative_to(root)
        if not same.is_file() or file_sha256(same) != file_sha256(path):
            message = "weights of a further module, which the base's folder does not hold"
            hint = "a merge keeps the base's modules: put this file into the result yourself"
            raise InputError(message, where=str(path), hint=hint, cause="input/adapter-folder")
    return f"{one.name} beside the adapter: equal to the base's"


def _is_in_base(ref: TensorRef, stored: Mapping[str, TensorRef]) -> bool:
    """Return whether the base has the same tensor under the same name, which was not trained."""
    same = stored.get(plain_key(ref.spec.name))
    return same is not None and same_content(ref, same)


def _counts(refs: Sequence[TensorRef], left: Sequence[TensorRef], new: Sequence[TensorRef]) -> str:
    """Return how many tensors of one set were read, and how many were equal to known ones.

    refs: all of them. left: those that the base lacks. new: those that the adapter lacks as well.
    """
    counts = (
        (len(new), "read with it"),
        (len(left) - len(new), "equal to the adapter's"),
        (len(refs) - len(left), "equal to the base's"),
    )
    listed = ", ".join(f"{number} {what}" for number, what in counts if number)
    return f"{counted(len(refs), 'tensor')}{f', {listed}' if listed else ''}"


def _with_way_out(problem: Problem, name: str) -> Problem:
    way_out = f"--ignore '{name}' leaves it out"
    return replace(problem, hint=f"{problem.hint}; {way_out}" if problem.hint else way_out)


def _is_named(found: WeightSet, name: str) -> bool:
    """Return whether --ignore names these weights: by name, by a glob on it, or by path."""
    if fnmatchcase(found.name, name) or found.name == name:
        return True
    file = found.index or found.files[0]
    return Path(name).name == found.name and Path(name).absolute() == file.absolute()


def refuse_unused_ignore(files: Iterable[AdapterFile], ignore: Sequence[str]) -> None:
    """Refuse an --ignore that names no weights beside any adapter.

    Raises:
        UsageError: an --ignore fits none of their weights.
    """
    sets = [one for file in files for one in file.beside]
    unused = [name for name in ignore if not any(_is_named(one, name) for one in sets)]
    if unused:
        there = first_names([one.name for one in sets]) if sets else "there are none"
        message = "fits no other weight file in the adapters' folders"
        hint = f"weights beside the adapters: {there}"
        raise UsageError.of(
            [
                Problem(f"{name!r} {message}", "--ignore", hint, cause="usage/no-effect")
                for name in unused
            ]
        )
