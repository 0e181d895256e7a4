"""Faults planted in every stage, over many architectures: which are caught, and what is blamed.

Beside them, exports without a fault, none of which may be refused. The figures are printed at the
end of the run. In the default run are a few of both.
"""

from __future__ import annotations

import pytest
import torch
from detection.bench import LORALIB, set_up
from detection.cases import CASES
from detection.clean import MODELS, exports, false_alarms
from detection.graph_faults import Anatomy
from peft_matrix.warned import WHILE_SAVING, ignored
from whole_run.sampling import drawn

pytestmark = ignored(WHILE_SAVING)

ARCHITECTURES = (LORALIB, "bert", "albert", "gpt2", "gpt-neox", "llama", "t5", "vit", "clip",
                 "whisper")  # fmt: skip
HALVES = (torch.bfloat16, torch.float16)
# Every third fault here, the whole table there, in which these are again.
MERGES = [case for case in CASES if case.kind == "merge"]
FEW = {LORALIB: CASES[::3], "vit": CASES[1::3]}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", FEW)
def test_some_planted_faults(name, tmp_path, record_property):
    judge(name, FEW[name], tmp_path, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_planted_faults(name, tmp_path, record_property):
    judge(name, CASES, tmp_path, record_property)


def test_some_planted_faults_in_half_precision(tmp_path, record_property):
    """A third of the faults, on a base in one of the two dtypes, as the run's seed draws them."""
    part, dtype = drawn("faults in half precision", 3), drawn("half precision", len(HALVES))
    judge(LORALIB, CASES[part::3], tmp_path, record_property, HALVES[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES, ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_planted_faults_in_half_precision(name, dtype, tmp_path, record_property):
    """A wrong merge in both dtypes, and each fault of a file or of the runtime in one of them."""
    turn = HALVES.index(dtype)
    cases = [c for at, c in enumerate(CASES) if c.kind == "merge" or at % len(HALVES) == turn]
    judge(name, cases, tmp_path, record_property, dtype)


@pytest.mark.usefixtures("streamed")
def test_some_planted_faults_in_a_model_that_is_read_while_it_runs(tmp_path, record_property):
    """Wrong merges, as the seed draws them: what is run is read from the file that is wrong."""
    part = drawn("faults in a streamed model", 4)
    # One of the five may be a fault that no bfloat16 base can have.
    judge("llama", MERGES[part::4], tmp_path, record_property, torch.bfloat16, least=0.6)


@pytest.mark.slow
@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("name", ["bert", "gpt2", "mixtral", "t5"])
def test_planted_faults_in_a_model_that_is_read_while_it_runs(name, tmp_path, record_property):
    judge(name, MERGES, tmp_path, record_property)


def judge(name, cases, folder, record_property, dtype=torch.float32, least=0.8):
    """Plant one fault after the other; every one must be caught by all that can see it."""
    bench = set_up(name, folder, dtype)
    anatomy = Anatomy(bench)
    outcomes = [case.judge(bench, anatomy) for case in cases]
    planted = [outcome for outcome in outcomes if outcome is not None]
    for outcome in planted:
        of = name if dtype == torch.float32 else f"{name} in {str(dtype).removeprefix('torch.')}"
        record_property("detection", outcome.record(of))
    assert len(planted) > least * len(cases)  # else the tables have lost their hold on the models
    assert {o.name: o.missed for o in planted if o.missed} == {}
    assert {o.name: o.wrong for o in planted if o.wrong} == {}
    # Which of two tensors that overlap lies wrong, or which size a failing node was given, no check
    # can tell; the module of all others is found.
    unnamed = {o.name: o.unnamed for o in planted if o.unnamed}
    assert len(unnamed) < 0.2 * len(planted), unnamed


@pytest.mark.parametrize("name", [LORALIB])
def test_some_clean_exports(name, tmp_path, record_property):
    export(name, exports()[6:], tmp_path, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_clean_exports(name, tmp_path, record_property):
    export(name, exports(), tmp_path, record_property)


def export(name, chosen, folder, record_property):
    """Export one adapter after the other; none may be refused."""
    told = {str(one): why for one, why in false_alarms(name, chosen, folder)}
    for one, why in told.items():
        record_property("clean export", {"export": f"{name}: {one}", "alarm": bool(why)})
    assert len(told) == len(chosen)
    assert {one: why for one, why in told.items() if why} == {}
