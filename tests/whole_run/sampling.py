"""What a default run samples: which cases of a large table have their dear part, by a printed seed.

The slow tests have all of it. The seed is drawn anew for every run; --sample-seed or the variable
LORA_EXPORT_SAMPLE_SEED gives an earlier one back.
"""

from __future__ import annotations

import hashlib
import os
import secrets

VARIABLE = "LORA_EXPORT_SAMPLE_SEED"
ONE_OF = 3


def set_seed(given: str | None) -> str:
    """Decide the run's seed, and leave it to the workers that this process starts."""
    os.environ[VARIABLE] = given or os.environ.get(VARIABLE) or str(secrets.randbelow(10**6))
    return os.environ[VARIABLE]


def is_drawn(name: str) -> bool:
    """Whether the case of this name is one of the third that this run's seed draws."""
    digest = hashlib.sha256(f"{os.environ[VARIABLE]} {name}".encode()).digest()
    return digest[0] % ONE_OF == 0
