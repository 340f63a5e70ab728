"""The next tokens of the requests of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sarathi.engine.messages import TokenLogprobs
from sarathi.engine.sampler import LogitsError, Sampled, Sampler
from sarathi.models.weights import Array
from sarathi.scheduling import Request

Logprobs = dict[int, TokenLogprobs]  # by request id, of those that asked


class Drawn(NamedTuple):
    """Tokens are in the order of the requests; those of cancelled and failed ones mean nothing."""

    tokens: Sequence[int]
    logprobs: Logprobs
    failed: list[Request]  # no token can be chosen for them


NOTHING = Drawn((), {}, [])


def draw(
    sampler: Sampler,
    slots: Mapping[int, int],
    logits: Array,
    requests: Sequence[Request],
) -> Drawn:
    """Sample a token for each request that has not been cancelled since its batch began.

    Args:
        slots: the sampler's, by request id.
        logits: float32 [requests, vocab_size]; only read.
    """
    values = np.asarray(logits, np.float32)  # what they are already
    rows = [row for row, request in enumerate(requests) if not request.cancelled]
    failed: list[Request] = []
    while rows:
        whole = len(rows) == len(requests)
        going = requests if whole else [requests[row] for row in rows]
        named = np.array([slots[request.id] for request in going], np.int64)
        try:
            sampled = sampler.sample(values if whole else values[rows], named)
        except LogitsError as error:
            failed += [going[row] for row in error.rows]
            bad = {rows[row] for row in error.rows}
            rows = [row for row in rows if row not in bad]
            continue
        tokens: list[int] = sampled.tokens.tolist()
        if not whole:
            by_row = dict(zip(rows, tokens, strict=True))
            tokens = [by_row.get(row, 0) for row in range(len(requests))]
        return Drawn(tokens, _by_request(going, sampled), failed)
    return Drawn([0] * len(requests), {}, failed)


def _by_request(requests: Sequence[Request], sampled: Sampled) -> Logprobs:
    if sampled.logprobs is None:
        return {}
    return {r.id: entry for r, entry in zip(requests, sampled.logprobs, strict=True) if entry}
