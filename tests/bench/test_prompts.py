"""Prompts: exact in length, different from the start, and the same again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.bench.workload.prompt_text import write_prompts
from sarathi.bench.workload.token_counter import LocalTokens, TokenCounter
from sarathi.bench.workload.workload import PlannedRequest
from sarathi.errors import BenchmarkError

SMOLLM2 = LocalTokens("smollm2-135m", chat=False)
SMOLLM2_CHAT = LocalTokens("smollm2-135m", chat=True)


class Counter:
    """A toy tokenizer that remembers how often it was asked."""

    def __init__(self, tokens: Callable[[str], int]) -> None:
        self.calls = 0
        self._tokens = tokens

    def count(self, text: str) -> int:
        self.calls += 1
        return self._tokens(text)


def letters(text: str) -> int:
    """As of a model on bytes."""
    return 1 + len(text.encode())


def halves(text: str) -> int:
    """Two words make a token, so that no word has a number of its own."""
    return 3 + (len(text.split()) + 1) // 2


def long_words_are_two(text: str) -> int:
    return sum(1 + (len(word) > 5) for word in text.split())


def written(
    lengths: Sequence[int], tokens: TokenCounter = SMOLLM2, salt: str = "salt", seed: int = 1
) -> list[str]:
    requests = [PlannedRequest(0.0, length, 1, index, 0) for index, length in enumerate(lengths)]
    return write_prompts(requests, tokens, salt, seed)


def turns(lengths: Sequence[int], tokens: TokenCounter) -> list[str]:
    requests = [PlannedRequest(0.0, length, 1, 0, turn) for turn, length in enumerate(lengths)]
    return write_prompts(requests, tokens, "salt", 1)


def beginning(text: str, words: int = 12) -> str:
    return " ".join(text.split()[:words])


@pytest.mark.parametrize("tokens", [SMOLLM2, SMOLLM2_CHAT])
def test_prompts_have_exactly_their_tokens(tokens: TokenCounter) -> None:
    least = tokens.count("Big")
    lengths = [*range(least, least + 60), 100, 333, 1000, 1999, 4096]
    assert list(map(tokens.count, written(lengths, tokens))) == lengths


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=10), st.integers(0, 2**64))
def test_prompts_have_exactly_their_tokens_whatever_the_seed(lengths: list[int], seed: int) -> None:
    assert list(map(SMOLLM2.count, written(lengths, seed=seed))) == lengths


@pytest.mark.parametrize("toy", [letters, halves, long_words_are_two])
def test_other_tokenizers_do_as_well(toy: Callable[[str], int]) -> None:
    lengths = [*range(20, 60), 500, 3001]
    assert list(map(toy, written(lengths, Counter(toy)))) == lengths


def test_where_no_text_is_so_short_the_shortest_stands_in() -> None:
    texts = written([1, 5, 20], SMOLLM2_CHAT)
    least = SMOLLM2_CHAT.count("Big")
    assert {SMOLLM2_CHAT.count(text) for text in texts} == {least}
    assert all(texts)


def test_later_turns_begin_with_the_earlier_text() -> None:
    for added in ([5, 1, 2, 40, 300, 1, 700], [900, 13, 13]):
        lengths = list(accumulate(added))
        texts = turns(lengths, SMOLLM2)
        assert list(map(SMOLLM2.count, texts)) == lengths
        for before, after in pairwise(texts):
            assert after.startswith(before)


def test_conversations_keep_apart() -> None:
    requests = [
        PlannedRequest(0.0, 40 * (turn + 1), 1, conversation, turn)
        for turn in range(3)
        for conversation in range(4)
    ]
    texts = write_prompts(requests, SMOLLM2, "salt", 1)
    assert len({beginning(text) for text in texts}) == 4
    for index in range(8):
        assert texts[index + 4].startswith(texts[index])


def test_prompts_differ_within_their_first_words() -> None:
    texts = written([30] * 1000)
    assert len({beginning(text) for text in texts}) == 1000
    assert len({beginning(text, 3) for text in texts}) > 950


@pytest.mark.parametrize("other", [{"salt": "other"}, {"seed": 2}])
def test_another_salt_or_seed_gives_other_texts_from_the_first_words_on(
    other: dict[str, str | int],
) -> None:
    here, there = written([50] * 200), written([50] * 200, **other)  # type: ignore[arg-type]
    assert not {beginning(text, 5) for text in here} & {beginning(text, 5) for text in there}


def test_the_same_salt_and_seed_give_the_same_texts() -> None:
    assert written([7, 50, 300]) == written([7, 50, 300])


def test_a_prompt_takes_one_or_two_counts() -> None:
    counter = Counter(SMOLLM2.count)
    written([], counter)
    before = counter.calls
    assert before < 300
    written([500] * 200, counter)
    assert counter.calls - 2 * before <= 2 * 200


def test_a_tokenizer_without_such_a_text_is_reported() -> None:
    even = Counter(lambda text: 2 * len(text.split()))
    assert len(written([10], even)[0].split()) == 5
    with pytest.raises(BenchmarkError, match="no text of exactly 11 tokens"):
        written([11], even)


@pytest.mark.parametrize("always", [0, 7])
def test_a_counter_that_does_not_count_ends_in_a_message(always: int) -> None:
    with pytest.raises(BenchmarkError, match="no text of exactly 50 tokens"):
        written([50], Counter(lambda text: always))
