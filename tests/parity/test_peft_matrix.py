"""PEFT whole: every architecture and kind of adapter, merged as PEFT merges, bit for bit.

Each case is an adapter that PEFT made, merged by lora-export and by PEFT. The tensors on disk are
compared by name and bit for bit. The merged folder, loaded with the Auto class as a user does, is
compared with the unmerged model: in every slow case, and in those of the default run that its seed
draws. Where PEFT's merge is not its unmerged model, the latter alone decides, and always does.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft_matrix.architectures import ARCHITECTURES, DTYPES
from peft_matrix.cases import CASES
from peft_matrix.making import make_adapter
from peft_matrix.options import OPTIONS
from peft_matrix.oracle import load_adapted, merged, merged_modules, run, unmerged
from peft_matrix.warned import OF_OPTIONS, WHILE_SAVING, ignored
from safetensors.torch import load_file

from lora_export.api import merge

# What PEFT and transformers say to one another, and to users about PEFT's own merge.
pytestmark = ignored(WHILE_SAVING + OF_OPTIONS)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The folder of a base, made when it is first asked for."""
    made = {}

    def folder(architecture, dtype):
        if (architecture, dtype) not in made:
            path = tmp_path_factory.mktemp("base") / "base"
            ARCHITECTURES[architecture].save(DTYPES[dtype], path)
            made[architecture, dtype] = path
        return made[architecture, dtype]

    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """At these sizes threads only cost time, and the workers of a test run want the processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def is_compared(case, is_proven):
    """Whether the merged model is run beside the unmerged one; see is_proven of tests/conftest."""
    return is_proven or bool(case.why_wrong)


@pytest.mark.parametrize("case", CASES)
def test_merge(case, is_compared, bases, tmp_path, record_property):
    architecture, option = case.parts()
    base, adapter, ours = bases(case.architecture, case.dtype), tmp_path / "a", tmp_path / "ours"
    make_adapter(architecture, option, base, adapter)

    recipe = "peft-safe" if case.safe else "auto"
    merge(base, [adapter], ours, recipe=recipe, **architecture.merging)

    adapted = load_adapted(architecture, base, adapter)
    spare = deepcopy(adapted) if is_compared else adapted
    theirs = merged(spare, tmp_path / "theirs", safe=case.safe)
    if option.of_transformers_4:
        theirs |= merged_modules(base, adapter)
    compare_files(architecture, weights(ours), theirs, exact=not case.why_wrong)
    is_wrong = False
    if is_compared:
        is_wrong = compare_models(case, unmerged(architecture, adapted), base, tmp_path)
    record_property("peft_matrix", "better than PEFT" if is_wrong else "bit-equal to PEFT")


def compare_models(case, reference, base, folder):
    """Hold our model and PEFT's, as they are on disk, against the unmerged one.

    Return whether PEFT's merge is another model.
    """
    architecture = case.parts()[0]
    model, info = architecture.load(folder / "ours")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    if case.dtype == "fp32":  # half a precision's noise may be larger than a small adapter's effect
        assert effect(architecture, base, reference) > reference.tolerance
    assert run(model, architecture).distance(reference.exact) <= reference.tolerance

    model, _ = architecture.load(folder / "theirs")
    is_wrong = run(model, architecture).distance(reference.exact) > reference.tolerance
    assert is_wrong == bool(case.why_wrong), "peft_is_wrong of options.py says something else"
    return is_wrong


def effect(architecture, base, reference):
    """How far the adapter moves the outputs; the base may lack the head that it brings."""
    return run(architecture.load_base(base), architecture).distance(reference.exact)


def weights(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def compare_files(architecture, ours, theirs, *, exact):
    """The same names, types and bits; where PEFT is wrong, of the tensors outside the tie alone."""
    if architecture.saved_by:
        # The base's own names are kept, which lack the prefix of the encoder.
        theirs = {n if n in ours else n.split(".", 1)[1]: v for n, v in theirs.items()}
    for name in theirs:
        if architecture.in_fp32 and name.endswith(architecture.in_fp32):
            theirs[name] = theirs[name].to(ours[name].dtype)
    if exact:
        assert ours.keys() == theirs.keys()
    else:
        tied = (f"{architecture.table}.weight", f"{architecture.output_head}.weight")
        theirs = {name: value for name, value in theirs.items() if not name.endswith(tied)}
    different = {name: differs(ours[name], value) for name, value in theirs.items()}
    assert not any(different.values()), {name: text for name, text in different.items() if text}


def differs(ours, theirs):
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return f"{ours.dtype} {[*ours.shape]}, PEFT's is {theirs.dtype} {[*theirs.shape]}"
    if all_bytes(ours) == all_bytes(theirs):
        return ""
    worst = (ours.double() - theirs.double()).abs().max().item()
    return (
        f"{int((ours != theirs).sum())} of {ours.numel()} elements differ, by {worst:.1e} at most"
    )


def all_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_every_architecture_and_option_has_a_case():
    made = [case.values[0] for case in CASES]
    assert {case.architecture for case in made} == set(ARCHITECTURES)
    assert {case.option for case in made} == set(OPTIONS)
    for dtype in DTYPES:
        assert {c.option for c in made if c.dtype == dtype} == {c.option for c in made}
