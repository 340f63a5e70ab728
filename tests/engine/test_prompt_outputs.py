"""Log probabilities and embeddings of prompts: each position counts once, whatever happens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.backends.runner import InlineRunner, Runner
from sarathi.backends.step import Step
from sarathi.engine.core import EngineCore
from sarathi.engine.messages import TokenOutput
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import NO_TOKEN, Sampler
from sarathi.scheduler import (
    POLICIES,
    AdmissionError,
    BlockPool,
    FixedBudget,
    Scheduler,
    SchedulingParams,
    prefill,
)
from sarathi.scheduler.queue.waiting_queue import Priority
from tests.engine.fake_cache import TokenCache
from tests.engine.fake_pipeline import Pipeline

VOCAB, EOS = 40, 39
BLOCK, BLOCKS, LENGTH = 4, 20, 60


WIDTH = 6


def hidden_after(tokens: list[int]) -> np.ndarray:
    """The hidden state that the model has after a whole sequence."""
    return np.random.default_rng([7, *tokens]).normal(0.3, 1, WIDTH).astype(np.float32)


def logits_after(tokens: list[int]) -> np.ndarray:
    """What the model gives after a whole sequence."""
    return np.random.default_rng(tokens).normal(0, 2, VOCAB).astype(np.float32)


class Model:
    """Knows a sequence only from what steps have written to its KV blocks."""

    config = SimpleNamespace(vocab_size=VOCAB)

    def __init__(self) -> None:
        self._cache = TokenCache(BLOCKS, BLOCK)

    def execute(self, step: Step) -> np.ndarray:
        found = np.full((len(step.token_ids), VOCAB), np.nan, np.float32)
        hidden = np.full((len(step.token_ids), WIDTH), np.nan, np.float32)
        for row, known in self._cache.write(step):
            found[row] = logits_after(known.tolist())
            hidden[row] = hidden_after(known.tolist())
        self._pooled = hidden[step.pooled_rows]
        return found[step.sample_rows]

    def pooled(self) -> np.ndarray:
        return self._pooled


def make_core(
    budget: int = 16, policy: str = "sarathi", stages: int = 1, **options: object
) -> EngineCore:
    scheduler = Scheduler(
        BlockPool(BLOCKS, BLOCK),
        FixedBudget(budget),
        max_batch_size=6,
        max_model_len=LENGTH,
        policy=POLICIES[policy],
        micro_batches=stages,
        **options,  # type: ignore[arg-type]
    )
    runner: Runner = InlineRunner(Model(), Sampler(VOCAB))
    if stages > 1:
        runner = Pipeline(Model(), stages)
    return EngineCore(runner, scheduler, [EOS])


def drain(core: EngineCore, wanted: int) -> list[TokenOutput]:
    found: list[TokenOutput] = []
    while core.has_work:
        outputs, failures = core.step()
        assert not failures
        found += [output for output in outputs if output.id == wanted]
    assert core.stats.free_blocks == core.stats.total_blocks
    return found


def scores(outputs: list[TokenOutput]) -> list[TokenLogprobs]:
    return [entry for output in outputs for entry in output.prompt_logprobs or ()]


def expected(prompt: list[int], count: int) -> list[TokenLogprobs]:
    found = []
    for position, token in enumerate(prompt[1:], 1):
        logits = logits_after(prompt[:position]).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum())
        order = np.argsort(-logits, kind="stable")[:count]
        rank = 1 + np.count_nonzero(logits > logits[token])
        found.append(
            TokenLogprobs(logprobs[token], int(rank), order.tolist(), logprobs[order].tolist())
        )
    return found


def check(found: list[TokenLogprobs], wanted: list[TokenLogprobs]) -> None:
    assert [(e.rank, e.top_ids) for e in found] == [(e.rank, e.top_ids) for e in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert one.top_logprobs == pytest.approx(other.top_logprobs, abs=1e-5)


prompts = st.lists(st.integers(0, VOCAB - 2), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
@given(
    prompt=prompts,
    count=st.integers(0, 5),
    max_tokens=st.sampled_from([0, 1, 10]),
    resumed=st.floats(0, 1),
    budget=st.sampled_from([3, 16, 64]),
    rows=st.sampled_from([2, 7, 128]),
    policy=st.sampled_from(list(POLICIES)),
    stages=st.integers(1, 3),
    chunk=st.sampled_from([None, 8]),
    mates=st.integers(0, 5),
)
def test_every_position_has_its_log_probability_once(
    prompt: list[int],
    count: int,
    max_tokens: int,
    resumed: float,
    budget: int,
    rows: int,
    policy: str,
    stages: int,
    chunk: int | None,
    mates: int,
) -> None:
    """However chunks are cut, with other requests of the same prefix, too little memory, several
    batches in flight, and where another engine has computed some of them."""
    num_scored = int(resumed * (len(prompt) - 1))
    params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=count, ignore_eos=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "MAX_SCORED_ROWS", rows)
        core = make_core(
            budget, policy, stages, deterministic_chunk=chunk if policy == "sarathi" else None
        )
        for mate in range(mates):
            core.submit(100 + mate, prompt[: mate + 9], SamplingParams(max_tokens=20), arrival=0.0)
        core.step()
        core.submit(1, prompt, params, arrival=0.5, num_scored=num_scored)
        found = drain(core, 1)
    check(scores(found), expected(prompt, count)[num_scored:])
    assert [output.token for output in found].count(NO_TOKEN) == len(found) - max_tokens
    assert found[-1].finish_reason == "length"
    assert sum(output.finish_reason is not None for output in found) == 1


@settings(max_examples=60, deadline=None)
@given(
    prompt=prompts,
    pooling=st.sampled_from(["last", "mean"]),
    budget=st.sampled_from([3, 16, 64]),
    policy=st.sampled_from(list(POLICIES)),
    chunk=st.sampled_from([None, 8]),
    mates=st.integers(0, 5),
)
def test_an_embedding_has_every_position_once(
    prompt: list[int],
    pooling: Literal["last", "mean"],
    budget: int,
    policy: str,
    chunk: int | None,
    mates: int,
) -> None:
    """However chunks are cut, beside requests that score and sample, with too little memory."""
    core = make_core(budget, policy, deterministic_chunk=chunk if policy == "sarathi" else None)
    for mate in range(mates):
        params = SamplingParams(max_tokens=20, prompt_logprobs=1 if mate % 2 else None)
        core.submit(100 + mate, prompt[: mate + 9], params, arrival=0.0)
    core.step()
    core.submit(1, prompt, SamplingParams(max_tokens=0, pooling=pooling), arrival=0.5)
    (end,) = drain(core, 1)
    states = np.array([hidden_after(prompt[:count]) for count in range(1, len(prompt) + 1)])
    pooled = states.mean(axis=0) if pooling == "mean" else states[-1]
    assert end.embedding is not None
    found = np.frombuffer(end.embedding, "<f4")
    np.testing.assert_allclose(found, pooled / np.linalg.norm(pooled), atol=1e-5)


def test_an_embedding_of_the_last_token_uses_the_prefix_cache() -> None:
    core = make_core()
    prompt = list(range(30))
    for name, pooling, cached in ((1, "mean", 0), (2, "last", 28), (3, "mean", 0)):
        params = SamplingParams(max_tokens=0, pooling=pooling)  # type: ignore[arg-type]
        core.submit(name, prompt, params, arrival=0.0)
        (end,) = drain(core, name)
        assert end.cached_tokens == cached


def test_scores_come_before_the_first_token() -> None:
    core = make_core(budget=8)
    prompt = list(range(20))
    core.submit(1, prompt, SamplingParams(max_tokens=2, prompt_logprobs=0), arrival=0.0)
    found = drain(core, 1)
    first = next(index for index, output in enumerate(found) if output.token != NO_TOKEN)
    assert [len(output.prompt_logprobs or ()) for output in found[:first]] == [8, 8, 3]
    assert all(output.prompt_logprobs is None for output in found[first:])
    assert [output.scheduling_delay is not None for output in found] == [False] * 3 + [True, False]


def test_a_scored_prompt_uses_no_cached_prefix_but_leaves_one() -> None:
    core = make_core()
    prompt = list(range(30))
    plain = SamplingParams(max_tokens=1)
    scored = SamplingParams(max_tokens=0, prompt_logprobs=1)
    core.submit(1, prompt, scored, arrival=0.0)
    drain(core, 1)
    core.submit(2, prompt, scored, arrival=0.0)
    check(scores(drain(core, 2)), expected(prompt, 1))
    assert core.stats.cached_tokens == 0
    core.submit(3, prompt, plain, arrival=0.0)
    assert drain(core, 3)[0].cached_tokens == 28


def test_a_preempted_prompt_goes_on_where_its_scores_end() -> None:
    """A request with a lower priority number takes the place of one that is half computed."""
    core = make_core(budget=4, order=Priority())
    prompt, urgent = list(range(1, 38)), list(range(2, 39))
    params = SamplingParams(max_tokens=1, prompt_logprobs=2)
    core.submit(1, prompt, params, 0.0, SchedulingParams(priority=5))
    outputs = [output for _ in range(6) for output in core.step().outputs]
    core.submit(2, [*urgent, *urgent[:20]], params, 0.0, SchedulingParams(priority=0))
    outputs += drain(core, 1)
    assert core.stats.preemptions == 1
    check(scores([output for output in outputs if output.id == 1]), expected(prompt, 2))


def test_a_preempted_embedding_adds_up_each_position_once() -> None:
    core = make_core(budget=4, order=Priority())
    prompt, urgent = list(range(1, 38)), list(range(2, 39))
    params = SamplingParams(max_tokens=0, pooling="mean")
    core.submit(1, prompt, params, 0.0, SchedulingParams(priority=5))
    assert not [output for _ in range(6) for output in core.step().outputs]
    core.submit(2, [*urgent, *urgent[:20]], params, 0.0, SchedulingParams(priority=0))
    (end,) = drain(core, 1)
    assert core.stats.preemptions == 1
    pooled = sum(hidden_after(prompt[:count]) for count in range(1, len(prompt) + 1))
    assert end.embedding is not None
    found = np.frombuffer(end.embedding, "<f4")
    np.testing.assert_allclose(found, pooled / np.linalg.norm(pooled), atol=1e-5)


def test_a_prompt_may_fill_the_model_if_nothing_is_sampled() -> None:
    core = make_core()
    prompt = [1 + index % 30 for index in range(LENGTH)]
    core.submit(1, prompt, SamplingParams(max_tokens=0, prompt_logprobs=0), arrival=0.0)
    check(scores(drain(core, 1)), expected(prompt, 0))
    with pytest.raises(AdmissionError, match="length"):
        core.submit(2, [*prompt, 1], SamplingParams(max_tokens=0), arrival=0.0)
    with pytest.raises(AdmissionError, match="no room for output"):
        core.submit(3, prompt, SamplingParams(max_tokens=1), arrival=0.0)


def test_nothing_is_sampled_and_nothing_scored() -> None:
    core = make_core(budget=4)
    core.submit(1, list(range(9)), SamplingParams(max_tokens=0), arrival=0.0)
    (end,) = drain(core, 1)
    assert (end.token, end.finish_reason, end.prompt_logprobs) == (NO_TOKEN, "length", None)


def test_a_cancelled_request_has_no_more_scores() -> None:
    core = make_core(budget=4, stages=2)
    params = SamplingParams(max_tokens=3, prompt_logprobs=0)
    core.submit(1, list(range(30)), params, arrival=0.0)
    core.submit(2, list(range(5, 35)), params, arrival=0.0)
    for _ in range(3):
        core.step()
    core.cancel(1)
    found: dict[int, list[TokenOutput]] = {}
    while core.has_work:
        for output in core.step().outputs:
            found.setdefault(output.id, []).append(output)
    assert list(found) == [2]
    check(scores(found[2]), expected(list(range(5, 35)), 0))


def test_an_iteration_that_fails_takes_no_score_with_it() -> None:
    """The batches in flight are dropped, and their positions come with later ones."""
    core = make_core(budget=4, stages=2)
    pipeline = core.runner
    assert isinstance(pipeline, Pipeline)
    prompt = list(range(30))
    core.submit(1, prompt, SamplingParams(max_tokens=1, prompt_logprobs=1), arrival=0.0)
    found = [output for _ in range(3) for output in core.step().outputs]

    def interrupt() -> None:
        raise KeyboardInterrupt

    pipeline.before_result = interrupt
    with pytest.raises(KeyboardInterrupt):
        core.step()
    pipeline.before_result = lambda: None
    assert found
    check(scores(found + drain(core, 1)), expected(prompt, 1))


def test_the_value_of_a_row_that_is_not_finite_is_no_number() -> None:
    class Broken(Model):
        def execute(self, step: Step) -> np.ndarray:
            logits = super().execute(step)
            if len(logits) > 3:
                logits[2] = np.nan
                logits[3, 5] = np.inf
            return logits

    scheduler = Scheduler(BlockPool(20, 4), FixedBudget(16), max_batch_size=4, max_model_len=60)
    core = EngineCore(InlineRunner(Broken(), Sampler(VOCAB)), scheduler, [EOS])
    core.submit(1, list(range(10)), SamplingParams(max_tokens=0, prompt_logprobs=1), arrival=0.0)
    found = scores(drain(core, 1))
    assert [np.isnan(entry.logprob) for entry in found] == [False] * 2 + [True] * 2 + [False] * 5
    assert (found[2].top_ids, found[2].rank) == ([], 0)
