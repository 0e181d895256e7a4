"""Level "weights": hold every tensor, as it was read back from disk, against the plan."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.execution.full_tensors import refuse_unusable
from lora_export.execution.layout import segments_of
from lora_export.execution.rows import Rows, read_rows, refuse_non_finite
from lora_export.records import Check
from lora_export.verification.blame.mistakes import gain_told, names_told
from lora_export.verification.factors import changes_nothing
from lora_export.verification.weights.merged_rows import Expectation
from lora_export.verification.weights.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from lora_export.records import MergePlan, Step, TensorRef


@dataclass(slots=True)
class WeightProof:
    """Collects what is seen of a result, from any number of threads; see execution's Watcher.

    Untouched and replaced tensors must be equal to the byte; merged ones within the rounding of
    the recipe around an independent recomputation, in every element and on average along the
    update (which shows a wrong scaling that rounding to half precision hides from elements).
    """

    plan: MergePlan
    different: list[str] = field(default_factory=list)
    _tallies: dict[str, Tally] = field(default_factory=dict)
    _expected: dict[str, Expectation] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def copied(self, name: str, source: bytes, written: memoryview) -> None:
        """See execution.segments.Watcher."""
        if not _are_same(source, written):
            with self._lock:
                self.different.append(name)

    def merged(self, step: Step, first: int, base: torch.Tensor, written: torch.Tensor) -> None:
        """See execution.segments.Watcher."""
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
        """The outcome; `written` is the result's own list of tensors, read from its headers."""
        planned = self.plan.steps()
        names = _check_names(planned, written)
        whole = sum(not step.deltas for step in planned)
        merged = [
            self._tallies.get(step.out.name, Tally(step.out.name))
            for step in planned
            if step.deltas
        ]
        checks = [
            names,
            _check_library(written),
            _check_list("untouched tensors", self.different, f"{whole} tensors equal to the byte"),
            _check_seen(planned, merged),
            _check_elements(merged),
            _check_gain(merged),
        ]
        if not allow_noop:
            checks.append(_check_changed(planned, merged))
        return tuple(checks)


def _are_same(source: bytes, written: memoryview) -> bool:
    """Eight bytes at a time: Python compares the bytes of a memoryview one by one."""
    import numpy as np

    if len(source) != len(written):
        return False
    count = len(source) // 8
    one, other = (np.frombuffer(each, np.uint64, count) for each in (source, written))
    return np.array_equal(one, other) and source[count * 8 :] == written[count * 8 :]


def check_weights(
    plan: MergePlan, written: Mapping[str, TensorRef], *, allow_noop: bool
) -> tuple[Check, ...]:
    """Hold tensors that lie on disk against `plan`, as a merge does while it writes them.

    Raises:
        InputError, FitError: what takes part in the merge holds NaN or infinity, or overflows.
    """
    refuse_unusable(plan)
    names = _check_names(plan.steps(), written)
    if not names.passed:
        return (names,)
    proof = WeightProof(plan)
    for shard in plan.shards:
        for segment in segments_of(plan, shard):
            if isinstance(segment, Rows):
                _look_at_rows(proof, segment, written)
    for step in plan.steps():
        if not step.deltas and not _as_planned(step, written[step.out.name]):
            proof.different.append(step.out.name)
    return proof.checks(written, allow_noop=allow_noop)


def _look_at_rows(proof: WeightProof, rows: Rows, written: Mapping[str, TensorRef]) -> None:
    step = rows.merge.step
    found = read_rows(step, rows.first, rows.stop, written[step.out.name])
    base = rows.base()
    refuse_non_finite(step, base)
    proof.merged(step, rows.first, base, found)


def _as_planned(step: Step, found: TensorRef) -> bool:
    """The written tensor is the source's bytes, or its values in the base's dtype."""
    import torch

    from lora_export.checkpoint.tensors import read_tensor, torch_dtype

    if step.source.spec.dtype == step.out.dtype:
        return same_content(step.source, found)
    wanted = read_tensor(step.source).to(torch_dtype(step.out.dtype))
    return torch.equal(wanted, read_tensor(found))


def _check_list(name: str, wrong: Sequence[str], detail: str) -> Check:
    """A check that counts what is wrong and names the first three."""
    return Check(name, not wrong, len(wrong), 0, ", ".join(wrong[:3]), detail)


def _check_names(planned: Sequence[Step], written: Mapping[str, TensorRef]) -> Check:
    wanted = {step.out.name: step.out for step in planned}
    wrong = [n for n, spec in wanted.items() if n not in written or written[n].spec != spec]
    wrong += [name for name in written if name not in wanted]
    told = names_told(wanted, {name: ref.spec for name, ref in written.items()})
    return _check_list("names, dtypes, shapes", wrong, told)


def _check_library(written: Mapping[str, TensorRef]) -> Check:
    """The format's own library, which will load the files for everybody else, reads the same."""
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
    detail = f"{len(listed)} files open in the safetensors library"
    return _check_list("readable by others", wrong, detail)


def _check_seen(planned: Sequence[Step], merged: Sequence[Tally]) -> Check:
    """Every row of every merged tensor was looked at: a proof that skipped some is none."""
    from lora_export.execution.arithmetic import matrix_of

    rows = {step.out.name: matrix_of(step)[0] for step in planned if step.deltas}
    wrong = [tally.name for tally in merged if tally.rows != rows[tally.name]]
    return _check_list("every row was looked at", wrong, f"{sum(rows.values())} rows")


def _check_elements(merged: Sequence[Tally]) -> Check:
    worst = max(merged, key=lambda one: one.error)
    headroom = f"{1 / worst.error:.1f} x headroom" if worst.error else "equal"
    far = f"{worst.name} is {worst.distance:.1e} from float64"
    detail = f"{headroom} in units of rounding, {len(merged)} tensors; {far}"
    return Check("merged elements", worst.error <= 1.0, worst.error, 1.0, worst.name, detail)


def _slant(one: Tally) -> float:
    """How much of what is tolerated the gain takes; most where nothing can be said of it."""
    tolerance = one.gain_tolerance
    return abs(one.gain) / tolerance if isfinite(tolerance) else inf


def _check_gain(merged: Sequence[Tally]) -> Check:
    worst = max(merged, key=_slant)
    detail = gain_told(merged) or f"{1 + worst.gain:.6f} of the update is in {worst.name}"
    # With a tolerance that is no finite number anything would pass.
    passed = abs(worst.gain) <= worst.gain_tolerance < inf
    return Check("scaling", passed, abs(worst.gain), worst.gain_tolerance, worst.name, detail)


def _check_changed(planned: Sequence[Step], merged: Sequence[Tally]) -> Check:
    same = {one.name for one in merged if not one.changed}
    steps = [step for step in planned if step.out.name in same]
    lost = [step.out.name for step in steps if not all(map(changes_nothing, step.deltas))]
    detail = f"{len(merged) - len(same)} planned tensors differ from the base"
    if idle := len(same) - len(lost):
        detail += f", the factors of {idle} are zero"
    return _check_list("every target changed", lost, detail)
