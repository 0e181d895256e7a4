"""`tox -e hostile` runs the suite in a network of its own, without any way out."""

from __future__ import annotations

import os
import socket

import pytest
from hostile.without_network import VARIABLE


@pytest.mark.hostile
def test_nothing_can_be_reached():
    if os.environ.get(VARIABLE) != "none":
        reason = os.environ.get(VARIABLE, "the suite was not started by without_network.py")
        pytest.skip(f"the network is there: {reason}")
    with socket.socket() as one, pytest.raises(OSError, match="unreachable"):
        one.connect(("192.0.2.1", 9))
