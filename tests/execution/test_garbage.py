"""The collector is as it was, whatever happens in the block."""

import gc
from contextlib import suppress

import pytest

from lora_export.execution.garbage import no_collection, torch_at_hand


@pytest.fixture(autouse=True)
def as_before():
    was_on = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if was_on else gc.disable)()


@pytest.mark.parametrize("was_on", [True, False])
def test_nothing_is_collected_meanwhile(was_on):
    (gc.enable if was_on else gc.disable)()
    with suppress(ZeroDivisionError), no_collection():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled() == was_on


def test_what_was_there_is_frozen_for_the_block():
    assert gc.get_freeze_count() == 0
    with suppress(ZeroDivisionError), torch_at_hand():
        assert gc.get_freeze_count() > 0
        raise ZeroDivisionError
    assert gc.get_freeze_count() == 0


def test_what_the_program_froze_stays_frozen():
    gc.freeze()
    frozen = gc.get_freeze_count()
    with torch_at_hand():
        assert gc.get_freeze_count() == frozen
    assert gc.get_freeze_count() == frozen
