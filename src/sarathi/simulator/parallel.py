"""Many simulations at a time, one on each core."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from sarathi.system.machine import usable_cores

Result = TypeVar("Result")


def run_all(
    jobs: Sequence[Callable[[], Result]],
    *,
    on_result: Callable[[int, Result], None] = lambda index, result: None,
    workers: int | None = None,
) -> list[Result]:
    """Return the results of all jobs, in their order. The first error ends all.

    Args:
        jobs: of functions and values that can be sent to other processes.
        on_result: called in this process with the index of a job and its result, as they arrive.
        workers: processes; None: one for each core that may be used.
    """
    workers = min(len(jobs), workers or usable_cores())
    found: dict[int, Result] = {}
    if workers <= 1:
        for index, job in enumerate(jobs):
            found[index] = job()
            on_result(index, found[index])
        return list(found.values())
    context = multiprocessing.get_context("spawn")  # inherits no locks and no threads
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts)
    try:
        futures = {pool.submit(job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            index = futures[future]
            found[index] = future.result()
            on_result(index, found[index])
    except BaseException:
        # Running jobs could go on for minutes, though their results are not needed any more.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
    return [found[index] for index in range(len(jobs))]


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
