"""verify believes neither the artefact nor its manifest, which lie in the same hands."""

import json
from hashlib import sha256

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import merge, verify
from lora_export.errors import FitError, InputError, UsageError, VerificationError

RANDOM = torch.Generator().manual_seed(0)


def tensor(*shape):
    return torch.randn(shape, generator=RANDOM)


BASE = {"fc.weight": tensor(6, 5), "fc.bias": tensor(6), "g.weight": tensor(6, 5)}
ADAPTER = {"fc.lora_A": tensor(2, 5), "fc.lora_B": tensor(6, 2)}
WIDER = {"fc.lora_A": tensor(4, 5), "fc.lora_B": tensor(6, 4)}
SHARDS = {
    "model-00001-of-00002.safetensors": ["fc.weight", "fc.bias"],
    "model-00002-of-00002.safetensors": ["g.weight"],
}


def digest(path):
    return sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def place(tmp_path):
    """A base and an adapter, merged as a file and as a sharded folder."""
    save_file(BASE, tmp_path / "b.safetensors")
    save_file(ADAPTER, tmp_path / "l.safetensors")
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1}')
    weight_map = {}
    for file, names in SHARDS.items():
        save_file({name: BASE[name] for name in names}, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    merge(tmp_path / "b.safetensors", [tmp_path / "l.safetensors"], tmp_path / "o.safetensors",
          alpha=4)  # fmt: skip
    merge(folder, [tmp_path / "l.safetensors"], tmp_path / "out", alpha=4)
    return tmp_path


def manifest(place):
    return place / "o.safetensors.lora_export.json"


def changed(place, **values):
    document = json.loads(manifest(place).read_text())
    manifest(place).write_text(json.dumps({**document, **values}))


def again(place, **options):
    return verify(
        place / "o.safetensors",
        base=place / "b.safetensors",
        adapters=[place / "l.safetensors"],
        **options,
    )


OTHER = [{"name": "b.safetensors", "sha256": ""}]


@pytest.mark.parametrize("outputs", [[], OTHER])
def test_the_manifest_must_list_the_artefact(outputs, place):
    listed = [{**entry, "sha256": digest(place / entry["name"])} for entry in outputs]
    changed(place, outputs=listed)
    with pytest.raises(VerificationError, match="files listed"):
        verify(place / "o.safetensors")


STRAYS = ["model.safetensors", "pytorch_model.bin", "sub/more.safetensors", "tf_model.h5"]


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("with_manifest", [False, True])
@pytest.mark.parametrize("name", STRAYS)
def test_a_stray_weight_file_is_seen(name, with_manifest, with_base, place):
    stray = place / "out" / name
    stray.parent.mkdir(exist_ok=True)
    weights = {**BASE, "fc.weight": BASE["fc.weight"] + torch.tensor(2.0)}
    save_file(weights, stray)
    if not with_manifest:
        (place / "out" / "lora_export.json").unlink()
    inputs = {"base": place / "base", "adapters": [place / "l.safetensors"], "alpha": 4.0}
    with pytest.raises((VerificationError, UsageError)) as caught:
        verify(place / "out", **(inputs if with_base else {}))
    expected = VerificationError if with_manifest or with_base else UsageError
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b'{"tie_word_embeddings": true}'),
        ("config.json", None),
        ("config.json", b'{"a": 1, "b": 2}'),
    ],
)
def test_side_files_are_held_against_the_plan(file, content, place):
    (place / "out" / "lora_export.json").unlink()
    target = place / "out" / file
    if content is None:
        target.unlink()
    else:
        target.write_bytes(content)
    with pytest.raises(VerificationError, match="side files") as caught:
        verify(place / "out", base=place / "base", adapters=[place / "l.safetensors"], alpha=4.0)
    assert caught.value.problems[0].where == file


def test_an_index_of_another_writer_is_held_against_the_shards_only(place):
    (place / "out" / "lora_export.json").unlink()
    index = place / "out" / "model.safetensors.index.json"
    index.write_bytes(index.read_bytes() + b" ")
    given = {"base": place / "base", "adapters": [place / "l.safetensors"], "alpha": 4.0}
    assert verify(place / "out", **given).passed
    document = json.loads(index.read_text())
    del document["weight_map"]["fc.bias"]
    index.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"'fc\.bias' lies in"):
        verify(place / "out", **given)


@pytest.mark.parametrize("file", ["model-00001-of-00002.safetensors", "config.json"])
def test_damage_is_told_by_digest_whether_or_not_it_can_still_be_read(file, place):
    target = place / "out" / file
    target.write_bytes(target.read_bytes()[:-1])
    with pytest.raises(VerificationError, match="digests") as caught:
        verify(place / "out", base=place / "base", adapters=[place / "l.safetensors"])
    assert any("write it again" in problem.hint for problem in caught.value.problems)


MALFORMED = {
    "[]": "not an object",
    "{broken": "broken JSON",
    "{}": "format must be",
    "outputs=3": "outputs must be a list",
    "outputs=[{}]": r"outputs\[0\].name must be a text",
    "outputs=[3]": r"outputs\[0\] must be an object",
    'outputs=[{"name": "../b.safetensors", "sha256": ""}]': "no plain relative path",
    'outputs=[{"name": "/b.safetensors", "sha256": ""}]': "no plain relative path",
    'outputs=[{"name": "a", "sha256": "x"}, {"name": "a", "sha256": "x"}]': "a second time",
    "options=3": "options must be an object",
    'options={"rename": 3}': "options.rename must be a text",
    'updates={"fc.weight": [{}]}': r"updates.fc.weight\[0\].adapter must be a whole number",
    'updates={"fc.weight": 3}': "updates.fc.weight must be a list",
    'verification={"passed": 1}': "verification.passed must be true or false",
    "inputs={}": "inputs.adapters must be a list",
    'inputs={"adapters": [], "base": [], "merged_before": [3]}': "must be a list of texts",
    "format=99": "format must be",
    "recipe=null": "recipe must be a text",
}


@pytest.mark.parametrize("damage", MALFORMED)
def test_a_malformed_manifest_is_refused_with_the_place(damage, place):
    key, equals, value = damage.partition("=")
    if equals:
        changed(place, **{key: json.loads(value)})
    else:
        manifest(place).write_text(damage)
    for call in (verify, lambda _: again(place)):
        with pytest.raises(InputError, match=MALFORMED[damage]) as caught:
            call(place / "o.safetensors")
        assert caught.value.problems[0].where.startswith(str(manifest(place)))
        assert caught.value.problems[0].hint
    # Beside a base it may hide that the adapter is merged already.
    with pytest.raises(InputError, match=MALFORMED[damage]) as caught:
        merge(place / "o.safetensors", [place / "l.safetensors"], alpha=4, dry_run=True)
    assert "move the manifest away" in caught.value.problems[0].hint


@pytest.mark.parametrize(("passed", "words"), [(None, "no verification"), (False, "a failed")])
def test_what_was_never_proven_is_told(passed, words, place):
    assert not verify(place / "o.safetensors").warnings
    changed(place, verification=None if passed is None else {"passed": passed})
    assert words in verify(place / "o.safetensors").warnings[0]


def test_what_accepts_more_is_never_taken_from_the_manifest(place):
    save_file({**ADAPTER, "new": tensor(3)}, place / "more.safetensors")
    given = {
        "base": place / "b.safetensors",
        "adapters": [place / "more.safetensors"],
    }
    output = place / "o2.safetensors"
    merge(given["base"], given["adapters"], output, alpha=4, allow_unmatched=["new"])
    with pytest.raises(FitError, match="no such tensor"):
        verify(output, **given)
    report = verify(output, **given, allow_unmatched=["new"])
    assert any("alpha" in told and "manifest" in told for told in report.warnings)
    own = {"alpha": 4.0, "fan_in_fan_out": False, "hparams": place / "facts.toml"}
    own["hparams"].write_text('kind = "linear"')
    told = verify(output, **given, allow_unmatched=["new"], **own).warnings
    assert not any("manifest" in words for words in told)


def test_a_copy_of_the_base_does_not_pass_by_a_manifest_that_says_so(place):
    """An update too small to see, a no-op allowed: both would come from the file under test."""
    output = place / "o.safetensors"
    output.write_bytes((place / "b.safetensors").read_bytes())
    document = json.loads(manifest(place).read_text())
    for update in document["updates"]["fc.weight"]:
        update["alpha"] = 1e-12
    outputs = [{"name": output.name, "sha256": digest(output)}]
    changed(place, outputs=outputs, updates=document["updates"], options={"allow_noop": True})
    with pytest.raises(VerificationError, match="every target changed"):
        again(place)


@pytest.mark.parametrize("which", ["b", "l"])
def test_other_inputs_than_those_of_the_manifest_are_seen(which, place):
    tensors = {"b": BASE, "l": ADAPTER}[which]
    save_file({k: v + 1 for k, v in tensors.items()}, place / f"{which}.safetensors")
    with pytest.raises(VerificationError, match="inputs are those of the manifest") as caught:
        again(place)
    assert caught.value.problems[0].where == str(place / f"{which}.safetensors")


def test_no_claim_about_a_base_whose_digest_was_not_recorded(place):
    output = place / "quick.safetensors"
    merge(place / "b.safetensors", [place / "l.safetensors"], output, alpha=4, verify=False)
    report = verify(output, base=place / "b.safetensors", adapters=[place / "l.safetensors"])
    found = {check.name: check.detail for check in report.checks}
    assert "no digest of the base" in found["inputs are those of the manifest"]


def test_facts_are_kept_apart_by_adapter(place):
    """Two ranks and two weights for one module, verified in another order and another format."""
    save_file(WIDER, place / "wide.safetensors")
    adapters = [place / "l.safetensors", place / "wide.safetensors"]
    output = place / "two.safetensors"
    merge(place / "b.safetensors", adapters, output, alpha=4, weight=[0.5, 2.0])
    torch.save(WIDER, place / "wide.pt")
    report = verify(output, base=place / "b.safetensors", adapters=[place / "wide.pt", adapters[0]])
    assert report.passed
    assert [adapter.weight for adapter in report.plan.adapters] == [2.0, 0.5]
    assert any("weight [2.0, 0.5]" in told for told in report.warnings)
    with pytest.raises(VerificationError, match="inputs are those"):
        verify(output, base=place / "b.safetensors", adapters=[adapters[0]])


def test_the_same_adapter_in_another_format_is_the_same(place):
    torch.save(ADAPTER, place / "l.pt")
    adapters = [place / "l.safetensors", place / "l.pt"]
    with pytest.raises(FitError, match="named twice"):
        merge(place / "b.safetensors", adapters, alpha=4, dry_run=True)
    with pytest.raises(FitError, match="merged into the base already"):
        merge(place / "o.safetensors", adapters[1:], alpha=4, dry_run=True)


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf"), float("-inf")])
def test_a_weight_without_meaning_is_refused(weight, place):
    with pytest.raises(UsageError, match="--weight"):
        merge(
            place / "b.safetensors",
            [place / "l.safetensors"],
            alpha=4,
            weight=[weight],
            dry_run=True,
        )


def test_options_for_onnx_are_told_to_have_no_effect_on_weights(place):
    names = {"precision": "int8", "opset": 20, "allow_lossy": True}
    report = verify(
        place / "out", base=place / "base", adapters=[place / "l.safetensors"], alpha=4.0, **names
    )
    [told] = [line for line in report.warnings if "no ONNX file" in line]
    assert all(f"--{name.replace('_', '-')}" in told for name in names)
