"""Reports of every command and outcome, made by hand: what the texts of test_text.py show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_export.errors import FitError, VerificationError
from lora_export.records import (
    CHANGED,
    Adapter,
    Attribution,
    Check,
    Checkpoint,
    Delta,
    Finding,
    KeptEffect,
    KeptUpdate,
    MergePlan,
    Problem,
    Shard,
    ShardPlan,
    Step,
    Survival,
    TensorRef,
    TensorSpec,
    Update,
    WrittenFile,
    at_level,
)
from lora_export.report.result import Report, refused
from lora_export.report.survival import survival_facts

RIGHT, WRONG = True, False
LAYER = "model.layers.0.self_attn"


def ref(name, shape=(8, 8), dtype="F32"):
    return TensorRef(TensorSpec(name, dtype, shape), Path("base/model.safetensors"), 0, 256)


def step(module, kind="linear", action="merge", rank=4, times=1, **more):
    source = ref(f"{module}.weight")
    one = Delta("lora/adapter_model.safetensors", module, kind, {}, (8, 8), rank, 8.0, 2.0, **more)
    return Step(source.spec, action, source, (one,) * times)


def plan(steps, **more):
    refs = tuple(one.source for one in steps)
    shard = Shard(Path("base/model.safetensors"), refs)
    base = Checkpoint(Path("base"), "folder", (shard,))
    adapter = Adapter(
        Path("lora/adapter_model.safetensors"),
        "peft",
        tuple(Update(d.module, {}) for one in steps for d in one.deltas),
        (),
    )
    return MergePlan(
        base, (adapter,), "auto", (ShardPlan("model.safetensors", tuple(steps)),), **more
    )


COPY = ref("model.norm.weight", (8,))
PLAN = plan(
    [
        *(step(f"{LAYER}.{name}_proj") for name in "qkvo"),
        Step(COPY.spec, "copy", COPY),
    ],
    choices=("4 square weights read as Linear stored (out, in), as llama has them",),
)
EXPERTS = plan(
    [
        replace(
            step("model.layers.0.mlp.experts", "experts"),
            out=ref(f"model.layers.0.mlp.experts.{number}.down_proj.weight").spec,
        )
        for number in range(8)
    ]
)


def measured(name, share, tolerance=3.7e-5, **more):
    return Check(name, share <= 1, share * tolerance, tolerance, "probe 0, logits[0, 3]", **more)


def counted(name, detail):
    return Check(name, RIGHT, 0, 0, detail=detail)


WEIGHTS = at_level(
    "weights",
    [
        counted("names, dtypes, shapes", "5 tensors as planned"),
        counted("readable by others", "the safetensors library reads 1 file"),
        counted("untouched tensors", "1 tensor equal to the byte"),
        Check("merged elements", RIGHT, 0.4, 1.0, "x", "4 tensors", "1 is the rounding of one"),
        Check("scaling", RIGHT, 3.8e-9, 1e-3, "x", "4 tensors, each with the update once"),
        counted(CHANGED, "4 planned tensors differ from the base"),
    ],
)
NOISE = "noise: rounding 3.0e-06, weights' ulp 1.1e-06, batch 0.0e+00"
MODEL = at_level(
    "model",
    [
        measured("merged = unmerged (torch)", 0.09, basis=NOISE),
        measured("merged = unmerged in float64", 0.07, basis=NOISE),
        Check(
            "the adapter has an effect",
            RIGHT,
            6.1,
            3.7e-5,
            detail="it moves logits by 6.1, and 3.7e-05 would show",
            at_least=True,
        ),
    ],
)
RUNTIME = (
    *at_level("file", [counted("same graph as the base", "9 nodes, none added, none changed")]),
    *at_level("runtime", [measured("ONNX Runtime = merged", 0.12, basis=NOISE)]),
)
DIGESTS = at_level(
    "manifest",
    [
        counted("files listed", "the manifest lists 1 weight file, and no other is there"),
        counted("digests", "3 files with the SHA-256 of the manifest"),
    ],
)
FAILED = (
    *at_level(
        "manifest",
        [
            replace(DIGESTS[0], level=""),
            Check(
                "digests",
                WRONG,
                1,
                0,
                "model.safetensors",
                "2 of 3 files still have the digest of the manifest; model.safetensors has changed",
            ),
        ],
    ),
    *WEIGHTS[:4],
    *at_level(
        "weights",
        [
            Check(
                "scaling",
                WRONG,
                1.0,
                1e-3,
                f"{LAYER}.q_proj.weight",
                f"1 of 4 targets were not merged: {LAYER}.q_proj.weight",
            ),
            measured("merged elements of another tensor", 3.1e4),
        ],
    ),
)
FILES = (
    WrittenFile("model.safetensors", "5a8d43884b604fc6", 240256),
    WrittenFile("lora_export.json", "cc9a9aedbefa2827", 14458),
)
LOWERED = {
    "precision": "int8",
    "words": "8-bit weights, one scale an output channel; activations rounded at run time",
    "codes": "signed",
    "overflows": False,
    "bytes": 120750,
    "float32_bytes": 279154,
    "rounded": {f"{LAYER}.q_proj.weight": {"float32": 256, "bytes": 80}},
    "kept": {},
    "loss": [
        {
            "output": "logits",
            "worst": 0.39,
            "rms": 0.067,
            "relative": 0.0187,
            "effect": 4.0,
            "agree": 62,
            "places": 64,
        }
    ],
}
GRAPH = {"nodes": 11, "initializers": 15, "hash": "b51803bc1bd6", "capture": "now", "saved": None}
HALF = Survival(KeptUpdate(0.63, 0.4, {"F32": 1.0}), {}, ("BF16",))
WHOLE = Survival(KeptUpdate(1.0, 1.0), {}, ("F32",))
SECONDS = {"plan": 6.6, "merge": 0.1, "proof as a model": 0.2, "total": 7.1}
MERGED = Report(
    "merge",
    "out",
    PLAN,
    (*WEIGHTS, *MODEL),
    FILES,
    facts={"seconds": SECONDS, **survival_facts(WHOLE)},
    next="lora-export verify out",
)
NOT_RUN = "the forward of LlamaForCausalLM takes inputs that nothing declares"


def failed():
    error = VerificationError("x (check: digests)", where="out")
    error.checks = FAILED
    error.attribution = Attribution("merge", f"{LAYER}.q_proj", detail="scaling")
    error.findings = (
        Finding("not-merged", "1 of 4 modules was not merged", (f"{LAYER}.q_proj",)),
        Finding("strays", "2 files are not planned", ("a.bin", "b.bin", "c.bin", "d.bin")),
    )
    return refused("verify", error)


REPORTS = {
    "merged": MERGED,
    "merged by weights": replace(MERGED, checks=WEIGHTS, unproven={"model": NOT_RUN}),
    "merged, unresolved": replace(
        MERGED, unproven={"model": "does not resolve the adapter: it moves logits by 1e-09"}
    ),
    "merged, --allow-noop": replace(MERGED, checks=(*WEIGHTS[:-1], *MODEL[:2])),
    "merged in bfloat16": replace(
        MERGED,
        facts=survival_facts(HALF),
        kept=KeptEffect("bfloat16", 0.971, "logits"),
    ),
    "merged --no-verify": replace(
        MERGED,
        checks=(),
        facts={},
        next="lora-export verify out --base base --adapter lora --rename 'model.=language model.'",
    ),
    "experts": Report("merge", "out", EXPERTS, WEIGHTS, next="lora-export verify out"),
    "planned": Report(
        "merge",
        "",
        PLAN,
        facts={
            "space": {"needed": 235248, "free": 10**10, "memory": 134000000},
            "proof": {
                "level": "model",
                "not_run": "",
                "memory": 900,
                "read": 468560,
                "seconds": None,
            },
        },
        dry_run=True,
        next="lora-export merge base lora -o base-merged",
    ),
    "planned by weights": Report(
        "merge",
        plan=PLAN,
        facts={"proof": {"level": "weights", "not_run": NOT_RUN}},
        dry_run=True,
    ),
    "planned --no-verify": Report(
        "merge",
        plan=PLAN,
        facts={"proof": {"level": "none", "not_run": "--no-verify"}},
        dry_run=True,
    ),
    "onnx": Report(
        "onnx",
        "out.onnx",
        PLAN,
        (*WEIGHTS, *MODEL, *RUNTIME),
        FILES,
        facts={
            "graph": {**GRAPH, "saved": {"nodes": 18, "parameters": 3210}},
            "probed": {"batch": [1, 3], "sequence": [7, 19]},
        },
        next="lora-export verify out.onnx",
    ),
    "onnx in int8": Report(
        "onnx",
        "out.onnx",
        PLAN,
        (
            *WEIGHTS,
            *MODEL,
            *RUNTIME,
            *at_level("precision", [measured("int8: nearer to merged than to base", 0.017, 4.0)]),
        ),
        FILES,
        facts={"lowered": LOWERED},
        next="lora-export verify out.onnx",
    ),
    "verified": replace(MERGED, command="verify", checks=(*DIGESTS, *WEIGHTS, *MODEL), files=()),
    "verified, foreign": Report(
        "verify",
        "merged-by-another-tool",
        replace(PLAN, recipe="exact"),
        (*WEIGHTS, *MODEL),
        next="lora-export inspect merged-by-another-tool",
    ),
    "verified, foreign, by auto": Report(
        "verify",
        "merged-by-peft",
        PLAN,
        (*WEIGHTS, *at_level("manifest", [counted("side files", "the planned meaning")])),
    ),
    "unchanged": Report(
        "verify",
        "out",
        checks=DIGESTS,
        facts={"recorded": {"passed": True, "levels": ["weights", "model"]}},
    ),
    "unchanged, by weights": Report(
        "verify",
        "out",
        checks=DIGESTS,
        facts={"recorded": {"passed": True, "levels": ["weights"]}},
    ),
    "unchanged, never proved": Report(
        "verify", "out", checks=DIGESTS, facts={"recorded": {"passed": None, "levels": []}}
    ),
    "failed": failed(),
    "refused": refused(
        "merge",
        FitError.of(
            [
                Problem("the base has no tensor for this module", f"{LAYER}.x_proj", "look again"),
                Problem("alpha is not in the file", "lora.pt", "--alpha 16"),
            ]
        ),
    ),
    "restored": Report(
        "unmerge",
        "base-again",
        checks=(counted("restored", "1 weight file with the base's SHA-256"),),
        next="lora-export inspect base-again",
    ),
    "inspected": Report(
        "inspect",
        facts={
            "found": {
                "kind": "adapter",
                "path": "lora/adapter_model.safetensors",
                "base": {"name": "org/base", "found": None},
                "groups": [
                    {
                        "number": 24,
                        "tuner": "lora",
                        "rank": 8,
                        "alpha": 16.0,
                        "scaling": 2.0,
                        "names": ["q_proj", "v_proj"],
                    }
                ],
                "modules": [{"module": f"{LAYER}.q_proj", "A": [8, 8], "dtype": "F32"}],
                "notes": ["the newest of two checkpoints is read"],
                "a_merge_needs": ["the base org/base"],
                "command": "lora-export merge BASE lora -o OUT",
            }
        },
    ),
}
"""A report by the name of its text."""
