"""The level "weights": compares every tensor, as it was read back from disk, with the plan."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import TORCH_NAMES
from lora_export.execution.casting import holds_source
from lora_export.execution.full_tensors import refuse_unusable
from lora_export.execution.layout import segments_of
from lora_export.execution.rows import Rows, read_rows, refuse_non_finite
from lora_export.records import CHANGED, ELEMENTS, FLOAT_DTYPES, Check
from lora_export.report.columns import counted, first_names
from lora_export.report.sentences import times
from lora_export.report.stopwatch import Seen, unseen
from lora_export.verification.blame.mistakes import describe_gain, describe_names
from lora_export.verification.factors import changes_nothing
from lora_export.verification.listed_check import listed_check
from lora_export.verification.weights.merged_rows import Expectation
from lora_export.verification.weights.survival import survival_of
from lora_export.verification.weights.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import torch

    from lora_export.records import MergePlan, Step, Survival, TensorRef, TensorSpec
    from lora_export.report.stopwatch import Advance


@dataclass(slots=True)
class WeightProof:
    """Collects what the written tensors show, from any number of threads: a segments.Watcher.

    Untouched and replaced tensors must be equal to the byte, and those of another dtype to the
    source's values, rounded once. Merged ones must be within the
    recipe's rounding of an independent recomputation: in every element, and on average along the
    update. The average shows a wrong scaling that the rounding of single elements hides in half
    precision.
    """

    plan: MergePlan
    different: list[str] = field(default_factory=list)
    """The names of tensors that are not the planned bytes."""
    _tallies: dict[str, Tally] = field(default_factory=dict)
    """What each merged tensor shows."""
    _expected: dict[str, Expectation] = field(default_factory=dict)
    """The expectation of each merged tensor that is not complete."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards all three; the comparison itself runs outside it."""

    def copied(self, name: str, source: bytes, written: memoryview) -> None:
        """Compare copied bytes; see execution.segments.Watcher."""
        if not _are_same(source, written):
            with self._lock:
                self.different.append(name)

    def merged(self, step: Step, first: int, base: torch.Tensor, written: torch.Tensor) -> None:
        """Compare merged rows with the expectation; see execution.segments.Watcher."""
        name = step.out.name
        with self._lock:
            expected = self._expected.get(name)
            if expected is None:
                expected = self._expected[name] = Expectation(step, self.plan.recipe)
        seen = expected.look(first, base, written)
        with self._lock:
            tally = self._tallies.setdefault(name, Tally(name))
            for part in seen:
                tally.add(part)
            if tally.rows == expected.rows:
                del self._expected[name]  # its factors are not needed any more

    def checks(self, written: Mapping[str, TensorRef], *, allow_noop: bool) -> tuple[Check, ...]:
        """Return the checks of the level.

        Args:
            written: the result's own tensors, by name, read from its headers.
            allow_noop: whether a merged tensor may be equal to the base's.
        """
        planned = self.plan.steps()
        names = _check_names(planned, written)
        merged = [
            self._tallies.get(step.out.name, Tally(step.out.name))
            for step in planned
            if step.deltas
        ]
        checks = [
            names,
            _check_library(written),
            _check_untouched(planned, self.different),
            _check_seen(planned, merged),
            _check_elements(merged),
            _check_gain(merged),
        ]
        if not allow_noop:
            checks.append(_check_changed(planned, merged))
        return tuple(checks)

    def wrong_tensors(self) -> frozenset[str]:
        """Return the names of all tensors that are not as planned, as far as they were compared."""
        lost = _lost([step for step in self.plan.steps() if step.deltas], self._tallies.values())
        far = [one.name for one in self._tallies.values() if one.error > 1 or _slant(one) > 1]
        return frozenset({*self.different, *lost, *far})

    def survival(self) -> Survival | None:
        """Return what storing left of the updates; None where no update is known."""
        dtypes = {step.out.name: step.out.dtype for step in self.plan.steps() if step.deltas}
        stored = {name: self._tallies[name].stored for name in dtypes if name in self._tallies}
        return survival_of(stored, dtypes)


def _check_untouched(planned: Sequence[Step], different: Sequence[str]) -> Check:
    """Check that the tensors without an update are their sources', to the byte or rounded once."""
    plain = [step for step in planned if not step.deltas]
    cast = sum(step.source.spec.dtype != step.out.dtype for step in plain)
    parts = (
        [f"{counted(len(plain) - cast, 'tensor')} equal to the byte"] if len(plain) > cast else []
    )
    parts += [f"{counted(cast, 'tensor')} equal to the values rounded once"] if cast else []
    words = ", ".join(parts) or "there is none"
    fault = (
        f"{first_names(different)}: {len(different)} of {counted(len(plain), 'tensor')} that get "
        "no update hold other values than planned"
    )
    return listed_check("untouched tensors", different, words, fault=fault)


def _are_same(source: bytes, written: memoryview) -> bool:
    """Return whether the bytes are equal.

    numpy compares eight bytes at a time. Python compares those of a memoryview one by one.
    """
    import numpy as np

    if len(source) != len(written):
        return False
    count = len(source) // 8
    one, other = (np.frombuffer(each, np.uint64, count) for each in (source, written))
    return np.array_equal(one, other) and source[count * 8 :] == written[count * 8 :]


def check_weights(
    plan: MergePlan,
    written: Mapping[str, TensorRef],
    *,
    allow_noop: bool,
    progress: Advance = unseen,
) -> tuple[tuple[Check, ...], Survival | None, frozenset[str] | None]:
    """Compare the tensors of a finished result with `plan`, as a merge does while it writes them.

    Args:
        plan: what the result must be.
        written: the result's own tensors, by name.
        allow_noop: whether a merged tensor may be equal to the base's.
        progress: called with the bytes of tensors that were compared, and with those in all.

    Returns:
        the checks of the level; only that of the names if it failed. Then what storing left of
        the updates; None where no update is known. Then the names of the tensors that are not as
        planned; None where only names were compared.

    Raises:
        InputError: the base or an adapter holds NaN or infinity.
        FitError: values of an adapter overflow the base's dtype.
        StorageError: a file cannot be read.
    """
    refuse_unusable(plan)
    names = _check_names(plan.steps(), written)
    if not names.passed:
        return (names,), None, None
    proof = WeightProof(plan)
    seen = Seen(progress, sum(step.out.nbytes for step in plan.steps()))
    for shard in plan.shards:
        for segment in segments_of(plan, shard):
            if isinstance(segment, Rows):
                _look_at_rows(proof, segment, written)
                seen(segment.length)
    for step in plan.steps():
        if step.deltas:
            continue
        if not holds_source(step, written[step.out.name]):
            proof.different.append(step.out.name)
        seen(step.out.nbytes)
    checks = proof.checks(written, allow_noop=allow_noop)
    return checks, proof.survival(), proof.wrong_tensors()


def _look_at_rows(proof: WeightProof, rows: Rows, written: Mapping[str, TensorRef]) -> None:
    step = rows.merge.step
    found = read_rows(step, rows.first, rows.stop, written[step.out.name])
    base = rows.base()
    refuse_non_finite(step, base)
    proof.merged(step, rows.first, base, found)


def _check_names(planned: Sequence[Step], written: Mapping[str, TensorRef]) -> Check:
    wanted = {step.out.name: step.out for step in planned}
    wrong = [n for n, spec in wanted.items() if n not in written or written[n].spec != spec]
    wrong += [name for name in written if name not in wanted]
    fault = describe_names(wanted, {name: ref.spec for name, ref in written.items()})
    hint = _other_dtype([(wanted.get(name), written.get(name)) for name in wrong])
    detail = f"{counted(len(wanted), 'tensor')} as planned"
    return listed_check("names, dtypes, shapes", wrong, detail, hint, fault=fault)


def _other_dtype(pairs: Sequence[tuple[TensorSpec | None, TensorRef | None]]) -> str:
    """Return the option that fits, where every wrong tensor is stored in one other float dtype.

    pairs: what is planned and what is stored, None where there is no such tensor.
    """
    found = {ref.spec.dtype for spec, ref in pairs if spec and ref and spec.dtype in FLOAT_DTYPES}
    same = all(
        spec and ref and spec == replace(ref.spec, dtype=spec.dtype) and spec.dtype in FLOAT_DTYPES
        for spec, ref in pairs
    )
    if not same or len(found) != 1 or not found <= FLOAT_DTYPES - {"F64"}:
        return ""
    return f"a result of --dtype {TORCH_NAMES[found.pop()]} is verified with that option"


def _check_library(written: Mapping[str, TensorRef]) -> Check:
    """Check that the safetensors library reads the same names.

    Our own reader wrote and read the headers so far. Other programs use that library.
    """
    from safetensors import SafetensorError, safe_open

    listed: dict[Path, set[str]] = {}
    for name, ref in written.items():
        listed.setdefault(ref.file, set()).add(name)
    wrong = []
    for file, names in listed.items():
        try:
            with safe_open(file, framework="numpy") as opened:
                found = set(opened.keys())
        except SafetensorError:
            found = set()
        wrong += [file.name] if found != names else []
    detail = f"the safetensors library reads {counted(len(listed), 'file')}"
    fault = f"the safetensors library does not read the same names in {first_names(wrong)}"
    return listed_check("readable by others", wrong, detail, fault=fault)


def _check_seen(planned: Sequence[Step], merged: Sequence[Tally]) -> Check:
    """Check that every row of every merged tensor was compared; a partial proof is no proof."""
    from lora_export.execution.arithmetic import matrix_of

    rows = {step.out.name: matrix_of(step)[0] for step in planned if step.deltas}
    wrong = [tally.name for tally in merged if tally.rows != rows[tally.name]]
    fault = f"not every row of {first_names(wrong)} was compared"
    detail = counted(sum(rows.values()), "row")
    return listed_check("every row was looked at", wrong, detail, fault=fault)


def _check_elements(merged: Sequence[Tally]) -> Check:
    worst = max(merged, key=lambda one: one.error)
    passed = worst.error <= 1.0
    far = f"{worst.distance:.1e} from its recomputation"
    detail = f"{counted(len(merged), 'tensor')}"
    if not passed:
        wrong = sum(one.error > 1.0 for one in merged)
        detail = (
            f"an element of {worst.name} is {far}, {times(worst.error)} what its rounding may be"
        )
        detail += f"; {wrong} of {counted(len(merged), 'tensor')} are wrong" if wrong > 1 else ""
    basis = f"1 is the rounding of an element; in {worst.name} one is {far}" if passed else ""
    return Check(ELEMENTS, passed, worst.error, 1.0, worst.name, detail, basis)


def _slant(one: Tally) -> float:
    """Return the gain in units of its tolerance; infinity if the tolerance is not finite."""
    tolerance = one.gain_tolerance
    return abs(one.gain) / tolerance if isfinite(tolerance) else inf


def _check_gain(merged: Sequence[Tally]) -> Check:
    worst = max(merged, key=_slant)
    # With an infinite tolerance any gain would pass.
    passed = abs(worst.gain) <= worst.gain_tolerance < inf
    fault = describe_gain(merged) or (
        f"{worst.name} holds {1 + worst.gain:.4g} times the update, and may be off by "
        f"{worst.gain_tolerance:.2g}"
    )
    detail = f"{counted(len(merged), 'tensor')}, each with the update once" if passed else fault
    return Check("scaling", passed, abs(worst.gain), worst.gain_tolerance, worst.name, detail)


def _check_changed(planned: Sequence[Step], merged: Sequence[Tally]) -> Check:
    same = sum(not one.changed for one in merged)
    lost = _lost(planned, merged)
    detail = f"{len(merged) - same} planned tensors differ from the base"
    if idle := same - len(lost):
        detail += f", the factors of {idle} are zero"
    fault = (
        f"{first_names(lost)}: {len(lost)} of {counted(len(merged), 'tensor')} with an update "
        "are still the base's"
    )
    return listed_check(CHANGED, lost, detail, fault=fault)


def _lost(planned: Iterable[Step], merged: Iterable[Tally]) -> list[str]:
    """Return the adapted tensors that are the base's, though their factors are not zero."""
    same = {one.name for one in merged if not one.changed}
    steps = [step for step in planned if step.out.name in same]
    return [step.out.name for step in steps if not all(map(changes_nothing, step.deltas))]
