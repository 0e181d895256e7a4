"""--provider: every session of a proof runs where it was asked to, those that generate as well."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from peft_matrix.architectures import ARCHITECTURES
from peft_matrix.making import make_adapter
from peft_matrix.options import OPTIONS

from lora_export.api import export_onnx

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
CUDA = "CUDAExecutionProvider"


class _Pretended:
    """A session on the CPU that says it is on a GPU."""

    def __init__(self, session):
        self._session = session

    def get_providers(self):
        return [CUDA, "CPUExecutionProvider"]

    def __getattr__(self, name):
        return getattr(self._session, name)


@pytest.fixture
def asked(monkeypatch):
    """The providers that every session was opened on, on a machine that has a GPU."""
    found = []
    real = onnxruntime.InferenceSession

    def open_session(path, options, providers):
        found.append(tuple(providers))
        return _Pretended(real(path, options, providers=["CPUExecutionProvider"]))

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"]
    )
    return found


@pytest.mark.parametrize(("name", "out"), [("gpt2", "out.onnx"), ("whisper", "out")])
def test_what_generates_runs_there_too(asked, name, out, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    ARCHITECTURES[name].save(torch.float32, base)
    make_adapter(ARCHITECTURES[name], OPTIONS["plain"], base, adapter)
    export_onnx(base, [adapter], tmp_path / out, kv_cache=True, provider=["cuda"])
    assert set(asked) == {(CUDA,)}
