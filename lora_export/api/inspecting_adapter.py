"""What `inspect` finds in an adapter: its modules and groups, its base, and what a merge needs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.folder.hf_cache import cached_snapshot
from lora_export.checkpoint.folder.weight_sets import holds_weights
from lora_export.checkpoint.shards import read_weights
from lora_export.checkpoint.torch_save.containers import NoTensorsError
from lora_export.dialects import read_adapter
from lora_export.errors import InputError
from lora_export.planning.names.base_names import weight_names
from lora_export.planning.updates.fused import missing_keys
from lora_export.planning.updates.resolve_configured import scaling_by_rule
from lora_export.records import Facts
from lora_export.report.columns import counted, first_names
from lora_export.shown import shell_command

if TYPE_CHECKING:
    from lora_export.records import Adapter, AdapterFile, TensorSpec, Update, WeightSet

_FLAGS = {"alpha": "--alpha ALPHA"}
"""The option that gives a fact which no loralib file holds."""


def adapter_facts(file: AdapterFile, place: Path) -> dict[str, Any]:
    """Return what an adapter holds, by name: docs/json.md.

    place: the path that the user named, for the command of a merge.
    """
    adapter = read_adapter(file, dialect=None)
    base, missing = _base(file), _missing_facts(adapter)
    contradictions = _contradictions(adapter)
    return {
        "kind": "adapter",
        "path": str(adapter.path),
        "wrapper": adapter.wrapper,
        "dialect": adapter.dialect,
        **({"base": base} if base else {}),
        "groups": _groups(adapter),
        "modules": [_update(update) for update in adapter.updates],
        "full_tensors": [_spec(r.ref.spec) for r in adapter.replacements],
        "not_in_the_file": missing,
        **({"beside": beside} if (beside := [_beside(one) for one in file.beside]) else {}),
        "notes": [*file.notes, *_notes(adapter)],
        "contradictions": contradictions,
        **_needs(place, base, missing, contradictions),
    }


def _beside(found: WeightSet) -> dict[str, Any]:
    """Return what another weight file of the adapter's folder holds, or why it is unreadable."""
    try:
        names = [ref.spec.name for shard in read_weights(found) for ref in shard.tensors]
    except NoTensorsError:
        names = []
    except InputError as error:
        return {"file": found.name, "tensors": "?", "names": str(error.problems[0].message)}
    return {"file": found.name, "tensors": len(names), "names": first_names(names)}


def _base(file: AdapterFile) -> dict[str, Any]:
    """Return the base that the adapter names, and where it was found; empty if it names none."""
    name, revision = map(file.config.get, ("base_model_name_or_path", "revision"))
    if not isinstance(name, str) or not name:
        return {}
    found = next(filter(_is_base, _base_places(Path(name), file.path.parent)), None)
    known = {"revision": revision} if isinstance(revision, str) and revision else {}
    return {"name": name, **known, "found": str(found) if found else None}


def _base_places(named: Path, folder: Path) -> list[Path]:
    """Return where the named base may lie: as a path, beside the adapter, in the local cache."""
    cached = cached_snapshot(named)
    beside = [] if named.is_absolute() else [folder / named, folder.parent / named]
    return [named, *beside, folder.parent / named.name, *([cached] if cached else [])]


def _is_base(place: Path) -> bool:
    """Return whether a model lies at `place`; a name too long for the system lies nowhere."""
    try:
        return place.is_dir() and (place / "config.json").is_file() and holds_weights(place)
    except (OSError, ValueError):
        return False


def _groups(adapter: Adapter) -> list[dict[str, Any]]:
    """Return an entry for all modules that share tuner, rank, alpha and scaling."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for update in adapter.updates:
        groups.setdefault(_shared(update), []).append(update.module)
    return [
        {
            "number": len(modules),
            "tuner": tuner,
            "rank": rank,
            "alpha": alpha,
            "scaling": scaling,
            "names": list(dict.fromkeys(module.rpartition(".")[2] for module in modules)),
        }
        for (tuner, rank, alpha, scaling), modules in groups.items()
    ]


def _shared(update: Update) -> tuple[str, int | None, float | None, float | None]:
    """Return (tuner, rank, alpha, scaling); None for what the files do not show."""
    rank = _rank(update)
    if update.terms is None:
        return update.family, rank, None, None
    terms = update.terms
    scaling = scaling_by_rule(terms, rank or 1) if rank or terms.rule == "1" else None
    return terms.tuner, rank, terms.alpha, scaling


def _rank(update: Update) -> int | None:
    """Return the rank that the config states, else that of the factors; None for neither."""
    if update.terms and update.terms.rank is not None:
        return update.terms.rank
    if "B" in update.factors and len(update.factors["B"].spec.shape) > 1:
        return update.factors["B"].spec.shape[1]
    return None


def _contradictions(adapter: Adapter) -> list[str]:
    """Return where the config and the file disagree on the rank of a LoRA: a merge refuses it.

    Factors of several experts are stacked, so a multiple of the rank is no contradiction.
    """
    wrong: dict[tuple[int, int, str], list[str]] = {}
    for update in adapter.updates:
        terms, factor = update.terms, update.factors.get("A")
        if factor and terms and terms.tuner == "lora" and terms.rank:
            rows = factor.spec.shape[0]
            if rows % terms.rank and factor.spec.shape[-1] != terms.rank:
                wrong.setdefault((rows, terms.rank, terms.source), []).append(update.module)
    return [
        f"the factors of {first_names(modules)} have rank {rows}, and {source} says {rank}"
        for (rows, rank, source), modules in wrong.items()
    ]


def _needs(
    place: Path, base: dict[str, Any], missing: list[str], contradictions: list[str]
) -> dict[str, Any]:
    """Return what a merge needs beside the adapter, and its command with the gaps in capitals."""
    if contradictions:
        return {"a_merge_needs": ["another file: the configuration belongs to another adapter"]}
    found = base.get("found")
    needs = [] if found else [f"the base {base['name']}" if base else "the base"]
    words = shell_command(["lora-export", "merge", found or "BASE", str(place)])
    flags = " ".join(_FLAGS[fact] for fact in missing if fact in _FLAGS)
    return {
        "a_merge_needs": [*needs, *missing],
        "command": f"{words} {flags} -o OUT".replace("  ", " "),
    }


def _missing_facts(adapter: Adapter) -> list[str]:
    """Return the facts that the user must give for an adapter without a configuration."""
    if all(update.terms for update in adapter.updates):
        return []
    if any(update.family == "litgpt" for update in adapter.updates):
        return missing_keys([update.own or Facts() for update in adapter.updates])
    return ["alpha", "fan_in_fan_out of square weights", "enable_lora"]


def _update(update: Update) -> dict[str, Any]:
    shapes = {role: list(ref.spec.shape) for role, ref in update.factors.items()}
    dtypes = sorted({ref.spec.dtype for ref in update.factors.values()})
    name = update.module or "(root module)"
    facts: dict[str, Any] = {} if update.terms else {"rank": shapes["B"][1]}
    if terms := update.terms:
        rule = terms.rule.replace("alpha", f"{terms.alpha:g}")
        rule = rule.replace("rank", str(terms.rank or "r"))
        facts = {"tuner": terms.tuner, "scaling": rule}
    return {"module": name, **shapes, **facts, "dtype": "/".join(dtypes)}


def _notes(adapter: Adapter) -> list[str]:
    """Return the notes without which the entries would be misread."""
    notes = [*adapter.notes, *adapter.doubts]
    if any(update.terms is None and _may_be_convolution(update) for update in adapter.updates):
        notes.append(
            "if a module is a convolution, its rank is the one shown divided by the kernel size, "
            "which only the base's weight shows"
        )
    full = {replacement.name for replacement in adapter.replacements}
    both = [u.module for u in adapter.updates if full & set(weight_names(u.module))]
    if both:
        notes.append(
            f"{counted(len(both), 'module')} ({first_names(both)}) "
            "with both factors and the full weight: the file does not show whether the weights "
            "contain the update already (saved in eval mode) or not (saved in train mode)"
        )
    return notes


def _may_be_convolution(update: Update) -> bool:
    """Return whether the factors may be those of a convolution with a kernel above 1.

    loralib 0.1.2 stores A as (rank * kernel, in * kernel) and B as (out * kernel, rank * kernel).
    The kernel size divides these sides. A MergedLinear of several blocks has more rows in A than
    columns in B.
    """
    (rows, width), (height, rank) = (update.factors[role].spec.shape for role in "AB")
    return rows == rank and math.gcd(rows, width, height) > 1


def _spec(spec: TensorSpec) -> dict[str, Any]:
    """Return name, dtype and shape of a tensor."""
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
