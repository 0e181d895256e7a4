"""pytest --lora-parity: the rows of a suite as tests, and nothing where no suite is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from xml.etree import ElementTree as ET

import pytest
from suite_place import CASE, MERGE

from lora_export.testing import assert_merge_parity

MODULE = "lora_export.suites.pytest_plugin"
IS_INSTALLED = any(one.value == MODULE for one in metadata.entry_points(group="pytest11"))
PLUGIN = () if IS_INSTALLED else ("-p", MODULE)
SKIPPED = f'{MERGE.replace("tiny", "skipped")}extras = ["no-such-package-xyz"]\n'
SUITE = f"format = 1\n{MERGE}{CASE.format('no alpha')}{SKIPPED}"


@pytest.fixture
def run(place):
    def call(*words, text=SUITE):
        suite = place.write(text)
        (place.folder / "test_other.py").write_text("def test_other():\n    pass\n")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *PLUGIN, *words]
        done = subprocess.run(
            command, cwd=suite.parent, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return call


def test_rows_are_tests(run, place):
    status, text = run("--lora-parity", "suite.toml", "-v", "-W", "error", "--junitxml", "out.xml")
    assert status == 1
    assert "suite.toml::tiny[merge] PASSED" in text
    assert "suite.toml::no alpha[merge] FAILED" in text
    assert "suite.toml::skipped[merge] SKIPPED (not installed: no-such-package-xyz)" in text
    assert "1 failed, 1 passed, 1 skipped" in text
    assert "test_other" not in text
    assert "ERROR no alpha, merge: alpha is not in the file" in text
    assert "$ lora-export merge " in text
    assert "Traceback" not in text
    cases = [*ET.parse(place.folder / "out.xml").iter("testcase")]  # noqa: S314 - pytest's
    [held] = [case for case in cases if case.get("name") == "tiny[merge]"]
    names = [one.get("name") for one in held.iter("property")]
    assert {"verdict", "share", "sha256:merged.safetensors"} <= set(names)


def test_paths_and_names_choose(run):
    status, text = run("--lora-parity", "suite.toml", "-v", "test_other.py", "-k", "tiny or other")
    assert status == 0
    assert "2 passed, 2 deselected" in text
    status, text = run("--lora-parity", "suite.toml", "-k", "skipped", "--lora-parity-strict")
    assert "1 failed, 2 deselected" in text


def test_workers_share_the_rows(run):
    pytest.importorskip("xdist")
    status, text = run("--lora-parity", "suite.toml", "-n", "2")
    assert status == 1
    assert "1 failed, 1 passed, 1 skipped" in text


def test_a_wrong_suite_is_an_error_of_collection(run):
    status, text = run("--lora-parity", "suite.toml", text=f"{SUITE}alhpa = 4\nexpect = 3\n")
    assert status == 2
    assert "suite.toml:17: unknown key 'alhpa'" in text
    assert "suite.toml:18: expect is no table" in text
    assert "Traceback" not in text


def test_it_costs_nothing_where_no_suite_is_asked_for(run, place):
    (place.folder / "conftest.py").write_text(
        "import sys\ndef pytest_unconfigure():\n"
        "    ours = [name for name in sys.modules if name.startswith('lora_export')]\n"
        "    print(ours, 'torch' in sys.modules)\n"
    )
    status, text = run()
    assert status == 0
    assert "1 passed" in text
    loaded = ["lora_export.version", "lora_export", "lora_export.suites", MODULE]
    assert f"{loaded} False" in text


def test_an_assertion_returns_the_report_of_a_right_merge(place):
    base, adapter = place.folder / "base.safetensors", place.folder / "lora.safetensors"
    assert assert_merge_parity(base, adapter, alpha=4).passed
    place.row(keep=place.folder)
    merged = place.folder / "tiny" / "merged.safetensors"
    assert assert_merge_parity(base, [adapter], merged, alpha=4).passed


@pytest.mark.parametrize(
    ("options", "word"), [({"verify": False}, "NOT PROVED"), ({"dry_run": True}, "PLANNED")]
)
def test_an_assertion_of_nothing_fails(options, word, place):
    base, adapter = place.folder / "base.safetensors", place.folder / "lora.safetensors"
    with pytest.raises(AssertionError, match=f"^{word}: "):
        assert_merge_parity(base, adapter, alpha=4, **options)


def test_an_assertion_takes_a_base_in_shards(place):
    index = {"weight_map": dict.fromkeys(("m.weight", "m.bias", "n.weight"), "base.safetensors")}
    base = place.folder / "model.safetensors.index.json"
    base.write_text(json.dumps(index))
    assert assert_merge_parity(base, place.folder / "lora.safetensors", alpha=4).passed


ASSERTS = """
from lora_export.testing import assert_merge_parity

def test_merge():
    assert_merge_parity("base.safetensors", {adapters!r}, {artefact!r}, alpha=4)
"""


@pytest.mark.parametrize(
    ("adapters", "artefact", "words"),
    [
        ("other.safetensors", None, "REFUSED: "),
        (["gone.safetensors"], None, "no such file"),
        ("lora.safetensors", "base.safetensors", "REFUSED: "),
    ],
)
def test_an_assertion_has_eight_lines_and_no_frame_of_ours(adapters, artefact, words, run, place):
    base = place.folder / "base.safetensors"
    with pytest.raises(AssertionError) as failed:
        assert_merge_parity(
            base,
            place.folder / (adapters if isinstance(adapters, str) else adapters[0]),
            artefact and place.folder / artefact,
            alpha=4,
        )
    text = str(failed.value)
    assert text.startswith("REFUSED: ")
    assert words in text
    assert 1 <= len(text.splitlines()) <= 8
    assert failed.value.__cause__ is None
    assert failed.value.__context__ is None
    (place.folder / "test_m.py").write_text(ASSERTS.format(adapters=adapters, artefact=artefact))
    status, shown = run("test_m.py")
    assert status == 1
    assert "AssertionError: REFUSED: " in shown
    assert "testing.py" not in shown
