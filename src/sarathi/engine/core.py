"""The loop that everything serves: schedule, execute, sample, publish."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sarathi.engine.messages import Refusal, Stats, TokenLogprobs, TokenOutput
from sarathi.engine.records import IterationRecord, Recorder
from sarathi.engine.sampler import LogitsError, Sampled, Sampler
from sarathi.engine.sampling import SamplingParams
from sarathi.executors.step import Step, build_step
from sarathi.scheduling import (
    Accuracy,
    AdmissionError,
    Batch,
    Limits,
    Request,
    Scheduler,
    Terms,
)


class Executor(Protocol):
    """Runs steps; see `OpenVinoExecutor`."""

    def execute(self, step: Step) -> npt.NDArray[np.float32]: ...


_NO_TERMS = Terms()
_NO_TOKEN = "no token can be chosen: all are barred, or the model gave no finite logits"

_NO_MODEL = Accuracy()
_LOOP_SHARE = 0.1  # of an iteration: the most that the loop around it can take

Logprobs = dict[int, TokenLogprobs]  # by request id, of those that asked


class Outcome(NamedTuple):
    """What one iteration gave to the requests that took part."""

    outputs: list[TokenOutput]
    failures: list[Refusal]  # requests that cannot go on; they have been forgotten


class EngineCore:
    """One model, one scheduler. Not thread-safe; every call returns soon, `step` after one
    iteration."""

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        sampler: Sampler,
        eos_ids: Sequence[int],
        recorders: Sequence[Recorder] = (),
    ) -> None:
        """
        Args:
            recorders: are told of every iteration.
        """
        self.scheduler = scheduler
        self._executor = executor
        self._sampler = sampler
        self._eos_ids = tuple(eos_ids)
        self._recorders = recorders
        self._slots: dict[int, int] = {}  # request id to the sampler's slot
        self._ended: float | None = None  # the iteration before, None where there was a pause

    def submit(
        self,
        request_id: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        arrival: float,
        terms: Terms = _NO_TERMS,
    ) -> None:
        """Queue a request.

        Args:
            arrival: seconds, of time.monotonic.

        Raises:
            AdmissionError: it can never run; the message says why.
        """
        room = self.scheduler.max_model_len - len(prompt_ids)
        if room < 1:
            raise AdmissionError(
                f"the prompt has {len(prompt_ids)} tokens, which leaves no room for output within "
                f"the model's length of {self.scheduler.max_model_len} tokens"
            )
        vocab_size = self._sampler.vocab_size
        if prompt_ids and not (min(prompt_ids) >= 0 and max(prompt_ids) < vocab_size):
            raise AdmissionError(
                f"the prompt holds a token id outside the vocabulary of 0 to {vocab_size - 1}"
            )
        stop_ids = frozenset(params.stop_token_ids)
        limits = Limits(
            max_tokens=params.max_tokens or room,
            min_tokens=params.min_tokens,
            stop_ids=stop_ids if params.ignore_eos else stop_ids.union(self._eos_ids),
        )
        request = Request(request_id, prompt_ids, limits, arrival, terms)
        self.scheduler.add(request)
        try:
            slot = self._sampler.open(params, prompt_ids, self._eos_ids)
        except ValueError as error:
            self.scheduler.cancel(request_id)
            raise AdmissionError(str(error)) from error
        self._slots[request_id] = slot
        for recorder in self._recorders:
            recorder.arrived(request)

    def cancel(self, request_id: int) -> None:
        """Forget a request; harmless where it has ended or never was."""
        if self.scheduler.cancel(request_id):
            self._close(request_id)
            for recorder in self._recorders:
                recorder.cancelled(request_id, time.monotonic())

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def step(self) -> Outcome:
        """One iteration: at most one token for every running request."""
        try:
            return self._step()
        except BaseException:  # Ctrl-C, in a process that goes on
            self.scheduler.abandon_batches()
            raise

    def _step(self) -> Outcome:
        began = time.monotonic()
        batch = self.scheduler.schedule(began)
        if batch is None:
            return Outcome([], [])
        scheduled = time.monotonic()
        tokens: Sequence[int] = ()
        logprobs: Logprobs = {}
        failures: list[Refusal] = []
        if batch.slices:
            logits = self._executor.execute(build_step(batch, self.scheduler.pool.block_size))
        executed = time.monotonic()
        if sampling := batch.sampling:
            tokens, logprobs, failures = self._sample(logits, sampling)
        sampled = time.monotonic()
        outputs = self._publish(self.scheduler.complete(batch, tokens, sampled), logprobs)
        ended = time.monotonic()
        self._learn(batch, began, ended)
        if self._recorders:
            parts = (
                ("schedule", scheduled),
                ("execute", executed),
                ("sample", sampled),
                ("publish", ended),
            )
            self._record(batch, outputs, began, ended, parts)
        if not self.scheduler.has_work:
            self.scheduler.check()
            self.rest()
        return Outcome(outputs, failures)

    def rest(self) -> None:
        """There is nothing to do for a while."""
        self._ended = None
        for recorder in self._recorders:
            recorder.flush()

    def close(self) -> None:
        """Finish what is written down."""
        for recorder in self._recorders:
            recorder.close()

    @property
    def stats(self) -> Stats:
        scheduler = self.scheduler
        accuracy = _NO_MODEL if scheduler.model is None else scheduler.model.accuracy
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.prompts),
            free_blocks=scheduler.pool.num_free,
            cached_blocks=scheduler.pool.num_cached,
            total_blocks=scheduler.pool.num_blocks,
            preemptions=scheduler.running.num_preemptions,
            iterations=scheduler.num_iterations,
            prompt_tokens=scheduler.prefills.prompt_tokens,
            cached_tokens=scheduler.prefills.cached_tokens,
            relegations=scheduler.prefills.num_relegations,
            model_error_median=accuracy.median,
            model_error_p90=accuracy.p90,
        )

    def _learn(self, batch: Batch, began: float, ended: float) -> None:
        """How long such iterations take: from the end of the one before, as a reader waits."""
        took = ended - began
        if self._ended is not None:
            # Offline callers may take their time between iterations, which is not the machine's.
            took += min(began - self._ended, _LOOP_SHARE * took)
        self._ended = ended
        if batch.slices and self.scheduler.model is not None:
            self.scheduler.model.observe(batch.work, took)

    def _record(
        self,
        batch: Batch,
        outputs: list[TokenOutput],
        began: float,
        ended: float,
        parts: Sequence[tuple[str, float]],
    ) -> None:
        scheduler = self.scheduler
        record = IterationRecord(
            batch=batch,
            outputs=outputs,
            begin=began,
            end=ended,
            parts=parts,
            running=len(scheduler.running),
            waiting=len(scheduler.prompts),
            free_blocks=scheduler.pool.num_free,
            cached_blocks=scheduler.pool.num_cached,
            total_blocks=scheduler.pool.num_blocks,
        )
        for recorder in self._recorders:
            recorder.record(record)

    def _sample(
        self, logits: npt.NDArray[np.float32], requests: list[Request]
    ) -> tuple[list[int], Logprobs, list[Refusal]]:
        """A token for each request, log probabilities where asked, and who must end here."""
        slots = np.array([self._slots[request.id] for request in requests], np.int64)
        try:
            sampled = self._sampler.sample(logits, slots)
        except LogitsError as error:
            bad = error.rows
        else:
            return sampled.tokens.tolist(), _by_request(requests, sampled), []
        failures = [Refusal(requests[row].id, _NO_TOKEN) for row in bad]
        for failure in failures:
            self.cancel(failure.id)  # in flight: the scheduler drops its token on completion
        rows = np.setdiff1d(np.arange(len(requests)), bad)
        tokens = np.zeros(len(requests), np.int64)
        logprobs: Logprobs = {}
        if len(rows):
            sampled = self._sampler.sample(logits[rows], slots[rows])
            tokens[rows] = sampled.tokens
            logprobs = _by_request([requests[row] for row in rows], sampled)
        return tokens.tolist(), logprobs, failures

    def _publish(self, progressed: list[Request], logprobs: Logprobs) -> list[TokenOutput]:
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
            if reason:
                self._close(request.id)
        return outputs

    def _close(self, request_id: int) -> None:
        self._sampler.close(self._slots.pop(request_id))


def _by_request(requests: Sequence[Request], sampled: Sampled) -> Logprobs:
    if sampled.logprobs is None:
        return {}
    return {r.id: entry for r, entry in zip(requests, sampled.logprobs, strict=True) if entry}
