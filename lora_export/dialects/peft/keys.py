"""Splits the keys of a PEFT adapter file into module, kind of factor, and what follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.errors import InputError
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from lora_export.records import AdapterFile, TensorRef

_PREFIXES = ("base_model.model.", "base_model.")
"""What PeftModel puts before every name; the longer prefix first."""

_LEAVES = ("weight", "bias")
RANKNUM = "ranknum"
"""The stem of AdaLoRA's count of ranks, which dumps of the whole state hold."""


@dataclass(frozen=True, slots=True)
class FactorKey:
    """The parts of a factor's key; the examples are of q_proj.lora_A.default.weight."""

    module: str
    """q_proj."""
    stem: str
    """lora_A."""
    leaf: str
    """weight; "" where the factor is a parameter itself."""
    adapter: str = ""
    """default; "" in files of save_pretrained, which take the adapter's name out."""


def plain_key(key: str) -> str:
    """Return the key without the prefix that PeftModel adds."""
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def split_key(key: str, stems: Collection[str]) -> FactorKey | None:
    """Split a factor's key; return None when no component is one of `stems`.

    Whole components are compared, no substrings: `flora_A.weight` is no factor.
    """
    parts = plain_key(key).split(".")
    places = [place for place, part in enumerate(parts) if part in stems]
    if not places:
        return None
    place = places[-1]
    module, rest = ".".join(parts[:place]), parts[place + 1 :]
    leaf = rest.pop() if rest and rest[-1] in _LEAVES else ""
    return FactorKey(module, parts[place], leaf, ".".join(rest))


@dataclass(frozen=True, slots=True)
class Sorted:
    """The tensors of a file, sorted into factors and others."""

    factors: Mapping[str, Mapping[str, TensorRef]]
    """Factors by module, then by `stem` or `stem.bias`."""
    others: Mapping[str, TensorRef]
    """All other tensors, by key."""
    adapters: frozenset[str]
    """The names of adapters that keys may hold."""
    twice: Mapping[str, str]
    """Why a factor is not used that a second file of the folder holds as well, by key."""


def sort_keys(file: AdapterFile, stems: Collection[str]) -> Sorted:
    """Sort every tensor of the file into factors and others.

    Raises:
        InputError: the file holds several adapters, two keys mean one factor, or some keys have a
            prefix or an adapter's name and others do not.
    """
    split = {key: split_key(key, stems) for key in file.tensors}
    adapters = frozenset(found.adapter for found in split.values() if found)
    _refuse_several(file, adapters)
    factors: dict[str, dict[str, TensorRef]] = {}
    others = {}
    twice: dict[str, str] = {}
    problems = []
    for key, ref in file.tensors.items():
        found = split[key]
        if found is None:
            others[key] = ref
            continue
        role = f"{found.stem}.bias" if found.leaf == "bias" else found.stem
        first = factors.setdefault(found.module, {}).setdefault(role, ref)
        if first is ref:
            continue
        if first.file == ref.file or ref.file not in file.joined:
            message = f"two keys are the {role} of one module: the other is {key}"
            problems.append(
                Problem(message, f"{file.path}: {found.module}", cause="input/adapter-keys")
            )
        elif same_content(first, ref):
            twice[key] = equal_to(first)
        else:
            problems.append(other_reading(first, ref, file.joined))
    if problems:
        raise InputError.of(problems)
    _refuse_some_named(file, split)
    _refuse_some_prefixed(file)
    return Sorted(factors, others, adapters | {"default"}, twice)


def equal_to(first: TensorRef) -> str:
    """Return why a tensor is not used that another file of the folder holds as well."""
    return f"equal to those of {first.file.name}"


def other_reading(first: TensorRef, ref: TensorRef, joined: Mapping[Path, str]) -> Problem:
    """Return the problem of two files in an adapter's folder with other values for one tensor."""
    message = f"has other values than in {first.file.name}"
    name = joined.get(ref.file, ref.file.name)
    hint = f"leave one of the files out: --ignore '{name}' leaves out this one"
    return Problem(message, f"{ref.file}: {ref.spec.name}", hint, cause="input/adapter-keys")


def _refuse_several(file: AdapterFile, names: Iterable[str]) -> None:
    given = sorted(name for name in names if name)
    if len(given) > 1:
        raise InputError(
            f"the file holds the factors of several adapters: {', '.join(given)[:500]}",
            where=str(file.path),
            hint="save one of them with PEFT's save_pretrained(selected_adapters=[NAME])",
            cause="input/adapter-keys",
        )


def _refuse_some_named(file: AdapterFile, split: Mapping[str, FactorKey | None]) -> None:
    """Refuse a file in which only some factors have an adapter's name; PEFT ignores some of them.

    AdaLoRA's ranknum is no factor: PEFT leaves the adapter's name in it.
    """
    own = [(k, found) for k, found in split.items() if file.tensors[k].file not in file.joined]
    factors = [(key, found) for key, found in own if found and found.stem != RANKNUM]
    named = [key for key, found in factors if found.adapter]
    plain = [key for key, found in factors if not found.adapter]
    if named and plain:
        raise InputError(
            f"{len(named)} keys name an adapter and {len(plain)} do not: {named[0][:200]}",
            where=str(file.path),
            hint="PEFT ignores some of them; save the adapter again",
            cause="input/adapter-keys",
        )


def _refuse_some_prefixed(file: AdapterFile) -> None:
    """Refuse a file in which only some keys have PEFT's prefix; PEFT ignores the others."""
    own = [key for key, ref in file.tensors.items() if ref.file not in file.joined]
    bare = [key for key in own if not key.startswith(_PREFIXES)]
    if 0 < len(bare) < len(own):
        raise InputError(
            f"{len(bare)} of {len(own)} keys lack the prefix base_model.model.: {bare[0][:200]}",
            where=str(file.path),
            hint="save the adapter again: PEFT ignores these keys, as they name no module",
            cause="input/adapter-keys",
        )
