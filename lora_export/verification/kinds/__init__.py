"""The proofs of the layer kinds: one file a kind, found by walking this folder.

No module of it imports `lora_export.layers`, so that merge and proof share no arithmetic.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import Delta

__all__ = ["ProofOfKind", "all_proofs", "proof_of"]


@cache
def all_proofs() -> Mapping[str, ProofOfKind]:
    """Return every proof by the name of its kind: the PROOF of each module that has one."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        proof = getattr(module, "PROOF", None)
        if isinstance(proof, ProofOfKind):
            found[proof.name] = proof
    return found


def proof_of(delta: Delta) -> ProofOfKind:
    """Return the proof of the update's kind."""
    return all_proofs()[delta.kind]
