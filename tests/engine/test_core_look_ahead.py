"""Batches whose input tokens the previous batch is still sampling."""

from __future__ import annotations

import random
from collections import deque

import numpy as np
import pytest

from sarathi.backends.runner import NO_SLOTS, InlineRunner, StepResult, sample_and_score
from sarathi.backends.step import I64, Step
from sarathi.engine.core import EngineCore
from sarathi.engine.iteration_timing import LaunchTimer
from sarathi.sampling.logprobs import ScoredRows
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import Sampler
from sarathi.scheduler import POLICIES, BlockPool, FixedBudget, LatencyModel, Scheduler, Work
from sarathi.telemetry.recorder import StageTime
from tests.engine.successor import EOS, VOCAB, Successor, drain, greedy, tokens


class Device:
    """Computes and samples a step as soon as it is submitted, and keeps the latest tokens."""

    depth = 2
    looks_ahead = True

    def __init__(self, executor: Successor) -> None:
        self.sampler_slots = Sampler(VOCAB)
        self.steps: list[Step] = []
        self.most = 0
        self._executor = executor
        self._last = np.full(64, -9, np.int64)
        self._under_way: deque[StepResult] = deque()

    @property
    def is_free(self) -> bool:
        return len(self._under_way) < self.depth

    def submit(self, step: Step, slots: I64 = NO_SLOTS, scored: ScoredRows | None = None) -> None:
        assert self.is_free
        num_scored = 0 if scored is None else len(scored.tokens)
        assert len(step.sample_rows) - num_scored == len(slots) == len(set(slots.tolist()))
        self.steps.append(step)
        ids = np.where(step.token_ids < 0, self._last[-1 - step.token_ids], step.token_ids)
        assert ids.min() >= 0
        logits = self._executor.execute(Step(ids, *(getattr(step, f) for f in _OTHER_FIELDS)))
        sampled, scores = sample_and_score(self.sampler_slots, logits, slots, scored)
        self._last[slots] = np.maximum(sampled.tokens, 0)
        self._under_way.append(StepResult(sampled, (StageTime(0.0, 0.0),), scores=scores))
        self.most = max(self.most, len(self._under_way))

    def wait(self, seconds: float) -> bool:
        assert self._under_way
        return True

    def result(self) -> StepResult:
        return self._under_way.popleft()

    def abandon(self) -> None:
        self._under_way.clear()

    def check(self) -> None:
        """All is well."""

    def close(self) -> None:
        """There are no processes."""


_OTHER_FIELDS = (
    "positions",
    "query_starts",
    "past_lens",
    "block_ids",
    "block_starts",
    "sample_rows",
)


def looking_ahead(executor: Successor, *, blocks: int = 60, policy: str = "sarathi") -> EngineCore:
    return EngineCore(Device(executor), scheduler(True, blocks, policy), [EOS])


def device(core: EngineCore) -> Device:
    assert isinstance(core._runner, Device)
    return core._runner


def one_by_one(executor: Successor, *, blocks: int = 60, policy: str = "sarathi") -> EngineCore:
    runner = InlineRunner(executor, Sampler(VOCAB))
    return EngineCore(runner, scheduler(False, blocks, policy), [EOS])


def scheduler(look_ahead: bool, blocks: int, policy: str) -> Scheduler:
    return Scheduler(
        BlockPool(blocks, 4),
        FixedBudget(16),
        max_batch_size=6,
        max_model_len=60,
        policy=POLICIES[policy],
        look_ahead=look_ahead,
    )


def params(rng: random.Random) -> SamplingParams:
    """Parameters of every kind that depends on earlier tokens."""
    return rng.choice(
        [
            greedy(max_tokens=rng.randint(1, 12)),
            greedy(max_tokens=9, min_tokens=rng.randint(0, 9), stop_token_ids=(7, 11)),
            SamplingParams(max_tokens=10, seed=rng.randint(0, 99), temperature=8.0),
            SamplingParams(
                max_tokens=8,
                seed=rng.randint(0, 99),
                temperature=6.0,
                repetition_penalty=1.5,
                presence_penalty=1.0,
                logprobs=2,
            ),
        ]
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("blocks", [60, 16])  # enough, or so few that requests are preempted
def test_outputs_are_those_of_one_batch_at_a_time(policy: str, blocks: int) -> None:
    def run(core: EngineCore) -> dict[int, list[object]]:
        rng = random.Random(5)
        found: dict[int, list[object]] = {}
        for name in range(30):
            prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))]
            core.submit(name, prompt, params(rng), arrival=float(name))
            found[name] = []
            for _ in range(rng.randint(0, 3)):
                keep(core, found)
        while core.has_work:
            keep(core, found)
        assert core.stats.free_blocks == core.stats.total_blocks
        return found

    def keep(core: EngineCore, found: dict[int, list[object]]) -> None:
        outputs, failures = core.step()
        assert not failures
        for output in outputs:
            found[output.id].append((output.token, output.finish_reason, output.logprobs))

    core = looking_ahead(Successor(), blocks=blocks, policy=policy)
    assert run(core) == run(one_by_one(Successor(), blocks=blocks, policy=policy))
    assert device(core).most == 2


def test_a_decode_is_in_every_batch_and_its_token_stays_on_the_device() -> None:
    core = looking_ahead(Successor())
    core.submit(1, [1, 2, 3], greedy(max_tokens=5), arrival=0.0)
    assert tokens(drain(core)[1]) == [4, 5, 6, 7, 8]
    steps = device(core).steps
    assert [step.token_ids.tolist() for step in steps] == [[1, 2, 3], [-1], [-1], [-1], [-1]]
    assert [step.positions.tolist() for step in steps] == [[0, 1, 2], [3], [4], [5], [6]]


def test_tokens_after_the_end_of_an_output_are_dropped() -> None:
    """The end is known one batch late; blocks and slot are given back after that batch."""
    core = looking_ahead(Successor())
    core.submit(1, [EOS - 2], greedy(max_tokens=9), arrival=0.0)
    found = drain(core)[1]
    assert tokens(found) == [EOS - 1, EOS]
    assert found[-1].finish_reason == "stop"
    assert len(device(core).steps) == 3
    assert core.stats.free_blocks == core.stats.total_blocks
    core.submit(2, [5], greedy(max_tokens=2), arrival=0.0)
    assert core._slots == {2: 0}
    assert tokens(drain(core)[2]) == [6, 7]


def test_a_request_cancelled_between_two_batches_has_no_more_output() -> None:
    core = looking_ahead(Successor())
    core.submit(1, [1], greedy(max_tokens=40), arrival=0.0)
    core.submit(2, [20], greedy(max_tokens=6), arrival=0.0)
    first = core.step().outputs
    assert [output.id for output in first] == [1, 2]
    core.cancel(1)
    rest = drain(core)
    assert list(rest) == [2]
    assert tokens(rest[2]) == [22, 23, 24, 25, 26]
    assert core.stats.free_blocks == core.stats.total_blocks
    assert not core._slots


def test_a_row_of_nan_fails_its_own_request_only() -> None:
    executor = Successor()
    core = looking_ahead(executor)

    def spoil(logits: np.ndarray) -> None:
        logits[0] = np.nan

    core.submit(1, [1], greedy(max_tokens=5), arrival=0.0)
    core.submit(2, [20], greedy(max_tokens=5), arrival=0.0)
    executor.spoil = spoil
    core._schedule_ahead()
    executor.spoil = lambda logits: None
    found: dict[int, list[int]] = {}
    failed = []
    while core.has_work:
        outputs, failures = core.step()
        failed += [failure.id for failure in failures]
        for output in outputs:
            found.setdefault(output.id, []).append(output.token)
    assert failed == [1]
    assert found == {2: [21, 22, 23, 24, 25]}
    assert core.stats.free_blocks == core.stats.total_blocks


def test_after_an_error_the_requests_go_on_from_where_they_stood() -> None:
    core = looking_ahead(Successor())
    core.submit(1, list(range(1, 30)), greedy(max_tokens=6), arrival=0.0)
    core.submit(2, [5], greedy(max_tokens=6), arrival=0.0)
    before = [output for _ in range(2) for output in core.step().outputs]
    core._abandon()
    found = drain(core)
    for output in reversed(before):
        found.setdefault(output.id, []).insert(0, output)
    assert tokens(found[1]) == [30, 31, 32, 33, 34, 35]
    assert tokens(found[2]) == [6, 7, 8, 9, 10, 11]


class TestWhen:
    def test_a_batch_is_made_shortly_before_the_one_before_it_ends(self) -> None:
        timing = LaunchTimer()
        for _ in range(200):
            timing.batch_submitted(began=10.0, submitted=10.001, prompts=False)
        timing.batch_started(20.0, predicted=0.020)
        assert timing.seconds_left(20.0) == pytest.approx(0.015)
        assert timing.seconds_left(20.016) < 0

    def test_it_is_made_at_once_where_nothing_is_predicted(self) -> None:
        timing = LaunchTimer()
        timing.batch_started(20.0, None)
        assert timing.seconds_left(20.0) == 0

    def test_a_request_that_arrives_meanwhile_is_in_the_next_batch(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])
        model = LatencyModel.fit([(Work(1, 0.0, 0, 1), 0.1)])
        monkeypatch.setattr(model, "predict", lambda work: 0.1)

        class Slow(Device):
            def wait(self, seconds: float) -> bool:
                now[0] += seconds
                return now[0] >= 0.1

        runner = Slow(Successor())
        timed = Scheduler(
            BlockPool(60, 4),
            FixedBudget(16),
            max_batch_size=6,
            max_model_len=60,
            latency_model=model,
            look_ahead=True,
        )
        core = EngineCore(runner, timed, [EOS])
        core.submit(1, [1], greedy(max_tokens=9), arrival=0.0)
        core.step()
        assert len(runner.steps) == 1
        core.submit(2, [20], greedy(max_tokens=9), arrival=0.0)
        while len(runner.steps) == 1:
            core.step()
        assert now[0] == pytest.approx(0.085, abs=0.006)
        assert sorted(runner.steps[1].token_ids.tolist()) == [-1, 20]
