"""What requests ask of their prompts: log probabilities of its tokens, or an embedding.

A prompt is computed in chunks, which may be computed again after a preemption. `Request.wanted` has
the positions that are still to come, so that each is used once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sarathi.backends.runner import StepResult
from sarathi.engine.messages import TokenOutput
from sarathi.sampling.logprobs import ScoredRows
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import Batch, Request

_LEAST_NORM = 1e-12  # of hidden states that are divided by it


class PromptOutputs:
    """The requests that ask for any of it."""

    def __init__(self) -> None:
        self._alternatives: dict[int, int] = {}  # of log probabilities, by request id
        self._totals: dict[int, NDArray[np.float64]] = {}  # of hidden states, by request id

    def open(self, request: Request, params: SamplingParams, num_scored: int) -> None:
        """Note what a new request asks for; it has `num_scored` log probabilities already."""
        end = len(request.prompt_ids)
        if params.prompt_logprobs is not None:
            request.wanted = range(num_scored, end - 1)
            self._alternatives[request.id] = params.prompt_logprobs
        elif params.pooling is not None:
            request.pools = True
            request.wanted = range(0 if params.pooling == "mean" else end - 1, end)

    def close(self, request_id: int) -> None:
        """Forget a request; harmless for those that asked for nothing."""
        self._alternatives.pop(request_id, None)
        self._totals.pop(request_id, None)

    def scored_rows(self, batch: Batch) -> ScoredRows | None:
        """Return the tokens that the scored rows of a batch predict; None if it has no such row."""
        if not batch.num_scored:
            return None
        tokens: list[int] = []
        alternatives: list[int] = []
        for request, wanted in _wanted(batch, pools=False):
            tokens += request.prompt_ids[wanted.start + 1 : wanted.stop + 1]
            alternatives += [self._alternatives[request.id]] * len(wanted)
        return ScoredRows(np.array(tokens, np.int64), np.array(alternatives, np.int64))

    def collect(self, batch: Batch, result: StepResult) -> list[TokenOutput]:
        """Return the log probabilities that a batch has computed, and add up hidden states.

        To be called before the scheduler completes the batch; results of requests that have been
        cancelled are dropped.
        """
        found: list[TokenOutput] = []
        if batch.num_scored:
            scores = iter(result.scores)
            for request, wanted in _wanted(batch, pools=False):
                entries = [*islice(scores, len(wanted))]
                if not request.cancelled:
                    found.append(TokenOutput(request.id, prompt_logprobs=entries))
        if batch.num_pooled:
            assert result.pooled is not None
            end = 0
            for request, wanted in _wanted(batch, pools=True):
                start, end = end, end + len(wanted)
                total = result.pooled[start:end].sum(axis=0, dtype=np.float64)
                if request.id in self._totals:
                    total += self._totals[request.id]
                if not request.cancelled:
                    self._totals[request.id] = total
        return found

    def end(self, request: Request) -> TokenOutput:
        """Return the output of a request that ends with its prompt.

        The direction of a mean is that of the sum, and its length is 1 in any case.
        """
        embedding = None
        if (total := self._totals.get(request.id)) is not None:
            norm = max(float(np.linalg.norm(total)), _LEAST_NORM)
            embedding = (total / norm).astype("<f4").tobytes()
        return TokenOutput(
            request.id,
            finish_reason=request.finish_reason(),
            cached_tokens=request.num_cached,
            scheduling_delay=request.scheduling_delay,
            embedding=embedding,
        )


def _wanted(batch: Batch, *, pools: bool) -> Sequence[tuple[Request, range]]:
    """Return the rows of a batch in the order of its step."""
    rows = ((batch.slices[index].request, positions) for index, positions in batch.wanted())
    return [(request, positions) for request, positions in rows if request.pools == pools]
