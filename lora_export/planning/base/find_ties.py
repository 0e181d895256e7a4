"""The search for names of a base that are one parameter: by model, architecture, or storage."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.planning.given import Tie
from lora_export.planning.names.base_names import BaseNames
from lora_export.planning.names.embedding_tables import TABLES
from lora_export.planning.names.locating import homes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lora_export.planning.names.locating import Home
    from lora_export.records import Checkpoint, ModelFacts, NameTable, TensorRef

    Groups = Sequence[Sequence[str]]
    Lookup = Callable[[Checkpoint], Groups | None]

# Heads of transformers 5 that are tied by weight alone. Other heads are refused: transformers would
# draw a head at random if it were written under a wrong name.
HEADS = {
    "lm_head.weight": {
        "FalconForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM",
        "GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM", "OPTForCausalLM",
        "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
    },
    "vocab_projector.weight": {"DistilBertForMaskedLM"},
}  # fmt: skip
_HEAD_PARTS = {
    "head",
    "decoder",
    "embed_out",
    "predictions",
    "vocab_projector",
    "proj_out",
    "output",
}


def find_ties(
    base: Checkpoint,
    touched: Iterable[str],
    model: ModelFacts | None,
    lookup: Lookup,
    name_table: Callable[[], NameTable | None] = lambda: None,
) -> tuple[Tie, ...]:
    """Return every tie of the base that a model, its architecture or its storage shows.

    Args:
        base: the checkpoint.
        touched: the names of the adapters' modules and full tensors.
        model: the facts of the user's own model; its ties are then the only ones by name.
        lookup: returns the groups of tied parameters of the architecture. It builds the model's
            skeleton, and is called only where an adapter may touch a table or a head.
        name_table: returns the running model's names, for a base with other names.
    """
    stored = base.tensors()
    names = BaseNames(stored)
    groups: Groups = model.ties if model else ()
    if model is None and any(_may_be_tied(name) for name in touched):
        groups = lookup(base) or _by_architecture(base)

    @cache
    def homes() -> Mapping[str, Home]:
        known = name_table()
        return homes_of(known, stored) if known else {}

    ties = [
        tie
        for group in groups
        if (tie := _in_base(group, names) or (None if model else _by_table(group, homes())))
    ]
    if model is None:
        ties = [part for tie in ties for part in _alike(tie, stored)]
    return tuple(_joined([*ties, *_by_storage(base)]))


def _may_be_tied(name: str) -> bool:
    parts = name.lower().split(".")
    return any("emb" in part or "head" in part or part in ("wte", "shared") for part in parts) or (
        not _HEAD_PARTS.isdisjoint(parts)
    )


def _in_base(group: Sequence[str], names: BaseNames) -> Tie | None:
    """Return a model's tie in the base's own names; unstored names get the stored ones' prefix."""
    stored = {name: found for name in group if (found := names.find(name))}
    if not stored:
        return None
    plain, table = next(iter(stored.items()))
    prefix = table.removesuffix(plain) if table.endswith(plain) else ""
    return Tie(tuple(stored.get(name, prefix + name) for name in group), table)


def _by_table(group: Sequence[str], homes: Mapping[str, Home]) -> Tie | None:
    """Return a tie of the running model's names, with the base's names in their places."""
    stored = {name: homes[name].whole[0] for name in group if name in homes and homes[name].whole}
    if not stored:
        return None
    return Tie(tuple(stored.get(name, name) for name in group), next(iter(stored.values())))


def _alike(tie: Tie, stored: Mapping[str, TensorRef]) -> list[Tie]:
    """Split off the names of a tie that the base stores with other values.

    transformers 5 does not tie those, whatever flags config.json has.
    """
    groups: list[list[str]] = [[tie.stored]]
    for name in tie.names:
        if name == tie.stored or name not in stored:
            continue
        like = (g for g in groups if same_content(stored[g[0]], stored[name]))
        group = next(like, None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    if len(groups) == 1:
        return [tie]
    groups[0] += [name for name in tie.names if name not in stored]
    return [Tie(tuple(group), group[0]) for group in groups if len(group) > 1]


def _by_storage(base: Checkpoint) -> list[Tie]:
    """Return a tie for all tensors that a torch pickle keeps in the same place of one storage."""
    places: dict[object, list[str]] = {}
    for name, ref in base.tensors().items():
        if ref.length:
            key = (ref.file, ref.offset, ref.length, ref.strides, ref.spec.shape, ref.spec.dtype)
            places.setdefault(key, []).append(name)
    return [Tie(tuple(names), names[0]) for names in places.values() if len(names) > 1]


def _by_architecture(base: Checkpoint) -> Groups:
    stored = base.tensors()
    architecture = architecture_of(base)
    heads = [head for head, known in HEADS.items() if architecture in known]
    tables = [name for name in stored if name.endswith(TABLES)]
    if not heads or len(tables) != 1 or not _tied_by_config(base, heads[0]):
        return ()
    return ((tables[0], heads[0]),)


def architecture_of(base: Checkpoint) -> str:
    """Return the class that config.json names; empty where it names none."""
    architectures = base.config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _tied_by_config(base: Checkpoint, head: str) -> bool:
    """Return tie_word_embeddings; where it is missing, whether the checkpoint lacks the head."""
    flag = base.config.get("tie_word_embeddings")
    return bool(flag) if flag is not None else head not in base.tensors()


def _joined(ties: Sequence[Tie]) -> list[Tie]:
    """Join the ties that share a name into one."""
    joined: list[Tie] = []
    for tie in ties:
        others = [other for other in joined if set(other.names) & set(tie.names)]
        names = dict.fromkeys(name for one in [*others, tie] for name in one.names)
        joined = [other for other in joined if other not in others]
        joined.append(Tie(tuple(names), others[0].stored if others else tie.stored))
    return joined
