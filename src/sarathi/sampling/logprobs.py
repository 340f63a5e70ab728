"""Log probabilities of sampled tokens and of the likeliest alternatives."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from sarathi.sampling.categorical import running_mass, select, top_k_floor


class TokenLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """Natural logarithms of the model's own probabilities at one position."""

    logprob: float  # of the sampled token
    rank: int  # of the sampled token; 1 is the most probable
    top_ids: list[int]  # most probable first
    top_logprobs: list[float]


class ScoredRows(NamedTuple):
    """What is asked of rows of logits whose tokens are known: those of prompts."""

    tokens: NDArray[np.int64]  # [rows], the token that follows each
    alternatives: NDArray[np.int64]  # [rows], how many of the most probable tokens to list


def unknown_logprobs() -> TokenLogprobs:
    """Return the entry of a row of logits that is not finite."""
    return TokenLogprobs(math.nan, 0, [], [])


def token_logprobs(
    logits: NDArray[np.float32],
    peaks: NDArray[np.float32],
    weights: NDArray[np.float32],
    tokens: NDArray[np.int64],
    alternatives: NDArray[np.int64],
) -> list[TokenLogprobs]:
    """Compute the log-softmax of each row at its token and its most probable ones.

    Ties go by token id.

    Args:
        logits: [rows, vocabulary], as the model gave them.
        peaks: [rows], the largest logit of each.
        weights: [rows, width], exp(logits - peak), padded with zeros.
        tokens: [rows], the sampled ones.
        alternatives: [rows], how many of the most probable tokens to list.
    """
    rows = np.arange(len(logits))
    normaliser = peaks.astype(np.float64) + np.log(running_mass(weights)[:, -1])
    chosen = logits[rows, tokens]
    top_ids, top_values = _largest(logits, np.minimum(alternatives, logits.shape[1]))
    top_logprobs = top_values.astype(np.float64) - normaliser[:, None]
    ranks = np.ones(len(logits), np.int64)
    for row in np.flatnonzero(chosen < peaks).tolist():
        ranks[row] += np.count_nonzero(logits[row] > chosen[row])
    return assemble(
        chosen.astype(np.float64) - normaliser, ranks, top_ids, top_logprobs, alternatives
    )


def assemble(
    logprobs: NDArray[np.float64],
    ranks: NDArray[np.int64],
    top_ids: NDArray[np.int64],
    top_logprobs: NDArray[np.float64],
    alternatives: NDArray[np.int64],
) -> list[TokenLogprobs]:
    """Make an entry of each row of arrays.

    Args:
        logprobs: [rows], of the sampled tokens; likewise `ranks`.
        top_ids: [rows, width], most probable first; likewise `top_logprobs`.
        alternatives: [rows], how many columns of these are valid.
    """
    columns = (logprobs, ranks, top_ids, top_logprobs, alternatives)
    return [
        TokenLogprobs(logprob, rank, ids[:count], values[:count])
        for logprob, rank, ids, values, count in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _largest(
    logits: NDArray[np.float32], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return columns and values of the largest elements, [rows, max(counts)], ties by column.

    Only the first `counts[row]` of a row are valid.
    """
    most = int(counts.max())
    if most == 0:
        return np.empty((len(logits), 0), np.int64), np.empty((len(logits), 0), np.float32)
    candidates = select(logits, top_k_floor(logits, np.maximum(counts, 1)))
    negated = candidates.padded()
    order = np.argsort(negated, axis=1, kind="stable")[:, :most]
    indices = np.minimum(candidates.starts[:-1, None] + order, len(candidates.columns) - 1)
    return candidates.columns[indices], -np.take_along_axis(negated, order, axis=1)
