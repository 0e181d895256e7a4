r"""Decides which modules a config selects, as PEFT 0.21.2 does when it loads an adapter.

PEFT makes a layer for every selected module, and loads the tensors of the file that fit into these
layers. It ignores any other factor without a warning. Reproduces
tuners.tuners_utils.check_target_module_exists.
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

MAX_LAYER_NAMES = 20
"""The most names in layers_pattern, each of which is looked for in every module's name."""

_NAME = re.compile(r"[\w.-]{1,200}")
_WORD = re.compile(r"[\w-]+")
_LAYER = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.", re.DOTALL)
"""Finds the number of a layer without layers_pattern, by the expression of PEFT."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The members of a config that decide which modules are adapted.

    The three tests take the name of a module in the trained model.
    """

    is_named: Callable[[str], bool] | None
    """Whether target_modules names the module; None if the config names no modules.

    PEFT then takes the model type's usual modules, or all linear layers.
    """
    is_excluded: Callable[[str], bool]
    """Whether exclude_modules names the module."""
    is_saved: Callable[[str], bool]
    """Whether the module is trained whole."""
    exact: frozenset[str] = frozenset()
    """The names in target_modules; a module of exactly this name is adapted in every layer."""
    layers: frozenset[int] | None = None
    """layers_to_transform; None for every layer."""
    layer_names: tuple[str, ...] = ()
    """layers_pattern."""
    parameters: frozenset[str] = frozenset()
    """target_parameters."""
    tied: tuple[str, ...] = ()
    """Last names of modules that share the factors of another module."""
    all_linear: bool = False
    """Whether target_modules is "all-linear"."""

    @classmethod
    def of(cls, config: PeftConfig) -> Selection:
        """Read the members; PEFT ignores those that the adapter's type does not have.

        Raises:
            InputError: a member has the wrong type, or holds no regular expression.
            LimitError: an expression is too long.
        """
        has = FIELDS.get(config.peft_type, frozenset())
        is_list = not isinstance(config.members.get("target_modules"), str)
        names = config.texts("target_modules") if is_list else ()
        by_layer = is_list and "layers_to_transform" in has
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
            _is_all_linear(config.members.get("target_modules")),
        )

    def leaves_out(self, module: str) -> str:
        """Return the member of the config for which PEFT makes no layer here; "" if it makes one.

        The members are tried in PEFT's order, and the first that leaves the module out is named.

        module: the name of a module in the trained model, or of a parameter.

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
        """Return the first number after a name of layers_pattern, or after any name without it."""
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
    """Return the test of target_modules; None if it names no modules."""
    value = config.members.get("target_modules")
    if value is None:  # target_parameters alone selects parameters and no module
        return _never if config.texts("target_parameters") else None
    if _is_all_linear(value):
        return None
    return _ends(config, "target_modules")


def _is_all_linear(value: object) -> bool:
    return isinstance(value, str) and value.lower() == "all-linear"


def _ends(config: PeftConfig, key: str) -> Callable[[str], bool]:
    """Return a test of a module's name, by an expression for all of it or a list of its ends."""
    value = config.members.get(key)
    if isinstance(value, str) and value:
        return _expression(config, value)
    names = frozenset(config.texts(key))
    return lambda module: not names.isdisjoint(tails(module))


def tails(module: str) -> Sequence[str]:
    """Return every end of a name that begins with a component: a.b.c, b.c and c."""
    parts = module.split(".")
    return [".".join(parts[place:]) for place in range(len(parts))]


def _expression(config: PeftConfig, text: str) -> Callable[[str], bool]:
    return Expression.of(text, str(config.path)).fits


def _saved(config: PeftConfig) -> Callable[[str], bool]:
    r"""Return the test for modules that are trained whole, and those inside them.

    PEFT matches `(^|.*\.){name}($|\..*)`. Plain names are compared as texts, which is faster.
    """
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
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int for number in numbers):
        config.refuse(key, f"= {value!r:.80} is no list of layers")
    return frozenset(numbers) or None


def _layer_names(config: PeftConfig) -> tuple[str, ...]:
    names = tuple(name for name in config.texts("layers_pattern") if name)
    if len(names) > MAX_LAYER_NAMES:
        hint = "no adapter names as many lists of layers"
        config.refuse("layers_pattern", f"holds more than {MAX_LAYER_NAMES} names", hint)
    for name in names:
        if not _NAME.fullmatch(name):
            hint = "write the name of the list that holds the layers, such as layers"
            config.refuse("layers_pattern", f"= {name!r:.80} is no name", hint)
    return names
