"""a. The tests that need a GPU."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from perf.gpu_check.context import Context
from perf.gpu_check.deadline import Deadline
from perf.gpu_check.outcomes import Outcomes, read_outcomes
from perf.report import Figure
from sarathi.system.machine import cpu_quota, usable_processors

_ROOT = Path(__file__).parents[2]
_MARK = "mark.gpu"
_MOST_PROCESSES = 12  # each has half a GB of the GPU's memory
_POLL = 0.05  # seconds
_STOPPING = 3.0  # seconds that pytest has to report where it was
_ENDED = (0, 1, 5)  # exit codes of pytest: all passed, some failed, there were none
_SHOWN = 5  # failures in the table; the file has all


def run(context: Context) -> None:
    """Run the tests marked `gpu` in separate processes; their output goes to the log.

    Raises:
        RuntimeError: a test failed, none ran although there is a GPU, or they took too long.
    """
    count = num_processes()
    context.progress(f"running the tests marked gpu, processes: {count}")
    found = run_tests(test_files(), count, context.deadline, context.log)
    context.data("tests", asdict(found))
    context.figure(Figure("tests passed", found.passed))
    context.figure(Figure("tests failed", len(found.failed), "", 0))
    context.figure(Figure("tests skipped", found.skipped))
    context.figure(Figure("tests not finished", len(found.unfinished)))
    for name, message in list(found.failed.items())[:_SHOWN]:
        context.note(f"{name}: {message.strip().splitlines()[0]}" if message.strip() else name)
    for problem in found.problems:
        context.note(problem)
    if found.failed:
        raise RuntimeError(f"{len(found.failed)} of the tests failed, see {context.log}")
    if found.problems:
        files = ", ".join(sorted({_file(name) for name in found.unfinished})) or "none had started"
        raise RuntimeError(f"{len(found.unfinished)} of the tests did not finish: {files}")
    if context.device.type == "cuda" and not found.passed:
        raise RuntimeError(f"no test ran on the GPU, see {context.log}")


def num_processes() -> int:
    """One for each processor: most of the time of these tests goes into compiling kernels."""
    processors = len(usable_processors())
    quota = cpu_quota()
    if quota is not None:
        processors = min(processors, math.ceil(quota))
    return max(1, min(_MOST_PROCESSES, processors))


def run_tests(files: Sequence[Path], count: int, deadline: Deadline, log: Path) -> Outcomes:
    """Run the tests marked `gpu` in `count` processes at the same time, each with its share.

    Args:
        deadline: by which they are stopped; outcomes until then count.
        log: the output of all processes is added to it, one after the other.
    """
    with tempfile.TemporaryDirectory() as folder:
        shards = [_Shard(Path(folder), number, count) for number in range(count)]
        try:
            with _running(shards, files, count) as processes:
                stopped = _stop_at(deadline, processes)
        finally:
            with log.open("ab") as file:
                for shard in shards:
                    file.write(f"tests, process {shard.number} of {count}\n".encode())
                    file.write(shard.output.read_bytes() if shard.output.exists() else b"")
        problems = []
        for number, process in enumerate(processes):
            if number in stopped:
                problems.append(f"test process {number} was stopped when its time was over")
            elif process.returncode not in _ENDED:
                problems.append(f"test process {number} ended with code {process.returncode}")
        return read_outcomes((shard.outcomes for shard in shards), problems)


class _Shard:
    """The files of one process."""

    def __init__(self, folder: Path, number: int, count: int) -> None:
        self.number = number
        self.name = f"{number}/{count}"
        self.outcomes = folder / f"{number}.jsonl"
        self.output = folder / f"{number}.log"
        self.cache = folder / "triton"  # the same for all


@contextmanager
def _running(
    shards: Sequence[_Shard], files: Sequence[Path], count: int
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the processes; none is left afterwards."""
    threads = max(1, len(usable_processors()) // count)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for shard in shards:
            command = [
                *(sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"),
                *("-p", "perf.gpu_check.sharding", "--continue-on-collection-errors"),
                *("--shard", shard.name, "--outcomes", str(shard.outcomes)),
                *map(str, files),
            ]
            environment = {"TRITON_CACHE_DIR": str(shard.cache), **os.environ}
            environment["OMP_NUM_THREADS"] = str(threads)
            with shard.output.open("wb") as output:
                processes.append(
                    subprocess.Popen(
                        command,
                        cwd=_ROOT,
                        env=environment,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                _signal(process, signal.SIGKILL)
                process.wait()


def _stop_at(deadline: Deadline, processes: Sequence[subprocess.Popen[bytes]]) -> set[int]:
    """Wait for all; at the deadline, stop those that run as Ctrl-C does.

    Returns:
        The numbers of those.
    """
    _wait(processes, deadline)
    running = {number for number, process in enumerate(processes) if process.poll() is None}
    for number in running:
        _signal(processes[number], signal.SIGINT)
    _wait(processes, Deadline(_STOPPING))
    return running


def _wait(processes: Sequence[subprocess.Popen[bytes]], deadline: Deadline) -> None:
    while deadline.left > 0 and any(process.poll() is None for process in processes):
        time.sleep(_POLL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def test_files() -> list[Path]:
    """The modules with such tests: others import libraries that a GPU image may lack."""
    tests = _ROOT / "tests"
    marked = {path for path in tests.rglob("test_*.py") if _MARK in path.read_text("utf-8")}
    # What is marked for a whole folder is so in its conftest.py.
    folders = [
        path.parent for path in tests.rglob("conftest.py") if _MARK in path.read_text("utf-8")
    ]
    return sorted(marked.union(*(folder.rglob("test_*.py") for folder in folders)))


def _file(name: str) -> str:
    return name.split("::", 1)[0]
