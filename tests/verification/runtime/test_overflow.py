"""Whether signed codes overflow is found by a product, and ONNX Runtime's own cure is right."""

import numpy as np
import onnxruntime
import pytest

from lora_export.verification.runtime import overflow

CURE = "session.x64quantprecision"


@pytest.fixture
def fresh():
    overflow.signed_codes_overflow.cache_clear()
    yield
    overflow.signed_codes_overflow.cache_clear()


def product(**settings):
    options = onnxruntime.SessionOptions()
    for key, value in settings.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    session = onnxruntime.InferenceSession(overflow._product(), options)
    x = np.full((3, 64), 255, np.uint8)
    return session.run(None, {"x": x})[0]


def test_a_wrong_product_is_an_overflow(fresh):
    wrong = (product() != 64 * 255 * 127).any()
    assert overflow.signed_codes_overflow() == wrong
    assert (product(session__x64quantprecision="1") == 64 * 255 * 127).all()


@pytest.mark.parametrize(("off", "found"), [(0, False), (-1, True)])
def test_the_runtime_is_asked_and_not_the_processor(fresh, monkeypatch, off, found):
    class Session:
        def __init__(self, *_, **__):
            pass

        def run(self, _, feed):
            return [np.full((len(feed["x"]), 32), 64 * 255 * 127 + off)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert overflow.signed_codes_overflow() is found


def test_without_a_runtime_nothing_is_known(fresh, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert overflow.signed_codes_overflow()
