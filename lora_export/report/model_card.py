"""README.md of a merged folder: its inputs, its proof, and how to load it.

Like the manifest it has no time and no path of this machine. The front matter follows the rules of
the Hugging Face Hub. It has only texts, so no YAML library is needed to write it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from lora_export.options import ADAPTER
from lora_export.report.columns import counted
from lora_export.report.result import tensor_counts
from lora_export.report.survival import survival_facts, survival_words
from lora_export.shown import shell_command, shown
from lora_export.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.records import Adapter, Card, Check, MergePlan, Survival, WrittenFile

_PLAIN = re.compile(r"[A-Za-z][\w./-]*", re.ASCII)
_RESERVED = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_USUAL = {"recipe": "auto", "tied": "untie"}
_RECIPES = {
    "auto": "the bits of the merge of the library that the adapter was trained with",
    "exact": "updates and weights are added in float32 and rounded once",
}


def model_card(
    plan: MergePlan,
    card: Card,
    *,
    options: Mapping[str, Any],
    base_files: Sequence[WrittenFile],
    adapter_files: Sequence[Sequence[WrittenFile]],
    checks: Sequence[Check],
    survival: Survival | None = None,
) -> bytes:
    """Return the bytes of README.md in UTF-8.

    Args:
        plan: what was merged.
        card: the facts that the Hub reads, and how the folder is loaded.
        options: the settings that the user gave, by name.
        base_files: as for the manifest.
        adapter_files: as for the manifest.
        checks: empty where nothing was verified.
        survival: what storing left of the updates; None where nothing was verified.
    """
    lines = [
        *_front_matter(card.metadata),
        "",
        f"# {card.base or 'A model'}, with a LoRA merged into it",
        "",
        *_introduction(plan, card),
        *_loading(card),
        "## What it is made of",
        "",
        *_inputs(plan, base_files, adapter_files),
        "",
        *_changes(plan),
        "## Verification",
        "",
        *_verification(checks),
        *_survival(survival),
        "",
        "## How it was made",
        "",
        "```sh",
        _command(plan, card, options),
        "```",
    ]
    return ("\n".join(lines) + "\n").encode()


def _front_matter(metadata: Mapping[str, str | tuple[str, ...]]) -> Iterator[str]:
    yield "---"
    for key, value in metadata.items():
        if isinstance(value, str):
            yield f"{key}: {_scalar(value)}"
        else:
            yield f"{key}:"
            yield from (f"- {_scalar(item)}" for item in value)
    yield "---"


def _scalar(text: str) -> str:
    """Return a YAML scalar that every reader takes for this text.

    Words such as `no` are quoted: here it is Norwegian, and to YAML it is a boolean.
    """
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _introduction(plan: MergePlan, card: Card) -> Iterator[str]:
    base = f"[{card.base}](https://huggingface.co/{card.base})" if card.base else "The base model"
    yield f"{base}, with {counted(len(plan.adapters), 'LoRA adapter')} merged into its weights:"
    yield "nothing of an adapter is left to load or to compute. Merged by lora-export"
    yield f"{VERSION}; `lora_export.json` beside this page records every input,"
    yield "every fact and every check."
    if card.is_trained_on:
        yield "The base's name is the one in the adapter's configuration; its files are below."
    yield ""


def _loading(card: Card) -> Iterator[str]:
    if not card.loader:
        return
    names = [card.loader, *(["AutoTokenizer"] if card.has_tokenizer else [])]
    yield from ("## Load it", "", "```python", f"from transformers import {', '.join(names)}", "")
    yield 'path = "."  # this folder, or the name of its repository'
    yield f"model = {card.loader}.from_pretrained(path)"
    if card.has_tokenizer:
        yield "tokenizer = AutoTokenizer.from_pretrained(path)"
    yield from ("```", "")


def _inputs(
    plan: MergePlan,
    base_files: Sequence[WrittenFile],
    adapter_files: Sequence[Sequence[WrittenFile]],
) -> Iterator[str]:
    yield "| input | file | bytes | SHA-256 |"
    yield "|---|---|---|---|"
    for file in base_files:
        yield _row("base", file)
    for adapter, files in zip(plan.adapters, adapter_files, strict=True):
        yield _row(_described(adapter), files[0])
        yield from (_row("with it", file) for file in files[1:])


def _row(what: str, file: WrittenFile) -> str:
    digest = f"`{file.sha256}`" if file.sha256 else "not taken"
    return f"| {what} | {_code(file.path)} | {file.size:,} | {digest} |"


def _described(adapter: Adapter) -> str:
    weight = f", weight {adapter.weight:g}" if adapter.weight != 1 else ""
    return f"adapter ({adapter.dialect}, {counted(len(adapter.updates), 'module')}{weight})"


def _code(text: str) -> str:
    """Return a name from outside as code that cannot end its table cell or its code span."""
    return f"`{re.sub(r'[`|<>]', '?', shown(text))}`"


def _changes(plan: MergePlan) -> Iterator[str]:
    counts = tensor_counts(plan)
    yield f"Of {counts['total']:,} tensors {counts['changed']:,} are changed and"
    cast = sum(step.action == "cast" for step in plan.steps())
    rounded = f" but for {cast:,} in another dtype, rounded once" if cast else ""
    yield f"{counts['added']:,} are new; all others are the base's, byte for byte{rounded}. Recipe"
    yield f"`{plan.recipe}`: {_recipe(plan)}."
    yield ""
    files = {name: edits for name, edits in plan.edits().items() if name != "README.md"}
    if files:
        yield "Edited beside the weights:"
        yield ""
        yield from (f"- {_code(name)}: {_code('; '.join(edits))}" for name, edits in files.items())
        yield ""


def _recipe(plan: MergePlan) -> str:
    """Return what the recipe gives here, and why its bits are not those of the library's merge."""
    reasons = {
        "tensors that were tied are written separately": bool(plan.separated),
        "several adapters are summed exactly": len(plan.adapters) > 1,
        "an adapter has another weight than 1": any(a.weight != 1 for a in plan.adapters),
        "layers are written more than once": any(a.replication for a in plan.adapters),
        "the sum in float32 is rounded once": any(step.is_widened for step in plan.steps()),
    }
    applying = [text for text, applies in reasons.items() if applies]
    if plan.recipe != "auto" or not applying:
        return _RECIPES.get(plan.recipe, "see the manifest")
    return (
        "equal to the unmerged model; the library's own merge differs here, because "
        f"{' and '.join(applying)}"
    )


def _verification(checks: Sequence[Check]) -> Iterator[str]:
    if not checks:
        yield "Nothing was verified: the merge was made with `--no-verify`."
        return
    yield f"{counted(len(checks), 'check')} passed before this folder was published; the manifest"
    yield "holds what each of them saw and allowed:"
    yield ""
    yield from (f"- {check.name}" for check in checks)
    yield ""
    yield "`lora-export verify .` holds the files against their digests again."


def _survival(survival: Survival | None) -> Iterator[str]:
    """Yield how much of the updates is left, in a paragraph of its own."""
    for entry in survival_facts(survival).values():
        yield ""
        words = survival_words(entry)
        yield f"{words[0].upper()}{words[1:]}."
        if entry["note"]:
            yield f"Note: {entry['note']}."
        yield "The manifest has the share of every tensor (`survival`)."


def _command(plan: MergePlan, card: Card, options: Mapping[str, Any]) -> str:
    """Return the command, with the words BASE and ADAPTER in place of this machine's paths."""
    base = card.base or "BASE"
    several = len(plan.adapters) > 1
    adapters = [f"ADAPTER{n if several else ''}" for n in range(1, len(plan.adapters) + 1)]
    words = ["lora-export", "merge", base, *adapters, "-o", "OUT"]
    for name, value in options.items():
        if _USUAL.get(name) != value:
            words += _option(name, value)
    return shell_command(words)


_OPPOSITES = {option.name: option.opposite for option in ADAPTER if option.opposite}


def _option(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        off = [f"--{_OPPOSITES[name]}"] if name in _OPPOSITES else []
        return [flag] if value else off
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if name == "enable_lora" and not isinstance(value, str):
        return [flag, ",".join("1" if block else "0" for block in values)]
    return [word for item in values for word in (flag, _text(item))]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
