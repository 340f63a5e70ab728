from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from sarathi.sampling import categorical, sampler
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import Sampler
from tests.sampler_contract import (
    EOS,
    GREEDY,
    Edits,
    Greedy,
    InvalidLogits,
    Processors,
    Resumption,
    Slots,
    Truncation,
    check_agreement,
    check_independence,
    random_rows,
)
from tests.sampling_reference import distribution, uniform


class TestSampler(Greedy, Truncation, Edits, Processors, InvalidLogits, Slots, Resumption):
    def make(self, vocab_size: int) -> Sampler:
        return Sampler(vocab_size)

    def test_a_plain_batch_never_touches_the_slower_path(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Sampler, "_refine", None)
        one = Sampler(10)
        slots = np.array([one.open(GREEDY, (), EOS) for _ in range(5)])
        assert one.sample(random_rows(5, 10), slots).logprobs is None


@given(st.integers(1, 400), st.integers(64, 400), st.integers(0, 99), st.booleans())
@settings(deadline=None)
def test_the_top_k_floor_is_never_above_the_kth_value(
    k: int, width: int, seed: int, coarse: bool
) -> None:
    values = np.random.default_rng(seed).normal(size=(3, width)).astype(np.float32)
    values = np.round(values) if coarse else values
    ks = np.array([k, 1, max(1, k // 7)])
    floor = categorical.top_k_floor(values, ks)
    for row in range(3):
        kth = np.sort(values[row])[::-1][min(ks[row], width) - 1]
        assert floor[row] <= kth


@given(st.data(), st.sampled_from([5, 40, 300, 700]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_agrees_with_the_reference(data: st.DataObject, vocab: int) -> None:
    check_agreement(Sampler(vocab), data, max_rows=5, steps=3)


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
)
@example(seed=2**63 - 1, positions=[0])
@example(seed=-1, positions=[2**40])
def test_uniforms_are_those_of_the_counter_based_generator(seed: int, positions: list[int]) -> None:
    keys = np.full(len(positions), categorical.stream_key(seed), np.uint64)
    found = categorical.uniforms(keys, np.array(positions, np.int64))
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
def test_samples_follow_the_distribution(params: dict[str, Any]) -> None:
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


@pytest.mark.parametrize("vocab", [700, 1024, 70_000])
def test_a_row_does_not_depend_on_the_batch(vocab: int) -> None:
    check_independence(Sampler, vocab, num_rows=24, steps=3)


def test_without_a_seed_requests_differ() -> None:
    flat = np.zeros((64, 50_000), np.float32)
    many = Sampler(50_000)
    slots = np.array([many.open(SamplingParams(), (), EOS) for _ in range(64)])
    assert len(set(many.sample(flat, slots).tokens.tolist())) > 60


def test_different_seeds_and_positions_give_different_tokens() -> None:
    flat = np.zeros((32, 50_000), np.float32)
    many = Sampler(50_000)
    slots = np.array([many.open(SamplingParams(seed=s), (), EOS) for s in range(32)])
    tokens = [t for _ in range(4) for t in many.sample(flat, slots).tokens.tolist()]
    assert len(set(tokens)) > 120


def test_chunks_cover_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(seed=3, logprobs=1)
    logits = random_rows(7, 100)

    def run() -> tuple[list[int], Any]:
        one = Sampler(100)
        sampled = one.sample(logits, np.array([one.open(params, (), EOS) for _ in range(7)]))
        return sampled.tokens.tolist(), sampled.logprobs

    whole = run()
    monkeypatch.setattr(sampler, "_CHUNK_ELEMENTS", 2 * categorical.BLOCK)
    assert run() == whole


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=600), st.floats(0, 1))
@example(values=[0.0, 1.0], point=0.0)
@settings(deadline=None)
def test_a_column_without_weight_is_never_sampled(values: list[float], point: float) -> None:
    assume(sum(values) > 0)
    padded = np.zeros((1, 768), np.float32)
    padded[0, : len(values)] = values
    column = categorical.sample_whole(padded, np.array([min(point, 1 - 2**-53)]))[0]
    assert padded[0, column] > 0
