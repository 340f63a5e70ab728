"""Prompts of random words with an exact number of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from sarathi.bench.workload.token_counter import TokenCounter
from sarathi.bench.workload.workload import PlannedRequest
from sarathi.errors import BenchmarkError

# Common words: most tokenizers have one token for each, with the space before it.
_WORD_LIST = """
    able active airport ancient animal answer apple army artist author baby bank basket beach
    bed bell big bird black blue boat body bold book border bottle box boy branch bridge brother
    brown building bus cake calm camera captain car card castle cat chair chapter child church
    circle city class clean clear clock cloud coach coat coffee cold college color common
    company cool corner country cup customer dark deep desert desk detail dinner doctor dog door
    dress driver early easy editor empty engine evening factory family farm father field final
    finger fire fish flat floor flower forest fresh friend full garden gate gentle girl glass
    golden good great green guard guest hall hand happy hard hat heavy hill history holiday home
    horse hospital hotel hour house huge island journey judge key king kitchen lake lamp large
    late leader letter library light lion list local long machine manager map market message
    metal mirror modern moment morning mother mountain museum music narrow new night north
    number nurse ocean office officer old open owner paper parent park party path pattern phone
    picture pilot place plan plant plate player poem police port president price prince problem
    project queen question quiet radio rain report restaurant right river road rock roof room
    round safe scene school season secret sharp ship shop short shoulder signal silver simple
    sister sky small smooth soft soldier son song south spring square stage star station stone
    storm story strange street student summer table teacher team temple theory ticket tower town
    track train tree truck uncle valley village visitor voice wall warm watch water weather
    wheel white wide wild wind window winter woman word worker writer yard young
"""
_WORDS = tuple(f" {word}" for word in _WORD_LIST.split())
_OPENERS = ("Big", "Blue", "Bold", "Dark", "Deep", "Easy", "Good", "Great", "High", "Long", "New")
_MARK = "."  # shorter than any word to tokenizers of characters

_NUM_PHRASES = 2048  # sampled once; long texts consist of them
_PHRASE = 12  # words
_ROUNDS = 20  # to correct the length of a text that came out long or short
_TRIES = 20  # for a new beginning; short texts have few
_BEGINNING = 12  # words that distinguish texts


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    tokens: int


def write_prompts(
    requests: Sequence[PlannedRequest], tokens: TokenCounter, salt: str, seed: int
) -> list[str]:
    """Write a text for each request, of exactly its number of tokens.

    A later turn of a conversation starts with the whole text of the one before. Texts of different
    conversations, and texts with another salt or seed, differ from their first words on, so that
    they share no prefix in a prefix cache. Where no text has as few tokens as requested (a chat
    template alone has some), the shortest one is used.

    Args:
        requests: turns of each conversation in order.

    Raises:
        BenchmarkError: the tokenizer has no text of such a length, or cannot count.
    """
    writer = _Writer(tokens, random.Random(f"{seed}/{salt}"))
    latest: dict[int, _Text] = {}  # of each conversation
    texts = []
    for request in requests:
        before = latest.get(request.conversation) if request.turn else None
        text = writer.write(request.prompt_tokens, before)
        latest[request.conversation] = text
        texts.append(text.text)
    return texts


class _Writer:
    """Composes texts from words of known costs in tokens, and counts each text to be sure."""

    def __init__(self, tokens: TokenCounter, rng: random.Random) -> None:
        self._count = tokens.count
        self._rng = rng
        costs = _costs_of(_WORDS, tokens.count)
        self._singles = [_Text(word, cost) for word, cost in costs.items()]
        phrases = [rng.choices(_WORDS, k=_PHRASE) for _ in range(_NUM_PHRASES)]
        self._phrases = [_Text("".join(p), sum(map(costs.__getitem__, p))) for p in phrases]
        # The words of each cost, the most expensive first; a mark if none is as short.
        by_cost: dict[int, list[_Text]] = {}
        for single in self._singles:
            by_cost.setdefault(single.tokens, []).append(single)
        mark = _costs_of([_MARK], tokens.count)[_MARK]
        by_cost.setdefault(mark, [_Text(_MARK, mark)])
        self._by_cost = [by_cost[cost] for cost in sorted(by_cost, reverse=True)]
        # With everything that the server adds to a text.
        self._opener_cost = cache(tokens.count)
        self._beginnings: set[str] = set()

    def write(self, tokens: int, before: _Text | None) -> _Text:
        """Write a text that starts with an earlier one, or has a new beginning."""
        if before is not None:
            text = before.text + self._words(tokens - before.tokens)
            return self._exact(text, before, tokens)
        for _ in range(_TRIES):
            opener = self._opener(tokens)
            text = opener.text + self._words(tokens - opener.tokens)
            if _beginning(text) not in self._beginnings:
                break
        exact = self._exact(text, opener, tokens)
        self._beginnings.add(_beginning(exact.text))
        return exact

    def _exact(self, text: str, head: _Text, tokens: int) -> _Text:
        """Correct the length of a text: a word may take more or fewer tokens beside others."""
        if head.tokens >= tokens:
            return head
        for _ in range(_ROUNDS):
            counted = self._count(text)
            if counted == tokens:
                return _Text(text, tokens)
            if counted < tokens:
                text += self._words(tokens - counted)
            else:
                text = head.text + _without_last(text[len(head.text) :], counted - tokens)
        raise BenchmarkError(
            f"no text of exactly {tokens} tokens was found: the tokenizer counts {counted} in the "
            "nearest"
        )

    def _words(self, tokens: int) -> str:
        """Sample words of so many tokens: phrases, then any words, then the longest that fit."""
        parts = []
        for options in (self._phrases, self._singles, *self._by_cost):
            while (one := self._rng.choice(options)).tokens <= tokens:
                parts.append(one.text)
                tokens -= one.tokens
        return "".join(parts)

    def _opener(self, tokens: int) -> _Text:
        """Sample a first word that fits, or else one of the shortest."""
        opener = self._rng.choice(_OPENERS)
        if self._opener_cost(opener) > tokens:
            limit = max(tokens, min(map(self._opener_cost, _OPENERS)))
            fitting = [word for word in _OPENERS if self._opener_cost(word) <= limit]
            opener = self._rng.choice(fitting)
        return _Text(opener, self._opener_cost(opener))


def _costs_of(words: Sequence[str], count: Callable[[str], int]) -> dict[str, int]:
    """Return the tokens that each word adds to a text, at least 1, with few counts.

    Most words are one token, so they are counted many at a time: where their number of tokens is
    the number of words, each has one. Otherwise each half is counted.
    """
    # Words are counted after another, since tokenizers treat the first one of a text differently.
    before = count(_OPENERS[0])
    costs: dict[str, int] = {}

    def find(some: Sequence[str]) -> None:
        total = count(_OPENERS[0] + "".join(some)) - before
        if total == len(some) or len(some) == 1:
            costs.update(dict.fromkeys(some, max(1, total // len(some))))
            return
        half = len(some) // 2
        find(some[:half])
        find(some[half:])

    find(words)
    return costs


def _beginning(text: str) -> str:
    return " ".join(text.split(maxsplit=_BEGINNING)[:_BEGINNING])


def _without_last(text: str, words: int) -> str:
    kept = text.rsplit(" ", words)
    return kept[0] if len(kept) > words else ""
