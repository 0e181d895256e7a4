"""A row that has passed is not run again while everything that decides it stays the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from suite_place import CASE

from lora_export import api
from lora_export.suites.running import content_key

NET = f'{CASE.format("net")}model = "net.py:build"\nhparams = "facts.toml"\n'


@pytest.fixture
def net(place):
    place.network()
    (place.folder / "facts.toml").write_text("alpha = 4\n")
    assert not run(place)
    assert run(place)
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
