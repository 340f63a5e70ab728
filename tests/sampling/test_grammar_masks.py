"""Masks of grammars, and sampling with them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.errors import ModelError
from sarathi.sampling.grammar import Grammar, GrammarError, choice, lark, regex
from sarathi.sampling.grammar_compiler import compile_grammar
from sarathi.sampling.grammar_masks import SLOW_SECONDS, GrammarMask, GrammarMasks, Matcher
from sarathi.sampling.params import SamplingError, SamplingParams
from sarathi.sampling.sampler import NO_TOKEN, Sampler
from sarathi.scheduler import DEFERRED
from tests.grammar_vocabulary import (
    END,
    START,
    TOKENS,
    decode,
    encode,
    masks,
    slow_down,
    tokenizer,
)

VOCAB = len(TOKENS)


def allowed(words: np.ndarray) -> set[int]:
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def wait(all_masks: GrammarMasks, mask: GrammarMask) -> None:
    all_masks.wait([mask], 10.0, slow=True)
    assert mask.ready


def make(vocab_size: int = VOCAB) -> Sampler:
    sampler = Sampler(vocab_size)
    sampler.grammars = masks()
    return sampler


def sample(sampler: Sampler, slot: int, logits: np.ndarray) -> int:
    """Sample a token, however long its mask takes."""
    while (token := int(sampler.sample(logits[None], np.array([slot])).tokens[0])) == DEFERRED:
        time.sleep(0.001)
    return token


class GivenMasks(GrammarMasks):
    """The rows of a matrix, one for each request, whatever it samples."""

    def __init__(self, allowed: np.ndarray) -> None:
        super().__init__(tokenizer)
        self._rows = iter(allowed)

    def open(self, grammar, output_ids=(), barred_ids=()) -> GrammarMask:
        mask = GrammarMask(grammar, barred_ids)
        row = next(self._rows)
        padded = np.pad(row, (0, -len(row) % 32))
        mask.words = np.packbits(padded, bitorder="little").view(np.int32)
        mask.ready = True
        return mask

    def append(self, mask: GrammarMask, token: int) -> None:
        pass


def preferring(*tokens: int) -> np.ndarray:
    logits = np.zeros(VOCAB, np.float32)
    logits[list(tokens)] = np.arange(len(tokens), 0, -1)
    return logits


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3)), max_size=12))
def test_rollback_returns_to_the_mask_of_then(steps):
    vocabulary = tokenizer()
    matcher = Matcher(compile_grammar(regex("(ab|c)*[0-9]{3}"), vocabulary), vocabulary.vocab_size)
    seen: list[set[int]] = [allowed(matcher.mask())]
    for pick, back in steps:
        options = sorted(seen[-1])
        matcher.consume([options[pick % len(options)]])
        if options[pick % len(options)] == END:
            return
        seen.append(allowed(matcher.mask()))
        back = min(back, len(seen) - 1)
        if back:
            matcher.rollback(back)
            del seen[len(seen) - back :]
        assert allowed(matcher.mask()) == seen[-1]


def test_more_cannot_be_taken_back_than_there_was():
    vocabulary = tokenizer()
    matcher = Matcher(compile_grammar(regex("a*"), vocabulary), vocabulary.vocab_size)
    with pytest.raises(ValueError, match="cannot take back 2"):
        matcher.rollback(2)


def test_a_token_that_is_not_allowed_is_an_error():
    vocabulary = tokenizer()
    matcher = Matcher(compile_grammar(regex("a*"), vocabulary), vocabulary.vocab_size)
    with pytest.raises(GrammarError):
        matcher.consume(encode("b"))


def test_a_mask_follows_the_output():
    everything = masks()
    mask = everything.open(regex("a[01]"))
    wait(everything, mask)
    assert allowed(mask.words) == set(encode("a"))
    everything.append(mask, encode("a")[0])
    wait(everything, mask)
    assert allowed(mask.words) == {*encode("0"), *encode("1"), *encode("01")[1:]}
    everything.append(mask, encode("1")[0])
    wait(everything, mask)
    assert allowed(mask.words) == {END}


def test_a_resumed_output_continues():
    everything = masks()
    mask = everything.open(regex("a{40}b"), [encode("a")[0]] * 40)
    wait(everything, mask)
    assert allowed(mask.words) == set(encode("b"))


def test_sampled_tokens_are_those_that_are_allowed():
    sampler = make()
    slot = sampler.open(SamplingParams(temperature=0, grammar=choice(["yes", "ab"])), (), (END,))
    wish = preferring(START, END, *encode("x"), *encode("a"), *encode("yes"), *encode("b"))
    output = [sample(sampler, slot, wish) for _ in range(3)]
    assert output == [*encode("a"), *encode("b"), END]


def test_rows_without_a_grammar_are_sampled_as_ever():
    sampler = make()
    plain = sampler.open(SamplingParams(temperature=0), (), (END,))
    bound = sampler.open(SamplingParams(temperature=0, grammar=choice(["no"])), (), (END,))
    logits = np.stack([preferring(START)] * 2)
    tokens = [DEFERRED]
    while tokens[-1] == DEFERRED:
        tokens = sampler.sample(logits, np.array([plain, bound])).tokens.tolist()
        assert tokens[0] == START
    assert tokens[1] in {*encode("no"), *range(VOCAB)} - {START}


def test_the_grammar_wins_over_min_tokens_and_ignore_eos():
    for params in (
        SamplingParams(temperature=0, grammar=choice(["a"]), min_tokens=9),
        SamplingParams(temperature=0, grammar=choice(["a"]), ignore_eos=True),
    ):
        sampler = make()
        slot = sampler.open(params, (), (END,))
        wish = preferring(END)
        assert [sample(sampler, slot, wish) for _ in range(2)] == [encode("a")[0], END]


def test_where_the_grammar_leaves_a_choice_the_end_is_not_sampled_early():
    for more in ({"min_tokens": 3}, {"ignore_eos": True}):
        sampler = make()
        params = SamplingParams(temperature=0, grammar=regex("a{1,3}"), **more)
        slot = sampler.open(params, (), (END,))
        wish = preferring(END, encode("a")[0])
        output = [sample(sampler, slot, wish) for _ in range(4)]
        assert output == [encode("a")[0]] * 3 + [END]


@pytest.mark.parametrize("vocab_size", [40, 700])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 0, "logit_bias": {3: 1.0}},
        {"seed": 3},
        {"seed": 3, "top_p": 0.5, "temperature": 2.0},
        {"seed": 3, "top_k": 5},
    ],
    ids=str,
)
def test_a_mask_is_as_logits_at_minus_infinity_whatever_other_rows_are(vocab_size, share, fields):
    random = np.random.default_rng(int(100 * share) + vocab_size)
    allowed = random.random((30, vocab_size)) < share
    allowed[29] = True
    logits = random.normal(0, 4, (30, vocab_size)).astype(np.float32)
    ours, plain = Sampler(vocab_size), Sampler(vocab_size)
    ours.grammars = GivenMasks(allowed)
    bound = SamplingParams(**fields, grammar=choice(["a"]))
    edited = SamplingParams(**(fields | {"logit_bias": {1: 2.0}}), grammar=choice(["a"]))
    slots = [ours.open(edited if row == 29 else bound, (), (END,)) for row in range(30)]
    free = [plain.open(SamplingParams(**fields), (), (END,)) for _ in range(29)]
    found = ours.sample(logits, np.array(slots)).tokens[:29]
    masked = np.where(allowed, logits, np.float32(-np.inf))[:29]
    assert found.tolist() == plain.sample(masked, np.array(free)).tokens.tolist()
    assert (found == NO_TOKEN).tolist() == (~allowed[:29].any(axis=1)).tolist()


def test_logprobs_are_those_of_the_model():
    sampler = make()
    params = SamplingParams(temperature=0, grammar=choice(["a"]), logprobs=1)
    slot = sampler.open(params, (), (END,))
    wish = preferring(START)
    result = sampler.sample(wish[None], np.array([slot]))
    while result.tokens[0] == DEFERRED:
        assert result.logprobs in (None, [None])
        result = sampler.sample(wish[None], np.array([slot]))
    assert result.logprobs is not None
    entry = result.logprobs[0]
    assert entry is not None
    assert entry.top_ids == [START]
    assert entry.rank > 1


def test_a_grammar_that_cannot_be_followed_fails_its_row_alone():
    sampler = make()
    bad = sampler.open(SamplingParams(temperature=0, grammar=lark("start: foo")), (), (END,))
    good = sampler.open(SamplingParams(temperature=0, grammar=choice(["a"])), (), (END,))
    slots = np.array([bad, good])
    logits = np.zeros((2, VOCAB), np.float32)
    tokens = [DEFERRED, DEFERRED]
    while DEFERRED in tokens:
        sampled = sampler.sample(logits, slots).tokens.tolist()
        tokens = [new if old == DEFERRED else old for old, new in zip(tokens, sampled, strict=True)]
    assert tokens == [NO_TOKEN, encode("a")[0]]
    assert re.search("unknown name", sampler.failure(bad) or "")
    assert sampler.failure(good) is None


def test_the_slot_of_a_closed_request_is_used_again_without_its_grammar():
    sampler = make()
    slot = sampler.open(SamplingParams(temperature=0, grammar=choice(["a"])), (), (END,))
    sampler.close(slot)  # while its mask is computed
    assert sampler.open(SamplingParams(temperature=0), (), (END,)) == slot
    assert sample(sampler, slot, preferring(START)) == START
    assert sampler.failure(slot) is None


def test_without_a_tokenizer_grammars_are_refused():
    with pytest.raises(SamplingError, match="grammar is not supported"):
        Sampler(VOCAB).open(SamplingParams(grammar=choice(["a"])), (), (END,))


def test_slow_masks_are_not_waited_for(monkeypatch):
    slow_down(monkeypatch, "y", 5 * SLOW_SECONDS)
    sampler = make()
    assert sampler.grammars is not None
    slow = sampler.open(SamplingParams(temperature=0, grammar=regex("(y|x)*")), (), (END,))
    fast = sampler.open(SamplingParams(temperature=0, grammar=regex("a*")), (), (END,))
    x, a = encode("xa")
    logits = np.stack([preferring(x), preferring(a)])
    while sample(sampler, fast, logits[1]) == DEFERRED:
        pass
    counts = {slow: 0, fast: 0}
    waited = 0.0
    for _ in range(60):
        result = sampler.sample(logits, np.array([slow, fast]))
        waited += result.waited
        for slot, token in zip((slow, fast), result.tokens.tolist(), strict=True):
            assert token in (DEFERRED, x, a)
            counts[slot] += token != DEFERRED
        time.sleep(0.002)
    # Its masks take ten of these steps; the others are not held up.
    assert 1 <= counts[slow] <= 20
    assert counts[fast] >= 50
    assert waited < 60 * SLOW_SECONDS


def test_a_grammar_that_is_slow_now_and_then_does_not_return_to_the_fast_thread_at_once(
    monkeypatch,
):
    slow_down(monkeypatch, "y", 2 * SLOW_SECONDS)
    everything = masks()
    mask = everything.open(regex("(y|x)*"))
    wait(everything, mask)
    assert mask.slow
    assert mask.matcher is not None
    monkeypatch.setattr(mask.matcher._inner, "_seconds", 0.0)
    slow = []
    for _ in range(100):
        everything.append(mask, encode("x")[0])
        wait(everything, mask)
        slow.append(mask.slow)
    assert all(slow[:20])
    assert not all(slow)


@settings(max_examples=40, deadline=None)
@given(
    pattern=st.sampled_from(
        ["(ab|c)+", "[0-3]{2}-[a-c]{1,4}", '\\{"a": (yes|no)\\}', "(aa|ab|abc)*x", "a|ab|yes"]
    ),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.0, 0.7, 5.0]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.5]),
)
def test_outputs_match_whatever_the_logits_are(pattern, seed, temperature, top_k, top_p):
    sampler = make()
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, grammar=regex(pattern)
    )
    slot = sampler.open(params, (), (END,))
    random = np.random.default_rng(seed)
    output: list[int] = []
    while len(output) < 40 and END not in output:
        output.append(sample(sampler, slot, random.normal(0, 4, VOCAB).astype(np.float32)))
    assert NO_TOKEN not in output
    if END in output:
        assert re.fullmatch(pattern, decode(output))


def test_a_padded_vocabulary_never_gives_a_token_without_a_text():
    sampler = make(VOCAB + 30)
    slot = sampler.open(SamplingParams(temperature=0, grammar=regex("[ab]")), (), (END,))
    logits = np.arange(VOCAB + 30, dtype=np.float32)
    assert sample(sampler, slot, logits) in encode("ab")[:1] + encode("b")


def test_the_threads_end_with_their_owner():
    before = set(threading.enumerate())
    everything = masks()
    mask = everything.open(choice(["a"]))
    wait(everything, mask)
    assert len(set(threading.enumerate()) - before) == 2
    del everything
    assert set(threading.enumerate()) <= before


def test_a_process_may_exit_while_grammars_are_compiled():
    program = """
from sarathi.sampling.grammar import regex
from tests.grammar_vocabulary import masks
everything = masks()
opened = [everything.open(regex(f"(a|b|c){{{count},400}}x")) for count in range(100)]
everything.wait(opened[:1], 10.0, slow=True)
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert ended.returncode == 0


def test_an_output_after_a_marker():
    everything = masks()
    grammar = Grammar(choice(["yes"]).lark, after="</think>")
    mask = everything.open(grammar)
    wait(everything, mask)
    assert set(encode("abc")) <= allowed(mask.words)
    assert END not in allowed(mask.words)
    for token in encode("ab</think>"):
        everything.append(mask, token)
        wait(everything, mask)
    assert allowed(mask.words) <= {*encode("yes"), *encode("y")}


def test_the_tokenizer_is_made_once_and_before_the_first_grammar_if_there_is_time():
    made = []

    def make_tokenizer():
        made.append(time.monotonic())
        return tokenizer()

    everything = GrammarMasks(make_tokenizer)
    for _ in range(2):
        everything.prepare()
    mask = everything.open(choice(["a"]))
    wait(everything, mask)
    assert len(made) == 1


def test_a_tokenizer_that_is_not_supported_fails_the_requests_with_a_grammar():
    def make_tokenizer():
        raise ModelError("this tokenizer is odd")

    everything = GrammarMasks(make_tokenizer)
    for _ in range(2):
        mask = everything.open(choice(["a"]))
        wait(everything, mask)
        assert "this tokenizer is odd" in (mask.failure or "")
