"""Recognises weights that are stored quantised: by the tensors beside them, and by config.json.

A scheme leaves marks in the names: packed bits under another name than the weight's, or scales and
tables beside it. Which weights these are is taken from the marks alone, because a configuration may
be left behind when the weights are no longer quantised; it says how the scheme is called.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.records import FLOAT_DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.records import Checkpoint, TensorSpec

CONFIG_KEYS = ("quantization_config", "compression_config")
"""The members of config.json with which a model says that its weights are quantised."""

# What is no sign of quantisation: weights as they are, positions, masks.
_WIDE = FLOAT_DTYPES | {"I64", "U64", "C64", "BOOL"}


@dataclass(frozen=True, slots=True)
class _Scheme:
    """How one scheme is told from the names of what it stores.

    mark: fits a tensor's name, and names the weight or its module. needs: what must be stored as
    well. weight: the weight as a plain model calls it. packs_floats: the weight's dtype says
    nothing, as bitsandbytes may keep its bits in a tensor of bfloat16.
    """

    name: str
    mark: re.Pattern[str]
    needs: tuple[str, ...]
    weight: str
    packs_floats: bool = False


def _scheme(
    name: str, mark: str, *needs: str, weight: str = "{0}.weight", packs_floats: bool = False
) -> _Scheme:
    return _Scheme(name, re.compile(rf"(.+){mark}", re.DOTALL), needs, weight, packs_floats)


_SCHEMES = (
    _scheme(
        "bitsandbytes 4-bit", r"\.(?:absmax|quant_state\.bitsandbytes__\w+)",
        "{0}", weight="{0}", packs_floats=True,
    ),
    _scheme("bitsandbytes 8-bit", r"\.SCB", "{0}.weight"),
    _scheme("GPTQ", r"\.g_idx", "{0}.qweight"),
    _scheme("AWQ", r"\.qzeros", "{0}.qweight", "{0}.scales"),
    _scheme("compressed-tensors", r"\.weight_packed"),
    _scheme("NVFP4", r"\.weight_scale_2", "{0}.weight"),
    _scheme("FP8", r"\.weight_scale_inv", "{0}.weight"),
    _scheme("EETQ", r"\.weight_scales", "{0}.weight"),
    _scheme("scaled integers or FP8", r"\.weight_scale", "{0}.weight"),
    _scheme("HQQ", r"\.W_q"),
    _scheme("quanto", r"\._data", "{0}._scale", weight="{0}"),
    _scheme("torchao", r"\._weight_qdata"),
    _scheme("MXFP4", r"_blocks", "{0}_scales", weight="{0}"),
    _scheme("AQLM", r"\.codebooks", "{0}.codes"),
    _scheme("VPTQ", r"\.centroids\.weight", "{0}.indices"),
)  # fmt: skip

_PLAIN = (".weight", ".bias")

_LABELS = {
    "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "fbgemm_fp8": "FP8 (FBGEMM)", "hqq": "HQQ",
    "eetq": "EETQ", "aqlm": "AQLM", "vptq": "VPTQ", "mxfp4": "MXFP4", "mxfp8": "MXFP8",
    "nvfp4": "NVFP4", "bitnet": "BitNet", "higgs": "HIGGS", "spqr": "SpQR", "quark": "Quark",
    "auto-round": "AutoRound",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantization:
    """What is quantised in a checkpoint.

    method: in words. weights: by the name that a plain model gives a weight, the tensor that
    shows how it is stored. claims: the keys of config.json that speak of it. remains: whether
    anything may be quantised at all; where not, the claims are wrong.
    """

    method: str
    weights: Mapping[str, str]
    claims: tuple[str, ...]
    remains: bool


def find_quantization(base: Checkpoint) -> Quantization | None:
    """What is quantised in `base`, None where neither its tensors nor its config say anything."""
    specs = {name: ref.spec for name, ref in base.tensors().items()}
    claims = tuple(key for key in CONFIG_KEYS if base.config.get(key))
    marked = dict(_marked(specs))
    if not marked and not claims:
        return None
    shown = {weight: mark for weight, (mark, _) in marked.items()}
    if claims:  # a scheme of which no mark is known still stores its weights in few bits
        shown = {**{n: n for n, s in specs.items() if _is_packed(s, n)}, **shown}
    remains = bool(shown) or any(_is_narrow(spec) for spec in specs.values())
    schemes = [scheme for _, scheme in marked.values()]
    return Quantization(_method(base, schemes), shown, claims, remains)


def _marked(specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, tuple[str, str]]]:
    """(weight, (tensor that shows it, name of the scheme)); of two schemes the first counts."""
    seen: set[str] = set()
    # Plain names are most of a large model's, and no scheme marks one of them but VPTQ.
    names = [n for n in specs if not n.endswith(_PLAIN) or n.endswith(".centroids.weight")]
    for scheme in _SCHEMES:
        for name in names:
            weight = _weight_of(scheme, name, specs)
            if weight is not None and weight not in seen:
                seen.add(weight)
                yield weight, (name, scheme.name)


def _weight_of(scheme: _Scheme, name: str, specs: Mapping[str, TensorSpec]) -> str | None:
    found = scheme.mark.fullmatch(name)
    if found is None or any(need.format(found[1]) not in specs for need in scheme.needs):
        return None
    weight = scheme.weight.format(found[1])
    stored = specs.get(weight)
    plain = stored is not None and stored.dtype in FLOAT_DTYPES and not scheme.packs_floats
    return None if plain else weight


def _is_packed(spec: TensorSpec, name: str) -> bool:
    return name.endswith(".weight") and _is_narrow(spec)


def _is_narrow(spec: TensorSpec) -> bool:
    return spec.dtype not in _WIDE and len(spec.shape) > 1


def _method(base: Checkpoint, schemes: list[str]) -> str:
    """The name that config.json gives the scheme, or the one that the tensors show."""
    found = next((base.config[key] for key in CONFIG_KEYS if base.config.get(key)), None)
    said = found if isinstance(found, dict) else {}
    for bits in (4, 8):
        if said.get(f"load_in_{bits}bit"):
            return f"bitsandbytes {bits}-bit"
    method = said.get("quant_method")
    if isinstance(method, str) and method != "bitsandbytes":
        return _LABELS.get(method.lower(), method[:40])
    return schemes[0] if schemes else "an unknown scheme"
