from __future__ import annotations

import html
import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sarathi.bench.report import CapacityWithRuns, write_report
from sarathi.bench.results import Run
from sarathi.errors import BenchmarkError
from sarathi.telemetry import RequestRecord, Targets
from tests.bench.report.sample_runs import capacity, line, log, record, records, run
from tests.browser import BROWSER, look_at

HOSTILE = '"><script>alert(1)</script>&amp;$\\frac{1'
LONG = "a server with a name that goes on and on until nothing has room beside it " * 2


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All figures, and texts that try to break out."""
    runs = [
        run(HOSTILE, 2.0, targets=Targets(1, 1), invalid=f"late {HOSTILE}"),
        run(LONG, 2.0, [*records(), record(failure=HOSTILE)], stopped=HOSTILE),
    ]
    searches = [capacity("third"), capacity(HOSTILE, None, None, None)]
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder / "all.html", runs, searches, log(1000), title=f"A {HOSTILE}")


def page_of(written: Sequence[Path]) -> str:
    return written[0].read_text(encoding="utf-8")


def test_the_page_and_its_figures_are_written(written: list[Path]) -> None:
    page, *figures = written
    assert page.name == "all.html"
    assert {path.parent for path in figures} == {page.parent / "all-figures"}
    assert {path.stem for path in figures} == {
        "capacity",
        "latency-by-rate",
        "tbt",
        "tokens",
        "in-flight",
        "ttft-by-prompt",
        "iterations",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert sorted(page.parent.rglob("*.*")) == sorted(written)


def test_texts_of_users_are_escaped(written: list[Path]) -> None:
    page = page_of(written)
    assert "<script" not in page
    assert html.escape(HOSTILE, quote=False).replace('"', "&#34;") in page
    assert "<i>it</i>" not in page


def test_the_page_needs_nothing_else(written: list[Path]) -> None:
    page = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page_of(written))
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"<(link|img|iframe|object|embed|script)\b|@import|url\((?!#)", page)


def test_every_reference_within_the_page_has_its_one_target(written: list[Path]) -> None:
    page = page_of(written)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', page)) <= set(ids)


def test_the_page_is_small(written: list[Path]) -> None:
    assert written[0].stat().st_size < 1_500_000


def test_alerts_come_before_all_figures(written: list[Path]) -> None:
    page = page_of(written)
    alert = page.index("Do not use these figures")
    assert alert < page.index("Stopped before all requests were sent") < page.index("<h2>")


def test_every_figure_has_a_text_in_its_place(written: list[Path]) -> None:
    texts = re.findall(r'role="img" aria-label="([^"]*)"', page_of(written))
    assert len(texts) == len(written) - 1
    assert all(len(text) > 20 for text in texts)


FAILED = [record(i, failure="timeout") for i in range(5)]
EMPTY = [RequestRecord(arrival=i, prompt_tokens=5, output_tokens=5, end=i) for i in range(5)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("runs", "searches", "iterations"),
    [
        ([run(of=FAILED)], [], []),
        ([run(of=EMPTY)], [], []),
        ([run(of=EMPTY[:1])], [], []),
        ([run("a", of=FAILED), run("b", of=EMPTY)], [], []),
        ([run(of=[record()], rate=None)], [], []),
        ([run("a", of=[record(gaps=())]), run("b", of=[record(gaps=[0.0] * 9, ttft=0.0)])], [], []),
        ([run("a", 0.5, [record(gaps=[0.05])]), run("a", 0.5, [record(gaps=[30.0])])], [], []),
        ([run("a"), run("b", 1e-3), run("a", 1e3)], [], []),
        ([], [capacity(capacity=None, low=None, high=None, rates=(1.0,))], []),
        ([], [capacity(capacity=None, low=None, high=0.1, rates=())], []),
        ([run("b")], [CapacityWithRuns(capacity("a").capacity)], []),
        ([run(f"{i}", of=[record(), record(1)]) for i in range(9)], [], []),
        ([], [], [line()]),
        ([], [], [line(0, 0.0, decodes=0, predicted=None, budget=None)]),
        ([], [], [line(5, 0.1), line(4, 0.1, budget=1e9)]),
    ],
)
def test_no_data_are_too_unusual(
    tmp_path: Path, runs: list[Run], searches: list[CapacityWithRuns], iterations: list[Any]
) -> None:
    [page, *_] = write_report(tmp_path / "page.html", runs, searches, iterations)
    assert "</html>" in page_of([page])
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page_of([page]), flags=re.DOTALL).lower()


def test_nothing_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="nothing to report"):
        write_report(tmp_path / "page.html", [], [])
    assert not list(tmp_path.iterdir())


def test_a_missing_matplotlib_is_reported_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match=r"pip install 'sarathi-serve\[report\]'"):
        write_report(tmp_path / "page.html", [run()], [])


def test_a_folder_that_is_none_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="cannot be written to"):
        write_report(tmp_path / "none" / "page.html", [run(of=FAILED)], [])


def test_importing_the_package_does_not_import_matplotlib() -> None:
    look = "import sarathi.bench.report, sys; print('matplotlib' in sys.modules)"
    command = [sys.executable, "-c", look]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_all_of_it(written: list[Path], width: int, tmp_path: Path) -> None:
    found = look_at(page_of(written), width, tmp_path)
    assert found["width"] == width
    assert found["scrollWidth"] <= width
    assert found["errors"] == 0
    assert found["resources"] == []
    assert all(found["images"])
    assert all(rows > 1 for rows in found["tables"])
    figures = found["figures"]
    assert len(figures) == len(written) - 1
    for figure in figures:
        assert figure["shown"] == 1
        assert figure["width"] > 0.75 * width
        assert figure["outside"] == []
