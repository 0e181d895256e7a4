r"""Which modules a configuration selects, as PEFT 0.21.2 decides it when it loads an adapter.

PEFT makes layers where the configuration says, and loads the tensors of the file that fit into
them: any other factor is ignored in silence. tuners.tuners_utils.check_target_module_exists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.dialects.peft.expressions import Expression
from lora_export.dialects.peft.fields import FIELDS
from lora_export.dialects.peft.whole_tensors import TIED, saved_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.dialects.peft.config import PeftConfig

_NAME = re.compile(r"[\w.-]+")
_WORD = re.compile(r"[\w-]+")
_LAYER = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Selection:
    """The members of a configuration that say which modules are adapted.

    is_named, is_excluded, is_saved: of a module's name in the trained model. is_named is None where
    the configuration gives no names (the model type's, or all linear layers). exact: the names of
    the list; a module of exactly this name is adapted in any layer. layers: layers_to_transform,
    None for every layer. layer_names: layers_pattern. parameters: target_parameters. tied: last
    names of modules that share the factors of another one. all_linear: the modules are all linear
    layers, and no other one.
    """

    is_named: Callable[[str], bool] | None
    is_excluded: Callable[[str], bool]
    is_saved: Callable[[str], bool]
    exact: frozenset[str] = frozenset()
    layers: frozenset[int] | None = None
    layer_names: tuple[str, ...] = ()
    parameters: frozenset[str] = frozenset()
    tied: tuple[str, ...] = ()
    all_linear: bool = False

    @classmethod
    def of(cls, config: PeftConfig) -> Selection:
        """As PEFT reads the members that the type of the adapter has.

        Raises:
            InputError: a member has the wrong type, or holds no regular expression.
            LimitError: an expression is too long.
        """
        has = FIELDS.get(config.peft_type, frozenset())
        listed = not isinstance(config.members.get("target_modules"), str)
        names = config.texts("target_modules") if listed else ()
        by_layer = listed and "layers_to_transform" in has
        layers = _numbers(config, "layers_to_transform") if by_layer else None
        return cls(
            _named(config),
            _ends(config, "exclude_modules") if "exclude_modules" in has else _never,
            _saved(config),
            frozenset(names),
            layers,
            _layer_names(config) if layers else (),
            frozenset(config.texts("target_parameters")),
            TIED if config.flag("ensure_weight_tying") else (),
            _says_all(config.members.get("target_modules")),
        )

    def leaves_out(self, module: str) -> str:
        """The member of the configuration for which PEFT makes no layer here; "" where it does.

        module: in the trained model; or a parameter's name, for target_parameters.

        Raises:
            LimitError: an expression takes too many steps.
        """
        if module.rpartition(".")[2] in self.tied or self._is_parameter(module):
            return ""
        if self.is_excluded(module):
            return "exclude_modules"
        if self.is_saved(module):
            return "modules_to_save"
        if self.is_named is not None and not self.is_named(module):
            return "target_modules"
        if self.layers is None or module in self.exact or self._layer(module) in self.layers:
            return ""
        return "layers_to_transform"

    def _is_parameter(self, name: str) -> bool:
        return bool(self.parameters) and not self.parameters.isdisjoint(tails(name))

    def _layer(self, module: str) -> int | None:
        """The first number after a name of layers_pattern, or after any name."""
        if not self.layer_names:
            found = _LAYER.match(module)
            return int(found["idx"]) if found else None
        for name in self.layer_names:
            if found := re.match(rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\.", module):
                return int(found["idx"])
        return None


def _never(_: str) -> bool:
    return False


def _named(config: PeftConfig) -> Callable[[str], bool] | None:
    """target_modules; without it, target_parameters selects parameters and no module."""
    value = config.members.get("target_modules")
    if value is None:
        return _never if config.texts("target_parameters") else None
    if _says_all(value):
        return None
    return _ends(config, "target_modules")


def _says_all(value: object) -> bool:
    return isinstance(value, str) and value.lower() == "all-linear"


def _ends(config: PeftConfig, key: str) -> Callable[[str], bool]:
    """An expression for the whole name, or a list of names that it may end in."""
    value = config.members.get(key)
    if isinstance(value, str) and value:
        return _expression(config, value)
    names = frozenset(config.texts(key))
    return lambda module: not names.isdisjoint(tails(module))


def tails(module: str) -> Sequence[str]:
    """Everything that the name ends in, from the start of a component on."""
    parts = module.split(".")
    return [".".join(parts[place:]) for place in range(len(parts))]


def _expression(config: PeftConfig, text: str) -> Callable[[str], bool]:
    return Expression.of(text, str(config.path)).fits


def _saved(config: PeftConfig) -> Callable[[str], bool]:
    r"""Modules that are trained whole, and those in them: `re.match(rf"(^|.*\\.){m}($|\\..*)")`."""
    names = saved_modules(config)
    plain = tuple(f".{name}." for name in names if _WORD.fullmatch(name))
    fits = [
        Expression.of(rf"(^|.*\.){name}($|\..*)", str(config.path)).fits
        for name in names
        if not _WORD.fullmatch(name)
    ]
    return lambda module: (
        any(name in f".{module}." for name in plain) or any(fit(module) for fit in fits)
    )


def _numbers(config: PeftConfig, key: str) -> frozenset[int] | None:
    value = config.members.get(key)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int for number in listed):
        config.refuse(key, f"= {value!r:.80} is no list of layers")
    return frozenset(listed) or None


def _layer_names(config: PeftConfig) -> tuple[str, ...]:
    names = tuple(name for name in config.texts("layers_pattern") if name)
    for name in names:
        if not _NAME.fullmatch(name):
            config.refuse("layers_pattern", f"= {name!r:.80} is no name", "write names of lists")
    return names
