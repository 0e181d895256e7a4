"""From the adapter's names to the base's tensors, by fixed rules and never by substring.

The rules apply in this order: the exact name; the name without the wrappers `module.`, `_orig_mod.`
and `_fsdp_wrapped_module.`; ONE change of prefix that resolves ALL updates. A name that no rule
resolves is an error, which lists the nearest names.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from lora_export.planning.prefix_change import IDENTITY, PrefixChange
from lora_export.records import Problem
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

INNER_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module")
"""Parts that torch.compile and FSDP add at any place in a name."""

# Where loralib layers and older GPT-2 checkpoints keep the weight of a module.
_WEIGHT_SUFFIXES = ("weight", "conv.weight", "w")
_BIAS_SUFFIXES = ("bias", "conv.bias", "b")
# The same tensor under other last names: in loralib's convolutions (`conv.weight`), in checkpoints
# of the TensorFlow line (GPT-2's `ln_1.g`, `ln_1.b`, `c_attn.w`, BERT's `LayerNorm.gamma`), and in
# the two forms of torch's weight_norm.
_ALIASES = (
    ("conv.weight", "weight", "w", "g", "gamma"),
    ("conv.bias", "bias", "b", "beta"),
    ("weight_g", "parametrizations.weight.original0"),
    ("weight_v", "parametrizations.weight.original1"),
)
_LISTED = 5
_COMPARED = 500
_LONGEST = 300
_LEAVE_OUT = "--allow-unmatched GLOB leaves keys out"


class BaseNames:
    """The base's tensor names, which are also found without their wrappers."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self._exact = set(self.names)
        self._plain: dict[str, str | None] = {}
        for name in self.names:
            plain = without_wrappers(name)
            self._plain[plain] = None if plain in self._plain else name

    def find(self, name: str) -> str | None:
        """Return the base's name of the tensor `name`, on either side without wrappers, or None."""
        return name if name in self._exact else self._plain.get(without_wrappers(name))

    def weights(self, module: str, parameter: str = "weight") -> tuple[str, ...]:
        """Return the tensors of a parameter: two when a convolution's weight is stored twice."""
        return tuple(dict.fromkeys(name for name, _ in self._weights(module, parameter)))

    def holds(self, module: str, parameters: Iterable[str]) -> bool:
        """Return whether the base has any of these parameters of the module."""
        return any(self.weights(module, parameter) for parameter in parameters)

    def _weights(self, module: str, parameter: str = "weight") -> list[tuple[str, str]]:
        """List (tensor name, module name) for every name under which the base has the parameter."""
        found = ((self.find(join(module, suffix)), suffix) for suffix in _suffixes(parameter))
        return [(n, n.removesuffix(suffix).removesuffix(".")) for n, suffix in found if n]

    def tensor(self, name: str) -> str | None:
        """Return the base's tensor that a full tensor called `name` replaces."""
        if found := self.find(name):
            return found
        for aliases in _ALIASES:
            for leaf in aliases:
                if f".{name}".endswith(f".{leaf}"):
                    module = name.removesuffix(leaf).removesuffix(".")
                    others = (self.find(join(module, alias)) for alias in aliases)
                    return next((other for other in others if other), None)
        return None

    def locate(
        self, module: str, change: PrefixChange, parameter: str = "weight"
    ) -> tuple[str, tuple[str, ...]]:
        """Return the base's name of an adapter's module after `change`, and the tensors updated.

        Both empty where the base has no such parameter.
        """
        exact = self._weights(module, parameter) if change == IDENTITY else []
        found = exact or self._weights(change.apply(without_wrappers(module)) or "", parameter)
        return (found[0][1] if found else ""), tuple(dict.fromkeys(name for name, _ in found))

    def plain_names(self) -> Iterable[str]:
        """Return all names without wrappers."""
        return self._plain.keys()

    def nearest(self, name: str) -> list[str]:
        """Return up to three names that look like `name`; those with the same last parts first.

        At most _COMPARED names are compared letter by letter, those of nearly its length. Names of
        more than _LONGEST letters are not compared.
        """
        if len(name) > _LONGEST:
            return []
        tail = name.split(".")[-2:]
        same_tail = [known for known in self.names if known.split(".")[-2:] == tail]
        known = [one for one in same_tail or self.names if len(one) <= _LONGEST]
        alike = sorted(known, key=lambda one: abs(len(one) - len(name)))
        return get_close_matches(name, alike[:_COMPARED], n=3, cutoff=0.0)


def join(module: str, leaf: str) -> str:
    """Return `module.leaf`, or `leaf` for the root module."""
    return f"{module}.{leaf}" if module else leaf


def _suffixes(parameter: str) -> tuple[str, ...]:
    """Return the last parts of names under which checkpoints keep a parameter."""
    return {"weight": _WEIGHT_SUFFIXES, "bias": _BIAS_SUFFIXES}.get(parameter, (parameter,))


def weight_names(module: str) -> list[str]:
    """List every name that the weight of `module` may have."""
    return [join(module, suffix) for suffix in _WEIGHT_SUFFIXES]


def without_wrappers(name: str) -> str:
    """Remove the parts of `name` that DataParallel (`module.`), FSDP and torch.compile add."""
    parts = [part for part in name.split(".") if part not in INNER_WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def choose_prefix(
    modules: Mapping[str, Sequence[str]], base: BaseNames, only: PrefixChange | None = None
) -> tuple[PrefixChange, list[Problem]]:
    """Find the one change of prefix that resolves all `modules`; IDENTITY where none is needed.

    Args:
        modules: for each module its possible parameters, of which the base must have one.
        base: the base's names.
        only: the change that the user named; no other is tried.

    Returns:
        (change, problems). With problems, the change is the one that resolves the most modules.
    """
    plain = {without_wrappers(module): names for module, names in modules.items()}
    if only is None and len(_resolved(IDENTITY, plain, base)) == len(plain):
        return IDENTITY, []
    candidates = [only] if only else [IDENTITY, *_candidates(plain, base)]
    hits = {change: _resolved(change, plain, base) for change in dict.fromkeys(candidates)}
    whole = [change for change, found in hits.items() if len(found) == len(plain)]
    if len(whole) == 1 and (only or not whole[0].exchanges):
        return whole[0], []
    if whole:
        return whole[0], [_unsure(whole)]
    best = max(hits, key=lambda change: len(hits[change]))
    return best, _unresolved(plain, hits[best], best, base)


def _unsure(changes: Sequence[PrefixChange]) -> Problem:
    hint = f"choose with --rename OLD=NEW, e.g. --rename '{changes[0].old}={changes[0].new}'"
    if len(changes) == 1:
        message = (
            f"the names fit only after one prefix is exchanged for another ({changes[0]}): this "
            "may be the base of another model"
        )
        return Problem(message, hint=hint, cause="fit/several-places")
    listed = "; ".join(map(str, changes[:5]))
    return Problem(
        f"the modules fit the base in {len(changes)} places: {listed}",
        hint=hint,
        cause="fit/several-places",
    )


def _resolved(
    change: PrefixChange, modules: Mapping[str, Sequence[str]], base: BaseNames
) -> set[str]:
    """Return the modules that have a parameter in the base after `change`."""
    changed = {module: change.apply(module) for module in modules}
    return {
        module
        for module, name in changed.items()
        if name is not None and base.holds(name, modules[module])
    }


def _candidates(modules: Mapping[str, Sequence[str]], base: BaseNames) -> list[PrefixChange]:
    """List every change that resolves the first module and is possible for all of them."""
    first_name, parameters = next(iter(modules.items()))
    first = first_name.split(".")
    common = len(first) - 1
    for module in modules:
        parts = module.split(".")[:-1]
        same = [a == b for a, b in zip(first, parts, strict=False)]
        common = min(common, same.index(False) if False in same else len(same))
    suffixes = [suffix for parameter in parameters for suffix in _suffixes(parameter)]
    found = []
    for dropped in range(common + 1):
        rest = ".".join(first[dropped:])
        old = "".join(f"{part}." for part in first[:dropped])
        for suffix in suffixes:
            ending = f".{rest}.{suffix}"
            found += [
                PrefixChange.between(old, name[: -len(ending) + 1])
                for name in base.plain_names()
                if name.endswith(ending)
            ]
            if dropped and base.find(f"{rest}.{suffix}"):
                found.append(PrefixChange(old, ""))
    return found


def _unresolved(
    modules: Mapping[str, Sequence[str]], found: set[str], change: PrefixChange, base: BaseNames
) -> list[Problem]:
    """Return one problem where no module fits; else one for each of the first that do not fit."""
    lacking = [module for module in modules if module not in found]
    wanted = {one: join(change.apply(one) or one, modules[one][0]) for one in lacking[:_LISTED]}
    near = {one: ", ".join(base.nearest(name)) or "nothing" for one, name in wanted.items()}
    if not found:
        names = first_names([module or "(root module)" for module in lacking])
        message = f"0 of {len(modules)} modules are in this base: {names}"
        hint = f"nearest to the first in the base: {near[lacking[0]]}; wrong base or wrong adapter?"
        return [Problem(message, hint=hint, cause="fit/no-module")]
    partial = f" ({change} resolves {len(found)} of {len(modules)})"
    problems = [
        Problem(
            f"the base has no {name}{partial}",
            module or "(root module)",
            f"nearest in the base: {near[module]}; wrong base or wrong adapter? {_LEAVE_OUT}",
            cause="fit/no-module",
        )
        for module, name in wanted.items()
    ]
    if left := len(lacking) - len(problems):
        message = f"{left} more of the {len(modules)} modules are not in this base"
        problems.append(
            Problem(
                message, hint=f"wrong base or wrong adapter? {_LEAVE_OUT}", cause="fit/no-module"
            )
        )
    return problems


def lacking_in(
    modules: Mapping[str, Sequence[str]], change: PrefixChange, base: BaseNames
) -> list[str]:
    """Return the modules that are not in the base after `change`."""
    plain = {without_wrappers(module): names for module, names in modules.items()}
    found = _resolved(change, plain, base)
    return [module for module in plain if module not in found]


def replacement_names(
    names: Sequence[str], change: PrefixChange, base: BaseNames
) -> Mapping[str, str | None]:
    """Map each full tensor to the base's tensor that it replaces, None where there is none.

    The change applies to every tensor of the file. A name without the removed prefix belongs to the
    network around the base's model. The base may have another tensor of this name by chance.
    """
    found: dict[str, str | None] = {}
    for name in names:
        changed = change.apply(without_wrappers(name))
        found[name] = base.tensor(changed) if changed is not None else None
    return found
