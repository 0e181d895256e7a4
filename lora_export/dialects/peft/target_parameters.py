"""Finds the parameters that LoRA's factors may belong to (target_parameters).

PEFT 0.21.2, tuners.tuners_utils.BaseTuner._inject_parameters, makes one layer a parameter and nests
them. The order is the one in which the module registers its parameters: `experts.base_layer.lora_A`
belongs to the first, `experts.lora_A` to the last. The file does not name the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.dialects.peft.selection import tails
from lora_export.errors import LimitError
from lora_export.records import Update
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.records import Terms

    TermsOf = Callable[[str, str], Terms]

_NESTED = ".base_layer"

MAX_PARAMETERS = 64
"""The most parameters of one module. Every module's factors may belong to each of them."""

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Targets:
    """The modules and parameters that a config targets."""

    modules: frozenset[str] | None
    """The names in target_modules; None if it is an expression."""
    parameters: Mapping[str, Sequence[str]]
    """The names in target_parameters by their module, which is "" for any module."""

    @classmethod
    def of(cls, config: PeftConfig) -> Targets:
        """Read the targets.

        Raises:
            LimitError: there are more than MAX_PARAMETERS of one module.
        """
        is_pattern = isinstance(config.members.get("target_modules"), str)
        modules = None if is_pattern else frozenset(config.texts("target_modules"))
        parameters: dict[str, list[str]] = {}
        for target in dict.fromkeys(config.texts("target_parameters")):
            owner, _, name = target.rpartition(".")
            parameters.setdefault(owner, []).append(name)
        if any(len(names) > MAX_PARAMETERS for names in parameters.values()):
            message = f"target_parameters names more than {MAX_PARAMETERS} of one module"
            raise LimitError(
                message, where=str(config.path), hint="no module has so many", cause="limit/adapter"
            )
        return cls(modules, parameters)

    def settle(self, update: Update, terms_of: TermsOf) -> Update:
        """Return the update with every parameter that its factors may belong to.

        terms_of: what the config states, given a name for its patterns and the tuner.
        """
        module = update.module
        while module.endswith(_NESTED):
            module = module.removesuffix(_NESTED)
        is_nested = module != update.module
        # A module that target_modules names has a layer of its own; its factors are no parameter's.
        if not is_nested and (self.modules or frozenset()) & set(tails(module)):
            return update
        found = [
            Update(module, update.factors, name, terms_of(f"{module}.{name}", "parameter"))
            for name in self._parameters(module)
        ]
        if not found:
            return update
        if self.modules is None and not is_nested:  # an expression may select the module itself
            found.append(update)
        first, *others = found
        level = update.module.count(_NESTED) - module.count(_NESTED)
        return Update(module, first.factors, first.parameter, first.terms, tuple(others), level)

    def _parameters(self, module: str) -> list[str]:
        """Return the parameters that are targeted if the module has them."""
        owners = ["", *tails(module)]
        return list(dict.fromkeys(n for owner in owners for n in self.parameters.get(owner, ())))


def missing_targets(config: PeftConfig, updates: Sequence[Update]) -> tuple[str, ...]:
    """Return a doubt about targets of the config for which the file holds no tensor."""
    # These members take targets away, so a missing target shows nothing.
    if any(config.members.get(key) for key in ("exclude_modules", "layers_to_transform")):
        return ()
    named = config.members.get("target_modules")
    modules = () if isinstance(named, str) else config.texts("target_modules")
    held = {end for update in updates for end in tails(update.module)}
    lacking = [name for name in dict.fromkeys(modules) if name not in held]
    single = (one for update in updates for one in update.readings())
    held = {end for one in single for end in tails(f"{one.module}.{one.parameter}")}
    lacking += [name for name in config.texts("target_parameters") if name not in held]
    if not lacking:
        return ()
    shown = first_names(lacking, _SHOWN)
    return (f"{config.path.name} targets {shown}, of which the file holds no tensor",)
