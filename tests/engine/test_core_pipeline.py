"""The loop with several batches in flight."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from sarathi.backends.runner import InlineRunner, Runner
from sarathi.engine.core import EngineCore
from sarathi.engine.messages import TokenOutput
from sarathi.errors import ExecutorError
from sarathi.sampling.sampler import Sampler
from sarathi.scheduler import BlockPool, FixedBudget, LatencyModel, Request, Scheduler, Work
from sarathi.telemetry.recorder import IterationRecord, StageTime
from tests.engine.fake_pipeline import Pipeline
from tests.engine.successor import EOS, VOCAB, Successor, drain, greedy, tokens

# Of chunked prompts, and of short ones whose outputs outgrow the memory: KV blocks and prompts.
CHUNKED = 40, [list(range(first, first + n)) for first, n in ((1, 30), (3, 5), (7, 17), (2, 1))]
CROWDED = 14, [[first] for first in range(6)]


def engine(runner: Runner, *, blocks: int = 40, **options: object) -> EngineCore:
    options = {"max_batch_size": 6, "max_model_len": 60, **options}
    scheduler = Scheduler(
        BlockPool(blocks, 4),
        FixedBudget(16),
        micro_batches=runner.depth,
        **options,  # type: ignore[arg-type]
    )
    return EngineCore(runner, scheduler, [EOS])


def answers(core: EngineCore, prompts: list[list[int]]) -> dict[int, list[int]]:
    for name, prompt in enumerate(prompts):
        core.submit(name, prompt, greedy(max_tokens=20), arrival=float(name))
    found = {name: tokens(outputs) for name, outputs in drain(core).items()}
    assert core.stats.free_blocks == core.stats.total_blocks
    return found


@pytest.mark.parametrize("load", [CHUNKED, CROWDED])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_tokens_are_those_of_a_single_stage(depth: int, load: tuple[int, list[list[int]]]) -> None:
    blocks, prompts = load
    expected = answers(engine(InlineRunner(Successor(), Sampler(VOCAB)), blocks=blocks), prompts)
    pipeline = Pipeline(Successor(), depth)
    core = engine(pipeline, blocks=blocks)
    assert answers(core, prompts) == expected
    assert max(pipeline.seen) == depth
    assert (core.stats.preemptions > 0) == (load is CROWDED)


@pytest.mark.parametrize("depth", [2, 3])
def test_decodes_are_spread_over_the_batches_under_way(depth: int) -> None:
    pipeline = Pipeline(Successor(), depth)
    core = engine(pipeline)
    for name in range(6):
        core.submit(name, [name], greedy(max_tokens=20), arrival=0.0)
    drain(core)
    sizes = [len(step.query_starts) - 1 for step in pipeline.steps[depth + 1 : -depth]]
    assert set(sizes) == {6 // depth}


def test_the_next_chunk_follows_before_the_one_before_is_computed() -> None:
    pipeline = Pipeline(Successor(), 2)
    core = engine(pipeline)
    core.submit(1, [1] * 40, greedy(max_tokens=2), arrival=0.0)
    assert core.step().outputs == []
    assert pipeline.seen == [2]
    assert [(step.past_lens.tolist(), len(step.token_ids)) for step in pipeline.steps] == [
        ([0], 16),
        ([16], 16),
    ]


def test_a_request_that_arrives_while_the_engine_waits_is_scheduled() -> None:
    pipeline = Pipeline(Successor(), 2)
    pipeline.hurries = False
    core = engine(pipeline)
    core.submit(1, [1], greedy(max_tokens=1), arrival=0.0)
    assert core.step() == ([], [])
    assert core.step() == ([], [])
    assert len(pipeline.steps) == 1
    core.submit(2, [5], greedy(max_tokens=1), arrival=0.0)
    assert [output.id for output in core.step().outputs] == [1]
    assert pipeline.seen[-1] == len(pipeline.steps) == 2


def test_a_request_cancelled_in_flight_leaves_the_others_alone() -> None:
    pipeline = Pipeline(Successor(), 2)
    core = engine(pipeline)
    for name in (1, 2, 3, 4):
        core.submit(name, [10 * name], greedy(max_tokens=4), arrival=float(name))
    first = core.step().outputs
    assert tokens(first) == [11, 21, 31, 41]
    core._schedule_ahead()
    assert [len(step.token_ids) for step in pipeline.steps[1:]] == [2, 2]
    before = core.stats.free_blocks
    core.cancel(1)
    core.cancel(3)
    assert core.stats.free_blocks == before  # the executor is still writing to their blocks
    # Their slots of the sampler are given to others while their rows are under way.
    core.submit(5, [5], greedy(max_tokens=2), arrival=5.0)
    core.submit(6, [45], greedy(max_tokens=2), arrival=6.0)
    rest = drain(core)
    assert {name: tokens(rest[name]) for name in rest} == {
        2: [22, 23, 24],
        4: [42, 43, 44],
        5: [6, 7],
        6: [46, 47],
    }
    assert core.stats.free_blocks == core.stats.total_blocks


def test_all_requests_can_be_cancelled_in_flight() -> None:
    pipeline = Pipeline(Successor(), 2)
    core = engine(pipeline)
    core.submit(1, [1] * 40, greedy(max_tokens=4), arrival=0.0)
    core.step()
    core.cancel(1)
    assert core.has_work
    assert drain(core) == {}
    assert core.stats.free_blocks == core.stats.total_blocks
    assert not pipeline._under_way


def test_nan_for_one_of_two_batches_fails_one_request() -> None:
    executor = Successor()
    pipeline = Pipeline(executor, 2)
    core = engine(pipeline)
    for name in (1, 2, 3, 4):
        core.submit(name, [10 * name], greedy(max_tokens=3), arrival=float(name))
    core.step()

    def spoil(logits: np.ndarray) -> None:
        logits[1] = np.nan
        executor.spoil = lambda logits: None

    executor.spoil = spoil
    outputs, failures = core.step()
    assert [(output.id, output.token) for output in outputs] == [(1, 12)]
    assert [failure.id for failure in failures] == [2]
    rest = drain(core)
    assert {name: tokens(rest[name]) for name in rest} == {1: [13], 3: [32, 33], 4: [42, 43]}
    assert core.stats.free_blocks == core.stats.total_blocks


@pytest.mark.parametrize("error", [KeyboardInterrupt, ExecutorError])
def test_after_an_exception_nothing_is_under_way_and_all_can_go_on(
    error: type[BaseException],
) -> None:
    pipeline = Pipeline(Successor(), 2)
    core = engine(pipeline)
    core.submit(1, [1] * 20, greedy(max_tokens=3), arrival=0.0)
    core.submit(2, [10], greedy(max_tokens=3), arrival=1.0)

    def fail() -> None:
        # While steps are under way, the blocks are theirs.
        assert any(request.in_flight for request in core.scheduler._requests.values())
        raise error

    pipeline.before_result = fail
    with pytest.raises(error):
        core.step()
    assert pipeline.abandoned == 1
    assert not any(request.in_flight for request in core.scheduler._requests.values())
    pipeline.before_result = lambda: None
    found = drain(core)
    assert {name: tokens(found[name]) for name in found} == {1: [2, 3, 4], 2: [11, 12, 13]}


def test_a_cancelled_request_is_forgotten_with_the_batches_in_flight() -> None:
    pipeline = Pipeline(Successor(), 2)
    core = engine(pipeline)
    core.submit(1, [1] * 20, greedy(max_tokens=3), arrival=0.0)

    def interrupt() -> None:
        core.cancel(1)
        raise KeyboardInterrupt

    pipeline.before_result = interrupt
    with pytest.raises(KeyboardInterrupt):
        core.step()
    assert not core.has_work
    assert core.stats.free_blocks == core.stats.total_blocks


def test_bubbles_count_while_there_is_work() -> None:
    times = [(StageTime(100.0, 1.0), StageTime(101.0, 2.0)), (StageTime(0.5, 1.0), StageTime(0, 4))]
    pipeline = Pipeline(Successor(), 2, times * 2)
    core = engine(pipeline)
    assert (core.stats.stage_busy, core.stats.stage_bubble) == ([], [])
    for name in (1, 2):
        core.submit(name, [1], greedy(max_tokens=2), arrival=0.0)
        drain(core)
    assert core.stats.stage_busy == [4.0, 12.0]
    assert core.stats.stage_bubble == [1.0, 0.0]


def test_a_pause_after_the_last_request_was_cancelled_is_no_bubble() -> None:
    times = [(StageTime(0.0, 1.0), StageTime(1.0, 1.0)), (StageTime(99.0, 1.0), StageTime(98, 2))]
    core = engine(Pipeline(Successor(), 2, times))
    core.submit(1, [1], greedy(max_tokens=2), arrival=0.0)
    core.step()
    core.cancel(1)
    core.submit(2, [1], greedy(max_tokens=1), arrival=0.0)
    drain(core)
    assert core.stats.stage_busy == [2.0, 3.0]
    assert core.stats.stage_bubble == [0.0, 0.0]


def test_the_model_learns_what_a_stage_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slowest stage, and a share of the time of the engine itself, without waiting."""
    observed: list[float] = []
    model = LatencyModel.fit([(Work(1, 0.0, 0, 1), 0.1)])
    monkeypatch.setattr(model, "observe", lambda work, seconds: observed.append(seconds))
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pipeline = Pipeline(Successor(), 2, [(StageTime(0.0, 1.0), StageTime(9.0, 3.0))])
    pipeline.before_result = lambda: now.__setitem__(0, now[0] + 50.0)
    core = engine(pipeline, latency_model=model)
    schedule, publish = core.scheduler.schedule, core._token_outputs

    def slow_schedule(at: float) -> object:
        now[0] += 0.25
        return schedule(at)

    def slow_publish(progressed: list[Request], logprobs: Any) -> list[TokenOutput]:
        now[0] += 0.75
        return publish(progressed, logprobs)

    monkeypatch.setattr(core.scheduler, "schedule", slow_schedule)
    monkeypatch.setattr(core, "_token_outputs", slow_publish)
    core.submit(1, [1], greedy(max_tokens=1), arrival=0.0)
    drain(core)
    assert observed == [3.5]


def test_records_come_in_order_with_the_times_of_stages() -> None:
    seen: list[IterationRecord] = []

    class Spy:
        def arrived(self, request: Request) -> None: ...
        def record(self, record: IterationRecord) -> None:
            seen.append(record)

        def cancelled(self, request_id: int, now: float) -> None: ...
        def flush(self) -> None: ...
        def close(self) -> None:
            seen.clear()

    pipeline = Pipeline(Successor(), 2)
    core = engine(pipeline)
    core._recorders = [Spy()]
    answers(core, CHUNKED[1])
    assert [record.batch.id for record in seen] == list(range(1, len(seen) + 1))
    assert [record.after_idle for record in seen] == [True] + [False] * (len(seen) - 1)
    assert {len(record.stages) for record in seen} == {2}
    assert any(after.begin < before.end for before, after in pairwise(seen))
    core.close()
    assert pipeline.closed
    assert not seen


def test_a_process_that_is_gone_is_noticed_without_work() -> None:
    pipeline = Pipeline(Successor(), 2)
    core = engine(pipeline)
    core.check()
    pipeline.well = False
    with pytest.raises(AssertionError):
        core.check()
