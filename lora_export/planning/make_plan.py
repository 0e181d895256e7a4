"""From checkpoint and adapters to the plan: what every output tensor is made of.

The journey in seven stages, each of which hands values to the next:

    prepare   the base as it takes part, and the names of one parameter  -> Given
    fit       each update and full tensor gets its base tensor           -> TensorChanges, Fitted
    check     unused options, and the changes by the user's model
    resize    vocabulary and heads of other sizes, all else is refused   -> ConfigEdits
    separate  tied tensors that are no longer equal                      -> TiedNames
    folder    the files around the weights                               -> side files, card
    lay out   a step for every tensor of the result                      -> ShardPlans

Findings go along: choices and warnings for the report, and problems, which stop the plan together.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lora_export.planning.base.find_ties import find_ties
from lora_export.planning.base.prepare_base import prepare_base
from lora_export.planning.checks.choices import note_fitted, note_inputs
from lora_export.planning.checks.unused import refuse_unused
from lora_export.planning.checks.user_model import check_network, join_shared, refuse_forgotten
from lora_export.planning.config_edits import ConfigEdits
from lora_export.planning.findings import Findings
from lora_export.planning.folder.folder_edits import plan_folder
from lora_export.planning.full_tensors.account import lost_tensors
from lora_export.planning.full_tensors.fit_full import (
    refuse_foreign,
    refuse_other_shapes,
    refuse_replaced_updates,
)
from lora_export.planning.full_tensors.heads import plan_heads
from lora_export.planning.full_tensors.separate_ties import plan_ties
from lora_export.planning.full_tensors.vocabulary import plan_vocabulary
from lora_export.planning.given import Given
from lora_export.planning.names.base_names import BaseNames
from lora_export.planning.output_steps import plan_shards, safetensors_name
from lora_export.planning.stored_dtype import edit_dtype, in_dtype, in_wide
from lora_export.planning.tensor_changes import TensorChanges
from lora_export.planning.updates.fit_adapter import fit_adapters
from lora_export.records import MergePlan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.planning.base.find_ties import Lookup
    from lora_export.planning.facts.architecture import Layers
    from lora_export.planning.facts.user_facts import FactTable
    from lora_export.planning.fitted import Fitted
    from lora_export.planning.full_tensors.heads import Classes
    from lora_export.planning.merge_options import Options
    from lora_export.records import Adapter, Checkpoint, ModelFacts, NameTable


def make_plan(
    base: Checkpoint,
    adapters: Sequence[Adapter],
    facts: FactTable,
    options: Options,
    *,
    model: ModelFacts | None = None,
    lookup: Lookup = lambda _: None,
    runtime: Callable[[Checkpoint], NameTable | None] = lambda _: None,
    classes: Classes = lambda _base, _task: None,
    architecture: Callable[[Checkpoint], Layers | None] = lambda _: None,
) -> MergePlan:
    """Decide every output tensor and every edit of a side file; no byte is written.

    The last four arguments are functions, because each may build a model's skeleton, which takes
    seconds. Each is called only where it can decide something. Each may return None.

    Args:
        base: the checkpoint to merge into.
        adapters: in the order of the command line.
        facts: the facts that no adapter file has.
        options: the options of the merge.
        model: the facts of the user's own model; None where --model names none.
        lookup: returns the groups of tied parameters of a folder's architecture; called when an
            adapter touches a table or a head.
        runtime: returns the names of the running model; called when the base's own do not suffice.
        classes: returns the class of transformers for a base and a task; called for a new head.
        architecture: returns the kinds of the model's layers; called where neither shapes nor
            names decide the kind.

    Raises:
        InputError: the base holds low-rank factors, and no option states that it is unmerged.
        FitError: adapter and base do not fit, with every reason.
        UsageError: facts are missing, with every fact and how to give it.
    """
    findings, edits, changes = Findings(), ConfigEdits(base.config), TensorChanges()

    name_table = cache(lambda: runtime(base))
    touched = [name for adapter in adapters for name in adapter.names()]
    ties = find_ties(base, touched, model, lookup, name_table)
    note_inputs(base, adapters, findings, strict=options.strict)
    prepared = prepare_base(base, adapters, options, edits, findings)
    findings.stop_on_problems()
    given = Given(
        base=prepared.base,
        stored=prepared.stored,
        names=BaseNames(prepared.stored),
        ties=ties,
        adapters=tuple(adapters),
        facts=facts,
        model=model,
        options=options,
        is_mixed=len({u.terms is None for adapter in adapters for u in adapter.updates}) > 1,
        name_table=name_table,
        layers_of=cache(lambda: None if model else architecture(prepared.base)),
    )

    fitted = fit_adapters(given, changes, findings)
    given = _checked(given, changes, fitted, findings)

    vocabulary = plan_vocabulary(given, changes, edits, findings)
    plan_heads(given, changes, edits, findings, classes)
    refuse_foreign(fitted.foreign, given, findings)
    refuse_other_shapes(given, changes, findings)
    refuse_replaced_updates(changes, findings)

    tied = plan_ties(given, changes, edits, findings)
    edit_dtype(options.dtype, base, edits, findings)
    side_files, card = plan_folder(given, vocabulary, edits, findings)
    findings.stop_on_problems()

    shards = plan_shards(given, changes, prepared.layers, tied.in_turn)
    findings.unfit += lost_tensors(fitted.promised, shards)
    shards = in_dtype(options.dtype, shards, findings)
    findings.stop_on_problems()
    return MergePlan(
        base=prepared.base,
        adapters=tuple(adapters),
        recipe=options.recipe,
        shards=shards,
        side_files=side_files,
        card=card,
        index_name=base.index_name and safetensors_name(base.index_name),
        index_metadata=base.index_metadata,
        dropped=prepared.dropped,
        unmatched=(*fitted.unmatched, *fitted.disbelieved),
        coupled=tuple(tied.coupled),
        separated=tuple(tied.separated),
        reshaped=tuple(edits.reshaped),
        twins=in_wide(options.dtype, tied.twins),
        choices=tuple(findings.choices),
        warnings=tuple(findings.warnings),
    )


def _checked(given: Given, changes: TensorChanges, fitted: Fitted, findings: Findings) -> Given:
    """Check options and the user's model; return `given` without the ties of shared modules.

    The options are checked first: an option that fits nothing explains the problems after it.
    """
    refuse_unused(given, changes, findings)
    note_fitted(given, changes, fitted, findings)
    check_network(given, changes, findings)
    given = join_shared(given, changes, findings)
    refuse_forgotten(given, changes, findings)
    return given
