"""merge --undo and unmerge: the base back, to the byte, also in half precision."""

import json
from hashlib import sha256

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_export.api import merge, unmerge
from lora_export.errors import InputError, OutputError, UsageError, VerificationError

SHARDS = {"a.weight": 1, "b.weight": 2, "b.bias": 2, "c.weight": 1}


@pytest.fixture
def base(tmp_path):
    """A sharded bf16 folder with an index that has its own spacing, and side files."""
    torch.manual_seed(0)
    folder = tmp_path / "base"
    folder.mkdir()
    tensors = {
        "a.weight": torch.randn(300, 40).bfloat16(),
        "b.weight": torch.randn(70, 40).bfloat16(),
        "b.bias": torch.randn(70).bfloat16(),
        "c.weight": torch.randn(5, 3),
    }
    for number in (1, 2):
        part = {k: v for k, v in tensors.items() if SHARDS[k] == number}
        save_file(part, folder / f"model-{number}.safetensors", metadata={"kept": "yes"})
    weight_map = {name: f"model-{number}.safetensors" for name, number in SHARDS.items()}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=7))
    (folder / "config.json").write_text('{"x":   1}')
    (folder / "tokenizer.json").write_bytes(b"\xff\x00")
    return folder


@pytest.fixture
def adapter(tmp_path):
    low = {"a.lora_A": (4, 40), "a.lora_B": (300, 4), "b.lora_A": (4, 40), "b.lora_B": (70, 4)}
    tensors = {name: torch.randn(shape) for name, shape in low.items()}
    save_file({**tensors, "b.bias": torch.randn(70)}, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def digests(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_folder_comes_back(base, adapter, tmp_path):
    undo = tmp_path / "undo.safetensors"
    merge(base, [adapter], tmp_path / "merged", alpha=3, undo=undo)
    assert set(load_file(undo)) == {"a.weight", "b.weight", "b.bias"}
    report = unmerge(tmp_path / "merged", tmp_path / "again", undo=undo)
    assert report.passed
    assert digests(tmp_path / "again") == digests(base)


def test_a_file_comes_back(base, adapter, tmp_path):
    tensors = {n: t for f in base.glob("*.safetensors") for n, t in load_file(f).items()}
    save_file(tensors, tmp_path / "one.safetensors")
    undo = tmp_path / "undo.safetensors"
    merge(tmp_path / "one.safetensors", [adapter], tmp_path / "m.safetensors", alpha=3, undo=undo)
    unmerge(tmp_path / "m.safetensors", tmp_path / "again.safetensors", undo=undo)
    one, again = tmp_path / "one.safetensors", tmp_path / "again.safetensors"
    assert one.read_bytes() == again.read_bytes()


def test_other_shards_than_the_bases_come_back_too(base, adapter, tmp_path):
    undo = tmp_path / "undo.safetensors"
    merge(base, [adapter], tmp_path / "merged", alpha=3, undo=undo, max_shard_size="10KB")
    assert len(list((tmp_path / "merged").glob("model-*-of-*.safetensors"))) > 2
    unmerge(tmp_path / "merged", tmp_path / "again", undo=undo)
    assert digests(tmp_path / "again") == digests(base)


@pytest.mark.parametrize("size", ["1GB", "20 KB", "9000"])
def test_new_shards_hold_the_same(size, base, adapter, tmp_path):
    merge(base, [adapter], tmp_path / "kept", alpha=3)
    merge(base, [adapter], tmp_path / "new", alpha=3, max_shard_size=size)
    merged = [
        {n: t for f in (tmp_path / name).glob("*.safetensors") for n, t in load_file(f).items()}
        for name in ("kept", "new")
    ]
    assert merged[0].keys() == merged[1].keys()
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])
    index = tmp_path / "new" / "model.safetensors.index.json"
    assert index.exists() is (size != "1GB")


@pytest.mark.parametrize("size", ["0", "large", "5 TB"])
def test_a_size_that_is_none(size, base, adapter, tmp_path):
    with pytest.raises(UsageError, match="is no size"):
        merge(base, [adapter], tmp_path / "out", alpha=3, max_shard_size=size)


def test_a_changed_result_is_not_taken_for_the_base(base, adapter, tmp_path):
    undo = tmp_path / "undo.safetensors"
    merge(base, [adapter], tmp_path / "merged", alpha=3, undo=undo)
    file = tmp_path / "merged" / "model-1.safetensors"
    content = bytearray(file.read_bytes())
    # c.weight, the first by its wider dtype: untouched, so the undo file does not hold it
    content[8 + int.from_bytes(content[:8], "little")] ^= 1
    file.write_bytes(content)
    with pytest.raises(VerificationError, match=r"model-1\.safetensors"):
        unmerge(tmp_path / "merged", tmp_path / "again", undo=undo)
    assert not (tmp_path / "again").exists()


def test_an_undo_file_of_something_else(base, adapter, tmp_path):
    merge(base, [adapter], tmp_path / "merged", alpha=3)
    with pytest.raises(InputError, match="no undo file"):
        unmerge(tmp_path / "merged", tmp_path / "again", undo=adapter)


def test_a_converted_base_cannot_be_undone(base, adapter, tmp_path):
    torch.save(load_file(base / "model-2.safetensors"), tmp_path / "base.pt")
    settings = {"alpha": 3, "allow_unmatched": ["a.*"], "undo": tmp_path / "undo.safetensors"}
    with pytest.raises(UsageError, match="converted"):
        merge(tmp_path / "base.pt", [adapter], tmp_path / "out.safetensors", **settings)
    assert not (tmp_path / "undo.safetensors").exists()


def test_an_undo_file_that_exists_is_kept(base, adapter, tmp_path):
    undo = tmp_path / "undo.safetensors"
    undo.write_bytes(b"precious")
    with pytest.raises(OutputError):
        merge(base, [adapter], tmp_path / "merged", alpha=3, undo=undo)
    assert undo.read_bytes() == b"precious"
    assert not (tmp_path / "merged").exists()


def test_without_a_result_there_is_no_undo_file(base, adapter, tmp_path, monkeypatch):
    from lora_export.checkpoint.output.publish import Staging

    undo = tmp_path / "undo.safetensors"
    right = Staging.publish

    def fails(stage, **how):
        if stage.output.name == "merged":
            raise OutputError("planted")
        return right(stage, **how)

    monkeypatch.setattr(Staging, "publish", fails)
    with pytest.raises(OutputError, match="planted"):
        merge(base, [adapter], tmp_path / "merged", alpha=3, undo=undo)
    assert not undo.exists()
    assert not (tmp_path / "merged").exists()


def test_jobs_and_verification_leave_the_bytes_alone(base, adapter, tmp_path):
    seen, cards = set(), set()
    for jobs in (1, 2, 4):
        for verify in (True, False):
            out = tmp_path / f"out-{jobs}-{verify}"
            merge(base, [adapter], out, alpha=3, jobs=jobs, verify=verify)
            found = digests(out)
            del found["lora_export.json"]
            cards.add((verify, found.pop("README.md")))
            seen.add(json.dumps(found, sort_keys=True))
    assert len(seen) == 1
    assert len(cards) == 2  # what was verified is all that the cards tell apart


def test_progress_names_the_stages_and_counts_bytes(base, adapter, tmp_path):
    told = []
    merge(base, [adapter], tmp_path / "o", alpha=3, undo=tmp_path / "u", progress=told.append)
    stages = [*dict.fromkeys(event.stage for event in told)]
    assert [s for s in stages if s not in ("import torch", "hash")] == [
        "plan",
        "merge",
        "proof by weights",
        "write the undo file",
        "publish",
    ]
    counted = [event for event in told if event.stage == "merge" and event.total]
    done = [event.done for event in counted]
    assert done == sorted(done)
    assert {(event.total, event.unit) for event in counted} == {(done[-1], "bytes")}
    told.clear()
    report = unmerge(tmp_path / "o", tmp_path / "b", undo=tmp_path / "u", progress=told.append)
    assert [*dict.fromkeys(event.stage for event in told)] == ["hash", "restore", "publish"]
    assert [*report.facts["seconds"]] == ["hash", "restore", "publish", "other", "total"]


def test_the_undo_file_of_a_killed_run_is_taken_over(base, adapter, tmp_path):
    undo = tmp_path / "undo.safetensors"
    merge(base, [adapter], tmp_path / "merged", alpha=3, undo=undo)
    before = undo.read_bytes()
    merge(base, [adapter], tmp_path / "again", alpha=3, undo=undo)  # as after a kill
    assert undo.read_bytes() == before
    unmerge(tmp_path / "again", tmp_path / "restored", undo=undo)
    assert digests(tmp_path / "restored") == digests(base)


def test_the_undo_file_of_another_base_is_kept(base, adapter, tmp_path):
    undo = tmp_path / "undo.safetensors"
    merge(base, [adapter], tmp_path / "merged", alpha=3, undo=undo)
    before = undo.read_bytes()
    for file in base.glob("*.safetensors"):  # other weights under the same headers
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(OutputError, match="another base"):
        merge(base, [adapter], tmp_path / "other", alpha=3, undo=undo)
    assert undo.read_bytes() == before
    assert not (tmp_path / "other").exists()


def test_a_base_that_is_there_already_is_left_as_it_is(base, adapter, tmp_path):
    undo = tmp_path / "undo.safetensors"
    merge(base, [adapter], tmp_path / "merged", alpha=3, undo=undo)
    unmerge(tmp_path / "merged", tmp_path / "again", undo=undo)
    with pytest.raises(OutputError, match="exists"):
        unmerge(tmp_path / "merged", tmp_path / "again", undo=undo)
    assert unmerge(tmp_path / "merged", tmp_path / "again", undo=undo, force=True).passed
    (tmp_path / "again" / "model-1.safetensors").write_bytes(b"")
    with pytest.raises(OutputError, match="not an export of ours"):
        unmerge(tmp_path / "merged", tmp_path / "again", undo=undo, force=True)


def test_the_result_of_another_adapter_is_refused_by_its_digest(base, adapter, tmp_path):
    """The undo file would restore the base from it, and hide which of both was at hand."""
    merge(base, [adapter], tmp_path / "merged", alpha=3, undo=tmp_path / "undo.safetensors")
    merge(base, [adapter], tmp_path / "other", alpha=5)
    with pytest.raises(VerificationError, match=r"undo\.safetensors does not record") as caught:
        unmerge(tmp_path / "other", tmp_path / "again", undo=tmp_path / "undo.safetensors")
    digest = sha256((tmp_path / "other" / "model-1.safetensors").read_bytes()).hexdigest()
    assert digest[:16] in caught.value.problems[0].message
    assert not (tmp_path / "again").exists()


def test_a_result_under_other_names_belongs_to_its_undo_file(base, adapter, tmp_path):
    merge(base, [adapter], tmp_path / "merged", alpha=3, undo=tmp_path / "undo.safetensors")
    index = tmp_path / "merged" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-1.safetensors", "part.safetensors"))
    (tmp_path / "merged" / "model-1.safetensors").rename(tmp_path / "merged" / "part.safetensors")
    report = unmerge(tmp_path / "merged", tmp_path / "again", undo=tmp_path / "undo.safetensors")
    assert report.passed


def test_an_undo_file_without_digests_restores_as_before(base, adapter, tmp_path):
    """Earlier versions did not record which result an undo file belongs to."""
    undo, old = tmp_path / "undo.safetensors", tmp_path / "old.safetensors"
    merge(base, [adapter], tmp_path / "merged", alpha=3, undo=undo)
    with safe_open(undo, "pt") as opened:
        description = json.loads(opened.metadata()["lora_export.undo"])
    assert description.pop("result")
    save_file(load_file(undo), old, {"lora_export.undo": json.dumps(description)})
    unmerge(tmp_path / "merged", tmp_path / "again", undo=old)
    assert digests(tmp_path / "again") == digests(base)


def test_an_undo_file_that_is_not_named(base, adapter, tmp_path):
    merge(base, [adapter], tmp_path / "merged", alpha=3)
    with pytest.raises(UsageError, match="the undo file of the merge is not named"):
        unmerge(tmp_path / "merged", tmp_path / "again")
