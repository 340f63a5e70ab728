"""Overlapped scheduling on a GPU: the host prepares the next step while a step computes.

A step is launched together with its sampling, and its token ids stay on the device, where the
next step reads them (`Step.token_ids` below 0 refer to the slot that a token was sampled for). So
a second step can be launched before the host has the tokens of the first.
"""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

import torch

from sarathi.backends.runner import NO_SLOTS, NOTHING_SAMPLED, StepResult
from sarathi.backends.step import I64, Step, StepError
from sarathi.backends.torch.torch_devices import (
    DeviceEvent,
    as_array,
    computing,
    record_event,
    to_host,
)
from sarathi.backends.torch.torch_executor import TorchExecutor
from sarathi.backends.torch.torch_sampler import PendingSample, PendingScores, TorchSampler
from sarathi.sampling.logprobs import ScoredRows
from sarathi.sampling.sampler import RequestSlots
from sarathi.telemetry.recorder import StageTime

_POLL = 50e-6  # seconds between two queries of an event


class _Launched(NamedTuple):
    sample: PendingSample | None
    scores: PendingScores | None
    pooled: torch.Tensor | None  # in the host's memory once the end has been reached
    start: DeviceEvent
    end: DeviceEvent


class OverlappedRunner:
    """See `Runner`. Two steps may be in flight: one that computes, one that waits behind it."""

    depth = 2
    looks_ahead = True

    def __init__(self, executor: TorchExecutor, sampler: TorchSampler) -> None:
        """Use an executor that has the whole model, and a sampler on its device."""
        self._executor = executor
        self._sampler = sampler
        self._in_flight: deque[_Launched] = deque()
        self._last_end: DeviceEvent | None = None  # of the step whose result was returned last

    @property
    def sampler_slots(self) -> RequestSlots:
        return self._sampler

    @property
    def is_free(self) -> bool:
        return len(self._in_flight) < self.depth

    def submit(self, step: Step, slots: I64 = NO_SLOTS, scored: ScoredRows | None = None) -> None:
        if not self.is_free:
            raise StepError(f"{self.depth} steps are in flight already, no more can be")
        device = self._executor.device
        with computing(device):
            start = record_event(device, timing=True)
            logits = self._executor.launch(step, last_tokens=self._sampler.last_tokens)
            pooled = self._executor.launched_pooled
            if pooled is not None:
                pooled = to_host(pooled)
            scores = None
            if scored is not None:
                scores = self._sampler.launch_scores(logits[len(slots) :], scored)
                logits = logits[: len(slots)]
            sample = self._sampler.launch(logits, slots) if len(slots) else None
            end = record_event(device, timing=True)
            self._in_flight.append(_Launched(sample, scores, pooled, start, end))

    def wait(self, seconds: float) -> bool:
        if not self._in_flight:
            return False
        end = time.monotonic() + seconds
        while not self._in_flight[0].end.query():
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL)
        return True

    def result(self) -> StepResult:
        sample, scores, pooled, start, end = self._in_flight.popleft()
        end.synchronize()
        sampled = NOTHING_SAMPLED if sample is None else sample.result()
        waited = 0.0
        if self._last_end is not None:
            waited = max(0.0, self._last_end.elapsed_time(start) / 1e3)
        self._last_end = end
        stages = (StageTime(waited, start.elapsed_time(end) / 1e3),)
        return StepResult(
            sampled,
            stages,
            scores=() if scores is None else scores.result(),
            pooled=None if pooled is None else as_array(pooled),
        )

    def abandon(self) -> None:
        for launched in self._in_flight:
            launched.end.synchronize()
        self._in_flight.clear()

    def check(self) -> None:
        """See `Runner`: there are no workers."""

    def close(self) -> None:
        """See `Runner`: there are no workers."""
