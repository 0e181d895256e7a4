"""Runs a torch model on probes, and again in ways that differ from it by rounding noise only."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.models.network.calling import call_model
from lora_export.models.network.casting import to_float32, to_float64
from lora_export.verification.model.compare import distance, has_nan, join_batches, same_nan
from lora_export.verification.model.probes import split_batch
from lora_export.verification.unrounded.adapted_weight import adapted_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from lora_export.models.source import ModelSource
    from lora_export.records import InputSpec, MergePlan

    Outputs = dict[str, NDArray[Any]]
    Probe = Mapping[str, NDArray[Any]]


def run(model: nn.Module, probes: Sequence[Probe]) -> list[Outputs]:
    """Run the model on every probe.

    Floats of the probes are cast to the dtype of the model's parameters.

    Returns:
        one dict a probe: output name -> array, in the dtype in which the model returns it.

    Raises:
        UsageError: the model cannot be run, or returns a dtype that numpy lacks.
    """
    import torch

    wide = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    results = []
    for probe in probes:
        tensors = {name: torch.from_numpy(array) for name, array in probe.items()}
        cast = {n: t.to(wide) if t.is_floating_point() else t for n, t in tensors.items()}
        outputs = call_model(model, cast)
        results.append({name: _array(name, tensor) for name, tensor in outputs.items()})
    return results


def _array(name: str, tensor: torch.Tensor) -> NDArray[Any]:
    try:
        # A copy: what a model returns may be a buffer that the next call overwrites.
        array: NDArray[Any] = tensor.resolve_conj().resolve_neg().numpy(force=True).copy()
    except (TypeError, RuntimeError) as error:
        hint = "let its forward return float32: the output's own rounding would hide the effect"
        dtype = str(tensor.dtype).removeprefix("torch.")
        message = f"the model returns {dtype}, which cannot be compared"
        raise UsageError(message, where=name, hint=hint, cause="usage/model-run") from error
    return array


def refuse_random(model: nn.Module, probe: Probe, before: Outputs) -> None:
    """Refuse a model with random outputs; they would count as noise and widen the tolerance."""
    import torch

    state = torch.get_rng_state()
    [again] = run(model, [probe])
    refuse_differing(before, again, state)


def refuse_differing(before: Outputs, again: Outputs, state: torch.Tensor) -> None:
    """Refuse two runs of one model on one probe that differ, or that drew random numbers.

    state: of torch's generator before the second run.

    Raises:
        UsageError: nothing can be proven of the model.
    """
    import torch

    far = distance(before, again)
    same = all(before[name].tobytes() == again[name].tobytes() for name in before if name in again)
    if not torch.equal(state, torch.get_rng_state()):
        problem = "the model draws random numbers in eval mode"
    elif far.worst and not same:
        problem = f"the model gives another {far} when it is run again"
    else:
        return
    hint = "switch dropout off in eval mode (training=self.training), keep no state between calls"
    raise UsageError(f"{problem}, so nothing can be proven", hint=hint, cause="usage/model-run")


def run_exact(
    model: nn.Module,
    probes: Sequence[Probe],
    watch: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[list[Outputs], str]:
    """Run a float32 model in float64.

    A network that fixes float32 inside does not run in float64. It then runs in float32, with each
    operator in float64. A network that gives NaN in float64 alone is such a network, too: the
    largest number of float64, as a mask, is infinite in float32.

    Args:
        model: it is cast to float64, and stays in the dtype in which it ran.
        probes: its inputs.
        watch: makes the context of an attempt; a first one in float64 may fail half-way.

    Returns:
        outputs as of `run`, and why the network does not run in float64; "" if it does.

    Raises:
        UsageError: the model runs in neither way.
    """
    from lora_export.verification.model.orders import EachInFloat64

    exact: list[Outputs] = []
    try:
        with watch():
            exact = run(to_float64(model), probes)
    except UsageError as error:
        why = " ".join(str(error.__cause__ or error.problems[0]).split())[:200]
    else:
        why = "it gives NaN in float64 alone"
        if not any(map(has_nan, exact)):
            return exact, ""
    to_float32(model)
    with watch(), EachInFloat64():  # type: ignore[no-untyped-call]
        each = run(model, probes)
    return (exact, "") if exact and same_nan(exact, each) else (each, why)


def run_otherwise(model: nn.Module, probes: Sequence[Probe]) -> list[list[Outputs]]:
    """Run a float32 model in two ways that are as right as its own, in place of float64.

    In one run, sums are added up backwards. In the other, every parameter is moved by half a unit
    in its last place, in a direction drawn with a fixed seed; afterwards it is restored.

    Returns:
        the outputs of both runs, each as of `run`.
    """
    import torch

    from lora_export.models.streaming.placing import replace_tensors
    from lora_export.models.streaming.streamed_weight import StreamedWeight
    from lora_export.verification.model.orders import Backwards

    with Backwards():  # type: ignore[no-untyped-call]
        backwards = run(model, probes)
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    floating = [p for p in model.parameters() if p.is_floating_point()]
    _move(model, floating, torch.Generator().manual_seed(0))
    moved = run(model, probes)
    pairs = list(zip(model.parameters(), kept, strict=True))
    replace_tensors(model, [pair for pair in pairs if isinstance(pair[0], StreamedWeight)])
    with torch.no_grad():
        for parameter, own in pairs:
            if not isinstance(parameter, StreamedWeight):
                parameter.copy_(own)
    return [backwards, moved]


def run_split(
    model: nn.Module, probe: Probe, whole: Outputs, specs: Sequence[InputSpec]
) -> Outputs:
    """Run the samples of a probe one at a time, and join their outputs as in `whole`.

    The result is empty if the probe has one sample only. It lacks outputs that cannot be joined.
    """
    samples = split_batch(specs, probe)
    return join_batches(run(model, samples), whole) if len(samples) > 1 else {}


def nudge(model: nn.Module, source: ModelSource, plan: MergePlan) -> None:
    """Move every adapted weight by one unit in the last place of float32, up or down.

    The direction is drawn with a fixed seed, so that the measured noise can be repeated. The model
    is changed in place, in float32.
    """
    import torch

    adapted = [
        adapted_weight(source, model, step.deltas[0]) for step in plan.steps() if step.deltas
    ]
    # A weight may be stored in several tensors: experts one by one, or a copy.
    once = list({id(weight): weight for weight in adapted}.values())
    _move(model, once, torch.Generator().manual_seed(0))


def _move(model: nn.Module, weights: Sequence[torch.Tensor], generator: torch.Generator) -> None:
    """Move each element up or down by half a unit in the last place of float32.

    A weight that is read while the model runs is replaced by one that is moved as it is read.
    """
    import torch

    from lora_export.models.streaming.placing import changed, replace_tensors
    from lora_export.models.streaming.streamed_weight import StreamedWeight

    half = torch.finfo(torch.float32).eps / 2
    replaced = []
    for weight in weights:
        if isinstance(weight, StreamedWeight):
            columns = weight.shape[-1]
            rows = weight.numel() // columns
            move = _Moving(_signs((rows, 1), generator), _signs((columns,), generator) * half)
            replaced.append((weight, changed(weight, move, columns)))
        else:
            with torch.no_grad():
                weight.add_(weight.abs() * half * _signs(tuple(weight.shape), generator))
    replace_tensors(model, replaced)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.randint(0, 2, shape, generator=generator) * 2 - 1


class _Moving:
    """Changes rows by a sign for each row and one for each column.

    To draw a sign for each element would take longer than to read it.
    """

    def __init__(self, by_row: torch.Tensor, by_column: torch.Tensor) -> None:
        """Take the signs, (rows, 1) and (columns,); those of columns times the move's size."""
        self._by_row, self._by_column = by_row.float(), by_column

    def __call__(self, first: int, rows: torch.Tensor) -> None:
        """Move rows from `first` on, in place."""
        rows.addcmul_(rows * self._by_row[first : first + len(rows)], self._by_column)

    def product(self, first: int, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Multiply by the moved rows: the sum of the product and of what the moves add to it."""
        import torch
        import torch.nn.functional as F

        signs = self._by_row[first : first + len(rows), 0]
        right, moved = F.linear(torch.stack((x, x * self._by_column)), rows)
        return torch.addcmul(right, moved, signs)
