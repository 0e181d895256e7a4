"""Writes docs/report.svg, the picture of the README: the proof of a merge of samples/vit.

Run it in the checkout: python docs/make_picture.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import lora_export
from lora_export.report.page.measures import measures_of
from lora_export.report.page.pictures.axis import axis_file, axis_words

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "report.svg"


def picture() -> str:
    """Merge the sample, and return its proof in one picture as SVG."""
    samples = ROOT / "samples" / "vit"
    with tempfile.TemporaryDirectory() as folder:
        report = lora_export.merge(samples / "base", [samples / "lora"], Path(folder) / "merged")
    found = measures_of(report)
    if found is None:
        message = "no model was run: install the extra hf"
        raise SystemExit(message)
    return axis_file(found, axis_words(found))


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)} is written")
