"""The commands that are broken at every call, what they read, and what they must leave behind."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from faults.driver import Call, Mode, Run
from safetensors.torch import load_file, save_file

from lora_export.cli import main
from lora_export.cli.main import _COMMANDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from faults.driver import Outcome, Pool

ALPHA, OLD_ALPHA, RANK = 4, 9, 2
FACTS = ("--no-fan-in-fan-out",)
STAGING = re.compile(r"\..*\.lora-export-\d+-[0-9a-f]{16}(\.old)?")
OWNER = re.compile(r"(?<=\.lora-export-)\d+-[0-9a-f]{16}")
HAS_UNMERGE = "unmerge" in _COMMANDS
HAS_JOBS = any("--jobs" in option.opts for option in main.get_command(None, "merge").params)
NET = """
from torch import nn

INPUTS = ("x=float32[batch,8]",)

def build():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6))
"""

Tree = dict[str, str]
"""Of each file its SHA-256, of each link its text, of each folder a slash; by relative path."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command line with {inputs}, {out} and {code} in it.

    output: the name of the artefact, in the folder of outputs. force: an older export lies there.
    before: commands whose artefacts are inputs of this one, or lie at its side. options: of its
    runs, see hooks.set_up.
    """

    name: str
    argv: tuple[str, ...]
    output: str
    force: bool = False
    old: tuple[str, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def _merge(base: str, output: str, alpha: int = ALPHA, adapter: str = "lora") -> tuple[str, ...]:
    paths = (f"{{inputs}}/{base}", f"{{inputs}}/{adapter}.safetensors", "-o", f"{{out}}/{output}")
    return ("merge", *paths, "--alpha", str(alpha), *FACTS)


def _onnx(output: str, alpha: int = ALPHA) -> tuple[str, ...]:
    paths = ("{inputs}/net.safetensors", "{inputs}/net.pt", "-o", f"{{out}}/{output}")
    return ("onnx", *paths, "--model", "{code}/net.py:build", "--alpha", str(alpha), "--no-verify")


def _forced(name: str, argv: tuple[str, ...], old: tuple[str, ...], output: str) -> Scenario:
    return Scenario(name, (*argv, "--force"), output, force=True, old=old)


THREADS = ("--jobs", "2")  # with one thread there is no head start
ALL, SOME = 1000, 10  # looks at the clock: the head start ends by itself, or in the second shard
FILE, FOLDER, ONNX = "out.safetensors", "out", "out.onnx"
SCENARIOS = [
    Scenario("merge: file, empty target", _merge("base.safetensors", FILE), FILE),
    _forced(
        "merge: file, --force",
        _merge("base.safetensors", FILE),
        _merge("base.safetensors", FILE, OLD_ALPHA),
        FILE,
    ),
    Scenario("merge: .pt base, empty target", _merge("base.pt", FILE), FILE),
    _forced(
        "merge: .pt base, --force",
        _merge("base.pt", FILE),
        _merge("base.safetensors", FILE, OLD_ALPHA),
        FILE,
    ),
    Scenario("merge: shards, empty target", _merge("folder", FOLDER), FOLDER),
    _forced(
        "merge: shards, --force",
        _merge("folder", FOLDER),
        _merge("folder", FOLDER, OLD_ALPHA),
        FOLDER,
    ),
    Scenario(
        "merge: file, empty target, head start",
        (*_merge("base.safetensors", FILE), *THREADS),
        FILE,
        options={"ahead": ALL},
    ),
    Scenario(
        "merge: shards, --force, head start cut short",
        (*_merge("folder", FOLDER), *THREADS, "--force"),
        FOLDER,
        force=True,
        old=_merge("folder", FOLDER, OLD_ALPHA),
        options={"ahead": SOME},
    ),
    Scenario("onnx: empty target", _onnx(ONNX), ONNX),
    _forced("onnx: --force", _onnx(ONNX), _onnx(ONNX, OLD_ALPHA), ONNX),
]
if HAS_UNMERGE:
    _UNDO = ("--undo", "{inputs}/undo")
    SCENARIOS += [
        Scenario(
            "merge --undo: shards", (*_merge("folder", FOLDER), "--undo", "{out}/undo"), FOLDER
        ),
        *(
            Scenario(
                f"unmerge: {name}",
                ("unmerge", f"{{inputs}}/{merged}", *_UNDO, "-o", f"{{out}}/{base}"),
                base,
                before=((*_merge(source, merged), *_UNDO),),
            )
            for name, merged, base, source in (
                ("file", "merged.safetensors", FILE, "base.safetensors"),
                ("shards", "merged", FOLDER, "folder"),
            )
        ),
    ]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A scenario with its inputs in `template`, and the trees it may leave.

    old: what lies in the folder of outputs before; new: after a run without a fault.
    """

    scenario: Scenario
    template: Path
    code: Path
    inputs: Tree
    old: Tree
    new: Tree
    calls: tuple[Call, ...]
    #: What is wrong with the next run, by the state that it starts from: see points.wrong_again.
    again: dict[Any, tuple[str, ...]] = field(default_factory=dict)

    def run(self, case: Path, name: str, call: int = 0, mode: Mode = Mode.NONE) -> Run:
        argv = fill(self.scenario.argv, case, self.code)
        options = {**graph_options(self.scenario.argv, self.code), **self.scenario.options}
        return Run(argv, case.with_name(f"{case.name}-{name}"), case, call, mode, options)

    def copy(self, case: Path) -> Path:
        shutil.copytree(self.template, case)
        return case


def fill(argv: Sequence[str], case: Path, code: Path) -> tuple[str, ...]:
    names = {"inputs": case / "in", "out": case / "out", "code": code}
    return tuple(word.format(**names) for word in argv)


def graph_options(argv: Sequence[str], code: Path) -> dict[str, Any]:
    """Where the captured graph is kept: one for all scenarios, whose folders lie side by side."""
    return {"graph": str(code.parent.with_name("graph"))} if argv[0] == "onnx" else {}


def tree(folder: Path) -> Tree:
    """Everything below; stagings are left out, see `stagings`."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if STAGING.fullmatch(name.partition("/")[0]):
            continue
        found[name] = content(path)
    return found


def content(path: Path) -> str:
    """Of a file its SHA-256, of a link its text, of a folder a slash."""
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return "/" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()


def stagings(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if STAGING.fullmatch(path.name)]


def part(whole: Tree, top: str) -> Tree:
    """What of a tree belongs to its top-level entry `top`."""
    return {name: told for name, told in whole.items() if name.partition("/")[0] == top}


def write_inputs(folder: Path) -> None:
    """Tiny bases, as files and as a folder of shards with side files; adapters for them."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shards = [
        {f"layers.{i}.{name}": random(*shape) for name, shape in _TENSORS.items()} for i in range(3)
    ]
    base = {name: tensor for shard in shards for name, tensor in shard.items()}
    save_file(base, folder / "base.safetensors")
    torch.save(base, folder / "base.pt")
    _write_folder(folder / "folder", shards)
    adapter = {
        f"layers.{i}.{name}.lora_{role}": random(*shape)
        for i in range(3)
        for name in ("q", "v")
        for role, shape in (("A", (RANK, 10)), ("B", (14, RANK)))
    }
    save_file(adapter, folder / "lora.safetensors")
    net = {"0.weight": random(12, 8), "0.bias": random(12), "2.weight": random(6, 12)}
    save_file({**net, "2.bias": random(6)}, folder / "net.safetensors")
    torch.save({"0.lora_A": random(RANK, 8), "0.lora_B": random(12, RANK)}, folder / "net.pt")


_TENSORS = {"q.weight": (14, 10), "v.weight": (14, 10), "norm.weight": (10,), "mlp.weight": (7, 3)}
_SIDE_FILES = {
    "config.json": json.dumps({"model_type": "tiny", "torch_dtype": "float32"}, indent=2),
    "tokenizer.json": json.dumps({"vocab": {"a": 0, "b": 1}}),
    "generation_config.json": "{}\n",
    "1_Pooling/config.json": "{}\n",
}


def _write_folder(folder: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    folder.mkdir()
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    for name, text in _SIDE_FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def prepare(pool: Pool, scenario: Scenario, root: Path) -> Prepared:
    """The template, and one run in a copy of it that says what new is and which calls there are."""
    template, code, told = root / "template", root / "code", root / "told"
    code.mkdir(parents=True)
    (code / "net.py").write_text(NET)
    write_inputs(template / "in")
    (template / "out").mkdir()
    for argv in scenario.before:
        into = tuple(word.replace("{out}", "{inputs}") for word in argv)
        _run_well(pool, Run(fill(into, template, code), told))
    if scenario.old:
        options = graph_options(scenario.old, code)
        _run_well(pool, Run(fill(scenario.old, template, code), told, options=options))
    old, inputs = tree(template / "out"), tree(template / "in")
    prepared = Prepared(scenario, template, code, inputs, old, {}, ())
    case = prepared.copy(root / "reference")
    if "graph" in graph_options(scenario.argv, code):
        _run_well(pool, prepared.run(prepared.copy(root / "warm"), "told"))
    outcome = _run_well(pool, prepared.run(case, "told"))
    assert tree(case / "in") == inputs
    assert stagings(case / "out") == []
    prove(case, scenario)
    return Prepared(scenario, template, code, inputs, old, tree(case / "out"), outcome.calls)


def _run_well(pool: Pool, run: Run) -> Outcome:
    [outcome] = pool.run(run)
    assert outcome.status == 0, outcome.stderr
    return outcome


def prove(case: Path, scenario: Scenario) -> None:
    """Hold a result against its manifest and against numbers computed here."""
    output = case / "out" / scenario.output
    if scenario.argv[0] == "unmerge":
        prove_unmerged(case, scenario)
        return
    beside = output.with_name(f"{output.name}.lora_export.json")
    manifest = output / "lora_export.json" if output.is_dir() else beside
    listed = json.loads(manifest.read_text())["outputs"]
    folder = output if output.is_dir() else output.parent
    for entry in listed:
        content = (folder / entry["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(content) == entry["bytes"]
    written = {str((folder / entry["name"]).relative_to(output.parent)) for entry in listed}
    there = {name for name, told in part(tree(output.parent), output.name).items() if told != "/"}
    assert written == there - {f"{output.name}/lora_export.json"}
    base, got = ("net", _onnx_tensors) if output.suffix == ".onnx" else ("base", read_tensors)
    prove_tensors(got(output), case / "in", base)


def prove_unmerged(case: Path, scenario: Scenario) -> None:
    output = case / "out" / scenario.output
    if output.is_dir():
        assert part(tree(case / "in"), "folder").items() >= {
            (name.replace(output.name, "folder", 1), told)
            for name, told in part(tree(case / "out"), output.name).items()
            if not name.endswith("lora_export.json")
        }
    else:
        assert output.read_bytes() == (case / "in" / "base.safetensors").read_bytes()


def read_tensors(place: Path) -> dict[str, torch.Tensor]:
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _onnx_tensors(place: Path) -> dict[str, torch.Tensor]:
    import onnx

    graph = onnx.load(place).graph
    return {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in graph.initializer}


def prove_tensors(got: dict[str, torch.Tensor], inputs: Path, name: str) -> None:
    base = load_file(inputs / f"{name}.safetensors")
    adapter = inputs / ("net.pt" if name == "net" else "lora.safetensors")
    factors = torch.load(adapter) if name == "net" else load_file(adapter)
    assert got.keys() == base.keys()
    for weight, tensor in base.items():
        module = weight.removesuffix(".weight")
        wanted = tensor
        if f"{module}.lora_A" in factors:
            delta = factors[f"{module}.lora_B"] @ factors[f"{module}.lora_A"]
            wanted = tensor + delta * (ALPHA / RANK)
            assert not torch.equal(got[weight], tensor)
        torch.testing.assert_close(got[weight], wanted)
