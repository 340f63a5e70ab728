"""A vocabulary of a few tokens, for grammars."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import llguidance
import pytest

from sarathi.sampling import grammar_masks
from sarathi.sampling.grammar_compiler import compile_grammar
from sarathi.sampling.grammar_masks import GrammarMask, GrammarMasks

TEXTS = [
    *'abcxyzesnothik0123{}[]:"-.,| \n',
    "aa",
    "ab",
    "abc",
    "01",
    "yes",
    "no",
    "</",
    "think",
    ">",
    '{"',
]
END, START = len(TEXTS), len(TEXTS) + 1  # special tokens
TOKENS = [*(text.encode() for text in TEXTS), b"<end>", b"<start>"]
TEXT_OF = {index: token.decode() for index, token in enumerate(TOKENS)}


class Vocabulary:
    """What llguidance reads of a tokenizer."""

    eos_token_id = END
    bos_token_id = None
    special_token_ids = (END, START)
    tokens = TOKENS

    def __call__(self, text: bytes) -> list[int]:
        return encode(text.decode())


def encode(text: str) -> list[int]:
    """Return the longest tokens, from the left."""
    ids = []
    while text:
        best = max(range(len(TEXTS)), key=lambda i: text.startswith(TEXTS[i]) * len(TEXTS[i]))
        ids.append(best)
        text = text[len(TEXTS[best]) :]
    return ids


def decode(ids: list[int]) -> str:
    return "".join(TEXT_OF[token] for token in ids if token < END)


def tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Vocabulary()), eos_token=[END])


def masks() -> GrammarMasks:
    return GrammarMasks(tokenizer)


class PatientMasks(GrammarMasks):
    """Waits for all masks, however long they take."""

    def __init__(self) -> None:
        super().__init__(tokenizer)

    def wait(self, masks: Iterable[GrammarMask], seconds: float, *, slow: bool) -> float:
        return super().wait(masks, 10.0, slow=True)


class SlowMatcher:
    """Delays the masks of a matcher."""

    def __init__(self, inner: Any, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def deep_copy(self) -> SlowMatcher:
        return SlowMatcher(self._inner.deep_copy(), self._seconds)

    def unsafe_compute_mask_ptr(self, pointer: int, size: int) -> None:
        time.sleep(self._seconds)
        self._inner.unsafe_compute_mask_ptr(pointer, size)


def slow_down(monkeypatch: pytest.MonkeyPatch, marker: str, seconds: float) -> None:
    """Let the masks of grammars that have `marker` in their text take this long."""

    def slow(grammar: Any, tokenizer: Any) -> Any:
        matcher = compile_grammar(grammar, tokenizer)
        return SlowMatcher(matcher, seconds) if marker in grammar.lark else matcher

    monkeypatch.setattr(grammar_masks, "compile_grammar", slow)
