"""Bases in every container and layout merge alike; what is no weight is carried over."""

import json
from hashlib import sha256

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_export.api import merge, verify
from lora_export.errors import InputError, OutputError, UsageError, VerificationError

BASE = {
    "embed.weight": torch.arange(12.0).view(6, 2),
    "block.weight": torch.arange(20.0).view(5, 4) / 7,
    "block.bias": torch.arange(5.0),
    "half.weight": torch.arange(12.0).view(3, 4).bfloat16(),
    "steps": torch.tensor(3),
}
ADAPTER = {
    "block.lora_A": torch.arange(8.0).view(2, 4) / 10,
    "block.lora_B": torch.arange(10.0).view(5, 2) / 10,
}
SIDE_FILES = {
    "config.json": b'{"b": 1,   "a": [1,\n2]}\n',
    "tokenizer.json": b"\x00\xff{}",
    "1_Pooling/config.json": b"{ }",
}
SHARDS = {"embed.weight": 1, "block.weight": 2, "block.bias": 1, "half.weight": 2, "steps": 2}


def expected():
    weight = BASE["block.weight"] + (ADAPTER["block.lora_B"] @ ADAPTER["block.lora_A"]) * (6 / 2)
    return {**BASE, "block.weight": weight}


def folder(path):
    path.mkdir()
    for name, content in SIDE_FILES.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)
    return path


def sharded(path, save, pattern):
    files = {n: pattern.format(n) for n in (1, 2)}
    for number, file in files.items():
        save({k: v for k, v in BASE.items() if SHARDS[k] == number}, path / file)
    stem, _, suffix = pattern.partition("-{:05d}-of-00002")
    index = path / f"{stem}{suffix}.index.json"
    index.write_text(
        json.dumps(
            {
                "metadata": {"total_size": 1, "note": "kept"},
                "weight_map": {name: files[SHARDS[name]] for name in BASE},
            }
        )
    )
    return index


def save_nested(tensors, path):
    torch.save(
        {"epoch": 3, "checkpoint": {"model_state_dict": tensors}, "optimizer": {"lr": 1}}, path
    )


def save_legacy(tensors, path):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def save_turned(tensors, path):
    """Weights as loralib's fan_in_fan_out leaves them: transposed views."""
    torch.save({k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in tensors.items()}, path)


def save_safetensors(tensors, path):
    save_file(tensors, path, metadata={"format": "pt", "made_by": "someone"})


def bases(tmp_path):
    """name -> (what is named on the command line, is a folder)."""
    save_safetensors(BASE, tmp_path / "one.safetensors")
    torch.save(BASE, tmp_path / "zip.pt")
    save_nested(BASE, tmp_path / "nested.pth")
    save_legacy(BASE, tmp_path / "legacy.bin")
    save_turned(BASE, tmp_path / "turned.pt")
    single, single_bin = folder(tmp_path / "single"), folder(tmp_path / "single_bin")
    save_safetensors(BASE, single / "model.safetensors")
    torch.save(BASE, single_bin / "pytorch_model.bin")
    shards, shards_bin = folder(tmp_path / "shards"), folder(tmp_path / "shards_bin")
    index = sharded(shards, save_safetensors, "model-{:05d}-of-00002.safetensors")
    sharded(shards_bin, torch.save, "pytorch_model-{:05d}-of-00002.bin")
    return {
        "safetensors": tmp_path / "one.safetensors",
        "torch zip": tmp_path / "zip.pt",
        "torch nested": tmp_path / "nested.pth",
        "torch legacy": tmp_path / "legacy.bin",
        "torch transposed views": tmp_path / "turned.pt",
        "folder": single,
        "folder of .bin": single_bin,
        "sharded folder": shards,
        "index": index,
        "sharded folder of .bin": shards_bin,
    }


FORMS = (
    "safetensors",
    "torch zip",
    "torch nested",
    "torch legacy",
    "torch transposed views",
    "folder",
    "folder of .bin",
    "sharded folder",
    "index",
    "sharded folder of .bin",
)
FOLDERS = FORMS[5:]


@pytest.fixture
def adapter(tmp_path):
    torch.save(ADAPTER, tmp_path / "lora.pt")
    return tmp_path / "lora.pt"


def loaded(output):
    files = sorted(output.glob("*.safetensors")) if output.is_dir() else [output]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tensors(form, adapter, tmp_path):
    base = bases(tmp_path)[form]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    output = tmp_path / ("out" if form in FOLDERS else "out.safetensors")

    report = merge(base, [adapter], output, alpha=6)

    merged = loaded(output)
    assert merged.keys() == BASE.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected().items())
    assert {path: path.read_bytes() for path in before} == before  # no input is touched
    for file in report.files:
        root = output if output.is_dir() else output.parent
        assert sha256((root / file.path).read_bytes()).hexdigest() == file.sha256
    assert verify(output).passed
    assert verify(output, base=base, adapters=[adapter]).passed


@pytest.mark.parametrize("form", FOLDERS)
def test_a_folder_is_carried_over_byte_for_byte(form, adapter, tmp_path):
    base = bases(tmp_path)[form]
    merge(base, [adapter], tmp_path / "out", alpha=6)
    for name, content in SIDE_FILES.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    weights = {path.name for path in (tmp_path / "out").iterdir() if "model" in path.name}
    if "shard" in form or form == "index":
        assert weights == {
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        }
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        size = sum(tensor.nbytes for tensor in BASE.values())
        assert index["metadata"] == {"total_size": size, "note": "kept"}
        assert set(index["weight_map"]) == set(BASE)
    else:
        assert weights == {"model.safetensors"}


def test_header_metadata_and_order_are_kept(adapter, tmp_path):
    base = bases(tmp_path)["safetensors"]
    merge(base, [adapter], tmp_path / "out.safetensors", alpha=6)
    with safe_open(base, "pt") as old, safe_open(tmp_path / "out.safetensors", "pt") as new:
        assert new.metadata() == old.metadata()
        assert list(new.offset_keys()) == list(old.offset_keys())


def test_the_same_inputs_give_the_same_bytes(adapter, tmp_path):
    base = bases(tmp_path)["folder"]
    for name in ("a", "b"):
        merge(base, [adapter], tmp_path / name, alpha=6)
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            assert (
                path.read_bytes()
                == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
            )


def test_the_manifest_tells_what_was_done(adapter, tmp_path):
    base = bases(tmp_path)["folder"]
    merge(base, [adapter], tmp_path / "out", alpha=6)
    text = (tmp_path / "out" / "lora_export.json").read_text()
    manifest = json.loads(text)
    assert str(tmp_path) not in text
    assert manifest["recipe"] == "auto"
    assert manifest["inputs"]["adapters"][0]["sha256"] == sha256(adapter.read_bytes()).hexdigest()
    assert manifest["updates"]["block.weight"][0]["scaling"] == 3.0
    assert manifest["verification"]["passed"] is True


@pytest.mark.parametrize("damage", ["tensor", "side file", "missing file"])
def test_verify_sees_damage_by_digest(damage, adapter, tmp_path):
    base = bases(tmp_path)["folder"]
    merge(base, [adapter], tmp_path / "out", alpha=6)
    target = tmp_path / "out" / ("model.safetensors" if damage == "tensor" else "tokenizer.json")
    if damage == "missing file":
        target.unlink()
    else:
        content = bytearray(target.read_bytes())
        content[-1] ^= 1
        target.write_bytes(content)
    with pytest.raises(VerificationError, match="digests"):
        verify(tmp_path / "out")


def test_an_output_that_exists_is_refused_and_kept(adapter, tmp_path):
    base = bases(tmp_path)["safetensors"]
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        merge(base, [adapter], out, alpha=6)
    with pytest.raises(OutputError, match="no manifest beside it"):
        merge(base, [adapter], out, alpha=6, force=True)
    assert out.read_bytes() == b"precious"


def test_force_replaces_an_earlier_export(adapter, tmp_path):
    base = bases(tmp_path)["safetensors"]
    out = tmp_path / "out.safetensors"
    merge(base, [adapter], out, alpha=3)
    before = out.read_bytes()
    merge(base, [adapter], out, alpha=6, force=True)
    assert out.read_bytes() != before
    assert verify(out).passed


@pytest.mark.parametrize("place", ["the base", "inside the base", "the adapter"])
def test_an_output_onto_an_input_is_refused(place, adapter, tmp_path):
    base = bases(tmp_path)["folder"]
    adapter = adapter.rename(tmp_path / "lora")  # a name that a folder may have, too
    output = {"the base": base, "inside the base": base / "out", "the adapter": adapter}[place]
    with pytest.raises(OutputError):
        merge(base, [adapter], output, alpha=6, force=True)


def test_a_name_that_denies_safetensors_is_refused(adapter, tmp_path):
    base = bases(tmp_path)["torch zip"]
    with pytest.raises(UsageError, match="safetensors"):
        merge(base, [adapter], tmp_path / "out.pt", alpha=6)


def test_verify_needs_something_to_hold_it_against(adapter, tmp_path):
    base = bases(tmp_path)["safetensors"]
    with pytest.raises(UsageError, match="no manifest"):
        verify(base)
    with pytest.raises(UsageError, match="belong together"):
        verify(base, base=base)
    with pytest.raises(InputError, match="no such file"):
        verify(tmp_path / "nothing")
