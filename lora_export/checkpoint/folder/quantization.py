"""Recognises weights that are stored quantised: by the tensors beside them, and by config.json.

A scheme leaves marks in the names of tensors: packed bits under a name of their own, or scales and
tables beside the weight. The marks alone decide which weights are quantised, because a config may
be left behind when they no longer are. The config only gives the scheme's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.records import FLOAT_DTYPES, Quantization

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.records import Checkpoint, TensorSpec

__all__ = ["CONFIG_KEYS", "Quantization", "find_quantization"]

CONFIG_KEYS = ("quantization_config", "compression_config")
"""The members of config.json that mark a model's weights as quantised."""

_WIDE = FLOAT_DTYPES | {"I64", "U64", "C64", "BOOL"}
"""Dtypes that are no sign of quantisation: plain weights, positions, masks."""


@dataclass(frozen=True, slots=True)
class _Scheme:
    """How one scheme is recognised by the names of what it stores."""

    name: str
    mark: re.Pattern[str]
    """Matches the name of a tensor; its group is the name of the weight or its module."""
    needs: tuple[str, ...]
    """Names that must be stored as well; {0} stands for the mark's group."""
    weight: str
    """The name that a plain model gives the weight; {0} stands for the mark's group."""
    packs_floats: bool = False
    """Whether a float dtype may hold packed bits; bitsandbytes may keep them as bfloat16."""


def _scheme(
    name: str, mark: str, *needs: str, weight: str = "{0}.weight", packs_floats: bool = False
) -> _Scheme:
    return _Scheme(name, re.compile(rf"(.+){mark}", re.DOTALL), needs, weight, packs_floats)


# The order matters: a weight with the marks of two schemes belongs to the first. NVFP4 stores
# weight_scale too, so it stands before "scaled integers or FP8".
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
"""How the names of nearly all tensors of an unquantised model end."""

_LABELS = {
    "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "fbgemm_fp8": "FP8 (FBGEMM)", "hqq": "HQQ",
    "eetq": "EETQ", "aqlm": "AQLM", "vptq": "VPTQ", "mxfp4": "MXFP4", "mxfp8": "MXFP8",
    "nvfp4": "NVFP4", "bitnet": "BitNet", "higgs": "HIGGS", "spqr": "SpQR", "quark": "Quark",
    "auto-round": "AutoRound",
}  # fmt: skip
"""The usual spelling of `quant_method` in config.json."""


def find_quantization(base: Checkpoint) -> Quantization | None:
    """Return what is quantised in `base`; None when neither tensors nor config show anything."""
    specs = {name: ref.spec for name, ref in base.tensors().items()}
    claims = tuple(key for key in CONFIG_KEYS if base.config.get(key))
    marked = dict(_marked(specs))
    if not marked and not claims:
        return None
    shown = {weight: mark for weight, (mark, _) in marked.items()}
    if claims:  # an unknown scheme leaves no known mark, but its weights have few bits
        shown = {**{n: n for n, s in specs.items() if _is_packed(s, n)}, **shown}
    remains = bool(shown) or any(_is_narrow(spec) for spec in specs.values())
    schemes = [scheme for _, scheme in marked.values()]
    return Quantization(_method(base, schemes), shown, claims, remains)


def _marked(specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield (weight, (tensor that shows it, name of the scheme)); the first scheme wins."""
    seen: set[str] = set()
    # Most names of a large model are plain, and no scheme but VPTQ marks such a name.
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
    """Return the name that config.json gives the scheme, or the one that the tensors show."""
    found = next((base.config[key] for key in CONFIG_KEYS if base.config.get(key)), None)
    claimed = found if isinstance(found, dict) else {}
    for bits in (4, 8):
        if claimed.get(f"load_in_{bits}bit"):
            return f"bitsandbytes {bits}-bit"
    method = claimed.get("quant_method")
    if isinstance(method, str) and method != "bitsandbytes":
        return _LABELS.get(method.lower(), method[:40])
    return schemes[0] if schemes else "an unknown scheme"
