"""LoRA on parameters themselves (target_parameters): which parameter a pair of factors is of.

PEFT 0.21.2, tuners.tuners_utils.BaseTuner._inject_parameters: one layer of PEFT a parameter, nested
in the order in which the module registers its parameters, so that `experts.base_layer.lora_A` is
of the first and `experts.lora_A` of the last. The file does not name them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.errors import LimitError
from lora_export.records import Update
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.records import Said

    Saying = Callable[[str, str], Said]

_NESTED = ".base_layer"

MAX_PARAMETERS = 64
"""Each may be the one that a module's factors are of, where a target names no module."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What a configuration says about where its factors are.

    modules: names of target_modules; None where they are a pattern. parameters: names of
    target_parameters, by the module's name, which is "" for any.
    """

    modules: frozenset[str] | None
    parameters: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, config: PeftConfig) -> Targets:
        """As the configuration has them.

        Raises:
            LimitError: it names more parameters of any module than a module has.
        """
        is_pattern = isinstance(config.members.get("target_modules"), str)
        modules = None if is_pattern else frozenset(config.texts("target_modules"))
        parameters: dict[str, list[str]] = {}
        for target in dict.fromkeys(config.texts("target_parameters")):
            owner, _, name = target.rpartition(".")
            parameters.setdefault(owner, []).append(name)
        if any(len(names) > MAX_PARAMETERS for names in parameters.values()):
            message = f"target_parameters names more than {MAX_PARAMETERS} of one module"
            raise LimitError(message, where=str(config.path), hint="no module has so many")
        return cls(modules, parameters)

    def settle(self, update: Update, saying: Saying) -> Update:
        """The update with every parameter that its factors may be of.

        saying: what the configuration says, given the name that its patterns are matched with,
        and the tuner. A module that target_modules names is a layer, and never a parameter's.
        """
        module = update.module
        while module.endswith(_NESTED):
            module = module.removesuffix(_NESTED)
        is_nested = module != update.module
        if not is_nested and not _ends(module).isdisjoint(self.modules or ()):
            return update
        found = [
            Update(module, update.factors, name, saying(f"{module}.{name}", "parameter"))
            for name in self._parameters(module)
        ]
        if not found:
            return update
        if self.modules is None and not is_nested:
            found.append(update)
        first, *others = found
        level = update.module.count(_NESTED) - module.count(_NESTED)
        return Update(module, first.factors, first.parameter, first.said, tuple(others), level)

    def _parameters(self, module: str) -> list[str]:
        """The parameters that are targeted if the module has them."""
        owners = ["", *_ends(module)]
        return list(dict.fromkeys(n for owner in owners for n in self.parameters.get(owner, ())))


def _ends(name: str) -> set[str]:
    """Everything that the name ends in, from the start of a component on."""
    parts = name.split(".")
    return {".".join(parts[place:]) for place in range(len(parts))}


def unheld(config: PeftConfig, updates: Sequence[Update]) -> tuple[str, ...]:
    """What the configuration targets and no tensor of the file is of, in words.

    Nothing where it also says what of its targets is left out.
    """
    if any(config.members.get(key) for key in ("exclude_modules", "layers_to_transform")):
        return ()
    named = config.members.get("target_modules")
    modules = () if isinstance(named, str) else config.texts("target_modules")
    held = {end for update in updates for end in _ends(update.module)}
    lacking = [name for name in dict.fromkeys(modules) if name not in held]
    single = (one for update in updates for one in update.readings())
    held = {end for one in single for end in _ends(f"{one.module}.{one.parameter}")}
    lacking += [name for name in config.texts("target_parameters") if name not in held]
    if not lacking:
        return ()
    listed = first_names(lacking, 5)
    return (f"{config.path.name} targets {listed}, of which the file holds no tensor",)
