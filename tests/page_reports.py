"""Reports as commands would return them, made without a run: the pages of tests/report/page."""

from __future__ import annotations

from pathlib import Path

from lora_export.errors import FitError, VerificationError
from lora_export.records import (
    CHANGED,
    Adapter,
    Attribution,
    Check,
    Checkpoint,
    Finding,
    KeptEffect,
    MergePlan,
    Problem,
    WrittenFile,
)
from lora_export.report.page.provenance import NamedFile, Provenance
from lora_export.report.page.suite_page import Row
from lora_export.report.result import Report, refused

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
NOISE = {"output": "logits", "noise": 2.6e-6, "allowed": 3.7e-5, "effect": 6.1, "scale": 7.7}


def checks(error: float = 3.3e-6, output: str = "logits") -> tuple[Check, ...]:
    """One check of each sort: of identity, of a share, of outputs, of an effect."""
    right = error <= NOISE["allowed"]
    return (
        Check(CHANGED, passed=True, worst=0, tolerance=0, detail="29 tensors", level="weights"),
        Check("names, dtypes, shapes", passed=True, worst=0, tolerance=0,
              detail="56 tensors", level="weights"),
        Check("merged elements", passed=True, worst=0.4, tolerance=1.0,
              where="layers.0.q.weight", detail="2.5 x headroom; more",
              level="weights"),
        Check("merged = unmerged (torch)", right, error, NOISE["allowed"],
              f"probe 1, {output}[2, 4]", "10.9 x headroom", level="model"),
        Check("the adapter has an effect", passed=True, worst=6.1, tolerance=3.7e-5,
              where=output, at_least=True, level="model"),
    )  # fmt: skip


def sizes(layers: int = 4, idle: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    """The sizes of the updates of a decoder, larger from layer to layer."""
    return {
        name: {"update": 0.0 if name in idle else 0.01 * (layer + 1) * (at + 1), "weight": 2.0}
        for layer in range(layers)
        for at, kind in enumerate(KINDS)
        for name in [f"model.layers.{layer}.{kind}.weight"]
    }


def proved(text: str = "", layers: int = 4) -> Report:
    """A merge that passed, in every part. text: stands in every name that a file could bring."""
    plan = MergePlan(
        base=Checkpoint(Path(f"base{text}"), "folder", ()),
        adapters=(Adapter(Path(f"lora{text}"), "peft", (), ()),),
        recipe="auto",
        shards=(),
        choices=(f"choice {text}",),
    )
    survival = {"dtypes": ["bfloat16"], "share": 0.93, "moved": 0.8, "note": f"note {text}",
                "otherwise": {"float16": 0.9991, "float32": 1.0}, "tensors": {}}  # fmt: skip
    named = {f"{text}{name}": entry for name, entry in sizes(layers).items()}
    output = f"logits{text}"
    return Report(
        "merge",
        f"out/merged{text}",
        plan,
        (
            *checks(output=output),
            Check(
                f"check {text}",
                passed=True,
                worst=1,
                tolerance=2,
                where=text,
                detail=text,
                level="file",
            ),
        ),
        (WrittenFile(f"model{text}.safetensors", "ab" * 32, 240_300),),
        (f"warning {text}",),
        {
            "noise": [{**NOISE, "output": output}],
            "update_sizes": {**named, f"head{text}.weight": {"update": 0.5, "weight": 4.0}},
            "survival": survival,
            "samples": {"rows": [dict.fromkeys(("input", "base", "unmerged", "merged"), text)]},
        },
        kept=KeptEffect("bfloat16", 0.97, output),
        unproven={"runtime": f"why {text}"},
        next=f"lora-export verify out/merged{text}",
    )


def origin(text: str = "") -> Provenance:
    """What a result was made of."""
    return Provenance(
        (NamedFile("base", f"model{text}.safetensors", 240_300, "cd" * 32),
         NamedFile("adapter", f"adapter{text}.safetensors", 36_600)),
        {"alpha": f"32{text}"},
        {"python": "3.11.9", "torch": f"2.10{text}"},
        {"processor": f"a processor{text}", "system": f"Linux{text}"},
    )  # fmt: skip


def failed(text: str = "") -> Report:
    """A verification that found a mistake."""
    error = VerificationError.of([Problem(f"4.2 {text}", f"module {text}", f"hint {text}")])
    error.checks, error.artefact = checks(error=4.2), f"release/model{text}"
    error.attribution = Attribution("merge", f"layers.3.q{text}", detail=f"half of it {text}")
    names = tuple(f"layers.{at}.q{text}" for at in range(4))
    error.findings = (Finding("wrong-factor", f"4 of 28 modules have half a factor {text}", names),)
    error.facts = {
        "noise": [NOISE],
        "update_sizes": sizes(4, ("model.layers.1.mlp.up_proj.weight",)),
    }
    return refused("verify", error)


def unfit(text: str = "") -> Report:
    """A merge that was refused before any work."""
    problems = [
        Problem(f"wrong base {at} {text}", f"lora{text}", f"hint {text}") for at in range(5)
    ]
    return refused("merge", FitError.of(problems))


def lowered() -> Report:
    """An export in int8."""
    loss = {"output": "logits", "worst": 0.2, "rms": 0.1, "relative": 0.02, "effect": 4.0,
            "agree": 990, "places": 1000}  # fmt: skip
    entry = {"precision": "int8", "words": "", "bytes": 60_000, "float32_bytes": 240_000,
             "rounded": {}, "kept": {}, "loss": [loss]}  # fmt: skip
    checked = (
        *checks(),
        Check(
            "int8 keeps the effect",
            passed=True,
            worst=0.1,
            tolerance=1,
            where="logits",
            level="precision",
        ),
    )
    plan = proved().plan
    return Report("onnx", "net.onnx", plan, checked, facts={"noise": [NOISE], "lowered": entry})


SENTENCE = "FAILED: 1 of 4 rows does not hold, 1 skipped"
"""The verdict of a suite with these rows."""


def rows(text: str = "") -> list[Row]:
    """A suite with a row of each outcome."""
    return [
        Row(f"chargpt: merge {text}", proved(text), seconds=3.2),
        Row("must be refused", unfit(text), note=f"exit 4, as expected {text}"),
        Row("golden", None, None, note=f"transformers is not installed {text}"),
        Row(
            f"shipped: verify {text}",
            failed(text),
            holds=False,
            command=f"lora-export verify {text}",
        ),
    ]
