"""The share of time in which no kernel runs, and what the host does in an iteration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sarathi.engine.records import IterationRecord
from sarathi.scheduling import Request

Interval = tuple[float, float]  # begin and end


def idle_share(run: Callable[[], object]) -> float:
    """Profile a call, and return the share of time without a kernel or copy on the GPU.

    From the begin of the first kernel to the end of the last one. The profiler slows the host down
    a little, so that the true share is no higher.

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
    return 1 - busy_share(intervals)


def busy_share(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of intervals, as a share of the time from first to last."""
    ordered = sorted(intervals)
    first = busy_until = ordered[0][0]
    busy = 0.0
    for begin, end in ordered:
        busy += max(0.0, end - max(begin, busy_until))
        busy_until = max(busy_until, end)
    return busy / (busy_until - first) if busy_until > first else 1.0


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
