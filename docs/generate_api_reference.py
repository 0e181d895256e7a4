"""Write docs/api.md from the docstrings of the public functions, errors and records.

The parameters that functions share have their meaning from the table of options. `--check` only
compares.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from generated_page import head, write_or_check

import lora_export
from lora_export import errors, options, records
from lora_export.report.result import Report
from lora_export.suites.outcome import Row, SuiteResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRIPT = Path(__file__)
INTRODUCTION = """\
Every public function, error and value of `import lora_export`. [From Python](python.md) is the
introduction, [the command line](cli.md) has the same options as flags.

"""
ERRORS = """\
A program catches `lora_export.errors.LoraExportError`, or one of its classes. Nothing was
published then.

"""
VERBS = {"merge": "merge", "export_onnx": "onnx", "verify": "verify", "unmerge": "unmerge",
         "inspect": "inspect", "parity": "parity"}  # fmt: skip
RECORDS = ("Check", "Finding", "Attribution", "KeptEffect", "WrittenFile", "Problem", "MergePlan",
           "Step", "Delta", "Adapter")  # fmt: skip
SECTION = re.compile(r"^(Args|Returns|Raises|Example):$", re.MULTILINE)
ENTRY = re.compile(r"^    (\w[\w, ]*): ", re.MULTILINE)


def reference() -> str:
    """Return the whole page."""
    return (
        "".join(
            [
                head(SCRIPT, "The library"),
                INTRODUCTION,
                *(_function(name, verb) for name, verb in VERBS.items()),
                "## Errors\n\n",
                ERRORS,
                "| class | status | code | meaning |\n|---|---|---|---|\n",
                *map(_error, errors.LoraExportError.__subclasses__()),
                "\n",
                *(_fields(cls) for cls in (errors.LoraExportError, errors.VerificationError)),
                "## Report\n\n",
                _fields(Report),
                "## Records\n\nThe values in a report's fields. All are frozen.\n\n",
                *(_fields(getattr(records, name)) for name in RECORDS),
                "## Suites\n\nWhat `parity` returns.\n\n",
                *(_fields(cls) for cls in (SuiteResult, Row)),
            ]
        ).rstrip("\n")
        + "\n"
    )


def _function(name: str, verb: str) -> str:
    function = getattr(lora_export, name)
    sections = _sections(inspect.getdoc(function) or "")
    parts = [f"## {name}\n\n```python\n{_call(name, function)}\n```\n\n", f"{sections['']}\n\n"]
    if example := sections.get("Example"):
        words, _, code = example.partition("::\n")
        parts.append(f"{words.strip()}:\n\n```python\n{inspect.cleandoc(code)}\n```\n\n")
    parts.append("| parameter | default | meaning |\n|---|---|---|\n")
    parts += _parameters(function, verb, _entries(sections.get("Args", "")))
    returned = _joined(sections.get("Returns", ""))
    parts.append(f"\n**Returns** {returned[:1].lower()}{returned[1:]}\n\n")
    if raised := _entries(sections.get("Raises", "")):
        parts.append("**Raises**\n\n")
        parts += [f"- `{'`, `'.join(names.split(', '))}`: {why}\n" for names, why in raised.items()]
        parts.append("\n")
    return "".join(parts)


def _call(name: str, function: Callable[..., object]) -> str:
    """Return the call with the parameters that most users need; the table lists all of them."""
    found = inspect.signature(function).parameters.values()
    places = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in found
              if p.kind is p.POSITIONAL_OR_KEYWORD]  # fmt: skip
    needed = [p.name for p in found if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    more = any(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in found)
    words = [*places, *(["*"] if needed or more else []), *needed, *(["..."] if more else [])]
    return f"lora_export.{name}({', '.join(words)})"


def _parameters(
    function: Callable[..., object], verb: str, described: dict[str, str]
) -> Iterator[str]:
    declared = {option.name: option for option in options.VERBS[verb]}
    for one in inspect.signature(function).parameters.values():
        meaning = described.get(one.name, "")
        if not meaning or meaning.startswith("see "):
            option = declared.get(one.name)
            meaning = _with_choices(option) if option else meaning
        default = "" if one.default is one.empty else f"`{one.default!r}`"
        yield f"| `{one.name}` | {default} | {_cell(meaning)} |\n"


def _with_choices(option: options.Option) -> str:
    choices = f" One of: {', '.join(option.choices)}." if option.choices else ""
    return f"{option.help}{choices}"


def _cell(text: str) -> str:
    """Return text for a table's cell, with its first letter in lower case and no full stop."""
    escaped = _escaped(text)
    escaped = re.sub(r"<(?=[A-Z0-9])", r"\\<", escaped)
    first = escaped[:1].lower() if escaped[1:2].islower() else escaped[:1]
    return f"{first}{escaped[1:]}".rstrip(".")


def _escaped(text: str) -> str:
    """Return text in which no character ends a table's cell."""
    return text.replace("|", "\\|")


def _sections(text: str) -> dict[str, str]:
    """Return the parts of a docstring by the name of their section; "" is what stands before."""
    start, *rest = SECTION.split(text)
    return {"": start.strip(), **dict(zip(rest[::2], rest[1::2], strict=True))}


def _entries(section: str) -> dict[str, str]:
    """Return the entries `name: text` of a section, each text on one line."""
    _, *rest = ENTRY.split(section)
    return {name: _joined(text) for name, text in zip(rest[::2], rest[1::2], strict=True)}


def _joined(text: str) -> str:
    return " ".join(text.split())


def _error(cls: type[errors.LoraExportError]) -> str:
    return f"| `{cls.__name__}` | {cls.status} | {cls.code} | {_cell(_first(cls))} |\n"


def _first(documented: object) -> str:
    return _joined((inspect.getdoc(documented) or "").partition("\n\n")[0])


def _fields(cls: type) -> str:
    """Return the heading, the summary and the documented fields of a class."""
    rows = [
        f"| `{name}` | `{_escaped(kind)}` | {_cell(text)} |\n"
        for name, kind, text in _documented(cls)
    ]
    table = ["| field | type | meaning |\n|---|---|---|\n", *rows, "\n"] if rows else []
    title = "" if cls is Report else f"### {cls.__name__}\n\n"
    return "".join([title, f"{_first(cls)}\n\n", *table])


def _documented(cls: type) -> Iterator[tuple[str, str, str]]:
    """Yield (name, type, meaning) of each field, documented by `#:` above or a string below."""
    lines = inspect.getsource(cls).splitlines()
    [tree] = ast.parse("\n".join(lines)).body
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef):
            yield from _of_function(node, lines)
        elif isinstance(node, ast.AnnAssign):
            below = following.value if isinstance(following, ast.Expr) else None
            text = str(below.value) if isinstance(below, ast.Constant) else _above(lines, node)
            yield ast.unparse(node.target), ast.unparse(node.annotation), _joined(text)


def _of_function(node: ast.FunctionDef, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield a property, or the attributes that `__init__` sets and documents."""
    if node.name == "__init__":
        for inner in ast.walk(node):
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Attribute):
                yield inner.target.attr, ast.unparse(inner.annotation), _above(lines, inner)
    elif any(isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list):
        kind = ast.unparse(node.returns) if node.returns else ""
        yield node.name, kind, _joined(ast.get_docstring(node) or "").removeprefix("Return ")


def _above(lines: list[str], node: ast.stmt) -> str:
    """Return the text of the `#:` comment right above a statement."""
    found: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.strip().startswith("#:"):
            break
        found.insert(0, line.strip().removeprefix("#:").strip())
    return " ".join(found)


if __name__ == "__main__":
    sys.exit(write_or_check(SCRIPT, SCRIPT.with_name("api.md"), reference))
