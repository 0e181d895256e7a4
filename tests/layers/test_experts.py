"""Stacked experts against PEFT's own ParamWrapper: the same bits, whole, cut, and by parts."""

import copy
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file
from stacks import adapted, block, save

from lora_export.api import merge, verify
from lora_export.errors import UsageError, VerificationError
from lora_export.execution import arithmetic
from lora_export.layers import experts as kind
from lora_export.verification.kinds.experts import ParameterBranch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def saved(folder, *, dtype=torch.float32, config=None, said=None, **sizes):
    """(base file, adapter folder, live model)."""
    model = block(dtype=dtype, **sizes)
    save_file(model.state_dict(), folder / "base.safetensors")
    live = adapted(model, **(config or {}))
    return folder / "base.safetensors", save(live, folder / "adapter", **(said or {})), live


def by_peft(live, *, safe=False):
    return copy.deepcopy(live).merge_and_unload(safe_merge=safe).state_dict()


def assert_same(path, wanted):
    found = load_file(path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


# It does use them: a parameter's name is none of the modules' that it looks through.
IGNORED = "ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"


@pytest.mark.filterwarnings(IGNORED)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("transposed", "inner"), [(False, 12), (True, 12), (True, 8)])
@pytest.mark.parametrize(("dtype", "recipe"), list(product(DTYPES, ["auto", "peft-safe"])))
def test_merge_is_bit_equal_to_peft(dtype, recipe, transposed, inner, rslora, tmp_path):
    config = {
        "use_rslora": rslora,
        "target_parameters": ["router.weight", "gate_up_proj", "experts.down_proj"],
        "target_modules": ["proj"],
        "rank_pattern": {r".*\.gate_up_proj": 4},
        "alpha_pattern": {"experts.down_proj": 5},
    }
    sizes = {"transposed": transposed, "inner": inner}
    base, adapter, live = saved(tmp_path, dtype=dtype, config=config, **sizes)

    report = merge(base, [adapter], tmp_path / "out.safetensors", recipe=recipe)

    assert_same(tmp_path / "out.safetensors", by_peft(live, safe=recipe == "peft-safe"))
    assert report.passed
    assert {d.module for s in report.plan.steps() for d in s.deltas} == {
        "proj",
        "router",
        "experts",
    }


@pytest.mark.parametrize("transposed", [False, True])
def test_cut_rows_have_the_same_bits(transposed, tmp_path, monkeypatch):
    monkeypatch.setattr(arithmetic, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(kind, "WHOLE_ELEMENTS", 1 << 10)
    sizes = {"experts": 3, "hidden": 136, "inner": 100, "transposed": transposed}
    base, adapter, live = saved(tmp_path, config={"rank": 8}, **sizes)
    merge(base, [adapter], tmp_path / "out.safetensors")
    assert_same(tmp_path / "out.safetensors", by_peft(live))


def test_a_stack_of_one_is_a_matrix(tmp_path):
    base, adapter, live = saved(tmp_path, experts=1)
    merge(base, [adapter], tmp_path / "out.safetensors")
    assert_same(tmp_path / "out.safetensors", by_peft(live))


VERSIONS = {  # of PEFT, and whether the experts say is_transposed: how square ones were read
    ("0.18.1", False): True,
    ("0.19.0", False): True,
    ("0.19.0", True): False,
    ("0.19.1", False): False,
    ("0.21.2", True): True,
    ("0.20.0.dev0@abc", False): False,
}


@pytest.mark.parametrize(("version", "transposed"), VERSIONS)
def test_square_experts_are_read_as_their_version_of_peft_did(version, transposed, tmp_path):
    only = {"target_parameters": ["experts.gate_up_proj"]}
    base, adapter, live = saved(
        tmp_path,
        inner=8,
        transposed=VERSIONS[version, transposed],
        config=only,
        said={"peft_version": version},
    )
    folder = tmp_path / "base"
    folder.mkdir()
    base.rename(folder / "model.safetensors")
    config = f'{{"model_type": "{"gpt_oss" if transposed else "mixtral"}"}}'
    (folder / "config.json").write_text(config)
    merge(folder, [adapter], tmp_path / "out")
    assert_same(tmp_path / "out" / "model.safetensors", by_peft(live))


@pytest.mark.parametrize("said", [{"peft_version": None}, {"peft_version": "newest"}])
def test_square_experts_of_no_known_version_are_asked_for(said, tmp_path):
    only = {"target_parameters": ["experts.gate_up_proj"]}
    base, adapter, live = saved(tmp_path, inner=8, config=only, said=said)
    with pytest.raises(UsageError, match="square experts"):
        merge(base, [adapter], tmp_path / "out.safetensors")
    merge(base, [adapter], tmp_path / "out.safetensors", fan_in_fan_out=False)
    assert_same(tmp_path / "out.safetensors", by_peft(live))


def test_square_experts_beside_others_need_no_version(tmp_path):
    said = {"peft_version": None}
    base, adapter, live = saved(tmp_path, inner=8, transposed=True, said=said)
    merge(base, [adapter], tmp_path / "out.safetensors")
    assert_same(tmp_path / "out.safetensors", by_peft(live))


FAULTS = {
    "scaling 0.5 % too small": lambda b, m: b + (m - b) * 0.995,
    "experts in another order": lambda b, m: b + (m - b).roll(1, 0),
    "one expert skipped": lambda b, m: torch.cat([b[:1], m[1:]]),
    "one expert transposed": lambda b, m: torch.cat([b[:1] + (m - b)[:1].mT, m[1:]]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_proof_by_weights_catches_a_fault(fault, dtype, tmp_path):
    sizes = {"hidden": 128, "inner": 64, "experts": 8}
    base, adapter, _ = saved(tmp_path, dtype=dtype, config={"rank": 8}, **sizes)
    merge(base, [adapter], tmp_path / "out.safetensors")
    before, after = load_file(base), load_file(tmp_path / "out.safetensors")
    name = "experts.gate_up_proj"
    after[name] = FAULTS[fault](before[name].float(), after[name].float()).to(dtype).contiguous()
    save_file(after, tmp_path / "bad.safetensors")
    with pytest.raises(VerificationError):
        verify(tmp_path / "bad.safetensors", base=base, adapters=[adapter])


@pytest.mark.parametrize("transposed", [False, True])
def test_the_live_branch_is_the_forward_of_peft(transposed, tmp_path):
    base, adapter, live = saved(tmp_path, transposed=transposed)
    plan = merge(base, [adapter], dry_run=True).plan
    model = block(transposed=transposed)
    deltas = [delta for step in plan.steps() for delta in step.deltas]
    branches = [ParameterBranch(model.get_submodule(d.module), d) for d in deltas]
    own = dict(model.named_parameters())
    x = torch.randn(5, 16)

    assert torch.equal(model(x), live(x))
    assert [branch.calls for branch in branches] == [1, 1]
    assert all(parameter is own[name] for name, parameter in model.named_parameters())
    torch.testing.assert_close(model.double()(x.double()), live.double()(x.double()))


def test_the_branch_of_a_second_adapter_sees_the_first(tmp_path):
    base, adapter, _ = saved(tmp_path)
    delta = merge(base, [adapter], dry_run=True).plan.changed()[0].deltas[0]
    model = block()
    once, twice = block(), block()
    ParameterBranch(once.experts, delta)
    for _ in range(2):
        ParameterBranch(twice.experts, delta)
    x = torch.randn(5, 16)
    for _ in range(2):  # the second call finds what the first has put back
        update = twice(x) - model(x)
        assert (update - (once(x) - model(x))).abs().max() > 1e-3
    assert torch.equal(twice.experts.gate_up_proj, model.experts.gate_up_proj)
