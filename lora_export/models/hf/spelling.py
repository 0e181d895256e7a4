"""The names of a checkpoint as the running model of transformers spells them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from torch import nn

    from lora_export.planning.names.base_names import BaseNames
    from lora_export.records import NameTable


class Spelling:
    """Finds the modules and tensors of a running model by the names of a checkpoint."""

    def __init__(self, prefix: str, table: Callable[[], NameTable | None]) -> None:
        """Take the name of the model without head, and what returns transformers' own table."""
        self._prefix = f"{prefix}."
        self._table = table

    def of(self, name: str) -> list[str]:
        """List the names under which from_pretrained places a checkpoint's `name`, in its order."""
        return [name, self._prefix + name, name.removeprefix(self._prefix)]

    def runtime_names(self, names: Collection[str]) -> dict[str, str]:
        """Return the model's names for a checkpoint's, by transformers' table, where it has one.

        The table is asked once for all names: each question makes new rules.
        """
        table = self._table()
        if not names or table is None:
            return {name: name for name in names}
        return {name: place.name for name, place in table.places(names).items()}

    def state_names(self, own: BaseNames, names: Iterable[str]) -> dict[str, str | None]:
        """Find the names of the state dict for a checkpoint's; None where there is none."""
        found = {name: _first(own, self.of(name)) for name in names}
        missing = [name for name, target in found.items() if target is None]
        runtime = self.runtime_names(missing)
        return {**found, **{name: own.tensor(runtime[name]) for name in missing}}

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """Return the module that a checkpoint calls `name`.

        Raises:
            UsageError: the model has no such module.
        """
        for spelled in self.of(name):
            if (found := _submodule(model, spelled)) is not None:
                return found
        weight = f"{name}.weight"
        own = self.runtime_names([weight])[weight].removesuffix(".weight")
        if (found := _submodule(model, own)) is not None:
            return found
        hint = "the running model may hold it in another form, as experts in one tensor"
        raise UsageError(
            "the model has no such module", where=name, hint=hint, cause="usage/model-run"
        )


def _first(own: BaseNames, spellings: Sequence[str]) -> str | None:
    return next((found for found in map(own.tensor, spellings) if found), None)


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
