from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sarathi.cli import main, reproduce
from sarathi.cli.arguments import parse_options
from sarathi.errors import UsageError
from sarathi.simulator.reproduction.evaluation import STUDIES

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LOOK = """
<script>
let errors = 0;
window.onerror = () => { errors += 1; };
window.addEventListener("load", () => {
  const outside = [...document.querySelectorAll("svg")]
    .map((svg) => [svg, svg.getBoundingClientRect()])
    .filter(([svg, box]) => box.width > 0 && box.height > 0)
    .flatMap(([svg, box]) => [...svg.querySelectorAll("text")].filter((text) => {
      const own = text.getBoundingClientRect();
      return own.left < box.left - 2 || own.right > box.right + 2 ||
        own.top < box.top - 2 || own.bottom > box.bottom + 2;
    }).map((text) => text.textContent));
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = JSON.stringify({
    errors, outside,
    width: window.innerWidth,
    scrollWidth: document.documentElement.scrollWidth,
    resources: performance.getEntriesByType("resource").map((entry) => entry.name),
    tables: [...document.querySelectorAll("table")].map((table) => table.rows.length),
  });
  document.body.append(found);
});
</script>
"""
# No window is as narrow as a phone.
FRAME = """<!DOCTYPE html><meta charset="utf-8">
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
window.addEventListener("load", () => {{
  document.body.append(document.querySelector("iframe").contentDocument.getElementById("found"));
}});
</script>
"""


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
    assert BROWSER is not None
    page = (folder / "index.html").read_text().replace("</head>", f"{LOOK}</head>", 1)
    path = tmp_path / "looked-at.html"
    path.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    command = [
        BROWSER,
        *["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"],
        *["--disable-background-networking", "--disable-component-update"],
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1300,900",
        "--dump-dom",
        path.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    match = re.search(r'<pre id="found">(.*?)</pre>', dom, flags=re.DOTALL)
    assert match is not None, dom[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    assert found["errors"] == 0
    assert found["width"] == width
    assert found["scrollWidth"] <= width
    assert found["resources"] == []
    assert found["outside"] == []
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
