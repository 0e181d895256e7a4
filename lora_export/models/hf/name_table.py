"""The names under which transformers loads a checkpoint into its model (extra `hf`).

Since version 5 a model of transformers may have other names for its tensors than checkpoints. It
may also hold in one tensor what they store in several: the experts of a layer. The tables are those
of transformers.conversion_mapping (5.24), applied by transformers itself.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from lora_export.records import NameTable, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

_STACK = ["MergeModulelist(dim=0)"]
_STACK_OF_PARTS = [*_STACK, "Concatenate(dim=1)"]


def read_name_table(model: nn.Module) -> NameTable | None:
    """Read the table of a transformers model that is built without weights.

    It is None before version 5, which has no such tables.
    """
    try:
        import transformers
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import dot_natural_key, rename_source_key
    except ImportError:
        return None
    config: Any = model.config
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def places(names: Iterable[str]) -> Mapping[str, Place]:
        conversions: Any = deepcopy(get_model_conversion_mapping(model))  # type: ignore[arg-type]
        converters = [one for one in conversions if hasattr(one, "operations")]
        renamings = [one for one in conversions if not hasattr(one, "operations")]
        found = {}
        # In the order in which from_pretrained renames.
        for name in sorted(names, key=dot_natural_key):
            renamed, pattern = rename_source_key(
                name, renamings, converters, str(model.base_model_prefix), own
            )
            # The renamings are for stored names; a name of the model's own stays.
            if pattern is None and renamed not in own and name in own:
                renamed = name
            converter = next((c for c in converters if pattern in c.source_patterns), None)
            found[name] = _place(name, renamed, pattern, converter)
        return found

    source = f"transformers {transformers.__version__} for {config.model_type}"
    return NameTable(source, own, places)


def _place(name: str, renamed: str, pattern: str | None, converter: Any) -> Place:
    """Return the place of a stored tensor: a tensor of the model, or a part of one.

    Only stacks of experts are understood as parts. Other conversions become an obstacle.
    """
    if pattern is None or converter is None:
        return Place(renamed)
    operations = [repr(operation) for operation in converter.operations]
    expert = re.search(pattern.replace(".*.", r"\.(\d+)\."), name)
    sources = list(converter.source_patterns)
    alone = len(converter.target_patterns) == 1 and expert is not None and bool(expert.groups())
    if alone and expert and operations in (_STACK, _STACK_OF_PARTS):
        return Place(renamed, int(expert[1]), (sources.index(pattern), len(sources)))
    return Place(renamed, obstacle=" then ".join(operations))
