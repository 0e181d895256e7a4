"""Each dialect recognises its own files and uses every tensor of them exactly once."""

from pathlib import Path

import pytest
from dialects.cases import CASES

from lora_export.dialects import Dialect, Evidence, all_dialects, read_adapter
from lora_export.errors import UsageError
from lora_export.records import Adapter, AdapterFile, TensorRef, TensorSpec


def file(tensors, config=None):
    refs = {
        name: TensorRef(TensorSpec(name, "F32", shape), Path("x"), 0, 0)
        for name, shape in tensors.items()
    }
    return AdapterFile(Path("x"), refs, config=config or {})


def test_every_dialect_has_a_row_and_every_row_a_dialect():
    assert set(CASES) == set(all_dialects())


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_used_once(name):
    tensors, modules, full, config = CASES[name]
    assert all_dialects()[name].recognizes(file(tensors, config)) > Evidence.NONE
    adapter = read_adapter(file(tensors, config), dialect=None)
    assert adapter.dialect == name
    assert {update.module: set(update.factors) for update in adapter.updates} == modules
    assert {replacement.name for replacement in adapter.replacements} == full
    used = [ref.spec.name for update in adapter.updates for ref in update.factors.values()]
    used += [replacement.ref.spec.name for replacement in adapter.replacements]
    assert sorted(used) == sorted(tensors)


def test_a_tie_names_the_option(monkeypatch):
    rival = Dialect(
        "rival", lambda _: Evidence.TENSOR_NAMES, lambda f, w: Adapter(f.path, "rival", (), (), w)
    )
    known = {**all_dialects(), "rival": rival}
    monkeypatch.setattr("lora_export.dialects.all_dialects", lambda: known)
    tensors = CASES["loralib"][0]
    with pytest.raises(UsageError, match="--dialect"):
        read_adapter(file(tensors), dialect=None)
    assert read_adapter(file(tensors), dialect="rival").dialect == "rival"
