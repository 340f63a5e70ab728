"""The loop at the centre: schedule, execute, sample, publish.

`EngineCore.step` is one turn of it. `_schedule_ahead` asks the scheduler for batches and submits
them to the runner, which executes and samples; `_complete` hands the tokens to the scheduler and
publishes them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sarathi.backends.runner import NO_SLOTS, NOTHING_SAMPLED, Runner, StepResult
from sarathi.backends.step import build_step
from sarathi.engine.iteration_timing import LatencyObserver, LaunchTimer
from sarathi.engine.messages import Refusal, TokenOutput
from sarathi.engine.prompt_outputs import PromptOutputs
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
from sarathi.telemetry.recorder import IterationRecord, Recorder, StageTotals
from sarathi.telemetry.stats import Stats

_DEFAULT_SCHEDULING = SchedulingParams()
_NO_TOKEN_MESSAGE = "no token can be chosen: all are barred, or the model gave no finite logits"
_NO_ACCURACY = Accuracy()
_POLL_SECONDS = 0.005  # until a request may have arrived that could be scheduled
_NOT_COMPUTED = StepResult(NOTHING_SAMPLED, ())


class StepOutcome(NamedTuple):
    """What one iteration produced."""

    outputs: list[TokenOutput]
    failures: list[Refusal]  # requests that cannot go on; they have been forgotten


class _InFlight(NamedTuple):
    """A batch whose result has not been fetched. Times: time.monotonic."""

    batch: Batch
    began: float  # before it was scheduled
    scheduled: float
    submitted: float
    after_idle: bool  # whether the engine was idle before it


class EngineCore:
    """One model, one scheduler, as many batches in flight as the runner takes.

    Not thread-safe. No call blocks for longer than the runner takes for one batch.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        eos_ids: Sequence[int],
        recorders: Sequence[Recorder] = (),
    ) -> None:
        """Connect a runner and a scheduler.

        Both have as many KV blocks, and as many batches in flight. `eos_ids` end a request, unless
        it ignores them; the recorders get a record of every iteration.
        """
        self.scheduler = scheduler
        self._runner = runner
        self._eos_ids = tuple(eos_ids)
        self._recorders = recorders
        self._slots: dict[int, int] = {}  # of the sampler, by request id
        self._prompt_outputs = PromptOutputs()
        self._in_flight: deque[_InFlight] = deque()
        self._after_idle = True  # whether the next batch is the first since the engine was idle
        self._exhausted = False  # nothing can be scheduled beside what is in flight
        self._latency_observer = LatencyObserver(scheduler.latency_model)
        self._launch_timer = LaunchTimer()
        self._executed = 0.0  # when the previous batch had been computed
        self._stages = StageTotals()

    def submit(
        self,
        request_id: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        arrival: float,
        scheduling_params: SchedulingParams = _DEFAULT_SCHEDULING,
        output_ids: Sequence[int] = (),
        num_scored: int = 0,
    ) -> None:
        """Queue a request; `AdmissionError`, with the reason, if it can never run.

        Args:
            arrival: seconds, of time.monotonic.
            output_ids: tokens generated before, perhaps by another engine; generation continues
                after them.
            num_scored: likewise log probabilities of the prompt.
        """
        max_output = self.scheduler.max_model_len - len(prompt_ids)
        if max_output < 1 and params.max_tokens != 0:
            raise AdmissionError(
                f"the prompt has {len(prompt_ids)} tokens, which leaves no room for output within "
                f"the model's length of {self.scheduler.max_model_len} tokens"
            )
        vocab_size = self._runner.sampler_slots.vocab_size
        for name, ids in (("prompt", prompt_ids), ("output", output_ids)):
            if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
                raise AdmissionError(
                    f"the {name} holds a token id outside the vocabulary of 0 to {vocab_size - 1}"
                )
        stop_ids = frozenset(params.stop_token_ids)
        # After the end of its grammar, an output cannot go on, whatever else was asked for.
        constrained = params.grammar is not None
        criteria = StopCriteria(
            max_tokens=max_output if params.max_tokens is None else params.max_tokens,
            min_tokens=0 if constrained else params.min_tokens,
            stop_ids=(
                stop_ids if params.ignore_eos and not constrained else stop_ids.union(self._eos_ids)
            ),
        )
        request = Request(
            request_id,
            prompt_ids,
            criteria,
            arrival,
            scheduling_params,
            list(output_ids),
            constrained=constrained,
        )
        if output_ids and request.finish_reason() is not None:
            raise AdmissionError("the output to go on with has ended already")
        self._prompt_outputs.open(request, params, num_scored)
        self.scheduler.add(request)
        self._exhausted = False
        try:
            slot = self._runner.sampler_slots.open(params, prompt_ids, self._eos_ids, output_ids)
        except ValueError as error:
            self.scheduler.cancel(request_id)
            self._close_ended_slots()
            raise AdmissionError(str(error)) from error
        self._slots[request_id] = slot
        for recorder in self._recorders:
            recorder.arrived(request)

    def cancel(self, request_id: int) -> None:
        """Forget a request; does nothing if it has ended or is unknown."""
        if self.scheduler.cancel(request_id):
            self._exhausted = False
            self._close_ended_slots()
            for recorder in self._recorders:
                recorder.cancelled(request_id, time.monotonic())
            if not self.scheduler.has_work:
                self.on_idle()

    @property
    def runner(self) -> Runner:
        """The runner of the steps; another engine may use it while this one has no requests."""
        return self._runner

    @property
    def has_work(self) -> bool:
        """Whether there are requests that have not ended."""
        return self.scheduler.has_work

    def step(self) -> StepOutcome:
        """Submit a batch if the runner is free, and complete the oldest if it is computed.

        With one stage that is one iteration: at most one token for every running request. With
        several, it may only wait a little, so that its caller can submit new requests.

        Raises:
            ExecutorError: a process of the engine has died or failed. As with any exception,
                nothing is in flight afterwards. A runner that looks ahead may have sampled tokens
                that are dropped: requests that go on sample others.
        """
        try:
            self._schedule_ahead()
            if not (self._in_flight and self._runner.wait(self._wait_seconds())):
                return StepOutcome([], [])
            result = self._runner.result()
            sampled = time.monotonic()
            oldest = self._in_flight.popleft()
            if self._in_flight:
                self._launch_timer.batch_started(sampled, self._in_flight[0].batch.predicted)
            return self._complete(oldest, result, sampled)
        except BaseException:  # Ctrl-C, in a process that goes on
            self._abandon()
            raise

    def _wait_seconds(self) -> float:
        """Return how long to wait for a result before there may be something else to do."""
        if self._runner.looks_ahead and self._runner.is_free and not self._exhausted:
            return min(max(0.0, self._launch_timer.seconds_left(time.monotonic())), _POLL_SECONDS)
        return _POLL_SECONDS

    def _schedule_ahead(self) -> None:
        """Schedule and submit batches until the runner is busy or nothing more can run."""
        in_flight, scheduler = self._in_flight, self.scheduler
        while self._runner.is_free and not (self._exhausted and in_flight):
            began = time.monotonic()
            looks_ahead = self._runner.looks_ahead and bool(in_flight)
            if looks_ahead and self._launch_timer.seconds_left(began) > 0:
                break
            batch = scheduler.schedule(began)
            if batch is None:
                self._exhausted = True
                break
            scheduled = submitted = time.monotonic()
            if not batch.slices:  # requests were preempted, and nothing more
                preempting = _InFlight(batch, began, scheduled, submitted, self._after_idle)
                self._complete(preempting, _NOT_COMPUTED, submitted)
                continue
            slots = [self._slots[request.id] for request in batch.sampling]
            step = build_step(batch, scheduler.pool.block_size, self._slots)
            scored = self._prompt_outputs.scored_rows(batch)
            self._runner.submit(step, np.array(slots, np.int64) if slots else NO_SLOTS, scored)
            submitted = time.monotonic()
            has_prompts = batch.num_decodes < len(batch.slices)
            self._launch_timer.batch_submitted(began, submitted, prompts=has_prompts)
            if not in_flight:
                self._launch_timer.batch_started(submitted, batch.predicted)
            in_flight.append(_InFlight(batch, began, scheduled, submitted, self._after_idle))
            self._after_idle = False

    def _complete(self, computed: _InFlight, result: StepResult, sampled: float) -> StepOutcome:
        batch = computed.batch
        executed = sampled - result.sampling
        self._exhausted = False
        tokens: list[int] = result.sampled.tokens.tolist()
        failures = self._cancel_failed(batch, tokens)
        of_prompts = self._prompt_outputs.collect(batch, result)
        progressed = self.scheduler.complete(batch, tokens, sampled)
        outputs = self._token_outputs(progressed, _logprobs(batch, result.sampled))
        self._close_ended_slots()
        ended = time.monotonic()
        if result.stages:
            self._stages.add(result.stages, computed.after_idle)
            overhead = computed.submitted - computed.began + ended - executed
            self._latency_observer.observe(
                batch,
                computed.began,
                ended,
                overhead,
                result.stages,
                waited=result.sampled.waited,
            )
        if self._recorders:
            parts = [("schedule", computed.scheduled)]
            if self._runner.looks_ahead and self._executed > computed.scheduled:
                parts.append(("queue", self._executed))  # behind the previous batch
            parts += [("execute", executed), ("sample", sampled), ("publish", ended)]
            self._record(computed, result, outputs, parts)
        self._executed = executed
        if not self.scheduler.has_work:
            self.scheduler.check()
            self.on_idle()
        outputs = [*of_prompts, *outputs] if of_prompts else outputs
        return StepOutcome(outputs, failures)

    def _abandon(self) -> None:
        try:
            self._runner.abandon()
        finally:
            self._in_flight.clear()
            self.scheduler.abandon_batches()
            self._close_ended_slots()
            self._exhausted = False
            self._after_idle = True
            self._latency_observer.on_idle()

    def on_idle(self) -> None:
        """Flush the records, and do not count the pause as latency; for when there is no work."""
        self._after_idle = True
        self._latency_observer.on_idle()
        for recorder in self._recorders:
            recorder.flush()

    def check(self) -> None:
        """Check, when there is no work, that all processes live; `ExecutorError` if not."""
        self._runner.check()

    def close(self) -> None:
        """End the other processes of the engine, and finish the recorded files."""
        try:
            self._runner.close()
        finally:
            for recorder in self._recorders:
                recorder.close()

    @property
    def stats(self) -> Stats:
        """The state of the scheduler and the counters since the start."""
        scheduler = self.scheduler
        model = scheduler.latency_model
        accuracy = _NO_ACCURACY if model is None else model.accuracy
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
        computed: _InFlight,
        result: StepResult,
        outputs: list[TokenOutput],
        parts: Sequence[tuple[str, float]],
    ) -> None:
        scheduler = self.scheduler
        record = IterationRecord(
            batch=computed.batch,
            outputs=outputs,
            begin=computed.began,
            end=parts[-1][1],
            parts=parts,
            stages=result.stages,
            after_idle=computed.after_idle,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_blocks=scheduler.pool.num_free,
            cached_blocks=scheduler.pool.num_cached,
            total_blocks=scheduler.pool.num_blocks,
        )
        for recorder in self._recorders:
            recorder.record(record)

    def _cancel_failed(self, batch: Batch, tokens: Sequence[int]) -> list[Refusal]:
        """Cancel the requests that no token can be sampled for, and return why."""
        if NO_TOKEN not in tokens:
            return []
        rows = zip(batch.sampling, tokens, strict=True)
        failed = [request for request, token in rows if token == NO_TOKEN and not request.cancelled]
        slots = self._runner.sampler_slots
        reasons = [slots.failure(self._slots[request.id]) for request in failed]
        for request in failed:
            self.cancel(request.id)  # in flight: the scheduler drops its token on completion
        return [
            Refusal(request.id, reason or _NO_TOKEN_MESSAGE)
            for request, reason in zip(failed, reasons, strict=True)
        ]

    def _token_outputs(
        self, progressed: list[Request], logprobs: Mapping[int, TokenLogprobs]
    ) -> list[TokenOutput]:
        outputs = []
        for request in progressed:
            if not request.output_ids:
                outputs.append(self._prompt_outputs.end(request))
                continue
            reason = request.finish_reason()
            token = request.output_ids[-1]
            first = len(request.output_ids) == 1
            cached = request.num_cached if first else 0
            delay = request.scheduling_delay if first else None
            outputs.append(
                TokenOutput(request.id, token, reason, logprobs.get(request.id), cached, delay)
            )
        return outputs

    def _close_ended_slots(self) -> None:
        """Free the sampler slots of requests that no batch in flight samples for any more."""
        for request_id in self.scheduler.take_ended_ids():
            self._prompt_outputs.close(request_id)
            slot = self._slots.pop(request_id, None)
            if slot is not None:  # None if it could not be opened
                self._runner.sampler_slots.close(slot)


def _logprobs(batch: Batch, sampled: SamplerOutput) -> Mapping[int, TokenLogprobs]:
    """Return the log probabilities of the requests that asked for them, by request id."""
    if sampled.logprobs is None:
        return {}
    rows = zip(batch.sampling, sampled.logprobs, strict=True)
    return {request.id: entry for request, entry in rows if entry is not None}
