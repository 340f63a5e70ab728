"""The loop that everything serves: schedule, execute, sample, publish."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sarathi.backends.runner import NO_SLOTS, NOTHING_SAMPLED, Runner, StepResult
from sarathi.backends.step import build_step
from sarathi.engine.latency_observer import LatencyObserver
from sarathi.engine.look_ahead import LookAhead
from sarathi.engine.messages import Refusal, TokenOutput
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import NO_TOKEN, SamplerOutput
from sarathi.scheduler import (
    Accuracy,
    AdmissionError,
    Batch,
    Request,
    Scheduler,
    SchedulingParams,
    StopCriteria,
)
from sarathi.telemetry.recorder import IterationRecord, Recorder
from sarathi.telemetry.stages import StageTotals
from sarathi.telemetry.stats import Stats

_NO_TERMS = SchedulingParams()
_NO_TOKEN = "no token can be chosen: all are barred, or the model gave no finite logits"
_NO_MODEL = Accuracy()
_WAIT = 0.005  # seconds until a request may have come that could be scheduled
_NOT_COMPUTED = StepResult(NOTHING_SAMPLED, ())


class StepOutcome(NamedTuple):
    """What one iteration gave to the requests that took part."""

    outputs: list[TokenOutput]
    failures: list[Refusal]  # requests that cannot go on; they have been forgotten


class _UnderWay(NamedTuple):
    """A batch whose result has not been taken. Times: time.monotonic."""

    batch: Batch
    began: float  # when it was about to be scheduled
    scheduled: float
    submitted: float
    fresh: bool  # there was no work before it


class EngineCore:
    """One model, one scheduler, as many batches under way as the runner takes. Not thread-safe;
    every call returns soon, `step` when a batch has been computed at the latest."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        eos_ids: Sequence[int],
        recorders: Sequence[Recorder] = (),
    ) -> None:
        """
        Args:
            runner: has a KV cache of as many blocks as the scheduler.
            scheduler: made for as many micro-batches as the runner has under way.
            recorders: are told of every iteration.
        """
        self.scheduler = scheduler
        self._runner = runner
        self._eos_ids = tuple(eos_ids)
        self._recorders = recorders
        self._slots: dict[int, int] = {}  # of the sampler, by request id
        self._under_way: deque[_UnderWay] = deque()
        self._fresh = True  # there was no work before the next batch
        self._exhausted = False  # nothing can be scheduled beside what is under way
        self._pace = LatencyObserver(scheduler.latency_model)
        self._look_ahead = LookAhead()
        self._executed = 0.0  # when the batch before had been computed
        self._stages = StageTotals()

    def submit(
        self,
        request_id: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        arrival: float,
        terms: SchedulingParams = _NO_TERMS,
        output_ids: Sequence[int] = (),
    ) -> None:
        """Queue a request.

        Args:
            arrival: seconds, of time.monotonic.
            output_ids: what has been generated of it before, by another engine perhaps.

        Raises:
            AdmissionError: it can never run; the message says why.
        """
        room = self.scheduler.max_model_len - len(prompt_ids)
        if room < 1:
            raise AdmissionError(
                f"the prompt has {len(prompt_ids)} tokens, which leaves no room for output within "
                f"the model's length of {self.scheduler.max_model_len} tokens"
            )
        vocab_size = self._runner.slots.vocab_size
        for name, ids in (("prompt", prompt_ids), ("output", output_ids)):
            if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
                raise AdmissionError(
                    f"the {name} holds a token id outside the vocabulary of 0 to {vocab_size - 1}"
                )
        stop_ids = frozenset(params.stop_token_ids)
        limits = StopCriteria(
            max_tokens=params.max_tokens or room,
            min_tokens=params.min_tokens,
            stop_ids=stop_ids if params.ignore_eos else stop_ids.union(self._eos_ids),
        )
        request = Request(request_id, prompt_ids, limits, arrival, terms, list(output_ids))
        if request.finish_reason() is not None:
            raise AdmissionError("the output to go on with has ended already")
        self.scheduler.add(request)
        self._exhausted = False
        try:
            slot = self._runner.slots.open(params, prompt_ids, self._eos_ids, output_ids)
        except ValueError as error:
            self.scheduler.cancel(request_id)
            self._close_forgotten()
            raise AdmissionError(str(error)) from error
        self._slots[request_id] = slot
        for recorder in self._recorders:
            recorder.arrived(request)

    def cancel(self, request_id: int) -> None:
        """Forget a request; harmless where it has ended or never was."""
        if self.scheduler.cancel(request_id):
            self._exhausted = False
            self._close_forgotten()
            for recorder in self._recorders:
                recorder.cancelled(request_id, time.monotonic())
            if not self.scheduler.has_work:
                self.rest()

    @property
    def runner(self) -> Runner:
        """Runs the steps; another engine may use it while this one has no requests."""
        return self._runner

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def step(self) -> StepOutcome:
        """Put a batch under way if the runner is free, and complete the oldest if it is computed.

        With one stage that is one iteration: at most one token for every running request. With
        several, it may do nothing but wait a little, so that its caller can submit what has come.

        Raises:
            ExecutorError: a process that takes part has died or failed. As with any exception,
                nothing is under way afterwards. A runner that looks ahead may have sampled tokens
                that are given up: requests that go on draw others.
        """
        try:
            self._fill()
            if not (self._under_way and self._runner.wait(self._wait_seconds())):
                return StepOutcome([], [])
            computed = self._runner.result()
            ended = time.monotonic()
            completed = self._under_way.popleft()
            if self._under_way:
                self._look_ahead.started(ended, self._under_way[0].batch.predicted)
            return self._complete(completed, computed, ended)
        except BaseException:  # Ctrl-C, in a process that goes on
            self._abandon()
            raise

    def _wait_seconds(self) -> float:
        """How long to wait for a result before there may be something else to do."""
        if self._runner.looks_ahead and self._runner.is_free and not self._exhausted:
            return min(max(0.0, self._look_ahead.seconds_left(time.monotonic())), _WAIT)
        return _WAIT

    def _fill(self) -> None:
        under_way, scheduler = self._under_way, self.scheduler
        while self._runner.is_free and not (self._exhausted and under_way):
            began = time.monotonic()
            looks_ahead = self._runner.looks_ahead and bool(under_way)
            if looks_ahead and self._look_ahead.seconds_left(began) > 0:
                break
            batch = scheduler.schedule(began)
            if batch is None:
                self._exhausted = True
                break
            scheduled = submitted = time.monotonic()
            if not batch.slices:  # somebody was preempted, and nothing more
                preempting = _UnderWay(batch, began, scheduled, submitted, self._fresh)
                self._complete(preempting, _NOT_COMPUTED, submitted)
                continue
            slots = [self._slots[request.id] for request in batch.sampling]
            step = build_step(batch, scheduler.pool.block_size, self._slots)
            self._runner.submit(step, np.array(slots, np.int64) if slots else NO_SLOTS)
            submitted = time.monotonic()
            has_prompts = batch.num_decodes < len(batch.slices)
            self._look_ahead.made(began, submitted, prompts=has_prompts)
            if not under_way:
                self._look_ahead.started(submitted, batch.predicted)
            under_way.append(_UnderWay(batch, began, scheduled, submitted, self._fresh))
            self._fresh = False

    def _complete(self, under_way: _UnderWay, computed: StepResult, sampled: float) -> StepOutcome:
        batch = under_way.batch
        executed = sampled - computed.sampling
        self._exhausted = False
        tokens: list[int] = computed.sampled.tokens.tolist()
        failed = self._failed(batch, tokens)
        progressed = self.scheduler.complete(batch, tokens, sampled)
        outputs = self._publish(progressed, _logprobs(batch, computed.sampled))
        self._close_forgotten()
        ended = time.monotonic()
        if computed.stages:
            self._stages.add(computed.stages, under_way.fresh)
            own = under_way.submitted - under_way.began + ended - executed
            self._pace.learn(batch.work, under_way.began, ended, own, computed.stages)
        if self._recorders:
            parts = [("schedule", under_way.scheduled)]
            if self._runner.looks_ahead and self._executed > under_way.scheduled:
                parts.append(("queue", self._executed))  # behind the batch before
            parts += [("execute", executed), ("sample", sampled), ("publish", ended)]
            self._record(under_way, computed, outputs, parts)
        self._executed = executed
        if not self.scheduler.has_work:
            self.scheduler.check()
            self.rest()
        return StepOutcome(outputs, [Refusal(request.id, _NO_TOKEN) for request in failed])

    def _abandon(self) -> None:
        try:
            self._runner.abandon()
        finally:
            self._under_way.clear()
            self.scheduler.abandon_batches()
            self._close_forgotten()
            self._exhausted = False
            self._fresh = True
            self._pace.rest()

    def rest(self) -> None:
        """There is nothing to do for a while."""
        self._fresh = True
        self._pace.rest()
        for recorder in self._recorders:
            recorder.flush()

    def check(self) -> None:
        """Look whether all processes that take part are well; for when there is no work.

        Raises:
            ExecutorError: one has died or failed.
        """
        self._runner.check()

    def close(self) -> None:
        """End the processes that take part, and finish what is written down."""
        try:
            self._runner.close()
        finally:
            for recorder in self._recorders:
                recorder.close()

    @property
    def stats(self) -> Stats:
        scheduler = self.scheduler
        accuracy = (
            _NO_MODEL if scheduler.latency_model is None else scheduler.latency_model.accuracy
        )
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_blocks=scheduler.pool.num_free,
            cached_blocks=scheduler.pool.num_cached,
            total_blocks=scheduler.pool.num_blocks,
            preemptions=scheduler.running.num_preemptions,
            iterations=scheduler.num_iterations,
            prompt_tokens=scheduler.prefill_allocator.prompt_tokens,
            cached_tokens=scheduler.prefill_allocator.cached_tokens,
            relegations=scheduler.prefill_allocator.num_relegations,
            model_error_median=accuracy.median,
            model_error_p90=accuracy.p90,
            stage_busy=list(self._stages.busy),
            stage_bubble=list(self._stages.bubble),
        )

    def _record(
        self,
        under_way: _UnderWay,
        computed: StepResult,
        outputs: list[TokenOutput],
        parts: Sequence[tuple[str, float]],
    ) -> None:
        scheduler = self.scheduler
        record = IterationRecord(
            batch=under_way.batch,
            outputs=outputs,
            begin=under_way.began,
            end=parts[-1][1],
            parts=parts,
            stages=computed.stages,
            fresh=under_way.fresh,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_blocks=scheduler.pool.num_free,
            cached_blocks=scheduler.pool.num_cached,
            total_blocks=scheduler.pool.num_blocks,
        )
        for recorder in self._recorders:
            recorder.record(record)

    def _failed(self, batch: Batch, tokens: Sequence[int]) -> list[Request]:
        """Cancel the requests that no token can be sampled for, and return them."""
        if NO_TOKEN not in tokens:
            return []
        rows = zip(batch.sampling, tokens, strict=True)
        failed = [request for request, token in rows if token == NO_TOKEN and not request.cancelled]
        for request in failed:
            self.cancel(request.id)  # in flight: the scheduler drops its token on completion
        return failed

    def _publish(
        self, progressed: list[Request], logprobs: Mapping[int, TokenLogprobs]
    ) -> list[TokenOutput]:
        outputs = []
        for request in progressed:
            reason = request.finish_reason()
            token = request.output_ids[-1]
            first = len(request.output_ids) == 1
            cached = request.num_cached if first else 0
            delay = request.scheduling_delay if first else None
            outputs.append(
                TokenOutput(request.id, token, reason, logprobs.get(request.id), cached, delay)
            )
        return outputs

    def _close_forgotten(self) -> None:
        """Give up the slots of requests that no batch under way samples for any more."""
        for request_id in self.scheduler.take_ended_ids():
            slot = self._slots.pop(request_id, None)
            if slot is not None:  # there is none where it could not be opened
                self._runner.slots.close(slot)


def _logprobs(batch: Batch, sampled: SamplerOutput) -> Mapping[int, TokenLogprobs]:
    """By request id, of those that asked."""
    if sampled.logprobs is None:
        return {}
    rows = zip(batch.sampling, sampled.logprobs, strict=True)
    return {request.id: entry for request, entry in rows if entry is not None}
