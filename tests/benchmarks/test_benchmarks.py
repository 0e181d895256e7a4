"""The benchmarks run, hold every tensor against the libraries, and say what they found.

No time is asserted: how fast a machine is today is no property of the program.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

MERGES = {"merge", "merge --no-verify"}


def run_script(root: Path, name: str, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "benchmarks" / name, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def written(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the JSON, the page and the printed tables of one quick run."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "data").mkdir()
    files = ("--json", folder / "result.json", "--page", folder / "page.md")
    done = run_script(root, "merge_bench.py", "--quick", "--data", folder / "data", *files)
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def result(written: Path) -> dict[str, Any]:
    return json.loads((written / "result.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_tensor_is_the_libraries_to_the_bit(result: dict[str, Any]) -> None:
    compared = {
        (one["shape"], one["targets"], one["run"], one["against"]) for one in result["equality"]
    }
    assert {
        ("tiny", "all", run, other) for run in MERGES for other in ("PEFT", "loralib")
    } < compared
    assert [one for one in result["equality"] if one["unlike"] or not one["tensors"]] == []


@pytest.mark.slow
def test_json_tells_time_and_memory_of_every_command(result: dict[str, Any]) -> None:
    [timing] = result["timing"]
    assert timing["seconds"].keys() == {*MERGES, "cp -r", "PEFT", "import torch"}
    assert all(len(one["walls"]) == result["rounds"] for one in timing["seconds"].values())
    assert timing["ratios"].keys() == MERGES
    # No sign is asked for: a tiny merge may take less than torch's start-up, measured apart.
    ratios = [value for listed in timing["ratios"].values() for value in listed.values()]
    assert all(math.isfinite(value) for value in ratios)
    assert {one["run"] for one in result["memory"]} == {*MERGES, "PEFT"}
    for one in result["memory"]:
        assert 0 < one["anonymous"] < one["high_water"], one


@pytest.mark.slow
def test_json_names_machine_and_command(result: dict[str, Any]) -> None:
    machine = result["machine"]
    assert machine["cpu"]
    assert machine["cores"] > 0
    assert machine["memory"] > 0
    assert machine["file_system"] != "unknown"
    assert "not installed" not in machine["versions"].values()
    assert "merge_bench.py --quick" in result["command"]
    assert result["quick"] is True


@pytest.mark.slow
def test_json_tells_which_figures_are_reached(result: dict[str, Any]) -> None:
    named = " ".join(figure["name"] for figure in result["figures"])
    for part in ("PEFT's script / merge", "cp -r", "anonymous memory", "unlike", "plan of"):
        assert part in named
    for one in result["figures"]:
        over = one["value"] >= one["limit"]
        assert one["reached"] == (over if one["least"] else one["value"] <= one["limit"]), one


@pytest.mark.slow
def test_page_holds_machine_command_and_the_printed_tables(
    written: Path, result: dict[str, Any]
) -> None:
    page = (written / "page.md").read_text(encoding="utf-8")
    printed = (written / "printed").read_text(encoding="utf-8")
    assert printed.strip() in page
    assert result["command"] in page
    assert result["machine"]["cpu"] in page


@pytest.mark.slow
def test_page_can_be_written_from_the_json(root: Path, written: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.md"
    done = run_script(root, "page.py", again, "--json", written / "result.json")
    assert done.returncode == 0, done.stderr
    assert again.read_text(encoding="utf-8") == (written / "page.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_nothing_is_left_behind(written: Path) -> None:
    assert [*(written / "data").iterdir()] == []


def test_plans(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = run_script(root, "plan_bench.py", "--quick", "--data", tmp_path, "--json", file)
    assert done.returncode == 0, done.stderr
    plans = json.loads(file.read_text(encoding="utf-8"))["plan"]
    assert [one["tensors"] for one in plans] == [100, 200, 400]
    assert all(one["wall"] > 0 and one["anonymous"] > 0 for one in plans)
    assert [*tmp_path.iterdir()] == [file]


WRONG = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from equality import unlike_folder, unlike_loralib
from make_llama import SHAPES, make_adapters, make_base
folder = Path(sys.argv[2])
make_base(SHAPES["tiny"], folder / "base")
make_base(SHAPES["tiny"], folder / "other")
loralib, _ = make_adapters(SHAPES["tiny"], folder, "qv")
shard = folder / "other" / "model-00005-of-00005.safetensors"
content = bytearray(shard.read_bytes())
content[-1] ^= 1
shard.write_bytes(content)
print(unlike_folder(folder / "other", folder / "base"))
print(len(unlike_loralib(folder / "base", folder / "base", loralib)))
"""


def test_a_wrong_bit_and_a_missing_merge_are_seen(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRONG, root / "benchmarks", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["['lm_head.weight']", "4"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_speed_of_onnx_files_is_measured_in_pairs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a tiny network in two forms, with the peer's, in one round."""
    pytest.importorskip("peft")
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import onnx_speed

    def config(layers: int) -> object:
        from transformers import BertConfig

        return BertConfig(
            vocab_size=30_000, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=32,
        )  # fmt: skip

    tiny = dataclasses.replace(onnx_speed.CASES["bert"], config=config)
    monkeypatch.setitem(onnx_speed.CASES, "bert", tiny)
    forms = {name: onnx_speed.FORMS[name] for name in ("fp32", "int8 signed", "int8 unsigned")}
    files = onnx_speed.export(tiny, tmp_path, 1, forms)
    lines = onnx_speed.measure("bert", files, threads=1, rounds=1, calls=1)
    found = {line.form: line for line in lines}
    exact = f"int8 signed, {onnx_speed.EXACT}"
    assert found.keys() == {*forms, onnx_speed.PEER, exact}
    assert (found["fp32"].error, found["fp32"].wall_ratio, found["fp32"].cpu_ratio) == (0, 1, 1)
    assert found[onnx_speed.PEER].peer_ratio == 1
    assert found["int8 unsigned"].error == found[exact].error > 0
    assert found["int8 unsigned"].size < found["fp32"].size
    assert len(onnx_speed.table(lines).splitlines()) == 2 + len(lines)
