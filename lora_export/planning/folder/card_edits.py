"""The facts of the result's model card that no plan or proof has: licence, task, loading class.

The base's own README.md describes the base, so its text is not kept. The members of its metadata
that a merge does not change (licence, language, task) are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.front_matter import read_front_matter
from lora_export.checkpoint.folder.hf_cache import repository_of
from lora_export.planning.names.origin import base_name
from lora_export.records import Card

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.records import Adapter, Checkpoint, SideFile

CARD_NAME = "README.md"
_CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag", "library_name")
# By the end of an architecture's name: the class that loads it, and the Hub's name of its task.
_TASKS = {
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering"),
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "Model": ("AutoModel", ""),
}
_TAGS = ("lora-export", "merged-lora")


def plan_card(
    base: Checkpoint,
    adapters: Sequence[Adapter],
    side_files: Sequence[SideFile],
    config: Mapping[str, object],
) -> Card | None:
    """Return the result's card; None where the result is a single file.

    side_files: those of the result. config: the result's config.json.
    """
    if base.layout == "file":
        return None
    own = next((f.source for f in base.side_files if f.name == CARD_NAME), None)
    metadata = read_front_matter(own) if own else {}
    names = {file.name for file in side_files}
    loader, task = _task(config)
    carried = [key for key in _CARRIED if key != "pipeline_tag" or _task(base.config)[1] == task]
    known = {key: value for key in carried if (value := metadata.get(key)) is not None}
    name = base_name(base, adapters)
    usual = {
        "base_model": (name,) if name else None,
        # A merged LoRA is the fine-tuned model; the Hub's "merge" is one of several models.
        "base_model_relation": "finetune" if name else None,
        "library_name": "transformers" if loader else None,
        "pipeline_tag": task or None,
        "tags": _TAGS,
    }
    members = {**usual, **known}
    return Card(
        metadata={key: value for key, value in sorted(members.items()) if value is not None},
        base=name,
        is_trained_on=bool(name) and not repository_of(base.root),
        loader=loader,
        has_tokenizer=not names.isdisjoint({"tokenizer_config.json", "tokenizer.json"}),
        edits=_edits(metadata, known) if own else ("new: the base has none",),
    )


def _task(config: Mapping[str, object]) -> tuple[str, str]:
    """Return (class that loads the model, its task on the Hub), each empty if not known."""
    found = config.get("architectures")
    name = found[0] if isinstance(found, list) and found else ""
    if not isinstance(name, str) or not name.isidentifier():
        return "", ""
    return next((task for end, task in _TASKS.items() if name.endswith(end)), (name, ""))


def _edits(metadata: Mapping[str, object], known: Mapping[str, object]) -> tuple[str, ...]:
    """Describe how the card differs from the base's.

    metadata: the base's front matter. known: the members of it that are kept.
    """
    edits = ["written anew: the base's own describes the base"]
    if known:
        edits.append(f"kept from the base's metadata: {', '.join(known)}")
    lost = [key for key in _CARRIED if key in metadata and key not in known]
    if lost:
        edits.append(f"not understood in the base's metadata: {', '.join(lost)}")
    return tuple(edits)
