"""Sampling on the device, compared with the reference and with the sampler of the host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sarathi.backends.torch import torch_sampler
from sarathi.backends.torch.kernels import MAX_VOCAB_SIZE
from sarathi.backends.torch.kernels.sampling_kernels import Tiles
from sarathi.backends.torch.torch_sampler import TorchSampler
from sarathi.errors import ExecutorError
from sarathi.sampling.grammar import choice, lark, regex
from sarathi.sampling.logprobs import ScoredRows
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import NO_TOKEN, Sampler, SamplerOutput
from tests import grammar_vocabulary
from tests.grammar_vocabulary import END, TOKENS, PatientMasks, encode
from tests.sampler_contract import (
    EOS,
    GREEDY,
    MIXED,
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
    rows,
)

# The interpreter warns of infinities, which are meant.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

# The interpreter takes as long for many ways as for few; a compiler takes much longer.
WAYS = 256 if os.environ.get("TRITON_INTERPRET") == "1" else 4
SMALL = Tiles(block=128, ways=WAYS)
TINY = Tiles(block=32, ways=WAYS)  # most rows have more candidates than fit


class ArraySampler(TorchSampler):
    """Takes logits on the host, as the tests of all samplers give them."""

    def __init__(self, vocab_size: int, device: torch.device, tiles: Tiles = SMALL) -> None:
        super().__init__(vocab_size, device, tiles)
        self._to = device

    def sample(self, logits: Any, slots: np.ndarray) -> SamplerOutput:
        return super().sample(torch.tensor(logits).to(self._to), slots)


def test_scores_are_those_of_the_host(device: torch.device) -> None:
    """Those of rows that are not finite are no numbers, and do not disturb the others."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (6, 700)).astype(np.float32)
    logits[1, 5], logits[4, 6] = np.nan, np.inf
    logits[2, :40] = logits[2].max()  # more ties than alternatives
    scored = ScoredRows(rng.integers(0, 700, 6), np.array([3, 3, 20, 0, 1, 5]))
    found = TorchSampler(700, device, SMALL).score(torch.tensor(logits).to(device), scored)
    expected = Sampler(700).score(logits, scored)
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert (one.rank, one.top_ids) == (other.rank, other.top_ids)
        assert np.isnan(one.logprob) == (row in (1, 4))
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5, nan_ok=True)
        assert one.top_logprobs == pytest.approx(other.top_logprobs, abs=1e-5)


class TestTorchSampler(Greedy, Truncation, Edits, Processors, InvalidLogits, Slots, Resumption):
    steps = 2
    cuts = (1,)

    @pytest.fixture(autouse=True)
    def _choose_device(self, device: torch.device) -> None:
        self._device = device

    def make(self, vocab_size: int) -> ArraySampler:
        return ArraySampler(vocab_size, self._device)

    def possible(
        self, params: SamplingParams, logits: Sequence[float], samples: int = 400
    ) -> set[int]:
        """Return what this gives where the host's sampler finds each token first."""
        host = Sampler(len(logits))
        slot = np.array([host.open(params, (), EOS)])
        tokens = [int(host.sample(rows(logits), slot).tokens[0]) for _ in range(samples)]
        _, first = np.unique(tokens, return_index=True)
        mine = self.make(len(logits))
        slots = np.array([mine.open(params, (), EOS, [0] * position) for position in first])
        return set(mine.sample(np.tile(rows(logits), (len(slots), 1)), slots).tokens.tolist())


# A GPU compiles kernels for each vocabulary and tiles: tests share them where they can.
@given(st.data(), st.sampled_from([(2, SMALL), (100, SMALL), (100, TINY)]))
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # shrinking would take minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_agrees_with_the_reference(
    device: torch.device, data: st.DataObject, sizes: tuple[int, Tiles]
) -> None:
    vocab, tiles = sizes
    check_agreement(ArraySampler(vocab, device, tiles), data, max_rows=3, steps=2)


def test_a_row_does_not_depend_on_the_batch(device: torch.device) -> None:
    check_independence(lambda vocab: ArraySampler(vocab, device), 100, len(MIXED), steps=1)


def test_the_tiles_change_nothing(device: torch.device) -> None:
    logits = random_rows(len(MIXED), 100)

    def run(tiles: Tiles) -> tuple[list[int], Any]:
        mine = ArraySampler(100, device, tiles)
        slots = np.array([mine.open(params, [1, 2, 2], EOS) for params in MIXED])
        sampled = mine.sample(logits, slots)
        return sampled.tokens.tolist(), sampled.logprobs

    assert run(TINY) == run(Tiles(block=128, ways=16))


@pytest.mark.parametrize(("samples", "fields"), [(20, {}), (4, {"top_p": 0.9}), (4, {"top_k": 20})])
def test_the_same_seed_gives_the_tokens_of_the_host(
    device: torch.device, samples: int, fields: dict[str, Any]
) -> None:
    vocab = 500
    logits = np.tile(random_rows(1, vocab), (samples, 1))
    samplers = (Sampler(vocab), ArraySampler(vocab, device))
    found = []
    for one in samplers:
        params = [SamplingParams(seed=seed, **fields) for seed in range(samples)]
        slots = np.array([one.open(each, (), EOS) for each in params])
        found.append(one.sample(logits, slots).tokens.tolist())
    assert found[0] == found[1]


def test_a_large_vocabulary_with_the_tiles_of_gpus(device: torch.device) -> None:
    vocab = 20_000
    params = [
        SamplingParams(seed=1),
        SamplingParams(seed=2, top_p=0.5),
        SamplingParams(seed=3, top_k=50, top_p=0.9, logprobs=20),
        SamplingParams(seed=4, top_p=0.99, temperature=9.0),  # more candidates than fit
        SamplingParams(temperature=0, logit_bias={19_999: 50.0}),
    ]
    logits = random_rows(len(params), vocab)
    host, mine = Sampler(vocab), TorchSampler(vocab, device)
    slots = np.array([host.open(each, (), EOS) for each in params])
    assert slots.tolist() == [mine.open(each, (), EOS) for each in params]
    expected = host.sample(logits, slots)
    found = mine.sample(torch.tensor(logits).to(device), slots)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.logprobs is not None
    assert expected.logprobs is not None
    assert found.logprobs[2] is not None
    assert expected.logprobs[2] is not None
    assert found.logprobs[2].top_ids == expected.logprobs[2].top_ids
    assert found.logprobs[2].rank == expected.logprobs[2].rank
    assert found.logprobs[2].logprob == pytest.approx(expected.logprobs[2].logprob, abs=1e-5)


def test_launches_follow_each_other_without_their_results(device: torch.device) -> None:
    """Penalties count tokens that the host has not seen yet."""
    vocab, steps = 100, 6
    params = [
        SamplingParams(temperature=0, frequency_penalty=1.5),
        SamplingParams(temperature=0, presence_penalty=2.0, min_tokens=3, max_tokens=9),
        SamplingParams(seed=5, repetition_penalty=1.8, logit_bias={4: 2.0}),
        GREEDY,
    ]
    host, mine = Sampler(vocab), TorchSampler(vocab, device, SMALL)
    slots = np.array([host.open(each, [1, 2], EOS) for each in params])
    assert slots.tolist() == [mine.open(each, [1, 2], EOS) for each in params]
    logits = random_rows(len(params), vocab, scale=1.0)
    on_device = torch.tensor(logits).to(device)
    pending = [mine.launch(on_device, slots) for _ in range(steps)]
    for launched in pending:
        expected = host.sample(logits, slots).tokens.tolist()
        assert launched.result().tokens.tolist() == expected
    assert mine.last_tokens[torch.from_numpy(slots).to(device)].tolist() == expected


def test_last_tokens_are_kept_when_slots_grow(device: torch.device) -> None:
    mine = TorchSampler(10, device, SMALL)
    slots = np.array([mine.open(GREEDY, (), EOS) for _ in range(3)])
    logits = torch.zeros((3, 10), device=device)
    logits[0, 7] = logits[1, 4] = 1.0
    logits[2, 5] = torch.nan
    assert mine.sample(logits, slots).tokens.tolist() == [7, 4, NO_TOKEN]
    capacity = len(mine.last_tokens)
    for _ in range(capacity):
        mine.open(GREEDY, (), EOS)
    assert len(mine.last_tokens) > capacity
    assert mine.last_tokens[torch.from_numpy(slots).to(device)].tolist() == [7, 4, 0]


def test_rows_may_be_apart_and_are_not_written_to(device: torch.device) -> None:
    vocab = 100
    wide = torch.tensor(random_rows(3, vocab + 30)).to(device)
    wide[:, vocab:] = 100.0
    before = wide.clone()
    mine, host = TorchSampler(vocab, device, SMALL), Sampler(vocab)
    params = [GREEDY, SamplingParams(temperature=0, logit_bias={3: 50.0}), SamplingParams(seed=1)]
    slots = np.array([mine.open(each, (), EOS) for each in params])
    for each in params:
        host.open(each, (), EOS)
    expected = host.sample(before[:, :vocab].cpu().numpy(), slots).tokens.tolist()
    assert mine.sample(wide[:, :vocab], slots).tokens.tolist() == expected
    assert torch.equal(wide, before)


def test_edits_of_a_closed_request_are_not_those_of_the_next(device: torch.device) -> None:
    mine = ArraySampler(4, device)
    params = SamplingParams(
        temperature=0, presence_penalty=2.0, logit_bias={0: 9.0}, min_tokens=1, max_tokens=5
    )
    first = mine.open(params, (), EOS)
    assert mine.sample(rows([1, 0, 0, 99]), np.array([first])).tokens.tolist() == [0]
    mine.close(first)
    again = mine.open(SamplingParams(temperature=0, presence_penalty=0.5), (), EOS)
    assert again == first
    assert mine.sample(rows([1, 0.6, 0, 0]), np.array([again])).tokens.tolist() == [0]
    assert mine.sample(rows([1, 0.6, 0, 0]), np.array([again])).tokens.tolist() == [1]


def test_logits_of_another_type_are_refused(device: torch.device) -> None:
    mine = TorchSampler(4, device, SMALL)
    slots = np.array([mine.open(GREEDY, (), EOS)])
    with pytest.raises(ValueError, match=r"expected torch.float32"):
        mine.launch(torch.zeros((1, 4), dtype=torch.float64, device=device), slots)
    with pytest.raises(ValueError, match="expected 1"):
        mine.launch(torch.zeros((4, 2), device=device).T[:1], slots)


def test_a_vocabulary_that_sums_cannot_hold_is_refused(device: torch.device) -> None:
    with pytest.raises(ExecutorError, match=f"takes at most {MAX_VOCAB_SIZE}"):
        TorchSampler(MAX_VOCAB_SIZE + 1, device)


GRAMMARS = [regex("(ab|c)+"), regex("[0-3]{2}-[a-c]{1,4}"), choice(["yes", "no"]), None]


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 1000))
def test_outputs_follow_grammars_as_on_the_host(device: torch.device, seed: int) -> None:
    vocab = len(TOKENS)
    mine, host = ArraySampler(vocab, device, TINY), Sampler(vocab)
    mine.grammars, host.grammars = PatientMasks(), PatientMasks()
    params = [
        SamplingParams(
            temperature=temperature,
            seed=seed,
            grammar=grammar,
            min_tokens=min_tokens,
            repetition_penalty=1.2,
            max_tokens=None,
        )
        for grammar in GRAMMARS
        for temperature, min_tokens in ((0.0, 2), (1.0, 0))
    ]
    mine_slots = np.array([mine.open(each, (), (END,)) for each in params])
    host_slots = np.array([host.open(each, (), (END,)) for each in params])
    generator = np.random.default_rng(seed)
    for _ in range(5):
        logits = rows(*generator.normal(0, 3, (len(params), vocab)))
        expected = host.sample(logits, host_slots).tokens.tolist()
        assert min(expected) >= 0
        assert mine.sample(logits, mine_slots).tokens.tolist() == expected


def test_a_grammar_that_cannot_be_followed_fails_its_row(device: torch.device) -> None:
    mine = ArraySampler(len(TOKENS), device, TINY)
    mine.grammars = grammar_vocabulary.masks()
    bad = mine.open(SamplingParams(temperature=0, grammar=lark("start: foo")), (), (END,))
    good = mine.open(SamplingParams(temperature=0, grammar=choice(["no"])), (), (END,))
    logits = random_rows(2, len(TOKENS))
    tokens = mine.sample(logits, np.array([bad, good])).tokens.tolist()
    assert tokens[0] == NO_TOKEN
    assert tokens[1] >= 0
    assert "unknown name" in (mine.failure(bad) or "")
    assert mine.failure(good) is None


def test_a_mask_that_does_not_come_fails_its_row(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_sampler, "_MASK_SECONDS", 0.01)
    grammar_vocabulary.slow_down(monkeypatch, "y", 0.2)
    mine = ArraySampler(len(TOKENS), device, TINY)
    mine.grammars = grammar_vocabulary.masks()
    slow = mine.open(SamplingParams(temperature=0, grammar=choice(["yes"])), (), (END,))
    plain = mine.open(GREEDY, (), (END,))
    tokens = mine.sample(random_rows(2, len(TOKENS)), np.array([slow, plain])).tokens.tolist()
    assert tokens[0] == NO_TOKEN
    assert tokens[1] >= 0
    assert "0.01 s" in (mine.failure(slow) or "")


def preferring(text: str) -> list[float]:
    logits = [0.0] * len(TOKENS)
    logits[encode(text)[0]] = 1.0
    return logits


def test_masks_follow_the_tokens_that_the_host_has(device: torch.device) -> None:
    """Those on the device come after logits that are still being computed."""
    mine = ArraySampler(len(TOKENS), device, TINY)
    mine.grammars = PatientMasks()
    params = SamplingParams(temperature=0, grammar=choice(["0x", "1y"]))
    slots = np.array([mine.open(params, (), (END,))])
    assert mine.sample(rows(preferring("0")), slots).tokens.tolist() == encode("0")
    mine.last_tokens = torch.full_like(mine.last_tokens, encode("1")[0])
    assert mine.sample(rows(preferring("y")), slots).tokens.tolist() == encode("x")


def test_the_last_token_of_a_closed_request_does_not_reach_the_next(device: torch.device) -> None:
    mine = ArraySampler(len(TOKENS), device, TINY)
    mine.grammars = PatientMasks()
    params = SamplingParams(temperature=0, grammar=choice(["0x", "1y"]))
    other = mine.open(params, (), (END,))
    first = mine.open(params, (), (END,))
    mine.sample(rows(preferring("0"), preferring("1")), np.array([other, first]))
    mine.close(first)
    again = mine.open(params, (), (END,))
    assert again == first
    logits = rows(preferring("y"), preferring("0"))
    assert mine.sample(logits, np.array([other, again])).tokens.tolist() == encode("x0")
    logits = rows(preferring("0"), preferring("y"))
    assert mine.sample(logits, np.array([other, again])).tokens.tolist() == [END, *encode("x")]
    for slot in (other, again):
        mine.close(slot)
    assert mine._previous is None  # nor is it kept
