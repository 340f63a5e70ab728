"""A request continues in another engine, with the tokens that the first would have generated."""

from __future__ import annotations

from hashlib import blake2b
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.backends.runner import InlineRunner
from sarathi.backends.step import Step
from sarathi.engine.core import EngineCore
from sarathi.engine.messages import TokenOutput
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import Sampler
from sarathi.scheduler import POLICIES, AdmissionError, BlockPool, FixedBudget, Scheduler
from tests.engine.fake_cache import TokenCache

VOCAB, EOS = 40, 39
BLOCK, BLOCKS, LENGTH = 4, 24, 60


class Rememberer:
    """Logits that follow from all tokens of a sequence, as the KV blocks have them."""

    def __init__(self, vocab_size: int = VOCAB) -> None:
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self._vocab_size = vocab_size
        self._cache = TokenCache(BLOCKS, BLOCK)

    def pooled(self) -> np.ndarray:
        raise AssertionError("no request asks for an embedding")

    def execute(self, step: Step) -> np.ndarray:
        logits: dict[int, np.ndarray] = {}  # by row
        for row, known in self._cache.write(step):
            if row in step.sample_rows:
                seed = int.from_bytes(blake2b(known.tobytes(), digest_size=8).digest(), "big")
                logits[row] = np.random.default_rng(seed).normal(0, 2, self._vocab_size)
        found = [logits[row] for row in step.sample_rows.tolist()]
        return np.array(found, np.float32).reshape(-1, self._vocab_size)


def core(budget: int = 16, policy: str = "sarathi", **options: object) -> EngineCore:
    scheduler = Scheduler(
        BlockPool(BLOCKS, BLOCK),
        FixedBudget(budget),
        max_batch_size=4,
        max_model_len=LENGTH,
        policy=POLICIES[policy],
        **options,  # type: ignore[arg-type]
    )
    return EngineCore(InlineRunner(Rememberer(), Sampler(VOCAB)), scheduler, [EOS])


def drain(engine: EngineCore, wanted: int) -> list[TokenOutput]:
    outputs = []
    while engine.has_work:
        result = engine.step()
        assert not result.failures
        outputs += [output for output in result.outputs if output.id == wanted]
    return outputs


def whole(prompt: list[int], params: SamplingParams) -> list[TokenOutput]:
    engine = core()
    engine.submit(1, prompt, params, arrival=0.0)
    return drain(engine, 1)


def same(one: TokenOutput, other: TokenOutput) -> bool:
    return (one.token, one.finish_reason, one.logprobs) == (
        other.token,
        other.finish_reason,
        other.logprobs,
    )


all_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 2.0]),
    seed=st.integers(0, 100),
    max_tokens=st.sampled_from([15, 20, None]),
    min_tokens=st.sampled_from([0, 1, 15]),
    top_p=st.sampled_from([1.0, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 1.0]),
    logprobs=st.sampled_from([None, 2]),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (3, 4)]),
)


@settings(max_examples=50, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCAB - 2), min_size=1, max_size=30),
    params=all_params,
    place=st.floats(0, 1),
    budget=st.sampled_from([3, 16, 64]),
    policy=st.sampled_from(["sarathi", "orca", "vllm"]),
    chunk=st.sampled_from([None, 8]),
    mates=st.integers(0, 5),
)
def test_a_request_that_is_resumed_at_any_token_continues_the_same(
    prompt: list[int],
    params: SamplingParams,
    place: float,
    budget: int,
    policy: str,
    chunk: int | None,
    mates: int,
) -> None:
    expected = whole(prompt, params)
    cut = min(int(place * len(expected)), len(expected) - 1)
    before = [output.token for output in expected[:cut]]
    engine = core(budget, policy, deterministic_chunk=chunk if policy == "sarathi" else None)
    for mate in range(mates):  # some begin in the same way, and memory may run out
        engine.submit(100 + mate, prompt[: mate + 5], SamplingParams(max_tokens=20), arrival=0.0)
    engine.step()
    engine.submit(1, prompt, params, arrival=0.5, output_ids=before)
    rest = drain(engine, 1)
    assert len(rest) == len(expected) - cut
    assert all(map(same, rest, expected[cut:]))
    assert engine.stats.free_blocks == engine.stats.total_blocks


def test_values_of_the_first_token_are_not_repeated() -> None:
    engine = core()
    prompt = list(range(12))
    engine.submit(1, prompt, SamplingParams(max_tokens=3, ignore_eos=True), arrival=0.0)
    first, *_ = drain(engine, 1)
    assert first.scheduling_delay is not None
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    engine.submit(2, prompt, params, arrival=0.0, output_ids=[first.token])
    again, _ = drain(engine, 2)
    assert (again.scheduling_delay, again.cached_tokens) == (None, 0)
    # Its prompt was counted by the engine that began it.
    assert engine.stats.prompt_tokens == len(prompt)


def test_a_request_without_tokens_starts_as_usual() -> None:
    engine = core()
    engine.submit(1, [1, 2], SamplingParams(max_tokens=1), arrival=0.0, output_ids=[])
    [only] = drain(engine, 1)
    assert only.scheduling_delay is not None


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ([5, 6, 7], "has ended already"),
        ([EOS], "has ended already"),
        ([VOCAB], "the output holds a token id outside the vocabulary"),
    ],
)
def test_an_output_that_cannot_go_on_is_refused(outputs: list[int], why: str) -> None:
    engine = core()
    with pytest.raises(AdmissionError, match=why):
        engine.submit(1, [1], SamplingParams(max_tokens=3), arrival=0.0, output_ids=outputs)
    assert not engine.has_work
