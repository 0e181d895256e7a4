"""The page in a real browser, on a phone and on a wide screen, light and dark.

What the eye would see is measured: nothing is wider than the screen, and no two texts of a picture
lie on each other. `tox -e browser` runs these tests; the browser is a package of the system.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
from html import unescape
from pathlib import Path

import page_reports
import pytest

from lora_export.report.page.measures import measures_of
from lora_export.report.page.pictures.axis import axis_file
from lora_export.report.page.rendered import rendered
from lora_export.report.page.style import DARK, LIGHT
from lora_export.report.page.suite_page import rendered_suite

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (400, 1200)
THEMES = {"light": LIGHT, "dark": DARK}
LONG = "a_name_without_any_place_to_break_" * 6

PAGES = {
    "proved": lambda: rendered(page_reports.proved(), "html", page_reports.origin()),
    "long": lambda: rendered(page_reports.proved(LONG, 143), "html", page_reports.origin(LONG)),
    "failed": lambda: rendered(page_reports.failed(LONG), "html"),
    "unfit": lambda: rendered(page_reports.unfit(LONG), "html"),
    "lowered": lambda: rendered(page_reports.lowered(), "html"),
    "suite": lambda: rendered_suite(
        "parity.toml", page_reports.SENTENCE, page_reports.rows(LONG), "html"
    ),
}

MEASURE = """
function boxes(frame) {
  const page = frame.contentDocument, width = frame.clientWidth, wide = [], overlaps = [];
  for (const one of page.body.querySelectorAll('*')) {
    const box = one.getBoundingClientRect();
    const around = one.parentElement.closest('section');
    const edge = around ? around.getBoundingClientRect().right : width;
    const out = box.right > edge + 0.5 || box.left < -0.5;
    const narrow = one.matches('th, td') && one.textContent.length > 3 && box.width < 30;
    if (box.width && (out || narrow)) wide.push(one.outerHTML.slice(0, 90));
  }
  for (const svg of page.querySelectorAll('svg')) {
    const texts = [...svg.querySelectorAll('text')];
    texts.forEach((one, at) => texts.slice(at + 1).forEach(other => {
      const a = one.getBoundingClientRect(), b = other.getBoundingClientRect();
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 1 && down > 3) overlaps.push(one.textContent + ' / ' + other.textContent);
    }));
  }
  const root = page.documentElement;
  return {
    name: frame.title, width: width, scroll: root.scrollWidth, wide: wide, overlaps: overlaps,
    ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    loaded: frame.contentWindow.performance.getEntriesByType('resource').length,
    texts: page.querySelectorAll('svg text').length,
  };
}
window.onload = () => {
  const found = [...document.querySelectorAll('iframe')].map(boxes);
  document.getElementById('found').textContent = JSON.stringify(found);
};
"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return found


def run(browser, folder, page, theme, *words):
    """Run the browser without a window; return what it prints."""
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000",
        f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}", *words,
        page.as_uri(),
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, timeout=300, env=environment, check=True)
    return done.stdout.decode()


def framed(folder, names, widths, script=""):
    """Write the pages, and one page that shows each of them in frames of these widths."""
    frames = []
    for name in names:
        (folder / f"{name}.html").write_text(PAGES[name](), encoding="utf-8")
        frames += [
            f'<iframe title="{name}" src="{name}.html" width="{width}" height="900" '
            'style="border:0;display:block"></iframe>'
            for width in widths
        ]
    page = folder / "frames.html"
    body = f'{"".join(frames)}<pre id="found"></pre><script>{script}</script>'
    page.write_text(f"<!doctype html><body style='margin:0'>{body}", encoding="utf-8")
    return page


@pytest.fixture(scope="module", params=THEMES)
def seen(request, browser, tmp_path_factory):
    """What the browser measures of every page at every width, in one theme."""
    folder = tmp_path_factory.mktemp("browser")
    page = framed(folder, PAGES, WIDTHS, MEASURE)
    text = run(browser, folder, page, request.param, "--window-size=1300,900", "--dump-dom")
    [found] = re.findall(r'<pre id="found">(.+?)</pre>', text, re.DOTALL)
    return request.param, json.loads(unescape(found))


def test_nothing_is_wider_than_the_screen(seen):
    _, found = seen
    assert len(found) == len(PAGES) * len(WIDTHS)
    assert {one["width"] for one in found} == set(WIDTHS)
    assert [one for one in found if one["scroll"] > one["width"] or one["wide"]] == []


def test_no_two_texts_of_a_picture_lie_on_each_other(seen):
    _, found = seen
    assert sum(one["texts"] for one in found) > 50
    assert [one["overlaps"] for one in found if one["overlaps"]] == []


def test_the_theme_of_the_screen_is_followed_and_nothing_is_loaded(seen):
    theme, found = seen
    ground = THEMES[theme]["ground"]
    parts = ", ".join(str(int(ground[at : at + 2], 16)) for at in (1, 3, 5))
    assert {one["ground"] for one in found} == {f"rgb({parts})"}
    assert {one["loaded"] for one in found} == {0}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_screenshot_is_taken(browser, tmp_path, theme, width):
    folder = Path(os.environ.get("LORA_EXPORT_SCREENSHOTS") or tmp_path)
    image = folder / f"report-{width}-{theme}.png"
    page = framed(tmp_path, ["proved"], [width])
    size = (max(width, 500), 900)
    run(browser, tmp_path, page, theme, f"--window-size={size[0]},{size[1]}",
        f"--screenshot={image}")  # fmt: skip
    content = image.read_bytes()
    assert struct.unpack(">II", content[16:24]) == size
    assert len(content) > 20_000  # an empty page of one colour takes a tenth of that


def test_the_measure_sees_a_page_that_is_too_wide(browser, tmp_path, monkeypatch):
    wide = '<!doctype html><body><div style="width:900px">x</div><svg><text y="9">a</text>'
    monkeypatch.setitem(PAGES, "wide", lambda: f'{wide}<text y="9">b</text></svg>')
    page = framed(tmp_path, ["wide"], [400], MEASURE)
    text = run(browser, tmp_path, page, "light", "--window-size=1300,900", "--dump-dom")
    [found] = json.loads(unescape(re.findall(r'<pre id="found">(.+?)</pre>', text)[0]))
    assert found["scroll"] > 400
    assert found["wide"]
    assert found["overlaps"] == ["a / b"]


def test_the_picture_of_the_readme_is_drawn(browser, tmp_path):
    picture = tmp_path / "report.svg"
    picture.write_text(axis_file(measures_of(page_reports.proved()), "a proof"), encoding="utf-8")
    text = run(browser, tmp_path, picture, "light", "--dump-dom")
    assert "parsererror" not in text
    assert text.count("<circle") == 4
