"""What base, unmerged and merged model say to three texts: a proof in words, for the report.

It decides nothing: the outputs are compared by the level "model" itself, in numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.folder.tokenizer_files import tokenizer_files
from lora_export.errors import LoraExportError
from lora_export.models.hf.huggingface import HuggingFaceModel
from lora_export.models.memory import available_memory, elements_of
from lora_export.models.network.calling import FAILURES
from lora_export.models.network.quiet import quiet
from lora_export.shown import reason_of
from lora_export.verification.model.branches import attach

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from lora_export.models.source import ModelSource
    from lora_export.models.subject import Subject

    #: Answers a text, with a model.
    Speaker = Callable[[nn.Module, str], str]

TEXTS = ("The capital of France is", "Once upon a time", "def add(a, b):")
"""What a model continues, and what a classifier reads."""

GAPS = ("Paris is the {} of France.", "The cat sat on the {}.", "Two and two make {}.")
"""What a masked model fills; the braces stand for its mask."""

NEW_TOKENS = 16
"""Tokens of a continuation, each the most likely one."""

_SHOWN = 3
"""Predictions of a classifier or a masked model that are shown."""

_BYTES = 8
"""Memory for an element: its float32 value, and the stored one beside it while it loads."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """A tokenizer, and the texts that suit the model's task."""

    tokenizer: Any
    texts: tuple[str, ...]
    speak: Speaker


def sample_texts(subject: Subject, source: ModelSource) -> dict[str, Any]:
    """Return what the three models say, as the fact `samples` of a report.

    Args:
        subject: the merged network, whose outputs are proven.
        source: the model without a cache, if the subject's has one.

    Returns:
        `rows` with `input`, `base`, `unmerged` and `merged`; or `why` nothing can be said. Empty
        where the folder has no tokenizer.
    """
    folder = _tokenizer_folder(subject)
    if folder is None or not isinstance(source, HuggingFaceModel):
        return {}
    if why := _why_too_large(subject):
        return {"why": why}
    try:
        with quiet():
            reader = _reader(source, folder)
            return {"rows": _rows(subject, source, reader)} if reader else {}
    except (*FAILURES, OSError, MemoryError, LoraExportError) as error:
        reason = reason_of(error)
        return {"why": f"{type(error).__name__}: {reason}"}


def _tokenizer_folder(subject: Subject) -> Path | None:
    """Return the folder of the result's tokenizer, else the base's; None where there is none."""
    folders = [subject.merged.root, subject.plan.base.root]
    return next((each for each in folders if each.is_dir() and tokenizer_files(each)), None)


def _why_too_large(subject: Subject) -> str:
    needed, available = _BYTES * elements_of(subject.blueprint), available_memory()
    if available is None or needed <= available:
        return ""
    return f"the model takes about {needed / 1e9:.0f} GB, {available / 1e9:.0f} GB are available"


def _reader(source: HuggingFaceModel, folder: Path) -> _Reader | None:
    """Return how the model is asked; None for a model that takes or gives no text."""
    from transformers import AutoTokenizer

    name = source.model_class.__name__
    is_generating = (
        source.model_class.can_generate() and source.model_class.main_input_name == "input_ids"
    )
    if not is_generating and not name.endswith(("ForMaskedLM", "ForSequenceClassification")):
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if is_generating:
        return _Reader(tokenizer, TEXTS, partial(_continued, tokenizer))
    if name.endswith("ForSequenceClassification"):
        return _Reader(tokenizer, TEXTS, partial(_classified, tokenizer))
    texts = tuple(text.format(tokenizer.mask_token) for text in GAPS)
    return _Reader(tokenizer, texts, partial(_filled, tokenizer))


def _rows(subject: Subject, source: HuggingFaceModel, reader: _Reader) -> list[dict[str, str]]:
    """Return the answers; one model after the other is in memory."""
    rows = [{"input": text} for text in reader.texts]
    for side, load in _models(subject, source).items():
        model = load()
        for row in rows:
            row[side] = reader.speak(model, row["input"])
        del model
    return rows


def _models(subject: Subject, source: HuggingFaceModel) -> dict[str, Callable[[], nn.Module]]:
    """Return how each model is loaded, whole and in float32."""
    plan, merged = subject.plan, subject.merged
    untied = plan.separated
    if plan.reshaped:  # only the result's config builds a model of this shape
        bare = partial(source.load, merged, full=plan.sources(), untied=untied)
        base = bare
    else:
        bare = partial(source.load, plan.base, full=plan.full_tensors(), untied=untied)
        base = partial(source.load, plan.base, full=plan.new_tensors(), untied=())

    def unmerged() -> nn.Module:
        model = bare()
        attach(source, model, plan)
        return model

    return {
        "base": base,
        "unmerged": unmerged,
        "merged": partial(source.load, merged, full={}, untied=untied),
    }


def _tokens(tokenizer: Any, text: str) -> Mapping[str, Any]:
    """Return the model's inputs for a text.

    Raises:
        ValueError: the tokenizer knows no token of it.
    """
    found: Mapping[str, Any] = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    if not found["input_ids"].numel():
        raise ValueError(f"the tokenizer has no token for {text!r}")
    return found


def _continued(tokenizer: Any, model: Any, text: str) -> str:
    """Return the most likely continuation, token by token."""
    import torch
    from transformers import GenerationConfig

    given = _tokens(tokenizer, text)
    end = model.config.get_text_config(decoder=True).eos_token_id
    make: Any = GenerationConfig  # it has no types of its own
    settings = make(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id or 0,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
    with torch.inference_mode():
        found = model.generate(**given, generation_config=settings)[0]
    own = found if model.config.is_encoder_decoder else found[given["input_ids"].shape[1] :]
    return str(tokenizer.decode(own, skip_special_tokens=True))


def _filled(tokenizer: Any, model: Any, text: str) -> str:
    """Return the most likely tokens in the place of the mask, with their probabilities."""
    import torch

    given = _tokens(tokenizer, text)
    with torch.inference_mode():
        logits = model(**given).logits[0]
    [place, *_] = (given["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
    return _likely(logits[place], lambda token: repr(str(tokenizer.decode([token])).strip()))


def _classified(tokenizer: Any, model: Any, text: str) -> str:
    """Return the most likely classes, with their probabilities."""
    import torch

    with torch.inference_mode():
        logits = model(**_tokens(tokenizer, text)).logits[0]
    return _likely(logits, lambda label: str(model.config.id2label.get(label, label)))


def _likely(logits: Any, name: Callable[[int], str]) -> str:
    import torch

    found = torch.softmax(logits.float(), dim=-1).topk(min(_SHOWN, logits.numel()))
    pairs = zip(found.values.tolist(), found.indices.tolist(), strict=True)
    return ", ".join(f"{name(number)} {share:.1%}" for share, number in pairs)
