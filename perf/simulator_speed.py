"""Measure the time of simulations, and how their memory grows with the requests.

Each search runs on one core. Memory is the most that was resident, measured in a separate process
for each number of requests.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

from perf.report import Figure, rounds, show

_MISTRAL = ["--model", "mistral-7b", "--device", "a100", "--workload", "sharegpt", "--json"]
_SEARCH = ["capacity", "--simulate", *_MISTRAL, "--tbt-target", "100ms"]
_POINT = ["simulate", *_MISTRAL, "--rate", "2", "--num-requests", "10000"]
_MANY = ["simulate", "--model", "mistral-7b", "--device", "a100", "--json", "--rate", "30"]
_MANY += ["--prompt-lengths", "fixed:100", "--output-lengths", "uniform:2,10", "--num-requests"]
_FEW, _LOTS = 20_000, 200_000


def timed(arguments: list[str]) -> float:
    """Return the seconds of a command, the start of Python included."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "sarathi.cli.main", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def memory(requests: int) -> float:
    """Return the most bytes that a simulation of so many requests had resident."""
    program = (
        "import sys; from sarathi.cli.main import main; main(sys.argv[1:]); "
        "sys.stderr.write(open('/proc/self/status').read())"
    )
    command = [sys.executable, "-c", program, *_MANY, str(requests)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    assert found is not None
    return 1024 * float(found[1])


def main() -> None:
    figures = []
    searches = {
        "search, policy vllm": ["--policy", "vllm"],
        "search, policy sarathi, budget 512": ["--token-budget", "512"],
        "search, policy sarathi, budget from the target": [],
    }
    for name, options in rounds(searches.items(), "searching"):
        figures.append(Figure(name, timed([*_SEARCH, *options]), "s", 60))
    figures.append(Figure("a point of 10,000 requests", timed(_POINT), "s", 20))
    few, lots = memory(_FEW), memory(_LOTS)
    figures.append(Figure(f"memory of {_FEW:,} requests", few / 1e6, "MB"))
    figures.append(Figure(f"memory of {_LOTS:,} requests", lots / 1e6, "MB"))
    grown = (lots - few) / (_LOTS - _FEW)
    figures.append(Figure("memory of one more request", grown, "bytes", 100))
    show("Simulations of Mistral-7B on one A100", figures)


if __name__ == "__main__":
    main()
