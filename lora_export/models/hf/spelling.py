"""The names of a checkpoint as the running model of transformers spells them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

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

    def runtime_name(self, name: str) -> str:
        """Return the model's name for a checkpoint's, by transformers' table, where it has one."""
        table = self._table()
        return table.places([name])[name].name if table else name

    def state_name(self, names: BaseNames, name: str) -> str | None:
        """Find the name of the state dict for a checkpoint's; None where there is none."""
        spellings = [*self.of(name), self.runtime_name(name)]
        return next((n for n in map(names.tensor, spellings) if n), None)

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """Return the module that a checkpoint calls `name`.

        Raises:
            UsageError: the model has no such module.
        """
        for spelled in self.of(name):
            if (found := _submodule(model, spelled)) is not None:
                return found
        own = self.runtime_name(f"{name}.weight").removesuffix(".weight")
        if (found := _submodule(model, own)) is not None:
            return found
        hint = "the running model may hold it in another form, as experts in one tensor"
        raise UsageError("the model has no such module", where=name, hint=hint)


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
