"""LoRA on parameters themselves (target_parameters): which parameter a pair of factors is of.

PEFT 0.21.2, tuners.tuners_utils.BaseTuner._inject_parameters: one layer of PEFT a parameter, nested
in the order in which the module registers its parameters, so that `experts.base_layer.lora_A` is
of the first and `experts.lora_A` of the last. The file does not name them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.records import Update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.records import Said

    Saying = Callable[[str, str], Said]

_NESTED = ".base_layer"


@dataclass(frozen=True, slots=True)
class Targets:
    """What a configuration says about where its factors are.

    modules: names of target_modules; None where they are a pattern. parameters: of
    target_parameters.
    """

    modules: tuple[str, ...] | None
    parameters: tuple[str, ...]

    @classmethod
    def of(cls, config: PeftConfig) -> Targets:
        """As the configuration has them."""
        is_pattern = isinstance(config.members.get("target_modules"), str)
        modules = None if is_pattern else config.texts("target_modules")
        return cls(modules, tuple(dict.fromkeys(config.texts("target_parameters"))))

    def settle(self, update: Update, saying: Saying) -> Update:
        """The update with every parameter that its factors may be of.

        saying: what the configuration says, given the name that its patterns are matched with,
        and the tuner. A module that target_modules names is a layer, and never a parameter's.
        """
        module = update.module
        while module.endswith(_NESTED):
            module = module.removesuffix(_NESTED)
        is_nested = module != update.module
        if not is_nested and self.modules is not None and _ends_with(module, self.modules):
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
        found = []
        for target in self.parameters:
            owner, _, name = target.rpartition(".")
            if not owner or _ends_with(module, (owner,)):
                found.append(name)
        return list(dict.fromkeys(found))


def _ends_with(module: str, names: Sequence[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def unheld(config: PeftConfig, updates: Sequence[Update]) -> tuple[str, ...]:
    """What the configuration targets and no tensor of the file is of, in words."""
    targets = Targets.of(config)
    modules = [update.module for update in updates]
    lacking = [n for n in targets.modules or () if not any(_ends_with(m, (n,)) for m in modules)]
    held = {f"{u.module}.{one.parameter}" for u in updates for one in u.readings()}
    lacking += [n for n in targets.parameters if not any(_ends_with(h, (n,)) for h in held)]
    if not lacking or "all-linear" in lacking:
        return ()
    listed = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")  # noqa: PLR2004
    return (f"{config.path.name} targets {listed}, of which the file holds no tensor",)
