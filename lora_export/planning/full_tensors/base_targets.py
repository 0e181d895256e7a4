"""The search for the base's tensor that each full tensor of an adapter replaces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.planning.names.base_names import BaseNames, replacement_names, without_wrappers
from lora_export.planning.names.locating import renamed_tensors
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.planning.names.locating import Space
    from lora_export.records import Replacement, TensorRef


@dataclass(frozen=True, slots=True)
class FullTensor:
    """A full tensor of an adapter, and the tensor of the base that it replaces."""

    replacement: Replacement
    #: The base's name of that tensor; None where the base has no such tensor.
    target: str | None

    @property
    def name(self) -> str:
        """Return the adapter's name of the tensor."""
        return self.replacement.name

    @property
    def ref(self) -> TensorRef:
        """Return the place of its values in the adapter's file."""
        return self.replacement.ref

    @property
    def is_own(self) -> bool:
        """Return whether it belongs to a module of the adapter's own."""
        return self.replacement.origin == "module"

    @property
    def where(self) -> str:
        """Return its file and name, for messages."""
        return f"{self.ref.file}: {self.name}"


def find_targets(
    replacements: Sequence[Replacement],
    space: Space,
    names: BaseNames,
    given: Given,
    findings: Findings,
) -> list[FullTensor]:
    """Find the target of each full tensor, by the change of names that the factors need.

    names: the base's names, also those that are only tied to a stored name.
    """
    if given.model and given.model.change != ("", "") and space.homes is None:
        return _in_network(replacements, space, given, findings)
    targets = _targets(replacements, space, names, given)
    return [FullTensor(one, targets[one.name]) for one in replacements]


def _targets(
    replacements: Sequence[Replacement], space: Space, names: BaseNames, given: Given
) -> Mapping[str, str | None]:
    """Map each full tensor to the base's tensor that it replaces; None where there is none."""
    plain = {r.name: without_wrappers(r.name) for r in replacements}
    found = replacement_names(list(plain), space.change, names)
    targets = {name: space.full_tensor(plain[name]) or one for name, one in found.items()}
    lacking = [plain[name] for name, one in targets.items() if one is None]
    renamed = renamed_tensors(lacking, space, given.name_table)
    return {name: one or renamed.get(plain[name]) for name, one in targets.items()}


def _in_network(
    replacements: Sequence[Replacement], space: Space, given: Given, findings: Findings
) -> list[FullTensor]:
    """Return the full tensors under the result's names, with the targets of these names.

    A tensor of the network outside of the prefix is no tensor of the base, unless the network has
    it under the base's name as well.
    """
    found: list[FullTensor] = []
    for replacement in replacements:
        plain = without_wrappers(replacement.name)
        changed = space.change.apply(plain)
        name = plain if changed is None else changed
        target = space.names.tensor(name)
        if target and given.model and changed is None and plain not in given.model.outside:
            message = f"lies outside of {space.change.old}, and the base's {target} does not"
            hint = "give the base the network's names, or leave it out with --allow-unmatched"
            where = f"{replacement.ref.file}: {replacement.name}"
            findings.unfit.append(
                Problem(
                    message, where, given.way_out(replacement.ref, hint), cause="fit/full-tensor"
                )
            )
            continue
        found.append(FullTensor(replace(replacement, name=name), target))
    return found


def note_other_names(tensors: Sequence[FullTensor], space: Space, findings: Findings) -> None:
    """Note each full tensor whose name in the base the change of prefix does not explain."""
    for one in tensors:
        plain = without_wrappers(one.name)
        if one.target and without_wrappers(one.target) not in {plain, space.change.apply(plain)}:
            findings.choices.append(f"{one.name}: the base calls it {one.target}")
