"""The proofs of the layer kinds: one file a kind, found by walking this folder.

No module of it imports `lora_export.layers`, so that merge and proof share no arithmetic.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lora_export.plug_ins import find_plug_ins
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import Delta

__all__ = ["ProofOfKind", "all_proofs", "proof_of"]


@cache
def all_proofs() -> Mapping[str, ProofOfKind]:
    """Return every proof by the name of its kind: the PROOF of each module that has one."""
    proofs = find_plug_ins(__name__, __path__, "PROOF", ProofOfKind)
    return {proof.name: proof for proof in proofs}


def proof_of(delta: Delta) -> ProofOfKind:
    """Return the proof of the update's kind."""
    return all_proofs()[delta.kind]
