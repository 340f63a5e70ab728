"""A plugin of pytest: run a share of the tests, and write each outcome as soon as it is known.

    python -m pytest -p perf.gpu_check.sharding --shard 0/8 --outcomes FILE

See `outcomes` for the file.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.gpu_check.outcomes import COLLECTED, append_outcomes

_LONGEST = 2000  # characters of a message


class _Writer:
    """Writes what comes of modules and tests."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:  # a module that cannot be imported, or skips itself
            self._write(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed or report.when == "call":
            self._write(report)

    def _write(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        message = _message(report) if report.failed else ""
        append_outcomes(self._path, [(report.nodeid, report.outcome, message)])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="0/1", metavar="NUMBER/COUNT")
    parser.addoption("--outcomes", type=Path, required=True, metavar="FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Writer(config.getoption("outcomes")))


# Last: after tests have been deselected by their marks.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep every COUNT-th test, since those next to each other take about as long."""
    number, count = map(int, config.getoption("shard").split("/"))
    items[:] = items[number::count]
    collected = [(item.nodeid, COLLECTED, "") for item in items]
    append_outcomes(config.getoption("outcomes"), collected)


def _message(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Say what was raised, or the last line of what pytest shows of it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext.strip().split("\n")[-1]
    return str(text)[:_LONGEST]
