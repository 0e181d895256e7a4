"""Walks the table of public reports; every row is checked on a tiny model."""

import importlib
import pkgutil

import pytest

import public_reports
from public_reports.report import Report

TOPICS = [
    importlib.import_module(f"public_reports.{module.name}")
    for module in pkgutil.iter_modules(public_reports.__path__)
    if not module.name.startswith("test_") and module.name != "report"
]
REPORTS = [report for topic in TOPICS for report in topic.REPORTS]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")
@pytest.mark.parametrize("report", REPORTS, ids=[report.name for report in REPORTS])
def test_public_report(report, tmp_path):
    report.check(tmp_path)


@pytest.mark.parametrize("topic", TOPICS, ids=[topic.__name__ for topic in TOPICS])
def test_every_topic_has_rows(topic):
    assert topic.REPORTS
    assert all(isinstance(report, Report) for report in topic.REPORTS)


def test_no_report_stands_twice():
    places = [(report.repository, report.number) for report in REPORTS]
    assert len(set(places)) == len(places)
