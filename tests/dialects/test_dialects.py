"""Each dialect recognises its own files and uses every tensor of them exactly once."""

import pytest
import torch
from dialects.cases import CASES
from safetensors.torch import save_file

from lora_export.checkpoint.shards import read_shard
from lora_export.dialects import Dialect, Evidence, all_dialects, read_adapter
from lora_export.errors import UsageError
from lora_export.records import Adapter, AdapterFile


def file(folder, tensors, config=None):
    path = folder / "adapter.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, path)
    refs = {ref.spec.name: ref for ref in read_shard(path).tensors}
    return AdapterFile(path, refs, config=config or {})


def test_every_dialect_has_a_row_and_every_row_a_dialect():
    assert set(CASES) == set(all_dialects())


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_used_once(name, tmp_path):
    tensors, modules, full, config = CASES[name]
    stored = file(tmp_path, tensors, config)
    assert all_dialects()[name].recognizes(stored) > Evidence.NONE
    adapter = read_adapter(stored, dialect=None)
    assert adapter.dialect == name
    assert {update.module: set(update.factors) for update in adapter.updates} == modules
    assert {replacement.name for replacement in adapter.replacements} == full
    used = [ref.spec.name for update in adapter.updates for ref in update.factors.values()]
    used += [replacement.ref.spec.name for replacement in adapter.replacements]
    used += adapter.facts
    assert sorted(used) == sorted(tensors)


def test_a_tie_names_the_option(monkeypatch, tmp_path):
    rival = Dialect(
        "rival", lambda _: Evidence.TENSOR_NAMES, lambda f, w: Adapter(f.path, "rival", (), (), w)
    )
    known = {**all_dialects(), "rival": rival}
    monkeypatch.setattr("lora_export.dialects.all_dialects", lambda: known)
    tensors = CASES["loralib"][0]
    with pytest.raises(UsageError, match="--dialect"):
        read_adapter(file(tmp_path, tensors), dialect=None)
    assert read_adapter(file(tmp_path, tensors), dialect="rival").dialect == "rival"
