from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sarathi.cli import main, reproduce
from sarathi.cli.arguments import parse_options
from sarathi.errors import UsageError
from sarathi.simulator.reproduction.evaluation import STUDIES
from tests.browser import BROWSER, look_at


def parsed(words: Sequence[str]) -> reproduce.ReproduceOptions:
    return parse_options(reproduce.ReproduceOptions, words)


def run(*words: str) -> int:
    return reproduce.run(parsed(words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of experiments that take no time."""
    folder = tmp_path_factory.mktemp("reproduced") / "report"
    names = "throughput", "chunking-overhead", "ablation", "stalls"
    assert run(*names, "--out", str(folder), "--requests", "8") == 0
    return folder


def test_the_report_is_written(folder: Path) -> None:
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures == {"throughput", "iteration-times", "chunking-overhead", "ablation", "stalls"}
    for path in (folder / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / "results.json").read_bytes())
    assert set(found["experiments"]) == {"throughput", "chunking-overhead", "ablation", "stalls"}
    assert found["requests"] == 8
    for one in found["experiments"]["ablation"]["comparisons"]:
        assert one["ratio"] == pytest.approx(one["ours"] / one["published"])
        assert one["source"] == "Table 4, printed"


def test_the_page_needs_nothing_else(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    page = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"<(link|img|iframe|object|embed|script)\b|@import|url\((?!#)", page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_the_page_has_reasons_or_that_they_are_not_known(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "why they differ" in page
    assert "published where" in page
    assert "Accuracy:" in page
    assert "the preset has them" in page or "the paper&#39;s trace" in page


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_all_of_it(folder: Path, width: int, tmp_path: Path) -> None:
    found = look_at((folder / "index.html").read_text(), width, tmp_path)
    assert found["errors"] == 0
    assert found["width"] == width
    assert found["scrollWidth"] <= width
    assert found["resources"] == []
    assert not any(figure["outside"] for figure in found["figures"])
    assert all(rows > 1 for rows in found["tables"])


def test_json_is_one_object_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("chunking-overhead", "--json") == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["experiments"]["chunking-overhead"]["values"]
    assert err == ""


def test_the_list_has_all_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(STUDIES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["figure-99", "--json"], "figure-99 is no experiment, expected some of stalls, "),
        (["--json"], "no experiment is named"),
        (["ablation"], "--out is missing"),
        (["ablation", "--json", "--traces", "/none"], "has no file sharegpt_8k.csv"),
        (["ablation", "--out", "/proc/none/x"], "cannot be made"),
    ],
)
def test_bad_input_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        run(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--requests", "2"], "'2' is not an integer at least 8"),
        (["--seed", "-1"], "'-1' is not an integer at least 0"),
    ],
)
def test_numbers_have_bounds(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(["ablation", "--json", *words])
    assert message in capsys.readouterr().err


def test_an_unknown_name_ends_with_2_and_all_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["reproduce", "figure-99", "--out", "/nowhere"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sarathi reproduce: error: figure-99 is no experiment")
    assert all(name in err for name in STUDIES)


def test_describing_the_command_does_not_import_matplotlib() -> None:
    look = "import sarathi.cli.reproduce, sys; print('matplotlib' in sys.modules)"
    command = [sys.executable, "-c", look]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
