"""The loop around a scripted executor."""

from __future__ import annotations

import numpy as np
import pytest

from sarathi.backends.runner import InlineRunner
from sarathi.engine.core import EngineCore
from sarathi.sampling.sampler import Sampler
from sarathi.scheduler import (
    AdmissionError,
    BlockPool,
    FixedBudget,
    LatencyModel,
    Request,
    Scheduler,
    Work,
)
from sarathi.telemetry.recorder import IterationRecord
from tests.engine.successor import EOS, VOCAB, Successor, drain, greedy, tokens


@pytest.fixture
def executor() -> Successor:
    return Successor()


@pytest.fixture
def core(executor: Successor) -> EngineCore:
    scheduler = Scheduler(BlockPool(20, 4), FixedBudget(16), max_batch_size=4, max_model_len=60)
    return EngineCore(InlineRunner(executor, Sampler(VOCAB)), scheduler, [EOS])


def test_tokens_come_one_an_iteration_and_the_last_has_a_reason(core: EngineCore) -> None:
    core.submit(7, [1, 2, 3], greedy(max_tokens=3), arrival=0.0)
    outputs = drain(core)[7]
    assert tokens(outputs) == [4, 5, 6]
    assert [output.finish_reason for output in outputs] == [None, None, "length"]
    assert core.stats.free_blocks == core.stats.total_blocks


def test_end_of_sequence_ends_unless_it_is_to_be_ignored(core: EngineCore) -> None:
    core.submit(1, [EOS - 2], greedy(max_tokens=5), arrival=0.0)
    core.submit(2, [EOS - 2], greedy(max_tokens=5, ignore_eos=True), arrival=0.0)
    outputs = drain(core)
    assert tokens(outputs[1]) == [EOS - 1, EOS]
    assert outputs[1][-1].finish_reason == "stop"
    assert tokens(outputs[2]) == [EOS - 1, EOS, 0, 1, 2]


def test_stop_token_ids_end(core: EngineCore) -> None:
    core.submit(1, [1], greedy(max_tokens=9, stop_token_ids=(4,)), arrival=0.0)
    assert tokens(drain(core)[1]) == [2, 3, 4]


def test_without_max_tokens_an_output_fills_the_models_length(core: EngineCore) -> None:
    core.submit(1, [1] * 30, greedy(max_tokens=None, ignore_eos=True), arrival=0.0)
    outputs = drain(core)[1]
    assert len(outputs) == 30
    assert outputs[-1].finish_reason == "length"


@pytest.mark.parametrize("length", [60, 61])
def test_a_prompt_without_space_for_output_is_refused(core: EngineCore, length: int) -> None:
    with pytest.raises(AdmissionError, match="leaves no room"):
        core.submit(1, [1] * length, greedy(), arrival=0.0)


def test_a_token_outside_the_vocabulary_is_refused_and_forgotten(core: EngineCore) -> None:
    with pytest.raises(AdmissionError, match="logit_bias"):
        core.submit(1, [1], greedy(logit_bias={VOCAB: 1.0}), arrival=0.0)
    assert not core.has_work


def test_a_cancelled_request_has_no_more_output(core: EngineCore) -> None:
    core.submit(1, [1], greedy(max_tokens=40), arrival=0.0)
    core.submit(2, [1], greedy(max_tokens=2), arrival=0.0)
    core.step()
    core.cancel(1)
    core.cancel(1)
    core.cancel(99)
    assert list(drain(core)) == [2]
    assert core.stats.free_blocks == core.stats.total_blocks


def test_a_row_of_nan_fails_its_own_request_only(core: EngineCore, executor: Successor) -> None:
    def spoil(logits: np.ndarray) -> None:
        logits[1] = np.nan

    for name in (1, 2, 3):
        core.submit(name, [name * 10], greedy(max_tokens=3, logprobs=name), arrival=float(name))
    executor.spoil = spoil
    outputs, failures = core.step()
    assert [failure.id for failure in failures] == [2]
    assert "finite" in failures[0].message
    assert [(output.id, output.token) for output in outputs] == [(1, 11), (3, 31)]
    # Log probabilities stay with their own request.
    assert [len(output.logprobs.top_ids) for output in outputs if output.logprobs] == [1, 3]

    executor.spoil = lambda logits: None
    rest = drain(core)
    assert {name: tokens(outputs) for name, outputs in rest.items()} == {1: [12, 13], 3: [32, 33]}
    assert core.stats.free_blocks == core.stats.total_blocks


def test_stats_show_the_state(core: EngineCore) -> None:
    for name in range(6):
        core.submit(name, [1] * 4, greedy(max_tokens=4), arrival=float(name))
    core.step()
    stats = core.stats
    assert (stats.running, stats.waiting) == (4, 2)
    assert stats.free_blocks == stats.total_blocks - 4


def test_tokens_found_in_the_prefix_cache_are_reported_once(core: EngineCore) -> None:
    prompt = list(range(1, 12))
    core.submit(1, prompt, greedy(max_tokens=2), arrival=0.0)
    assert [output.cached_tokens for output in drain(core)[1]] == [0, 0]
    core.submit(2, prompt, greedy(max_tokens=2), arrival=0.0)
    assert [output.cached_tokens for output in drain(core)[2]] == [8, 0]
    assert (core.stats.prompt_tokens, core.stats.cached_tokens) == (22, 8)


def test_the_scheduling_delay_comes_with_the_first_token(
    executor: Successor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [10.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    executor.spoil = lambda logits: now.__setitem__(0, now[0] + 1.0)
    scheduler = Scheduler(BlockPool(20, 4), FixedBudget(4), max_batch_size=4, max_model_len=60)
    core = EngineCore(InlineRunner(executor, Sampler(VOCAB)), scheduler, [EOS])
    core.submit(1, [1, 2, 3, 4], greedy(max_tokens=2), arrival=9.5)
    core.submit(2, [1, 2, 3, 4], greedy(max_tokens=2), arrival=9.75)
    delays = {
        name: [output.scheduling_delay for output in outputs]
        for name, outputs in drain(core).items()
    }
    # The second begins beside the first one's decode, an iteration of a second later.
    assert delays == {1: [0.5, None], 2: [1.25, None]}


def test_a_late_caller_is_not_taken_for_a_slow_machine(
    executor: Successor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Iterations last from the end of the one before, but a pause is none."""
    model = LatencyModel.fit([(Work(1, 0.0, 0, 1), 0.1)])
    observed: list[float] = []
    monkeypatch.setattr(model, "observe", lambda work, seconds: observed.append(seconds))
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    executor.spoil = lambda logits: now.__setitem__(0, now[0] + 1.0)
    scheduler = Scheduler(
        BlockPool(20, 4), FixedBudget(16), max_batch_size=4, max_model_len=60, latency_model=model
    )
    core = EngineCore(InlineRunner(executor, Sampler(VOCAB)), scheduler, [EOS])
    core.submit(1, [1, 2, 3], greedy(max_tokens=5), arrival=0.0)
    for pause in (0.05, 7.0, 0.0):
        core.step()
        now[0] += pause
    core.step()
    assert observed == pytest.approx([1.0, 1.05, 1.1, 1.0])


def test_recorders_receive_every_event(executor: Successor) -> None:
    events: list[object] = []

    class Spy:
        def arrived(self, request: Request) -> None:
            events.append(("arrived", request.id))

        def record(self, record: IterationRecord) -> None:
            ends = [end for _, end in record.parts]
            assert ends == sorted(ends)
            assert record.begin <= ends[0]
            assert ends[-1] == record.end
            slices = record.batch.slices
            begun = sum(part.request.first_scheduled_at == record.begin for part in slices)
            events.append(("record", record.batch.num_tokens, len(record.outputs), begun))

        def cancelled(self, request_id: int, now: float) -> None:
            events.append(("cancelled", request_id))

        def flush(self) -> None:
            events.append("flush")

        def close(self) -> None:
            events.append("close")

    scheduler = Scheduler(BlockPool(20, 4), FixedBudget(16), max_batch_size=4, max_model_len=60)
    core = EngineCore(InlineRunner(executor, Sampler(VOCAB)), scheduler, [EOS], recorders=[Spy()])
    core.submit(1, [1, 2, 3], greedy(max_tokens=5), arrival=0.0)
    core.submit(2, [1, 2], greedy(max_tokens=2), arrival=0.0)
    with pytest.raises(AdmissionError):
        core.submit(3, list(range(60)), greedy(), arrival=0.0)
    core.step()
    core.cancel(1)
    core.step()
    core.close()
    assert events == [
        ("arrived", 1),
        ("arrived", 2),
        ("record", 5, 2, 2),
        ("cancelled", 1),
        ("record", 1, 1, 0),
        "flush",
        "close",
    ]


def test_the_time_of_the_loop_is_a_bubble_of_the_only_stage(executor: Successor) -> None:
    """Idle time is none."""
    now = [0.0]
    executor.spoil = lambda logits: now.__setitem__(0, now[0] + 1.0)
    scheduler = Scheduler(BlockPool(20, 4), FixedBudget(16), max_batch_size=4, max_model_len=60)
    core = EngineCore(InlineRunner(executor, Sampler(VOCAB), lambda: now[0]), scheduler, [EOS])
    for _ in range(2):
        core.submit(1, [1, 2, 3], greedy(max_tokens=3), arrival=0.0)
        while core.has_work:
            core.step()
            now[0] += 0.125
        now[0] += 50.0
    assert core.stats.stage_busy == [6.0]
    assert core.stats.stage_bubble == [0.5]
