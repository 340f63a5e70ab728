"""Measuring the machine at start-up, on an executor whose speed is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models

from sarathi.engine.memory import KvCache
from sarathi.engine.profile import measure, profile, stage_seconds
from sarathi.executors.openvino import BLOCK_SIZE, OpenVinoExecutor
from sarathi.executors.runner import Alone, Computed, StageTime
from sarathi.executors.step import Step, check_step
from sarathi.models.model import open_model
from sarathi.scheduling.latency_model import LatencyModel, Work

COEFFICIENTS = (9e-3, 3e-4, 1.5e-7, 2e-6, 1e-4)


class KnownExecutor:
    """Advances its own clock by what `COEFFICIENTS` say; the first run of a shape is slower."""

    def __init__(
        self, num_blocks: int = 4096, max_position: int = 8192, slowness: float = 1.0
    ) -> None:
        self.num_blocks = num_blocks
        self.max_position = max_position
        self.block_size = BLOCK_SIZE
        self.now = 0.0
        self.num_steps = 0
        self.written: set[int] = set()
        self._truth = LatencyModel([c * slowness for c in COEFFICIENTS])
        self._shapes: set[tuple[int, int]] = set()

    @property
    def cache(self) -> KvCache:
        return KvCache(self.num_blocks, self.block_size, self.max_position)

    def clock(self) -> float:
        return self.now

    def execute(self, step: Step) -> np.ndarray:
        check_step(
            step,
            num_blocks=self.num_blocks,
            block_size=BLOCK_SIZE,
            vocab_size=2,
            max_position=self.max_position,
        )
        lengths = np.diff(step.query_starts)
        chunks = lengths > 1
        past = step.past_lens
        work = Work(
            tokens=int(lengths.sum()),
            attention=float((lengths * (past + lengths / 2))[chunks].sum()),
            context=int(past[~chunks].sum()),
            samples=len(step.sample_rows),
        )
        for index, start in enumerate(past):
            table = step.block_ids[step.block_starts[index] : step.block_starts[index + 1]]
            self.written.update(map(int, table[start // BLOCK_SIZE :]))
        shape = (work.tokens, len(lengths))
        self.now += self._truth.predict(work) * (1 if shape in self._shapes else 3)
        self._shapes.add(shape)
        self.num_steps += 1
        return np.empty((0, 0), np.float32)


class KnownStages(Alone):
    """Two stages, of which the second takes twice as long, and 2 ms between them."""

    def __init__(self, executor: KnownExecutor) -> None:
        super().__init__(executor, executor.clock)
        self.executor = executor

    def result(self) -> Computed:
        logits, ((_, busy),) = super().result()
        self.executor.now += 2e-3
        return Computed(logits, (StageTime(0.0, busy / 3), StageTime(0.0, 2 * busy / 3)))


def silent(line: str) -> None:
    """Reports nothing."""


def test_the_model_is_that_of_the_machine() -> None:
    executor = KnownExecutor()
    reported: list[str] = []
    model = profile(Alone(executor), executor.cache, reported.append, executor.clock)
    assert model.coefficients == pytest.approx(COEFFICIENTS, rel=0.02)
    assert reported == ["measuring the speed of this machine"]


def test_with_several_stages_it_is_that_of_the_slowest() -> None:
    """What is in no stage is shared out among them."""
    executor = KnownExecutor()
    model = profile(KnownStages(executor), executor.cache, silent, executor.clock)
    work = Work(100, 5000.0, 0, 1)
    expected = 2 / 3 * LatencyModel(COEFFICIENTS).predict(work) + 1e-3
    assert model.predict(work) == pytest.approx(expected, rel=0.02)


def test_clocks_that_disagree_do_not_make_a_stage_faster() -> None:
    assert stage_seconds(1.0, [StageTime(0.0, 0.6), StageTime(0.0, 0.5)]) == 0.6


def test_measuring_takes_about_two_seconds_at_most() -> None:
    for slowness in (0.01, 0.3, 1, 2, 4, 8):
        executor = KnownExecutor(slowness=slowness)
        measure(Alone(executor), executor.cache, executor.clock)
        assert executor.now < 2.6, slowness


def test_a_slow_machine_measures_the_indispensable_only() -> None:
    executor = KnownExecutor(slowness=100)
    observations = measure(Alone(executor), executor.cache, executor.clock)
    assert [work.tokens for work, _ in observations] == [1, 16]
    assert executor.num_steps == 4
    assert LatencyModel.fit(observations).predict(Work(16, 128, 0, 1)) == pytest.approx(1.39, 0.1)


@pytest.mark.parametrize("max_position", [1, 2, 36, 8192])
@pytest.mark.parametrize("num_blocks", [1, 2, 4, 31, 33])
def test_small_caches_and_short_models_do(num_blocks: int, max_position: int) -> None:
    executor = KnownExecutor(num_blocks, max_position)
    model = profile(Alone(executor), executor.cache, silent, executor.clock)
    assert model.predict(Work(1, 0.0, 1, 1)) == pytest.approx(9.4e-3, rel=0.05)


def test_few_pages_of_the_cache_are_written() -> None:
    executor = KnownExecutor()
    measure(Alone(executor), executor.cache, executor.clock)
    assert len(executor.written) <= 64


def test_a_real_executor_can_be_measured(tmp_path: Path) -> None:
    tiny_models.save_tiny("llama", tmp_path)
    checkpoint = open_model(tmp_path)
    executor = OpenVinoExecutor(checkpoint.config, checkpoint.weights, max_position=64)
    executor.allocate(4)
    model = profile(Alone(executor), KvCache(4, BLOCK_SIZE, 64), silent)
    assert 1e-6 < model.predict(Work(1, 0.0, 1, 1)) < 1
