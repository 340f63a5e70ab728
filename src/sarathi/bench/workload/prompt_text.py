"""Prompts of English text with an exact number of tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sarathi.bench.workload.token_counter import TokenCounter
from sarathi.bench.workload.word_costs import costs_of
from sarathi.bench.workload.words import FILLERS, MARKS, OPENERS, PIECES, opening, sentence
from sarathi.bench.workload.workload import PlannedRequest
from sarathi.errors import BenchmarkError

_NUM_SENTENCES = 4096  # of which all texts are made, in an order of their own
_ROUNDS = 20  # to make a text exact that came out a little long or short
_OPENINGS = 20  # tried until one is new; among very short texts, none may be left
_BEGINNING = 12  # words by which texts are told apart


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    tokens: int
    pieces: tuple[str, ...]


def write_prompts(
    requests: Sequence[PlannedRequest], tokens: TokenCounter, salt: str, seed: int
) -> list[str]:
    """A text for each request, of exactly its number of tokens.

    A later turn of a conversation begins with the whole text of the one before. Texts of different
    conversations, and texts with another salt or seed, differ from their first words on, so that
    none finds another's beginning in a prefix cache. Where no text has as few tokens as are asked
    for (a chat template alone has some), the shortest one stands in.

    Args:
        requests: turns of each conversation in order.

    Raises:
        BenchmarkError: the tokenizer has no text of such a length, or cannot count.
    """
    writer = _Writer(tokens, random.Random(f"{seed}/{salt}"))
    said: dict[int, _Text] = {}
    for_requests = []
    for request in requests:
        before = said.get(request.conversation) if request.turn else None
        if before is None:
            text = writer.begin(request.prompt_tokens)
        else:
            text = writer.go_on(before, request.prompt_tokens)
        said[request.conversation] = text
        for_requests.append(text.text)
    return for_requests


class _Writer:
    """Composes texts from words whose tokens are known, and counts each text to be sure."""

    def __init__(self, tokens: TokenCounter, draw: random.Random) -> None:
        self._count = tokens.count
        self._draw = draw
        self._costs = costs_of(PIECES, MARKS, tokens.count)
        self._sentences = [self._new_sentence() for _ in range(_NUM_SENTENCES)]
        self._fillers = self._by_cost()
        self._openers: dict[str, int] = {}
        self._begun: set[str] = set()

    def begin(self, tokens: int) -> _Text:
        """A text unlike the earlier ones."""
        for _ in range(_OPENINGS):
            head, pieces = self._opening(tokens)
            text = self._composed(head, pieces, tokens)
            if _beginning(text) not in self._begun:
                break
        exact = self._exact(text, head, tokens)
        self._begun.add(_beginning(exact.text))
        return exact

    def go_on(self, before: _Text, tokens: int) -> _Text:
        """A text that begins with an earlier one."""
        pieces = [] if before.text.endswith(MARKS) else ["."]
        return self._exact(self._composed(before, pieces, tokens), before, tokens)

    def _opening(self, tokens: int) -> tuple[_Text, Sequence[str]]:
        first, *pieces = opening(self._draw)
        if self._opener_cost(first) > tokens:
            first = self._short_opener(tokens)
        return _Text(first, self._opener_cost(first)), pieces

    def _exact(self, text: str, head: _Text, tokens: int) -> _Text:
        """A text made longer or shorter until it is exact: words may take a token more or less
        where they meet others."""
        if head.tokens >= tokens:
            return head
        for _ in range(_ROUNDS):
            counted = self._count(text)
            if counted == tokens:
                return _Text(text, tokens)
            if counted < tokens:
                text = self._composed(_Text(text, counted), [], tokens)
            else:
                text = head.text + _without_last(text[len(head.text) :], counted - tokens)
        raise BenchmarkError(
            f"no text of exactly {tokens} tokens was found: the tokenizer counts {counted} in the "
            "nearest"
        )

    def _composed(self, head: _Text, pieces: Sequence[str], tokens: int) -> str:
        """The head, then the pieces, then sentences, as far as they fit."""
        parts, left = [head.text], tokens - head.tokens
        unit: Sequence[str] = pieces
        while True:
            for piece in unit:
                if self._costs[piece] > left:
                    return "".join(parts) + self._filling(left)
                parts.append(piece)
                left -= self._costs[piece]
            one = self._draw.choice(self._sentences)
            while one.tokens <= left:
                parts.append(one.text)
                left -= one.tokens
                one = self._draw.choice(self._sentences)
            unit = one.pieces

    def _filling(self, left: int) -> str:
        parts = []
        for cost, fillers in self._fillers:
            while cost <= left:
                parts.append(self._draw.choice(fillers))
                left -= cost
        return "".join(parts)

    def _by_cost(self) -> list[tuple[int, list[str]]]:
        """Fillers, those of most tokens first; marks only where no word is as short."""
        found: dict[int, list[str]] = {}
        for filler in FILLERS:
            found.setdefault(self._costs[filler], []).append(filler)
        for mark in MARKS:
            if self._costs[mark] < min(found):
                found[self._costs[mark]] = [mark]
        return sorted(((cost, some) for cost, some in found.items() if cost > 0), reverse=True)

    def _new_sentence(self) -> _Sentence:
        pieces = tuple(sentence(self._draw))
        return _Sentence("".join(pieces), sum(map(self._costs.__getitem__, pieces)), pieces)

    def _opener_cost(self, word: str) -> int:
        """Tokens of a text of this word alone, and of all that the server adds."""
        if word not in self._openers:
            self._openers[word] = self._count(word)
        return self._openers[word]

    def _short_opener(self, tokens: int) -> str:
        """One that leaves a text of so few tokens possible; else of the shortest."""
        limit = max(tokens, min(map(self._opener_cost, OPENERS)))
        return self._draw.choice([word for word in OPENERS if self._opener_cost(word) <= limit])


def _beginning(text: str) -> str:
    return " ".join(text.split(maxsplit=_BEGINNING)[:_BEGINNING])


def _without_last(text: str, words: int) -> str:
    kept = text.rsplit(" ", words)
    return kept[0] if len(kept) > words else ""
