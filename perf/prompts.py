"""Prompts of exact lengths."""

from __future__ import annotations

from functools import cache

import numpy as np

from perf.report import MODEL
from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer

_TEXT = """The baker opened her shop before sunrise, when the streets were still quiet and
only the milk van passed. She weighed the flour, warmed the water and set the dough aside to rise.
By seven the first customers stood in line, and the smell of fresh bread had reached the school at
the corner. An old man asked for his usual loaf and told her, as he did each morning, what the
weather would be. She listened, wrapped the bread in paper, and wondered whether the rain would
hold off until noon. In the afternoon the oven was cold again. She swept the floor, counted the
coins and wrote down what was missing: salt, yeast, two sacks of rye, and a new broom.
"""
_VOCAB_SIZE = 49152  # of SmolLM2; the first tokens are special
_FIRST_PLAIN_TOKEN = 256


def random_prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Token ids without meaning: the time taken does not depend on it.

    What a model answers may be bytes that are no text, which a stream holds back until they are:
    not for measuring the time between tokens.
    """
    rng = np.random.default_rng(seed)
    ids: list[list[int]] = rng.integers(_FIRST_PLAIN_TOKEN, _VOCAB_SIZE, (count, length)).tolist()
    return ids


def text_prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Pieces of English, no two alike, for what depends on how sure the model is of itself.

    Those of different seeds begin with different tokens, so they share no prefix.
    """
    ids = _text_ids()
    text = [*ids, *ids * (1 + (count + length) // len(ids))]
    return [[_FIRST_PLAIN_TOKEN + seed, *text[at : at + length - 1]] for at in range(count)]


@cache
def _text_ids() -> list[int]:
    return open_tokenizer(locate(MODEL).path).encode(_TEXT)
