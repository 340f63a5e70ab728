"""Seconds of work on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

_WARM_UPS = 3
_SAMPLES = 7
_SAMPLE_SECONDS = 0.01  # of a sample, at least: events resolve half a microsecond
_MOST_CALLS = 1000  # in a sample


def seconds_per_call(call: Callable[[], object], device: torch.device) -> float:
    """Measure the median time of a call.

    On a GPU the call is captured in a CUDA graph, so that the time is that of its kernels and not
    of launching them, and measured with events. Where it cannot be captured, it is launched many
    times in a row.

    Args:
        call: the same work every time, on tensors that stay where they are.
    """
    for _ in range(_WARM_UPS):
        call()
    if device.type == "cpu":
        return _sampled(call, _elapsed_on_cpu)
    torch.cuda.synchronize(device)
    return _sampled(_captured(call), _elapsed_on_gpu)


def _sampled(
    call: Callable[[], object], elapsed: Callable[[Callable[[], object], int], float]
) -> float:
    once = elapsed(call, 1)
    calls = max(1, min(_MOST_CALLS, int(_SAMPLE_SECONDS / max(once, 1e-9))))
    return median(elapsed(call, calls) / calls for _ in range(_SAMPLES))


def _elapsed_on_cpu(call: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - began


def _elapsed_on_gpu(call: Callable[[], object], calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _captured(call: Callable[[], object]) -> Callable[[], object]:
    """The replay of a graph of the call, or the call where it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call

    def replay(keep: object = kept) -> None:  # its memory belongs to the graph
        graph.replay()

    return replay
