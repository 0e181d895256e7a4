"""English and Python as sequences of characters, both out of scikit-learn's installed package.

The base learns English from the sentences of its docstrings, the adapter Python from its tests.
`sklearn.cluster` is kept out of both: the texts in `heldout/` are excerpts of it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from model import ALPHABET

HELD_OUT = Path(__file__).parent / "heldout"
WINDOW = 128  # characters seen at a time, in training and in evaluation


def encode(text: str) -> torch.Tensor:
    """Turn characters into numbers; those outside the alphabet are dropped."""
    number = {letter: index for index, letter in enumerate(ALPHABET)}
    return torch.tensor([number[letter] for letter in text if letter in number])


def held_out(name: str) -> torch.Tensor:
    """Return the windows, one longer than what is read, of `heldout/NAME.txt`."""
    return encode((HELD_OUT / f"{name}.txt").read_text()).unfold(0, WINDOW + 1, WINDOW)


def english() -> str:
    """Return every paragraph of prose in scikit-learn's docstrings, each once."""
    known = set((HELD_OUT / "english.txt").read_text().split("\n\n"))
    found = {text: None for file in _sources("*.py") for text in _prose(file) if text not in known}
    return "\n\n".join(found)


def python() -> str:
    """Return scikit-learn's tests: nearly pure code."""
    return "\n\n".join(file.read_text() for file in _sources("test_*.py"))


def _sources(pattern: str) -> Iterator[Path]:
    import sklearn  # evaluation needs the held-out files only

    package = Path(sklearn.__file__).parent
    return (file for file in sorted(package.rglob(pattern)) if "cluster" not in file.parts)


def _prose(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(paragraph.split())
                # No signatures, examples, tables or headings.
                if re.fullmatch(r"[A-Z](?!.*---)[^`>=_|]{60,}\.", text):
                    yield text
