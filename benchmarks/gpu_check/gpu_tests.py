"""a. The tests that need a GPU."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu_check.context import Context
from benchmarks.report import Figure

_ROOT = Path(__file__).parents[2]
_MARK = "mark.gpu"
_STOPPING = 10.0  # seconds that pytest has to end


@dataclass(frozen=True)
class Counts:
    """Outcomes of a run of pytest."""

    passed: int
    failed: int  # errors of collection and of fixtures included
    skipped: int


def run(context: Context) -> None:
    """Run the tests marked `gpu` in a process of their own; their output goes to the log.

    Raises:
        RuntimeError: a test failed, none ran although there is a GPU, or they took too long.
    """
    context.say("running the tests marked gpu")
    counts, complete = run_tests(context, context.deadline.left)
    context.data("tests", asdict(counts))
    context.figure(Figure("tests passed", counts.passed))
    context.figure(Figure("tests failed", counts.failed, "", 0))
    context.figure(Figure("tests skipped", counts.skipped))
    if not complete:
        raise RuntimeError("the tests were stopped when their time was over")
    if counts.failed:
        raise RuntimeError(f"{counts.failed} of the tests failed, see {context.log}")
    if context.device.type == "cuda" and not counts.passed:
        raise RuntimeError(f"no test ran on the GPU, see {context.log}")


def run_tests(context: Context, seconds: float) -> tuple[Counts, bool]:
    """Run them.

    Returns:
        Their outcomes, and whether they came to an end within `seconds`.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            *(sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"),
            f"--junitxml={report}",
            *map(str, test_files()),
        ]
        with context.log.open("ab") as log:
            process = subprocess.Popen(
                command, cwd=_ROOT, stdout=log, stderr=log, start_new_session=True
            )
            try:
                process.wait(seconds)
                complete = True
            except subprocess.TimeoutExpired:
                complete = False
            finally:
                _stop(process)
        return read_counts(report), complete


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a run that is not over, as Ctrl-C does: pytest then still writes its report."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOPPING)


def test_files() -> list[Path]:
    """The modules with such tests: others import libraries that a GPU image may lack."""
    tests = _ROOT / "tests"
    marked = {path for path in tests.rglob("test_*.py") if _MARK in path.read_text("utf-8")}
    # What is marked for a whole folder is so in its conftest.py.
    folders = [
        path.parent for path in tests.rglob("conftest.py") if _MARK in path.read_text("utf-8")
    ]
    return sorted(marked.union(*(folder.rglob("test_*.py") for folder in folders)))


def read_counts(report: Path) -> Counts:
    """Read pytest's JUnit report; zeros where there is none."""
    if not report.exists():
        return Counts(0, 0, 0)
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))

    def total(name: str) -> int:
        return sum(int(suite.get(name, 0)) for suite in suites)

    failed, skipped = total("failures") + total("errors"), total("skipped")
    return Counts(total("tests") - failed - skipped, failed, skipped)
