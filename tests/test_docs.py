"""Every link, file and tox environment that a page names exists, headings included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("samples/*/*.md")],
)
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:\.ci|benchmarks|docs|lora_export|samples|tests)/[\w./-]*)`")
_TOX = re.compile(r"\btox -e ([\w,]+)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The fragments that a Markdown viewer makes of the page's headings."""
    headings = _HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


def broken(page: Path) -> list[str]:
    found = []
    for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        linked = page.parent / name if name else page
        if not linked.exists() or (fragment and fragment not in anchors(linked)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize("page", [*ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_every_page_is_reached_from_the_index(page: Path) -> None:
    index = ROOT / "docs" / "index.md"
    name = str(page.relative_to(index.parent))
    assert page == index or f"({name})" in index.read_text(encoding="utf-8")


def gone(page: Path) -> list[str]:
    """Return the files and tox environments that the page names and the checkout has not."""
    text = page.read_text(encoding="utf-8")
    files = [name for name in _PATH.findall(text) if not (ROOT / name).exists()]
    sections = (ROOT / "tox.ini").read_text(encoding="utf-8")
    steps = [name for names in _TOX.findall(text) for name in names.split(",")]
    return files + [name for name in steps if f"[testenv:{name}]\n" not in sections]


# The changelog names what was, too; a sample names files of those whom it is from.
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "CHANGELOG.md" and page.parents[1].name != "samples"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_what_a_page_names_exists(page: Path) -> None:
    assert gone(page) == []


def test_a_name_of_nothing_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`tests/test_docs.py` `tests/gone.py`, `tox -e docs,gone`\n")
    assert gone(page) == ["tests/gone.py", "gone"]


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b: c\n[x](gone.md) [y](#a-b-c) [z](#other) `[no](link.md)`\n")
    assert broken(page) == ["gone.md", "#other"]
