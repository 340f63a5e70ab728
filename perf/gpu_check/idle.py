"""The shares of time in which no kernel runs, and what the host does in an iteration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sarathi.scheduler import Request
from sarathi.telemetry.recorder import IterationRecord

Interval = tuple[float, float]  # begin and end, in microseconds

LONG_GAP = 5.0  # microseconds; about 1 lies between two kernels that were launched long before


@dataclass(frozen=True)
class IdleShares:
    """Time without a kernel or copy, from the begin of the first one to the end of the last."""

    whole: float  # share of that time
    long_gaps: float  # likewise, in gaps longer than LONG_GAP: there the GPU waits for the host


def idle_shares(run: Callable[[], object]) -> IdleShares:
    """Profile a call.

    The profiler slows the host down a little, so that the true shares are no higher.

    Raises:
        RuntimeError: the profiler saw no kernel.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    intervals = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    if not intervals:
        raise RuntimeError("the profiler saw no kernel on the GPU")
    return find_gaps(intervals)


def find_gaps(intervals: Iterable[Interval]) -> IdleShares:
    """Return how much of the time from first to last no interval covers."""
    ordered = sorted(intervals)
    first = busy_until = ordered[0][0]
    whole = in_long_gaps = 0.0
    for begin, end in ordered:
        gap = max(0.0, begin - busy_until)
        whole += gap
        in_long_gaps += gap if gap > LONG_GAP else 0.0
        busy_until = max(busy_until, end)
    time = busy_until - first
    return IdleShares(whole / time, in_long_gaps / time) if time else IdleShares(0.0, 0.0)


class HostTimes:
    """A recorder that adds up the parts of iterations on the host."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._iterations = 0

    @property
    def per_iteration(self) -> dict[str, float]:
        """Mean seconds of each part, in order."""
        return {name: spent / self._iterations for name, spent in self._seconds.items()}

    def reset(self) -> None:
        """Forget the iterations so far."""
        self._seconds.clear()
        self._iterations = 0

    def record(self, record: IterationRecord) -> None:
        before = record.begin
        for name, end in record.parts:
            self._seconds[name] += end - before
            before = end
        self._iterations += 1

    def arrived(self, request: Request) -> None:
        pass

    def cancelled(self, request_id: int, now: float) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
