"""The rows of a suite as JUnit XML: a test suite for each row, a test case for each check.

The form is the one that Jenkins, GitLab and GitHub's actions read: `testsuites`, `testsuite` with
`properties`, and `testcase` with `failure`, `error` or `skipped`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from lora_export.report.columns import counted
from lora_export.report.sentences import failed_sentence
from lora_export.suites.printing.rows_text import row_text, suite_verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_export.records import Check
    from lora_export.suites.outcome import Row, SuiteResult

_ILLEGAL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write."""


def junit_xml(result: SuiteResult) -> bytes:
    """Return the rows as XML in UTF-8."""
    suites = [*map(_suite, result.rows), *_left(result)]
    root = ET.Element("testsuites", {"name": legal(str(result.path)), **_counts(suites)})
    root.extend(suites)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _left(result: SuiteResult) -> Iterator[ET.Element]:
    """Yield a suite for the rows that were not run: an error, unless a row had ended the run."""
    if not (result.left or result.stopped):
        return
    kind = "error" if result.stopped else "skipped"
    about = {"message": legal(suite_verdict(result))}
    about |= {"type": "interrupted"} if result.stopped else {}
    names = {"classname": legal(str(result.path)), "name": f"{counted(result.left, 'row')} not run"}
    case = ET.Element("testcase", {**names, "time": "0.000"})
    ET.SubElement(case, kind, about)
    numbers = {**dict.fromkeys(_KINDS, "0"), "tests": "1", _PLURALS[kind]: "1"}
    suite = ET.Element("testsuite", {"name": "rows not run", **numbers, "time": "0.000"})
    suite.append(case)
    yield suite


def legal(text: str) -> str:
    r"""Return a text with characters that XML cannot hold as `\x1b`."""
    return _ILLEGAL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _counts(suites: Sequence[ET.Element]) -> dict[str, str]:
    sums = {key: sum(int(suite.get(key, "0")) for suite in suites) for key in _KINDS}
    seconds = sum(float(suite.get("time", "0")) for suite in suites)
    return {**{key: str(number) for key, number in sums.items()}, "time": f"{seconds:.3f}"}


_KINDS = ("tests", "failures", "errors", "skipped")
_PLURALS = {"error": "errors", "skipped": "skipped"}


def _suite(row: Row) -> ET.Element:
    cases = [*_cases(row)]
    found = Counter(child.tag for case in cases for child in case)
    numbers = (len(cases), found["failure"], found["error"], found["skipped"])
    suite = ET.Element(
        "testsuite",
        {
            "name": legal(f"{row.case} [{row.artefact}]"),
            **{key: str(number) for key, number in zip(_KINDS, numbers, strict=True)},
            "time": f"{_seconds(row):.3f}",
        },
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(row):
        ET.SubElement(properties, "property", {"name": legal(name), "value": legal(value)})
    suite.extend(cases)
    return suite


def _seconds(row: Row) -> float:
    """Return the seconds of this run: a cached row took none."""
    return 0.0 if row.cached else row.seconds


def _properties(row: Row) -> Iterator[tuple[str, str]]:
    """Yield digests and figures."""
    yield "outcome", row.outcome
    yield "cached", str(row.cached).lower()
    yield "command", row.command
    if row.verdict:
        yield "verdict", str(row.verdict)
    if row.share is not None:
        yield "share", f"{row.share:.6g}"
    if row.report is None:
        return
    for file in row.report.files:
        yield f"sha256:{file.path}", file.sha256
        yield f"bytes:{file.path}", str(file.size)
    for key, check in _keyed(row.report.checks):
        yield f"worst:{key}", f"{check.worst:.9g}"
        yield f"allowed:{key}", f"{check.tolerance:.9g}"


def _cases(row: Row) -> Iterator[ET.Element]:
    """Yield the case of the row's verdict, then one for each check.

    The checks of a refusal that was expected are not listed: they failed, and nothing is wrong.
    """
    verdict = _case(row, "verdict", _seconds(row))
    if row.outcome == "skipped":
        ET.SubElement(verdict, "skipped", {"message": legal(row.cause)})
    elif not row.holds:
        kind = "failure" if row.outcome == "failed" else "error"
        about = {"message": legal(row.cause), "type": row.outcome}
        ET.SubElement(verdict, kind, about).text = legal(row_text(row))
    elif row.verdict:
        notes = [f"note: {words}" for words in row.report.warnings] if row.report else []
        text = "\n".join([str(row.verdict), *notes, f"$ {row.command}"])
        ET.SubElement(verdict, "system-out").text = legal(text)
    yield verdict
    expected = row.verdict is not None and row.verdict.word == "REFUSED" and row.holds
    for key, check in _keyed(row.report.checks) if row.report and not expected else ():
        case = _case(row, key, 0.0)
        if not check.passed:
            about = {"message": legal(failed_sentence(check)), "type": check.level or "check"}
            ET.SubElement(case, "failure", about).text = legal(_check_text(check))
        yield case


def _case(row: Row, key: str, seconds: float) -> ET.Element:
    names = {"classname": legal(row.case), "name": legal(f"{row.artefact} {key}")}
    return ET.Element("testcase", {**names, "time": f"{seconds:.3f}"})


def _check_text(check: Check) -> str:
    place = f"\nat {check.where}" if check.where else ""
    hint = f"\n{check.hint}" if check.hint else ""
    return f"{failed_sentence(check)}{place}{hint}"


def _keyed(checks: Sequence[Check]) -> Iterator[tuple[str, Check]]:
    """Yield each check with its id: level and name, unique and the same in each run."""
    seen: Counter[str] = Counter()
    for check in checks:
        key = f"{check.level}." * bool(check.level) + re.sub(r"\W+", "-", check.name.lower()).strip(
            "-"
        )
        seen[key] += 1
        yield (key if seen[key] == 1 else f"{key}-{seen[key]}"), check
