"""What a default run samples: which cases of a large table have their dear part, by a printed seed.

The slow tests have all of it. The seed is drawn anew for every run; --sample-seed or the variable
LORA_EXPORT_SAMPLE_SEED gives an earlier one back.
"""

from __future__ import annotations

import hashlib
import os
import secrets

import pytest

VARIABLE = "LORA_EXPORT_SAMPLE_SEED"
ONE_OF = 3
WAYS = ["drawn", pytest.param("all", marks=pytest.mark.slow)]

#: For a test of many cases that asks for `is_proven`: its default cases are proven as models where
#: they are drawn, and each has a slow one beside it that always is.
sampled_proofs = pytest.mark.parametrize("is_proven", WAYS, indirect=True)


def set_seed(given: str | None) -> str:
    """Decide the run's seed, and leave it to the workers that this process starts."""
    os.environ[VARIABLE] = given or os.environ.get(VARIABLE) or str(secrets.randbelow(10**6))
    return os.environ[VARIABLE]


def is_drawn(name: str) -> bool:
    """Whether the case of this name is one of the third that this run's seed draws."""
    return drawn(name, ONE_OF) == 0


def drawn(name: str, count: int) -> int:
    """The number below `count` that this run's seed draws for a choice of this name."""
    digest = hashlib.sha256(f"{os.environ[VARIABLE]} {name}".encode()).digest()
    return digest[0] % count
