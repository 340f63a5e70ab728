from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from sampling_reference import choose, distribution, edited_logits, uniform

from sarathi.sampling import sampler, truncation, uniforms
from sarathi.sampling.params import SamplingError, SamplingParams
from sarathi.sampling.sampler import NO_TOKEN, Sampler

EOS = (3,)
GREEDY = SamplingParams(temperature=0)


def rows(*logits: Sequence[float]) -> np.ndarray:
    matrix = np.array(logits, np.float32)
    matrix.flags.writeable = False  # the executor owns it
    return matrix


def random_rows(count: int, vocab: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return rows(*np.random.default_rng(seed).normal(0, scale, (count, vocab)))


def sample_one(params: SamplingParams, logits: Sequence[float], **opening: Any) -> int:
    one = Sampler(len(logits))
    slot = one.open(params, opening.get("prompt", ()), EOS, opening.get("output", ()))
    return int(one.sample(rows(logits), np.array([slot])).tokens[0])


def possible(params: SamplingParams, logits: Sequence[float], draws: int = 400) -> set[int]:
    """The tokens that come up among many draws from the same logits."""
    many = Sampler(len(logits))
    slot = np.array([many.open(params, (), EOS)])
    return {int(many.sample(rows(logits), slot).tokens[0]) for _ in range(draws)}


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


@given(st.data(), st.sampled_from([5, 40, 300, 700]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_agrees_with_the_obvious_sampler(data: st.DataObject, vocab: int) -> None:
    drawn = data.draw(st.lists(requests(vocab), min_size=1, max_size=5))
    values = data.draw(st.lists(logit_values, min_size=vocab // 4, max_size=vocab // 4))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    pool = np.array(values, np.float32)

    ours = Sampler(vocab)
    slots = np.array([ours.open(params, prompt, EOS, out) for params, prompt, out in drawn])
    for _ in range(3):
        logits = rows(*generator.choice(pool, (len(drawn), vocab)))
        sampled = ours.sample(logits, slots)
        for row, (params, prompt, output) in enumerate(drawn):
            token = int(sampled.tokens[row])
            expected, margin = choose(
                edited_logits(logits[row], params, prompt, output, EOS), params, len(output)
            )
            # Where float32 and exact arithmetic may part, either answer is right.
            if margin > 1e-5 and not _near_tie(logits[row], params, prompt, output):
                assert token == expected
            _check_logprobs(logits[row], token, params.logprobs, sampled.logprobs, row)
            output.append(token)


def _near_tie(
    logits: np.ndarray, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> bool:
    """Whether edits bring two logits closer than float32 can tell apart, but not equal."""
    ordered = np.sort(edited_logits(logits, params, prompt, output, EOS))
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


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
)
@example(seed=2**63 - 1, positions=[0])
@example(seed=-1, positions=[2**40])
def test_uniforms_are_those_of_the_counter_based_generator(seed: int, positions: list[int]) -> None:
    keys = np.full(len(positions), uniforms.stream_key(seed), np.uint64)
    found = uniforms.uniforms(keys, np.array(positions, np.int64))
    assert found.tolist() == [uniform(seed, position) for position in positions]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1, "temperature": 1.3},
        {"top_k": 9, "top_p": 0.9, "min_p": 0.02},
    ],
)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    logits = random_rows(1, 24, seed=5, scale=1.5)[0]
    seeds, steps = 2000, 10
    many = Sampler(24)
    slots = np.array([many.open(SamplingParams(seed=s, **params), (), EOS) for s in range(seeds)])
    matrix = np.broadcast_to(logits, (seeds, 24))
    tokens = np.concatenate([many.sample(matrix, slots).tokens for _ in range(steps)])

    expected, _ = distribution(logits.tolist(), SamplingParams(seed=0, **params))
    observed = np.bincount(tokens, minlength=24)
    assert set(np.flatnonzero(observed)) <= set(expected)
    wanted = np.array([expected[t] * seeds * steps for t in expected])
    chi_square = (((observed[list(expected)] - wanted) ** 2) / wanted).sum()
    freedom = len(expected) - 1
    # Three standard deviations above the mean of the chi-square distribution.
    assert chi_square < freedom + 3 * math.sqrt(2 * freedom)


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


@pytest.mark.parametrize("vocab", [700, 1024, 70_000])
def test_a_row_is_the_same_bits_alone_and_in_any_company(vocab: int) -> None:
    steps = 3
    logits = [random_rows(24, vocab, seed=step) for step in range(steps)]
    wishes = [MIXED[row % len(MIXED)] for row in range(24)]

    def run(order: Sequence[int]) -> dict[int, list[Any]]:
        mine = Sampler(vocab)
        slots = np.array([mine.open(wishes[row], [1, 2, 2], EOS) for row in order])
        texts: dict[int, list[Any]] = {row: [] for row in order}
        for matrix in logits:
            sampled = mine.sample(matrix[list(order)], slots)
            entries = sampled.logprobs or [None] * len(order)
            for row, token, entry in zip(order, sampled.tokens.tolist(), entries, strict=True):
                texts[row].append((token, entry))
        return texts

    together = run(range(24))
    shuffled = run(np.random.default_rng(9).permutation(24).tolist())
    half = run(range(1, 24, 2))
    assert shuffled == together
    assert half == {row: together[row] for row in half}
    for row in range(24):
        assert run([row]) == {row: together[row]}


@pytest.mark.parametrize("params", MIXED)
def test_a_resumed_request_goes_on_as_if_never_stopped(params: SamplingParams) -> None:
    vocab, prompt = 500, [4, 4, 9]
    logits = [random_rows(1, vocab, seed=step) for step in range(8)]

    def go_on(output: list[int], steps: Sequence[int]) -> list[int]:
        mine = Sampler(vocab)
        slot = np.array([mine.open(params, prompt, EOS, output)])
        return output + [int(mine.sample(logits[step], slot).tokens[0]) for step in steps]

    whole = go_on([], range(8))
    for cut in (1, 5):
        assert go_on(whole[:cut], range(cut, 8)) == whole


def test_without_a_seed_requests_differ() -> None:
    flat = np.zeros((64, 50_000), np.float32)
    many = Sampler(50_000)
    slots = np.array([many.open(SamplingParams(), (), EOS) for _ in range(64)])
    assert len(set(many.sample(flat, slots).tokens.tolist())) > 60


def test_different_seeds_and_positions_give_different_draws() -> None:
    flat = np.zeros((32, 50_000), np.float32)
    many = Sampler(50_000)
    slots = np.array([many.open(SamplingParams(seed=s), (), EOS) for s in range(32)])
    drawn = [t for _ in range(4) for t in many.sample(flat, slots).tokens.tolist()]
    assert len(set(drawn)) > 120


class TestGreedy:
    def test_ties_go_to_the_lowest_id(self) -> None:
        assert sample_one(GREEDY, [0, 5, 1, 5, 5]) == 1

    def test_truncation_and_seed_change_nothing(self) -> None:
        params = SamplingParams(temperature=0, seed=9, top_p=0.01, top_k=3, min_p=0.5)
        logits = random_rows(20, 100)
        one = Sampler(100)
        slots = np.array([one.open(params, (), EOS) for _ in range(20)])
        assert (one.sample(logits, slots).tokens == logits.argmax(axis=1)).all()

    def test_a_plain_batch_never_touches_the_slower_path(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Sampler, "_refine", None)
        one = Sampler(10)
        slots = np.array([one.open(GREEDY, (), EOS) for _ in range(5)])
        assert one.sample(random_rows(5, 10), slots).logprobs is None

    def test_an_empty_batch_gives_no_tokens(self) -> None:
        empty = np.zeros((0, 10), np.float32)
        assert len(Sampler(10).sample(empty, np.zeros(0, np.int64)).tokens) == 0


class TestTruncation:
    def test_top_k_cuts_ties_by_id(self) -> None:
        assert possible(SamplingParams(seed=1, top_k=2), [1, 1, 1, 1]) == {0, 1}

    def test_top_k_of_one_is_the_argmax(self) -> None:
        assert possible(SamplingParams(seed=1, top_k=1), [0, 2, 2, 1]) == {1}

    @pytest.mark.parametrize("top_k", [0, -1, 4, 1000, 10**30])
    def test_top_k_off_or_beyond_the_vocabulary_keeps_all(self, top_k: int) -> None:
        assert possible(SamplingParams(seed=1, top_k=top_k), [1, 1, 1, 1]) == {0, 1, 2, 3}

    @pytest.mark.parametrize(
        ("top_p", "kept"), [(0.5, {0, 1}), (0.51, {0, 1, 2}), (0.25, {0}), (1e-300, {0})]
    )
    def test_top_p_keeps_the_smallest_set_that_reaches_it(
        self, top_p: float, kept: set[int]
    ) -> None:
        assert possible(SamplingParams(seed=1, top_p=top_p), [1, 1, 1, 1]) == kept

    def test_top_p_is_a_share_of_what_top_k_leaves(self) -> None:
        # Of all ten tokens 0.4 would need four, of the two that top_k leaves one is enough.
        assert possible(SamplingParams(seed=1, top_k=2, top_p=0.4), [0.0] * 10) == {0}

    def test_min_p_is_relative_to_the_best(self) -> None:
        logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
        assert possible(SamplingParams(seed=1, min_p=0.25), logits) == {0, 1, 2}
        assert possible(SamplingParams(seed=1, min_p=1.0), logits) == {0}

    def test_min_p_keeps_a_token_exactly_at_the_limit(self) -> None:
        limit = float(np.exp(rows([-1.0]))[0, 0])
        assert possible(SamplingParams(seed=1, min_p=limit), [0.0, -1.0, -1.1]) == {0, 1}

    def test_temperature_comes_before_truncation(self) -> None:
        logits = np.log([0.4, 0.3, 0.3]).tolist()
        assert possible(SamplingParams(seed=1, top_p=0.9), logits) == {0, 1, 2}
        assert possible(SamplingParams(seed=1, top_p=0.9, temperature=0.1), logits) == {0, 1}

    @given(st.integers(1, 400), st.integers(64, 400), st.integers(0, 99), st.booleans())
    @settings(deadline=None)
    def test_the_top_k_floor_is_never_above_the_kth_value(
        self, k: int, width: int, seed: int, coarse: bool
    ) -> None:
        values = np.random.default_rng(seed).normal(size=(3, width)).astype(np.float32)
        values = np.round(values) if coarse else values
        ks = np.array([k, 1, max(1, k // 7)])
        floor = truncation.top_k_floor(values, ks)
        for row in range(3):
            kth = np.sort(values[row])[::-1][min(ks[row], width) - 1]
            assert floor[row] <= kth


class TestEdits:
    def test_bias_reaches_greedy_rows(self) -> None:
        assert sample_one(SamplingParams(temperature=0, logit_bias={4: 100}), [0.0] * 6) == 4

    def test_repetition_penalty_counts_the_prompt_and_acts_by_sign(self) -> None:
        params = SamplingParams(temperature=0, repetition_penalty=2.0)
        assert sample_one(params, [3.0, 2.0, 0, 0], prompt=[0]) == 1
        assert sample_one(params, [-1.5, -2.0, -9, -9], prompt=[0]) == 1

    def test_presence_and_frequency_penalties_ignore_the_prompt(self) -> None:
        params = SamplingParams(temperature=0, presence_penalty=2.0, frequency_penalty=2.0)
        assert sample_one(params, [1.0, 0.5, 0, 0], prompt=[0, 0]) == 0
        assert sample_one(params, [1.0, 0.5, 0, 0], output=[0]) == 1

    def test_frequency_penalty_grows_with_what_was_sampled(self) -> None:
        one = Sampler(4)
        params = SamplingParams(temperature=0, frequency_penalty=1.0)
        slot = np.array([one.open(params, (), EOS)])
        logits = rows([2.5, 1.0, 0, 0])
        tokens = [int(one.sample(logits, slot).tokens[0]) for _ in range(5)]
        # Token 0 stands at 2.5, 1.5 and 0.5 in turn, token 1 at 1.0 and then at 0.0.
        assert tokens == [0, 0, 1, 0, 1]

    def test_many_different_tokens_are_all_remembered(self) -> None:
        one = Sampler(100)
        params = SamplingParams(temperature=0, presence_penalty=2.0, max_tokens=None)
        slot = np.array([one.open(params, (), EOS)])
        logits = rows(np.linspace(0, 1, 100))
        tokens = [int(one.sample(logits, slot).tokens[0]) for _ in range(100)]
        assert tokens == list(range(99, -1, -1))

    def test_a_tiny_repetition_penalty_does_not_overflow(self) -> None:
        params = SamplingParams(seed=1, repetition_penalty=1e-300)
        assert sample_one(params, [30.0, 1.0, 0, 0], prompt=[1]) == 1

    @pytest.mark.parametrize("temperature", [0.0, 0.5])
    def test_min_tokens_bars_eos_and_stop_tokens_until_served(self, temperature: float) -> None:
        one = Sampler(5)
        params = SamplingParams(
            temperature=temperature, seed=1, min_tokens=2, stop_token_ids=(1,), max_tokens=9
        )
        slot = np.array([one.open(params, (), EOS)])
        logits = rows([0.0, 90.0, -90.0, 95.0, -90.0])
        assert [int(one.sample(logits, slot).tokens[0]) for _ in range(4)] == [0, 0, 3, 3]

    def test_min_tokens_counts_the_tokens_before_a_resume(self) -> None:
        params = SamplingParams(temperature=0, min_tokens=3)
        assert sample_one(params, [0, 0, 0, 9.0], output=[0, 0]) == 0
        assert sample_one(params, [0, 0, 0, 9.0], output=[0, 0, 0]) == 3

    def test_with_ignore_eos_min_tokens_leaves_eos_alone(self) -> None:
        params = SamplingParams(temperature=0, min_tokens=3, ignore_eos=True)
        assert sample_one(params, [0, 0, 0, 9.0]) == 3

    @pytest.mark.parametrize(
        "wishes", [{"logit_bias": {10: 1.0}}, {"stop_token_ids": (10,)}], ids=str
    )
    def test_token_ids_outside_the_vocabulary_are_refused(self, wishes: dict[str, Any]) -> None:
        with pytest.raises(SamplingError, match="token id 10, expected at most 9") as caught:
            Sampler(10).open(SamplingParams(**wishes), (), EOS)
        assert caught.value.field in wishes

    def test_a_penalised_prompt_outside_the_vocabulary_is_refused(self) -> None:
        with pytest.raises(ValueError, match="outside the vocabulary of 10"):
            Sampler(10).open(SamplingParams(repetition_penalty=2), [11], EOS)

    def test_an_eos_id_without_a_logit_is_harmless(self) -> None:
        one = Sampler(4)
        slot = one.open(SamplingParams(temperature=0, min_tokens=1), (), [99])
        assert one.sample(rows([0, 1, 0, 0]), np.array([slot])).tokens.tolist() == [1]


class TestUnsoundLogits:
    RANDOM = SamplingParams(seed=1)

    @pytest.mark.parametrize("params", [*MIXED, RANDOM])
    @pytest.mark.parametrize("spoil", ["nan", "inf", "all -inf"])
    def test_the_row_gets_no_token_and_the_others_theirs(
        self, params: SamplingParams, spoil: str
    ) -> None:
        good = random_rows(3, 500)
        bad = good.copy()
        bad[1] = {"nan": np.where(np.arange(500) == 77, np.nan, bad[1])}.get(spoil, bad[1])
        if spoil == "inf":
            bad[1, 5] = np.inf
        elif spoil == "all -inf":
            bad[1] = -np.inf

        tried, untried = Sampler(500), Sampler(500)
        slots = np.array([tried.open(params, (), EOS) for _ in range(3)])
        assert slots.tolist() == [untried.open(params, (), EOS) for _ in range(3)]
        for logits in (bad, good):
            found = tried.sample(logits, slots)
            expected = untried.sample(good, slots)
            for row in (0, 2):
                assert found.tokens[row] == expected.tokens[row]
                if expected.logprobs is not None:
                    assert found.logprobs is not None
                    assert found.logprobs[row] == expected.logprobs[row]
            if logits is bad:
                assert found.tokens[1] == NO_TOKEN
                assert found.logprobs is None or found.logprobs[1] is None

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_rows_spoiled_by_the_model_and_by_bars_get_no_token(self, temperature: float) -> None:
        one = Sampler(3)
        barring = SamplingParams(temperature=temperature, min_tokens=1, stop_token_ids=(0, 1, 2))
        plain = SamplingParams(temperature=temperature)
        slots = np.array([one.open(p, (), ()) for p in (plain, barring, plain, barring)])
        found = one.sample(rows([1, 2, 3], [1, 2, 3], [1, math.nan, 3], [math.nan] * 3), slots)
        assert (found.tokens == NO_TOKEN).tolist() == [False, True, True, True]

    def test_tokens_at_minus_infinity_are_never_drawn(self) -> None:
        logits = [-math.inf, 1.0, -math.inf, 0.0, -math.inf]
        for params in ({}, {"top_k": 4}, {"top_p": 0.999}, {"min_p": 0.001}):
            assert possible(SamplingParams(seed=1, **params), logits) == {1, 3}

    @pytest.mark.parametrize("temperature", [1e-6, 1e-45, 5e-324])
    @pytest.mark.parametrize("truncation", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}])
    def test_a_tiny_temperature_is_greedy_in_effect(
        self, temperature: float, truncation: dict[str, Any]
    ) -> None:
        params = SamplingParams(seed=1, temperature=temperature, **truncation)
        assert possible(params, [1.0, 1.001, -3e38, 0.0], draws=20) == {1}

    def test_huge_logits_do_not_overflow(self) -> None:
        assert possible(SamplingParams(seed=1), [3e38, -3e38, 3e38], draws=40) == {0, 2}


class TestSlots:
    def test_closed_slots_are_used_again_and_forget_their_past(self) -> None:
        one = Sampler(4)
        first = one.open(SamplingParams(temperature=0, logit_bias={2: 50}), (), EOS)
        one.close(first)
        again = one.open(GREEDY, (), EOS)
        assert again == first
        assert one.sample(rows([9, 0, 0, 0]), np.array([again])).tokens.tolist() == [0]

    def test_growing_keeps_what_is_open(self) -> None:
        one = Sampler(8)
        slots = [one.open(SamplingParams(temperature=0, logit_bias={3: 9}), (), ())]
        slots += [one.open(GREEDY, (), EOS) for _ in range(100)]
        assert len(set(slots)) == 101
        tokens = one.sample(np.zeros((101, 8), np.float32), np.array(slots)).tokens
        assert tokens.tolist() == [3] + [0] * 100

    def test_a_slot_cannot_be_closed_twice_or_sampled_after(self) -> None:
        one = Sampler(4)
        slot = one.open(GREEDY, (), EOS)
        one.close(slot)
        with pytest.raises(ValueError, match="not open"):
            one.close(slot)
        with pytest.raises(ValueError, match="not open"):
            one.sample(rows([1, 2, 3, 4]), np.array([slot]))

    @pytest.mark.parametrize("shape", [(2, 4), (1, 5), (4,)])
    def test_logits_of_the_wrong_shape_are_refused(self, shape: tuple[int, ...]) -> None:
        one = Sampler(4)
        slot = np.array([one.open(GREEDY, (), EOS)])
        with pytest.raises(ValueError, match=r"expected \(1, 4\)"):
            one.sample(np.zeros(shape, np.float32), slot)


def test_chunks_cover_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(seed=3, logprobs=1)
    logits = random_rows(7, 100)

    def run() -> tuple[list[int], Any]:
        one = Sampler(100)
        sampled = one.sample(logits, np.array([one.open(params, (), EOS) for _ in range(7)]))
        return sampled.tokens.tolist(), sampled.logprobs

    whole = run()
    monkeypatch.setattr(sampler, "_CHUNK_ELEMENTS", 2 * uniforms.BLOCK)
    assert run() == whole


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=600), st.floats(0, 1))
@example(values=[0.0, 1.0], point=0.0)
@settings(deadline=None)
def test_a_column_without_weight_is_never_drawn(values: list[float], point: float) -> None:
    assume(sum(values) > 0)
    padded = np.zeros((1, 768), np.float32)
    padded[0, : len(values)] = values
    column = uniforms.draw(padded, np.array([min(point, 1 - 2**-53)]))[0]
    assert padded[0, column] > 0
