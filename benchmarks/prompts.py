"""Prompts of exact lengths."""

from __future__ import annotations

import numpy as np

_VOCAB_SIZE = 49152  # of SmolLM2; the first tokens are special
_FIRST_PLAIN_TOKEN = 256


def random_prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Token ids without meaning: the time taken does not depend on it."""
    rng = np.random.default_rng(seed)
    ids: list[list[int]] = rng.integers(_FIRST_PLAIN_TOKEN, _VOCAB_SIZE, (count, length)).tolist()
    return ids
