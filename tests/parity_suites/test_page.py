"""The page on CI does what it shows, and its suite and workflow are right."""

from __future__ import annotations

import re
import shutil
from itertools import repeat

from documents import blocks, check_console

from lora_export.suites.reading.read_suite import read_suite


def test_the_pages_commands(root, tmp_path, forked, real, monkeypatch):
    shutil.copytree(root / "samples" / "vit", tmp_path / "samples" / "vit")
    consoles = [block for block in blocks(root / "docs" / "ci.md") if block.language == "console"]
    assert len(consoles) == 3
    for block in consoles[:2]:
        check_console(block, tmp_path, repeat(forked))
    assert (tmp_path / "parity.xml").is_file()
    # An environment without the entry point of this checkout names the plug-in.
    options = {"PYTEST_ADDOPTS": ""} if _is_installed() else {"PYTEST_ADDOPTS": f"-p {MODULE}"}
    check_console(consoles[2], tmp_path, repeat({**real, **options}))


MODULE = "lora_export.suites.pytest_plugin"


def _is_installed():
    from importlib import metadata

    return any(one.value == MODULE for one in metadata.entry_points(group="pytest11"))


def test_the_pages_suite_has_no_mistake(root, tmp_path):
    [suite] = [block for block in blocks(root / "docs" / "ci.md") if block.language == "toml"]
    path = tmp_path / "parity.toml"
    path.write_text(suite.text)
    for name in ("other", "adapters/fr"):  # of the case that must be refused
        (tmp_path / name).mkdir(parents=True)
    cases = read_suite(path).cases
    assert [len(case.rows()) for case in cases] == [3, 1, 1, 1]


def test_the_samples_suite_has_every_sample(root):
    suite = read_suite(root / "samples" / "parity.toml")
    text = " ".join(f"{case.base} {case.adapters}" for case in suite.cases)
    for sample in root.glob("samples/*/train.py"):
        assert f"/{sample.parent.name}/" in text
    assert any(case.expect.exit for case in suite.cases)
    rows = sum(len(case.rows()) for case in suite.cases)
    counts = (root / ".ci" / "counts.py").read_text()
    assert re.search(rf'"parity", .* {rows}\)', counts)


def test_the_workflow_calls_the_command_as_it_is(root):
    text = (root / "samples" / "parity.workflow.yml").read_text()
    [line] = re.findall(r"run: lora-export (parity .*)", text)
    from click.testing import CliRunner

    from lora_export.cli import main

    done = CliRunner().invoke(main, [*line.split(), "--help"])
    assert done.exit_code == 0
