"""A row that has passed is not run again while everything that decides it stays the same."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from suite_place import CASE

import lora_export
from lora_export import api
from lora_export.suites.running import content_key, model_folder, opened_files
from lora_export.suites.running.opened_files import is_installed

NET = f'{CASE.format("net")}model = "net.py:build"\nhparams = "facts.toml"\n'
LOADED = "lora_export_model_net"
"""The name under which the file of --model is a module."""


@pytest.fixture
def net(place):
    place.network()
    (place.folder / "facts.toml").write_text("alpha = 4\n")
    [first] = place.run(NET).rows
    assert not first.cached
    assert run(place), first.report.warnings
    return place


def run(place, case=NET, **settings) -> bool:
    """Whether the row was taken from the cache; it holds in any case."""
    result = place.run(case, **settings)
    assert result.passed, [row.cause for row in result.rows]
    return result.rows[0].cached


def passes():
    return [*Path(os.environ["LORA_EXPORT_PARITY_CACHE"]).glob("*.pass")]


def test_a_cached_row_has_what_the_run_had_found(net):
    [row] = net.run(NET).rows
    [fresh] = net.run(NET, no_cache=True).rows
    assert (row.cached, fresh.cached) == (True, False)
    assert row.verdict == fresh.verdict
    assert row.report.checks == fresh.report.checks
    assert row.report.files[:1] == fresh.report.files[:1]
    assert row.seconds > 0


def tensor(name):
    def change(folder, monkeypatch):
        path = folder / f"{name}.safetensors"
        save_file({k: v + 0.5 for k, v in load_file(path).items()}, path)

    return change


def test_a_module_that_the_model_replaces_is_put_back(place, tmp_path, monkeypatch):
    """A model of the same file name was loaded before: the second run sees it as the first did."""
    place.network()
    (tmp_path / "old.py").write_text("")
    spec = importlib.util.spec_from_file_location(LOADED, tmp_path / "old.py")
    old = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, LOADED, old)
    case = f'{CASE.format("net")}alpha = 4\nmodel = "net.py:build"\n'
    assert not run(place, case)
    assert sys.modules[LOADED] is old
    assert run(place, case)


def text(name, old, new):
    def change(folder, monkeypatch):
        path = folder / name
        path.write_text(path.read_text().replace(old, new))

    return change


def fact(name, value):
    return lambda folder, monkeypatch: monkeypatch.setattr(content_key, name, lambda: value)


INGREDIENTS = {
    "base": tensor("base"),
    "adapter": tensor("lora"),
    "a file beside the adapter": lambda folder, _: (folder / "more.json").write_text("{}"),
    "the model": text("net.py", "import sibling\n", "import sibling\n\n"),
    "what the model imports": text("sibling.py", "1.0", "2.0"),
    "what the model reads": text("shift.txt", "0.5", "0.25"),
    "a file that Python did not open": lambda folder, _: (folder / "more.bin").write_text("1"),
    "a file that an option names": text("facts.toml", "4", "4.0"),
    "versions": fact("_versions", {"torch": "9"}),
    "code": fact("_own_code", "0"),
    "processor": fact("_processor", ["abacus"]),
    "threads": lambda _, monkeypatch: monkeypatch.setenv("OMP_NUM_THREADS", "7"),
}


@pytest.mark.parametrize("what", INGREDIENTS)
def test_another_ingredient_runs_the_row_again(what, net, monkeypatch):
    INGREDIENTS[what](net.folder, monkeypatch)
    assert not run(net)
    assert run(net)


def uncached(row, why) -> bool:
    """Whether a row that holds says why no pass of it is kept."""
    [note] = row.report.warnings
    return row.outcome == "held" and note.startswith("not cached: ") and why in note


def checkout(place, name):
    folder = place.folder / name
    folder.mkdir()
    for one in ("base.safetensors", "lora.safetensors", "net.py", "sibling.py", "shift.txt"):
        (folder / one).write_bytes((place.folder / one).read_bytes())
    (folder / "suite.toml").write_text(
        f'format = 1\n{CASE.format("net")}model = "net.py:build"\n', encoding="utf-8"
    )
    return folder / "suite.toml"


def test_the_pass_of_another_checkout_is_taken_only_where_all_is_the_same(place):
    place.network()
    one, two, three = (checkout(place, name) for name in ("one", "two", "three"))
    (two.parent / "sibling.py").write_text("SCALE = 2.0\n")
    found = [lora_export.parity(path).rows[0] for path in (one, two, three)]
    assert [row.cached for row in found] == [False, False, True]


def test_every_row_of_a_case_depends_on_what_its_model_reads_at_its_import(place, monkeypatch):
    # The tests share what torch exports, in a folder that no command has.
    monkeypatch.setattr(
        opened_files, "_ROOTS", (*opened_files._ROOTS, os.environ["LORA_EXPORT_TEST_CAPTURES"])
    )
    place.network()
    (place.folder / "sibling.py").write_text(
        "from pathlib import Path\nSCALE = float((Path(__file__).parent / 'scale').read_text())\n"
    )
    for value, cached in (("1.0", False), ("1.0", True), ("2.0", False)):
        (place.folder / "scale").write_text(value)
        rows = place.run(f"{NET.replace('hparams', '#')}artefacts = ['merge', 'onnx']\n").rows
        assert [row.cached for row in rows] == [cached] * 2


def test_every_row_of_a_case_depends_on_a_file_elsewhere(place, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "scale"
    elsewhere.write_text("1.0")
    place.network()
    (place.folder / "sibling.py").write_text(
        f"from pathlib import Path\nSCALE = float(Path({str(elsewhere)!r}).read_text())\n"
    )
    rows = place.run(f"{NET.replace('hparams', '#')}artefacts = ['merge', 'onnx']\n").rows
    assert all(uncached(row, str(elsewhere)) for row in rows)
    assert passes() == []


@pytest.mark.parametrize("when", ["merge", "between"])
def test_a_sibling_that_changes_while_a_case_is_run_is_no_pass(when, place, monkeypatch):
    place.network()
    edit = text("sibling.py", "1.0", "2.0")
    right = api.merge

    def merge(*args, **options):
        report = right(*args, **options)
        edit(place.folder, None)
        return report

    monkeypatch.setattr(api, "merge", merge)
    rows = ["merge", "onnx"] if when == "between" else ["merge"]
    found = place.run(f"{NET.replace('hparams', '#')}artefacts = {rows}\n").rows
    assert all(uncached(row, "changed while it was run") for row in found)
    assert passes() == []


def test_code_in_a_folder_that_is_too_large_or_unknown_is_not_cached(place, monkeypatch):
    place.network()
    case = NET.replace("hparams", "#")
    (place.folder / "venv").mkdir()
    (place.folder / "venv" / "pyvenv.cfg").write_text("")
    for number in range(10):
        (place.folder / "venv" / f"{number}.py").write_text("")
    monkeypatch.setattr(model_folder, "FILES", 8)
    assert not run(place, case)
    assert run(place, case)
    monkeypatch.setattr(model_folder, "FILES", 3)
    [row] = place.run(case).rows
    assert uncached(row, "has more than 3 files")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(place.folder)
    [row] = place.run(case.replace("net.py:", "net:"), no_cache=True).rows
    assert row.report.warnings == ()
    [row] = place.run(case.replace("net.py:", "net:")).rows
    assert uncached(row, "net:build is a module")


def test_code_below_the_prefix_of_python_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    assert not is_installed(tmp_path / "src" / "sibling.py")
    assert is_installed(Path(os.__file__))
    assert is_installed(Path(torch.__file__))


def test_files_in_memory_are_the_users_and_those_of_the_system_are_not():
    memory = Path("/dev") / "shm"
    assert not is_installed(memory / "sibling.py")
    assert is_installed(memory / "output" / "x", without=memory / "output")
    assert is_installed(Path("/dev/urandom"))
    assert is_installed(Path("/proc/self/status"))


@pytest.mark.parametrize("line", ["seed = 1", "allow-noop = true", 'dtype = "float32"'])
def test_another_option_runs_the_row_again(line, net):
    assert not run(net, f"{NET}{line}\n")


@pytest.mark.parametrize("line", ["extras = ['torch']", "require = ['weights']",
                                  "expect = { size_below = '1GB' }"])  # fmt: skip
def test_what_a_case_expects_is_judged_again_without_a_run(line, net):
    assert run(net, f"{NET}{line}\n")


def test_the_same_content_at_another_place_has_passed(net, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("base.safetensors", "lora.safetensors"):
        (other / name).write_bytes((net.folder / name).read_bytes())
    case = f"{CASE.format('a')}alpha = 4\n"
    assert not run(net, case)
    assert run(net, case.replace('"base', '"other/base').replace('"lora', '"other/lora'))


def test_outputs_and_goldens_are_made_again(net):
    assert not run(net, keep=net.folder / "kept")
    assert not run(net, update=True)
    assert not run(net, no_cache=True)
    assert run(net)


def test_no_cache_keeps_nothing(place):
    place.row(no_cache=True)
    assert passes() == []


def test_only_passes_are_kept(place):
    place.run(f"{CASE.format('no alpha')}\n")
    place.run(f"{CASE.format('no alpha')}expect = {{ exit = 2 }}\n")
    place.row("expect = { size_below = 1 }")
    assert passes() == []


def spoil(change):
    def apply(path):
        text = path.read_text()
        path.write_text(change(text))

    return apply


DAMAGES = {
    "cut": spoil(lambda text: text[:-20]),
    "empty": spoil(lambda text: ""),
    "another outcome": spoil(lambda text: text.replace('"passed": true', '"passed": false', 1)),
    "no digest": spoil(lambda text: text.partition("\n")[2]),
    "binary": lambda path: path.write_bytes(b"\xff\x00" * 50),
    "huge": lambda path: path.write_text(path.read_text() + " " * (5 << 20)),
    "writable by others": lambda path: path.chmod(0o666),
    "in a folder of all": lambda path: path.parent.chmod(0o777),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_entry_is_not_read(what, net):
    [path] = passes()
    DAMAGES[what](path)
    assert not run(net)


def test_an_entry_under_another_key_is_not_read(net):
    """A pass is bound to its key: a copy of it is no pass of another row."""
    [path] = passes()
    case = f"{CASE.format('a')}alpha = 4\n"
    assert not run(net, case)
    [other] = set(passes()) - {path}
    other.write_bytes(path.read_bytes())
    assert not run(net, case)


def test_an_entry_is_data_and_its_verdict_must_be_a_pass(net):
    import hashlib

    from lora_export.suites.running.passes import MAGIC

    [path] = passes()
    entry = json.loads(path.read_text().partition("\n")[2])
    entry["verdict"]["word"] = "REFUSED"
    payload = json.dumps(entry)
    digest = hashlib.sha256(f"{path.stem}{payload}".encode()).hexdigest()
    path.write_text(f"{MAGIC} {digest}\n{payload}")
    assert not run(net)


def test_an_input_that_changes_while_it_is_proven_is_no_pass(place, monkeypatch):
    right = api.merge

    def merge(*args, **options):
        report = right(*args, **options)
        save_file({"x": torch.zeros(1)}, args[0])
        return report

    monkeypatch.setattr(api, "merge", merge)
    assert place.row().outcome == "held"
    assert passes() == []


def test_a_folder_that_takes_no_entry_is_no_error(place, monkeypatch):
    (place.folder / "file").write_text("")
    monkeypatch.setenv("LORA_EXPORT_PARITY_CACHE", str(place.folder / "file"))
    assert place.row().outcome == "held"
