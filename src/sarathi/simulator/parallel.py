"""Many simulations at a time, one on each core."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from sarathi.system.machine import usable_cores

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_all(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    done: Callable[[int, Result], None] = lambda index, result: None,
    workers: int | None = None,
) -> list[Result]:
    """The results of all jobs, in their order. The first error ends all.

    Args:
        function: of a module, as jobs and results must be such that processes can exchange them.
        done: is called in this process with the index of a job and its result, as they come.
        workers: processes; None: one for each core that may be used.
    """
    workers = min(len(jobs), workers or usable_cores())
    if workers <= 1:
        results = []
        for index, job in enumerate(jobs):
            results.append(function(job))
            done(index, results[-1])
        return results
    found: dict[int, Result] = {}
    context = multiprocessing.get_context("spawn")  # inherits no locks and no threads
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_signals)
    try:
        futures = {pool.submit(function, job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            index = futures[future]
            found[index] = future.result()
            done(index, found[index])
    except BaseException:
        # What runs could go on for minutes, and nobody would wait for it.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
    return [found[index] for index in range(len(jobs))]


def _leave_signals() -> None:
    """Ctrl-C in a terminal reaches all processes: it is for the one that asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
