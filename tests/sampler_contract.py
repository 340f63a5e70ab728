"""What holds for every sampler: tests that the modules of the samplers inherit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import strategies as st

from sarathi.sampling import logits_processors
from sarathi.sampling.logits_processors import LogitsEdits, RequestTokens
from sarathi.sampling.params import SamplingError, SamplingParams
from sarathi.sampling.sampler import NO_TOKEN, RequestSlots, SamplerOutput
from tests.sampling_reference import choose, edited_logits

EOS = (3,)
GREEDY = SamplingParams(temperature=0)


class AnySampler(RequestSlots, Protocol):
    def sample(self, logits: np.ndarray, slots: np.ndarray) -> SamplerOutput: ...


def rows(*logits: Sequence[float]) -> np.ndarray:
    matrix = np.array(logits, np.float32)
    matrix.flags.writeable = False  # the executor owns it
    return matrix


def random_rows(count: int, vocab: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return rows(*np.random.default_rng(seed).normal(0, scale, (count, vocab)))


logit_values = st.one_of(
    st.floats(-20, 20, width=32),
    st.sampled_from([-1.5, 0.0, 0.5, 2.0]),  # ties
)


@st.composite
def requests(draw: st.DrawFn, vocab: int) -> tuple[SamplingParams, list[int], list[int]]:
    token = st.integers(0, vocab - 1)
    params = SamplingParams(
        temperature=draw(st.one_of(st.just(0.0), st.floats(0.2, 3))),
        top_k=draw(st.one_of(st.sampled_from([0, -1]), st.integers(1, vocab + 2))),
        top_p=draw(st.one_of(st.just(1.0), st.floats(0.01, 0.999))),
        min_p=draw(st.one_of(st.just(0.0), st.floats(0.001, 1))),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        presence_penalty=draw(st.one_of(st.just(0.0), st.floats(-2, 2))),
        frequency_penalty=draw(st.one_of(st.just(0.0), st.floats(-2, 2))),
        repetition_penalty=draw(st.one_of(st.just(1.0), st.floats(0.3, 3))),
        logit_bias=draw(st.dictionaries(token, st.floats(-10, 10), max_size=3)),
        stop_token_ids=draw(st.lists(token, max_size=2).map(tuple)),
        ignore_eos=draw(st.booleans()),
        max_tokens=None,
        min_tokens=draw(st.integers(0, 4)),
        logprobs=draw(st.one_of(st.none(), st.integers(0, 6))),
    )
    history = st.lists(token, max_size=6)
    return params, draw(history), draw(history)


def check_agreement(ours: AnySampler, data: st.DataObject, max_rows: int, steps: int) -> None:
    """Compare several steps of random requests with the reference."""
    vocab = ours.vocab_size
    chosen = data.draw(st.lists(requests(vocab), min_size=1, max_size=max_rows))
    size = max(2, vocab // 4)
    values = data.draw(st.lists(logit_values, min_size=size, max_size=size))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    pool = np.array(values, np.float32)
    eos = (vocab // 2,)
    slots = np.array([ours.open(params, prompt, eos, out) for params, prompt, out in chosen])
    for _ in range(steps):
        logits = rows(*generator.choice(pool, (len(chosen), vocab)))
        sampled = ours.sample(logits, slots)
        for row, (params, prompt, output) in enumerate(chosen):
            token = int(sampled.tokens[row])
            edited = edited_logits(logits[row], params, prompt, output, eos)
            if max(edited) == -math.inf:
                assert token == NO_TOKEN
                return
            expected, margin = choose(edited, params, len(output))
            # Where float32 and exact arithmetic may part, either answer is right.
            if margin > 1e-5 and not _near_tie(edited):
                assert token == expected
            _check_logprobs(logits[row], token, params.logprobs, sampled.logprobs, row)
            output.append(token)


def _near_tie(edited: Sequence[float]) -> bool:
    """Whether edits bring two logits closer than float32 distinguishes, but not equal."""
    ordered = np.sort(edited)
    gaps = np.diff(ordered[np.isfinite(ordered)])
    return bool(((gaps > 0) & (gaps < 1e-5)).any())


def _check_logprobs(
    logits: np.ndarray, token: int, asked: int | None, found: list[Any] | None, row: int
) -> None:
    entry = found[row] if found else None
    if asked is None:
        assert entry is None
        return
    assert entry is not None
    wide = logits.astype(np.float64)
    exact = wide - wide.max() - math.log(np.exp(wide - wide.max()).sum())
    top = np.lexsort((np.arange(len(wide)), -wide))[:asked]
    assert entry.logprob == pytest.approx(exact[token], abs=1e-5)
    assert entry.rank == 1 + int((logits > logits[token]).sum())
    assert entry.top_ids == top.tolist()
    assert entry.top_logprobs == pytest.approx(exact[top].tolist(), abs=1e-5)


MIXED = [
    GREEDY,
    SamplingParams(seed=1, temperature=0.8),
    SamplingParams(seed=2, top_p=0.9),
    SamplingParams(seed=3, top_k=20, top_p=0.95, logprobs=4),
    SamplingParams(seed=4, min_p=0.02, frequency_penalty=1.0),
    SamplingParams(temperature=0, repetition_penalty=1.3, logprobs=2, min_tokens=2),
    SamplingParams(seed=5, top_k=400, temperature=2.0),
    SamplingParams(seed=6, logit_bias={7: 3.0}, temperature=1.2, logprobs=0),
]


def check_independence(make: Any, vocab: int, num_rows: int, steps: int) -> None:
    """A row is the same bits alone, in another order and with fewer others."""
    logits = [random_rows(num_rows, vocab, seed=step) for step in range(steps)]
    params = [MIXED[row % len(MIXED)] for row in range(num_rows)]

    def run(order: Sequence[int]) -> dict[int, list[Any]]:
        mine = make(vocab)
        slots = np.array([mine.open(params[row], [1, 2, 2], EOS) for row in order])
        texts: dict[int, list[Any]] = {row: [] for row in order}
        for matrix in logits:
            sampled = mine.sample(matrix[list(order)], slots)
            entries = sampled.logprobs or [None] * len(order)
            for row, token, entry in zip(order, sampled.tokens.tolist(), entries, strict=True):
                texts[row].append((token, entry))
        return texts

    together = run(range(num_rows))
    assert run(np.random.default_rng(9).permutation(num_rows).tolist()) == together
    odd = run(range(1, num_rows, 2))
    assert odd == {row: together[row] for row in odd}
    for row in range(0, num_rows, 2):
        assert run([row]) == {row: together[row]}


class SamplerContract:
    """Helpers; what inherits from it says which sampler is meant."""

    def make(self, vocab_size: int) -> AnySampler:
        raise NotImplementedError

    def sample_one(self, params: SamplingParams, logits: Sequence[float], **opening: Any) -> int:
        one = self.make(len(logits))
        slot = one.open(params, opening.get("prompt", ()), EOS, opening.get("output", ()))
        return int(one.sample(rows(logits), np.array([slot])).tokens[0])

    def possible(
        self, params: SamplingParams, logits: Sequence[float], samples: int = 400
    ) -> set[int]:
        """Return the tokens that come up among many samples from the same logits."""
        many = self.make(len(logits))
        slot = np.array([many.open(params, (), EOS)])
        return {int(many.sample(rows(logits), slot).tokens[0]) for _ in range(samples)}


class Resumption(SamplerContract):
    steps = 8
    cuts: tuple[int, ...] = (1, 5)

    @pytest.mark.parametrize("params", MIXED)
    def test_a_resumed_request_continues_as_if_never_stopped(self, params: SamplingParams) -> None:
        vocab, prompt = 500, [4, 4, 9]
        logits = [random_rows(1, vocab, seed=step) for step in range(self.steps)]

        def go_on(output: list[int], steps: Sequence[int]) -> list[int]:
            mine = self.make(vocab)
            slot = np.array([mine.open(params, prompt, EOS, output)])
            return output + [int(mine.sample(logits[step], slot).tokens[0]) for step in steps]

        whole = go_on([], range(self.steps))
        for cut in self.cuts:
            assert go_on(whole[:cut], range(cut, self.steps)) == whole


class Greedy(SamplerContract):
    def test_ties_go_to_the_lowest_id(self) -> None:
        assert self.sample_one(GREEDY, [0, 5, 1, 5, 5]) == 1

    def test_truncation_and_seed_change_nothing(self) -> None:
        params = SamplingParams(temperature=0, seed=9, top_p=0.01, top_k=3, min_p=0.5)
        logits = random_rows(20, 100)
        one = self.make(100)
        slots = np.array([one.open(params, (), EOS) for _ in range(20)])
        assert (one.sample(logits, slots).tokens == logits.argmax(axis=1)).all()

    def test_an_empty_batch_gives_no_tokens(self) -> None:
        empty = np.zeros((0, 10), np.float32)
        assert len(self.make(10).sample(empty, np.zeros(0, np.int64)).tokens) == 0


class Truncation(SamplerContract):
    def test_top_k_cuts_ties_by_id(self) -> None:
        assert self.possible(SamplingParams(seed=1, top_k=2), [1, 1, 1, 1]) == {0, 1}

    def test_top_k_of_one_is_the_argmax(self) -> None:
        assert self.possible(SamplingParams(seed=1, top_k=1), [0, 2, 2, 1]) == {1}

    @pytest.mark.parametrize("top_k", [0, -1, 4, 1000, 10**30])
    def test_top_k_off_or_beyond_the_vocabulary_keeps_all(self, top_k: int) -> None:
        assert self.possible(SamplingParams(seed=1, top_k=top_k), [1, 1, 1, 1]) == {0, 1, 2, 3}

    @pytest.mark.parametrize(
        ("top_p", "kept"), [(0.5, {0, 1}), (0.51, {0, 1, 2}), (0.25, {0}), (1e-300, {0})]
    )
    def test_top_p_keeps_the_smallest_set_that_reaches_it(
        self, top_p: float, kept: set[int]
    ) -> None:
        assert self.possible(SamplingParams(seed=1, top_p=top_p), [1, 1, 1, 1]) == kept

    def test_top_p_is_a_share_of_what_top_k_leaves(self) -> None:
        # Of all ten tokens 0.4 would need four, of the two that top_k leaves one is enough.
        assert self.possible(SamplingParams(seed=1, top_k=2, top_p=0.4), [0.0] * 10) == {0}

    def test_min_p_is_relative_to_the_best(self) -> None:
        logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
        assert self.possible(SamplingParams(seed=1, min_p=0.25), logits) == {0, 1, 2}
        assert self.possible(SamplingParams(seed=1, min_p=1.0), logits) == {0}

    def test_min_p_keeps_a_token_exactly_at_the_limit(self) -> None:
        limit = float(np.exp(rows([-1.0]))[0, 0])
        assert self.possible(SamplingParams(seed=1, min_p=limit), [0.0, -1.0, -1.1]) == {0, 1}

    def test_temperature_comes_before_truncation(self) -> None:
        logits = np.log([0.4, 0.3, 0.3]).tolist()
        assert self.possible(SamplingParams(seed=1, top_p=0.9), logits) == {0, 1, 2}
        assert self.possible(SamplingParams(seed=1, top_p=0.9, temperature=0.1), logits) == {0, 1}


class Edits(SamplerContract):
    def test_bias_reaches_greedy_rows(self) -> None:
        assert self.sample_one(SamplingParams(temperature=0, logit_bias={4: 100}), [0.0] * 6) == 4

    def test_repetition_penalty_counts_the_prompt_and_acts_by_sign(self) -> None:
        params = SamplingParams(temperature=0, repetition_penalty=2.0)
        assert self.sample_one(params, [3.0, 2.0, 0, 0], prompt=[0]) == 1
        assert self.sample_one(params, [-1.5, -2.0, -9, -9], prompt=[0]) == 1

    def test_presence_and_frequency_penalties_ignore_the_prompt(self) -> None:
        params = SamplingParams(temperature=0, presence_penalty=2.0, frequency_penalty=2.0)
        assert self.sample_one(params, [1.0, 0.5, 0, 0], prompt=[0, 0]) == 0
        assert self.sample_one(params, [1.0, 0.5, 0, 0], output=[0]) == 1

    def test_frequency_penalty_grows_with_what_was_sampled(self) -> None:
        one = self.make(4)
        params = SamplingParams(temperature=0, frequency_penalty=1.0)
        slot = np.array([one.open(params, (), EOS)])
        logits = rows([2.5, 1.0, 0, 0])
        tokens = [int(one.sample(logits, slot).tokens[0]) for _ in range(5)]
        # Token 0 stands at 2.5, 1.5 and 0.5 in turn, token 1 at 1.0 and then at 0.0.
        assert tokens == [0, 0, 1, 0, 1]

    def test_many_different_tokens_are_all_remembered(self) -> None:
        one = self.make(100)
        params = SamplingParams(temperature=0, presence_penalty=2.0, max_tokens=None)
        slot = np.array([one.open(params, (), EOS)])
        logits = rows(np.linspace(0, 1, 100).tolist())
        tokens = [int(one.sample(logits, slot).tokens[0]) for _ in range(100)]
        assert tokens == list(range(99, -1, -1))

    def test_a_tiny_repetition_penalty_does_not_overflow(self) -> None:
        params = SamplingParams(seed=1, repetition_penalty=1e-300)
        assert self.sample_one(params, [30.0, 1.0, 0, 0], prompt=[1]) == 1

    @pytest.mark.parametrize("temperature", [0.0, 0.5])
    def test_min_tokens_bars_eos_and_stop_tokens_until_then(self, temperature: float) -> None:
        one = self.make(5)
        params = SamplingParams(
            temperature=temperature, seed=1, min_tokens=2, stop_token_ids=(1,), max_tokens=9
        )
        slot = np.array([one.open(params, (), EOS)])
        logits = rows([0.0, 90.0, -90.0, 95.0, -90.0])
        assert [int(one.sample(logits, slot).tokens[0]) for _ in range(4)] == [0, 0, 3, 3]

    def test_min_tokens_counts_the_tokens_before_a_resume(self) -> None:
        params = SamplingParams(temperature=0, min_tokens=3)
        assert self.sample_one(params, [0, 0, 0, 9.0], output=[0, 0]) == 0
        assert self.sample_one(params, [0, 0, 0, 9.0], output=[0, 0, 0]) == 3

    def test_with_ignore_eos_min_tokens_leaves_eos_alone(self) -> None:
        params = SamplingParams(temperature=0, min_tokens=3, ignore_eos=True)
        assert self.sample_one(params, [0, 0, 0, 9.0]) == 3

    @pytest.mark.parametrize(
        "fields", [{"logit_bias": {10: 1.0}}, {"stop_token_ids": (10,)}], ids=str
    )
    def test_token_ids_outside_the_vocabulary_are_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(SamplingError, match="token id 10, expected at most 9") as caught:
            self.make(10).open(SamplingParams(**fields), (), EOS)
        assert caught.value.field in fields

    def test_a_penalised_prompt_outside_the_vocabulary_is_refused(self) -> None:
        with pytest.raises(ValueError, match="outside the vocabulary of 10"):
            self.make(10).open(SamplingParams(repetition_penalty=2), [11], EOS)

    def test_an_eos_id_without_a_logit_is_harmless(self) -> None:
        one = self.make(4)
        slot = one.open(SamplingParams(temperature=0, min_tokens=1), (), [99])
        assert one.sample(rows([0, 1, 0, 0]), np.array([slot])).tokens.tolist() == [1]


class Processors(SamplerContract):
    def use(self, monkeypatch: pytest.MonkeyPatch, process: logits_processors.LogitsProcessor):
        added = (*logits_processors.PROCESSORS, process)
        monkeypatch.setattr(logits_processors, "PROCESSORS", added)

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_processor_may_allow_other_tokens_after_each_one(
        self, monkeypatch: pytest.MonkeyPatch, temperature: float
    ) -> None:
        """A grammar that counts up: after the token t only t + 1 and t + 2 may come."""
        vocab = 50

        def count_up(params: SamplingParams, tokens: RequestTokens, edits: LogitsEdits) -> Any:
            if params.seed != 7:
                return None

            def allow_after(token: int) -> None:
                bias = np.full(vocab, -np.inf, np.float32)
                bias[token + 1 : token + 3] = 0
                edits.token_bias = bias

            allow_after(tokens.output_ids[-1] if tokens.output_ids else -1)
            return allow_after

        self.use(monkeypatch, count_up)
        one = self.make(vocab)
        grammar = SamplingParams(seed=7, temperature=temperature, frequency_penalty=0.5)
        free = SamplingParams(temperature=temperature, seed=8)
        slots = np.array([one.open(grammar, [9], EOS), one.open(free, [9], EOS)])
        resumed = one.open(grammar, [9], EOS, [20])
        plain = self.make(vocab)
        plain_slot = np.array([plain.open(free, [9], EOS)])
        last, counted = -1, []
        for step in range(4):
            logits = random_rows(3, vocab, seed=step)
            taken = one.sample(logits[:2], slots).tokens.tolist()
            assert last < taken[0] <= last + 2
            assert taken[1] == plain.sample(logits[1:2], plain_slot).tokens[0]
            last = taken[0]
            counted.append(int(one.sample(logits[2:], np.array([resumed])).tokens[0]))
        assert all(0 < b - a <= 2 for a, b in zip([20, *counted], counted, strict=False))

    def test_a_processor_may_begin_to_bias_after_a_token_and_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def boost_after_four(
            params: SamplingParams, tokens: RequestTokens, edits: LogitsEdits
        ) -> Any:
            def observe(token: int) -> None:
                boosted = np.zeros(6, np.float32)
                boosted[2] = 9
                edits.token_bias = boosted if token == 4 else None

            return observe

        self.use(monkeypatch, boost_after_four)
        one = self.make(6)
        slot = np.array([one.open(SamplingParams(temperature=0, logit_bias={4: 1.5}), (), EOS)])
        logits = rows([0, 1, 1, 0, 0, 0])
        assert [int(one.sample(logits, slot).tokens[0]) for _ in range(4)] == [4, 2, 4, 2]
        one.close(int(slot[0]))
        again = np.array([one.open(GREEDY, (), EOS)])
        assert one.sample(logits, again).tokens.tolist() == [1]


class InvalidLogits(SamplerContract):
    def test_invalid_rows_get_no_token_and_the_others_theirs(self) -> None:
        params, vocab = [*MIXED, SamplingParams(seed=1)], 100
        count = len(params)
        good = random_rows(count, vocab)
        nan, infinite = good.copy(), good.copy()
        nan[:, 77] = np.nan
        infinite[:, 5] = np.inf
        bad = np.concatenate([good, nan, infinite, np.full_like(good, -np.inf)])

        tried, untried = self.make(vocab), self.make(vocab)
        slots = np.array([tried.open(each, (), EOS) for each in params * 4])
        same = np.array([untried.open(each, (), EOS) for each in params])
        for logits, taken in ((bad, slots), (good, slots[:count])):
            found = tried.sample(logits, taken)
            expected = untried.sample(good, same)
            assert found.tokens[:count].tolist() == expected.tokens.tolist()
            assert (found.tokens[count:] == NO_TOKEN).all()
            assert found.logprobs is not None
            assert found.logprobs[:count] == expected.logprobs
            assert found.logprobs[count:] == [None] * (len(taken) - count)

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_rows_that_the_model_or_bars_make_invalid_get_no_token(
        self, temperature: float
    ) -> None:
        one = self.make(3)
        barring = SamplingParams(temperature=temperature, min_tokens=1, stop_token_ids=(0, 1, 2))
        plain = SamplingParams(temperature=temperature)
        slots = np.array([one.open(p, (), ()) for p in (plain, barring, plain, barring)])
        found = one.sample(rows([1, 2, 3], [1, 2, 3], [1, math.nan, 3], [math.nan] * 3), slots)
        assert (found.tokens == NO_TOKEN).tolist() == [False, True, True, True]

    def test_tokens_at_minus_infinity_are_never_sampled(self) -> None:
        logits = [-math.inf, 1.0, -math.inf, 0.0, -math.inf]
        for params in ({}, {"top_k": 4}, {"top_p": 0.999}, {"min_p": 0.001}):
            assert self.possible(SamplingParams(seed=1, **params), logits) == {1, 3}

    @pytest.mark.parametrize("temperature", [1e-6, 1e-45, 5e-324])
    @pytest.mark.parametrize("truncation", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}])
    def test_a_tiny_temperature_is_greedy_in_effect(
        self, temperature: float, truncation: dict[str, Any]
    ) -> None:
        params = SamplingParams(seed=1, temperature=temperature, **truncation)
        assert self.possible(params, [1.0, 1.001, -3e38, 0.0], samples=20) == {1}

    def test_huge_logits_do_not_overflow(self) -> None:
        assert self.possible(SamplingParams(seed=1), [3e38, -3e38, 3e38], samples=40) == {0, 2}


class Slots(SamplerContract):
    def test_closed_slots_are_used_again_and_forget_their_past(self) -> None:
        one = self.make(4)
        first = one.open(SamplingParams(temperature=0, logit_bias={2: 50}), (), EOS)
        one.close(first)
        again = one.open(GREEDY, (), EOS)
        assert again == first
        assert one.sample(rows([9, 0, 0, 0]), np.array([again])).tokens.tolist() == [0]

    def test_growing_keeps_what_is_open(self) -> None:
        one = self.make(8)
        slots = [one.open(SamplingParams(temperature=0, logit_bias={3: 9}), (), ())]
        slots += [one.open(GREEDY, (), EOS) for _ in range(100)]
        assert len(set(slots)) == 101
        tokens = one.sample(np.zeros((101, 8), np.float32), np.array(slots)).tokens
        assert tokens.tolist() == [3] + [0] * 100

    def test_a_slot_cannot_be_closed_twice_or_sampled_after(self) -> None:
        one = self.make(4)
        slot = one.open(GREEDY, (), EOS)
        one.close(slot)
        with pytest.raises(ValueError, match="not open"):
            one.close(slot)
        with pytest.raises(ValueError, match="not open"):
            one.sample(rows([1, 2, 3, 4]), np.array([slot]))

    @pytest.mark.parametrize("shape", [(2, 4), (1, 5), (4,)])
    def test_logits_of_the_wrong_shape_are_refused(self, shape: tuple[int, ...]) -> None:
        one = self.make(4)
        slot = np.array([one.open(GREEDY, (), EOS)])
        with pytest.raises(ValueError, match=r"expected \(1, 4\)"):
            one.sample(np.zeros(shape, np.float32), slot)
