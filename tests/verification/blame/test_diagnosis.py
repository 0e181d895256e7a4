"""Every mistake of the table is named, and no right merge has a finding."""

from __future__ import annotations

import pytest
from foreign_merges.mistakes import MISTAKES
from foreign_merges.places import Inputs, Place

from lora_export.api import verify
from lora_export.errors import VerificationError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("inputs"))


def prove(place, *more, **options):
    return verify(place.out, base=place.base, adapters=[place.adapter, *more], **options)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(mistake, inputs, tmp_path):
    base = inputs.base(mistake.base, mistake.dtype)
    place = Place(inputs, tmp_path / "merged", base, inputs.adapter(base, mistake.adapter))
    mistake.make(place)
    with pytest.raises(VerificationError) as caught:
        prove(place, *(inputs.adapter(base, name) for name in mistake.more), **mistake.options)
    assert "undiagnosed" not in caught.value.facts
    findings = caught.value.findings
    assert findings[0].code == mistake.code
    assert mistake.words in findings[0].message
    if isinstance(mistake.names, int):
        assert len(findings[0].names) == mistake.names
    else:
        assert list(findings[0].names) == list(mistake.names)
