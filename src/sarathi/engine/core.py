"""The loop that everything serves: schedule, execute, sample, publish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sarathi.engine.messages import Refusal, Stats, TokenLogprobs, TokenOutput
from sarathi.engine.sampler import LogitsError, Sampled, Sampler
from sarathi.engine.sampling import SamplingParams
from sarathi.executors.step import Step, build_step
from sarathi.scheduling import AdmissionError, Limits, Request, Scheduler


class Executor(Protocol):
    """Runs steps; see `OpenVinoExecutor`."""

    def execute(self, step: Step) -> npt.NDArray[np.float32]: ...


_NO_TOKEN = "no token can be chosen: all are barred, or the model gave no finite logits"

Logprobs = dict[int, TokenLogprobs]  # by request id, of those that asked


class Outcome(NamedTuple):
    """What one iteration gave to the requests that took part."""

    outputs: list[TokenOutput]
    failures: list[Refusal]  # requests that cannot go on; they have been forgotten


class EngineCore:
    """One model, one scheduler. Not thread-safe; every call returns soon, `step` after one
    iteration."""

    def __init__(
        self, executor: Executor, scheduler: Scheduler, sampler: Sampler, eos_ids: Sequence[int]
    ) -> None:
        self.scheduler = scheduler
        self._executor = executor
        self._sampler = sampler
        self._eos_ids = tuple(eos_ids)
        self._slots: dict[int, int] = {}  # request id to the sampler's slot

    def submit(
        self, request_id: int, prompt_ids: Sequence[int], params: SamplingParams, arrival: float
    ) -> None:
        """Queue a request.

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
        request = Request(request_id, prompt_ids, limits, arrival)
        self.scheduler.add(request)
        try:
            slot = self._sampler.open(params, prompt_ids, self._eos_ids)
        except ValueError as error:
            self.scheduler.cancel(request_id)
            raise AdmissionError(str(error)) from error
        self._slots[request_id] = slot

    def cancel(self, request_id: int) -> None:
        """Forget a request; harmless where it has ended or never was."""
        if self.scheduler.cancel(request_id):
            self._close(request_id)

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
        batch = self.scheduler.schedule()
        if batch is None:
            return Outcome([], [])
        tokens: Sequence[int] = ()
        logprobs: Logprobs = {}
        failures: list[Refusal] = []
        if batch.slices:
            logits = self._executor.execute(build_step(batch, self.scheduler.pool.block_size))
            if sampling := batch.sampling:
                tokens, logprobs, failures = self._sample(logits, sampling)
        outputs = self._publish(self.scheduler.complete(batch, tokens), logprobs)
        if not self.scheduler.has_work:
            self.scheduler.check()
        return Outcome(outputs, failures)

    @property
    def stats(self) -> Stats:
        scheduler = self.scheduler
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_blocks=scheduler.pool.num_free,
            total_blocks=scheduler.pool.num_blocks,
            preemptions=scheduler.num_preemptions,
        )

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
            outputs.append(TokenOutput(request.id, token, reason, logprobs.get(request.id)))
            if reason:
                self._close(request.id)
        return outputs

    def _close(self, request_id: int) -> None:
        self._sampler.close(self._slots.pop(request_id))


def _by_request(requests: Sequence[Request], sampled: Sampled) -> Logprobs:
    if sampled.logprobs is None:
        return {}
    return {r.id: entry for r, entry in zip(requests, sampled.logprobs, strict=True) if entry}
