"""What a request changes in its logits before a token is chosen: bias, barred tokens, penalties."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sarathi.sampling.params import SamplingError, SamplingParams

_LARGEST = np.finfo(np.float32).max


class Edits:
    """The changes of one request, as sparse lists of token ids.

    Tokens are counted only if a penalty asks for it.

    Raises:
        SamplingError: a token id of the parameters is outside the vocabulary.
        ValueError: a token id of the prompt or of the output is.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
        eos_ids: Sequence[int],
        vocab_size: int,
    ) -> None:
        for field, ids in (
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        ):
            outside = [token for token in ids if token >= vocab_size]
            if outside:
                raise SamplingError(
                    field, f"has the token id {outside[0]}, expected at most {vocab_size - 1}"
                )
        self.bias_ids = np.array(list(params.logit_bias), np.int64)
        self.bias = np.array(list(params.logit_bias.values()), np.float32)
        ending = set(params.stop_token_ids)
        if not params.ignore_eos:
            # An end-of-sequence id the model has no logit for can never be generated.
            ending.update(token for token in eos_ids if 0 <= token < vocab_size)
        self.barred_ids = np.array(sorted(ending), np.int64)

        self.repetition = np.float32(params.repetition_penalty)
        self.frequency = np.float32(params.frequency_penalty)
        self.presence = np.float32(params.presence_penalty)
        self.counts_tokens = not (self.repetition == 1 and self.frequency == self.presence == 0)
        self._places: dict[int, int] = {}
        self._ids = np.empty(0, np.int64)
        self._counts = np.empty(0, np.float32)
        if self.counts_tokens:
            # Only the repetition penalty looks at the prompt.
            self._count(prompt_ids if self.repetition != 1 else (), output_ids, vocab_size)

    @property
    def lasting(self) -> bool:
        """Whether there is anything to do beside barring tokens at the start."""
        return self.counts_tokens or bool(len(self.bias_ids))

    @property
    def seen_ids(self) -> NDArray[np.int64]:
        """The different tokens that a penalty applies to."""
        return self._ids[: len(self._places)]

    @property
    def seen_counts(self) -> NDArray[np.float32]:
        """How often each of `seen_ids` is in the output; 0 for one of the prompt alone."""
        return self._counts[: len(self._places)]

    def add(self, token: int) -> None:
        """Count a token that has been generated."""
        if not self.counts_tokens:
            return
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(max(16, place), np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(max(16, place), np.float32)])
        self._ids[place] = token
        self._counts[place] += 1

    def _count(self, prompt_ids: Sequence[int], output_ids: Sequence[int], vocab_size: int) -> None:
        prompt, output = np.asarray(prompt_ids, np.int64), np.asarray(output_ids, np.int64)
        every = np.concatenate([prompt, output])
        if len(every) and not 0 <= every.min() <= every.max() < vocab_size:
            raise ValueError(f"a token id lies outside the vocabulary of {vocab_size}")
        self._ids, place = np.unique(every, return_inverse=True)
        self._counts = np.bincount(place[len(prompt) :], minlength=len(self._ids)).astype(
            np.float32
        )
        self._places = {token: index for index, token in enumerate(self._ids.tolist())}


def apply(
    edits: Sequence[Edits],
    barred: NDArray[np.bool_],
    starts: NDArray[np.int64],
    logits: NDArray[np.float32],
) -> None:
    """Change `logits` in place: bias, then bars, then penalties, as vLLM does.

    Args:
        edits: one per edited row.
        barred: [len(edits)], whether the tokens that end the request are barred now.
        starts: [len(edits)], where the row starts in `logits`.
        logits: flat.
    """
    rows = list(zip(starts.tolist(), edits, barred.tolist(), strict=True))

    biased = [(start, e) for start, e, _ in rows if len(e.bias_ids)]
    if biased:
        where, _ = _flatten(biased, lambda e: e.bias_ids)
        logits[where] += np.concatenate([e.bias for _, e in biased])

    stopped = [(start, e) for start, e, bar in rows if bar]
    if stopped:
        where, _ = _flatten(stopped, lambda e: e.barred_ids)
        logits[where] = -np.inf

    counted = [(start, e) for start, e, _ in rows if e.counts_tokens]
    if counted:
        where, lengths = _flatten(counted, lambda e: e.seen_ids)
        counts = np.concatenate([e.seen_counts for _, e in counted])
        repetition = _spread((e.repetition for _, e in counted), lengths)
        frequency = _spread((e.frequency for _, e in counted), lengths)
        presence = _spread((e.presence for _, e in counted), lengths)
        values = logits[where]
        values = np.where(values > 0, values / repetition, values * repetition)
        values -= frequency * counts + presence * (counts > 0)
        # A tiny repetition penalty may overflow; the token is then the likeliest, not an error.
        logits[where] = np.minimum(values, _LARGEST)


def _flatten(
    rows: Sequence[tuple[int, Edits]], ids: Callable[[Edits], NDArray[np.int64]]
) -> tuple[NDArray[np.int64], list[int]]:
    """The ids of all rows as places in the flat matrix, and how many each row has."""
    parts = [ids(edits) for _, edits in rows]
    lengths = [len(part) for part in parts]
    starts = np.repeat(np.array([start for start, _ in rows], np.int64), lengths)
    return np.concatenate(parts) + starts, lengths


def _spread(values: Iterable[np.float32], lengths: list[int]) -> NDArray[np.float32]:
    return np.repeat(np.array(list(values), np.float32), lengths)
