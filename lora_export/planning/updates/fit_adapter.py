"""The fitting of adapters to the base: every tensor is used exactly once, or is a problem."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import is_zero
from lora_export.planning.fitted import Fitted
from lora_export.planning.full_tensors.base_targets import find_targets, note_other_names
from lora_export.planning.full_tensors.copies import fit_copies
from lora_export.planning.full_tensors.disputed import refuse_partial_modules
from lora_export.planning.full_tensors.fit_full import fit_whole, warn_of_biases, warn_of_weight
from lora_export.planning.names.base_names import BaseNames
from lora_export.planning.names.factor_keys import keys_of
from lora_export.planning.names.locating import Space, find_space, wanted_of
from lora_export.planning.names.misfit import lacking_extra, with_origin
from lora_export.planning.updates.contested import settle_contested
from lora_export.planning.updates.fit_update import fit_update
from lora_export.planning.updates.fused import warn_of_cast
from lora_export.planning.updates.idle import judge_idle
from lora_export.planning.updates.parameter_updates import settle
from lora_export.planning.updates.projection import size_projection
from lora_export.planning.updates.quantized import without_quantized
from lora_export.records import FLOAT_DTYPES, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.planning.merge_options import Options
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.planning.updates.parameter_updates import Settled
    from lora_export.records import Adapter, Replacement, Update


def fit_adapters(given: Given, changes: TensorChanges, findings: Findings) -> Fitted:
    """Enter the adapters' changes into `changes`, and problems into `findings`."""
    fitted = Fitted()
    unstored = [name for tie in given.ties for name in tie.names if name not in given.stored]
    names = BaseNames([*given.stored, *unstored])
    for adapter in without_quantized(given, findings):
        _fit_adapter(adapter, names, given=given, changes=changes, fitted=fitted, findings=findings)
    return fitted


def _fit_adapter(
    adapter: Adapter,
    names: BaseNames,
    *,
    given: Given,
    changes: TensorChanges,
    fitted: Fitted,
    findings: Findings,
) -> None:
    """Fit one adapter: find its modules in the base, then place updates and full tensors.

    names: the base's names, also those that are only tied to a stored name.
    """
    adapter = settle_contested(adapter, given, fitted, findings)
    updates, replacements = _left_in(adapter, given.options, fitted)
    if not updates:
        findings.unfit.append(_without_factors(adapter, fitted))
        return
    located = _locate(adapter, updates, names, given=given, changes=changes, findings=findings)
    if located is None:
        return
    space, settled = located
    tensors = find_targets(replacements, space, names, given, findings)
    # An update is added to the copy under it, so copies come first.
    fitted.kept += fit_copies(tensors, given, changes, findings)
    resolved = [fit_update(adapter, one, given, changes, findings) for one in settled]
    found = [one for one in resolved if one]
    fitted.turned_by.update({one.module: one.turned_by for one in found if one.turned_by})
    judge_idle(adapter, [one.idle for one in found if one.idle], len(settled), findings)
    size_projection(adapter, changes, findings)
    note_other_names(tensors, space, findings)
    # A full tensor of an updated module is a problem, so updates come before full tensors.
    findings.unfit += fit_whole(
        adapter, tensors, change=space.change, given=given, changes=changes, fitted=fitted
    )
    refuse_partial_modules(adapter, tensors, given, findings)
    warn_of_cast(adapter, given, changes, findings)
    warn_of_weight(adapter, changes, findings)
    warn_of_biases(adapter, given, changes, findings)


def _locate(
    adapter: Adapter,
    updates: Sequence[Update],
    names: BaseNames,
    *,
    given: Given,
    changes: TensorChanges,
    findings: Findings,
) -> tuple[Space, Sequence[Settled]] | None:
    """Find the parameter of every update, in one set of names; None where a parameter is missing.

    names: the base's names, also those that are only tied to a stored name.
    """
    space, choices, problems = find_space(
        wanted_of(updates),
        Space(names, given.stored),
        given.name_table,
        given.options.rename,
        lacking_extra(given.base),
    )
    problems = list(with_origin(given.base, adapter, problems))
    present = [u for u in updates if not u.optional or _is_there(u, space, given, changes)]
    settled, unsure = ([], problems) if problems else settle(present, space, given.name_table)
    findings.unfit += [_at(adapter, problem) for problem in unsure]
    if unsure:
        return None
    findings.choices += [f"{adapter.path.name}: {choice}" for choice in choices]
    return space, settled


def _without_factors(adapter: Adapter, fitted: Fitted) -> Problem:
    """Return the problem of an adapter of which no update is left."""
    where = str(adapter.path)
    if fitted.disbelieved:
        message = "adapter_config.json leaves out every module that the file adapts"
        hint = "is it the configuration of this file? --trust-file merges the file without it"
        return Problem(message, where, hint, cause="fit/nothing-left")
    if adapter.updates:
        return Problem(
            "no low-rank factors are left after --allow-unmatched", where, cause="fit/nothing-left"
        )
    message = f"no tensor is a low-rank factor as {adapter.dialect} writes them"
    return Problem(message, where, "leave --dialect out: it is recognised", cause="usage/dialect")


def _at(adapter: Adapter, problem: Problem) -> Problem:
    where = f"{adapter.path}: {problem.where}" if problem.where else str(adapter.path)
    return replace(problem, where=where)


def _left_in(
    adapter: Adapter, options: Options, fitted: Fitted
) -> tuple[Sequence[Update], Sequence[Replacement]]:
    """Return the updates and full tensors that --allow-unmatched does not leave out."""
    updates: list[Update] = []
    for update in adapter.updates:
        keys = keys_of(update)
        if options.allows_unmatched(keys):
            fitted.unmatched += keys
        else:
            updates.append(update)
    gone = [one.name for one in adapter.replacements if options.allows_unmatched([one.name])]
    fitted.unmatched += gone
    return updates, [one for one in adapter.replacements if one.name not in gone]


def _is_there(update: Update, space: Space, given: Given, changes: TensorChanges) -> bool:
    """Return whether the base has the parameter with other values than zeros.

    A parameter of zeros stays zero, whatever its factors.
    """
    located = space.locate(update.module, update.parameter)
    if located is None:
        return False
    refs = [changes.value_of(given, name) for name in located.tensors]
    return not all(ref.spec.dtype in FLOAT_DTYPES and is_zero(ref) for ref in refs)
