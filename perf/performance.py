"""The README's section on performance: capacity and latencies, against prefill-prioritising.

Usage: python -m perf.performance [FOLDER]

Two servers with the same weights on the same executor: Sarathi with a latency target, and its
`vllm` policy, which computes whole prompts before anything else. Their capacities are measured as
with `sarathi capacity --start`, then both are compared at one rate. Results are kept in FOLDER
(benchmark-results/DATE); after an interruption, the same command continues. Where llama.cpp's
server is installed, its table in docs/performance.md is measured, too.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from perf import versus_llama_cpp
from perf.llama_cpp import LlamaCppError, find_server
from perf.report import MODEL
from sarathi.bench.report import CapacityWithRuns, write_report
from sarathi.bench.report.table import milliseconds, plain, seconds
from sarathi.bench.results import Capacity, Row, Run, compare_runs
from sarathi.bench.target import Target, ending_on_signals
from sarathi.cli.arguments import parse_options
from sarathi.cli.capacity import CapacityOptions, CapacitySearches
from sarathi.cli.compare import CompareOptions, measure_in_turns
from sarathi.cli.measurement import Screen

_ROOT = Path(__file__).parent.parent
_README = _ROOT / "README.md"
_IMAGES = _ROOT / "docs" / "images"
_SHOWN = ("capacity", "latency-by-rate")  # figures that the README shows

_OURS, _OTHER = "sarathi", "vllm policy"
SERVERS = (
    Target(_OURS, command=f"sarathi serve {MODEL} --port 8100 --tbt-target 200ms"),
    Target(
        _OTHER,
        command=f"sarathi serve {MODEL} --port 8101 --policy vllm --token-budget 8192",
    ),
)
PROMPTS, OUTPUTS = "lognormal:430,1400", "lognormal:60,130"  # tokens
_LOAD = ["--prompt-lengths", PROMPTS, "--output-lengths", OUTPUTS]
TARGET = 0.2  # seconds, of P99 TBT
REQUESTS = 30  # of a point at least
_CAPACITY = ["--tbt-target", f"{TARGET}"]
_LATENCIES = ["--rates", "0.5", "--rounds", "1", "--requests-per-point", "40"]
_MARKED = re.compile(r"(<!-- performance, by `make report` -->\n).*?(<!-- end -->)", re.DOTALL)


def default_folder() -> Path:
    return Path(f"benchmark-results/{date.today()}")


def searched(server: Target, folder: Path) -> CapacityWithRuns:
    """A server's capacity; runs that are in the folder already are taken from there."""
    options = parse_options(CapacityOptions, [*_LOAD, "--results", str(folder), *_CAPACITY])
    searches = CapacitySearches(
        options.servers, [server], tbt_target=TARGET, requests_per_point=REQUESTS
    )
    [found] = searches.run()
    return found


def section(capacities: Sequence[Capacity], rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """The text between the marks in the README."""
    first = capacities[0]
    of = {capacity.label: capacity for capacity in capacities}
    ours, other = of[_OURS].capacity, of[_OTHER].capacity
    if ours is None or other is None:
        sys.exit("a server has no capacity at all: there is nothing to compare")
    lines = [
        f"Measured on {first.machine}, client included, on {date.fromtimestamp(runs[0].began)}, "
        f"with {MODEL}: prompts of 430 tokens at the median and 1400 at P90, answers of 60 and "
        "130. The other server is the same engine with whole prompts first (`--policy vllm`), so "
        "that the scheduler is all that differs.",
        "",
        f"**Capacity.** Within {milliseconds(first.tbt_target)} between tokens at P99, Sarathi "
        f"serves {ours / other:.1f} times as many requests per second:",
        "",
        "| | requests/s | meets it for certain | misses it for certain |",
        "|---|---|---|---|",
        *(
            f"| {one.label} | {plain(one.capacity)} | {plain(one.low)} | {plain(one.high)} |"
            for one in capacities
        ),
        "",
        f"**Latencies** of the same {rows[0].requests} requests at {plain(rows[0].rate)} a second:",
        "",
        "| | TTFT P50 | TTFT P99 | TBT P50 | TBT P99 | longest gap P99 |",
        "|---|---|---|---|---|---|",
        *(f"| {row.label} | {_cells(row)} |" for row in rows),
        "",
        *(f"![{name}](docs/images/{name}.png)" for name in _SHOWN),
        "",
    ]
    return "\n".join(lines)


def _cells(row: Row) -> str:
    figures = row.figures
    cells = [seconds(figures[name]) for name in ("ttft_p50", "ttft_p99")]
    cells += [milliseconds(figures[name]) for name in ("tbt_p50", "tbt_p99", "max_gap_p99")]
    return " | ".join(cells)


def write(text: str, figures: Sequence[Path]) -> None:
    """Into the README, with the figures that it shows."""
    readme, found = _MARKED.subn(lambda marks: marks[1] + text + marks[2], _README.read_text())
    if not found:
        sys.exit(f"{_README} has no marks for the section")
    _README.write_text(readme)
    _IMAGES.mkdir(exist_ok=True)
    by_name = {figure.stem: figure for figure in figures}
    for name in _SHOWN:
        shutil.copy(by_name[name], _IMAGES / f"{name}.png")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    with ending_on_signals():
        found = [searched(server, folder) for server in SERVERS]
        words = [*_LOAD, "--results", str(folder), *_LATENCIES]
        runs = measure_in_turns(parse_options(CompareOptions, words), SERVERS, Screen(quiet=False))
    files = write_report(folder / "report.html", runs, found)
    rows = compare_runs(runs, [server.label for server in SERVERS])
    write(section([one.capacity for one in found], rows, runs), files[1:])
    try:
        llama_server = find_server()
    except LlamaCppError as error:
        print(f"llama.cpp: not measured, {error}")
        return
    compared, _ = versus_llama_cpp.measure(versus_llama_cpp.MODELS, llama_server)
    versus_llama_cpp.document(compared)
    print(f"the section in {_README} is new, and {files[0]} has all of it")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
