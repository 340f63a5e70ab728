"""A slow, obvious sampler of one row, to compare the real one with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sarathi.sampling.params import SamplingParams

_WORD = 2**64


def uniform(seed: int, position: int) -> float:
    """SplitMix64 in Python's integers: output `position` of the stream keyed by the seed's hash."""
    gamma = 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
        return z ^ (z >> 31)

    key = mix((seed + gamma) % _WORD)
    return (mix((key + (position + 1) * gamma) % _WORD) >> 11) / 2**53


def edited_logits(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    eos: Sequence[int],
) -> list[float]:
    row = [float(x) for x in logits]
    for token, bias in params.logit_bias.items():
        row[token] += bias
    if len(output) < params.min_tokens:
        for token in [*params.stop_token_ids, *(() if params.ignore_eos else eos)]:
            row[token] = -math.inf
    for token in set(prompt) | set(output):
        penalty = params.repetition_penalty
        row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    for token in set(output):
        row[token] -= params.frequency_penalty * list(output).count(token)
        row[token] -= params.presence_penalty
    return row


def distribution(row: Sequence[float], params: SamplingParams) -> tuple[dict[int, float], float]:
    """The probability of each token that can be sampled, in the order in which mass is laid out.

    Also the least distance of any truncation decision from tipping, in units of mass.
    """
    best = max(row)
    weights = {t: math.exp((x - best) / params.temperature) for t, x in enumerate(row)}
    order = sorted(weights, key=lambda token: (-row[token], token))
    margin = 1.0
    if 0 < params.top_k < len(row):
        order = order[: params.top_k]
    if params.top_p < 1:
        total = sum(weights[token] for token in order)
        mass = np.cumsum([weights[token] for token in order]) / total
        margin = min(margin, float(np.abs(mass - params.top_p).min()))
        order = order[: int((mass < params.top_p).sum()) + 1]
    if params.min_p > 0:
        margin = min([margin, *(abs(w - params.min_p) for w in weights.values() if w < 1)])
        order = [token for token in order if weights[token] >= params.min_p]
    truncated = 0 < params.top_k < len(row) or params.top_p < 1 or params.min_p > 0
    if not truncated:
        order.sort()
    total = sum(weights[token] for token in order)
    return {token: weights[token] / total for token in order}, margin


def choose(row: Sequence[float], params: SamplingParams, position: int) -> tuple[int, float]:
    """Return the token, and how far the uniform is from giving another one."""
    if params.temperature == 0:
        return int(np.argmax(row)), 1.0
    assert params.seed is not None
    probabilities, margin = distribution(row, params)
    point = uniform(params.seed, position)
    edges = np.cumsum(list(probabilities.values()))
    token = list(probabilities)[min(int((edges <= point).sum()), len(edges) - 1)]
    return token, min(margin, float(np.abs(edges - point).min()))
