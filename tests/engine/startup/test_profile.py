"""Measuring the machine at start-up, on an executor whose speed is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sarathi.backends.executor import ExecutorPart
from sarathi.backends.openvino.openvino_executor import BLOCK_SIZE, OpenVinoExecutor
from sarathi.backends.registry import ExecutorOptions
from sarathi.backends.runner import NOTHING_SAMPLED, InlineRunner, StepExecutor, StepResult
from sarathi.backends.step import Step, check_step
from sarathi.engine.scheduler_factory import PAPER_DECODES, TYPICAL_DECODES, TypicalDecodes
from sarathi.engine.startup.kv_cache_size import KvCache
from sarathi.engine.startup.profile import Clocks, profile, stage_seconds
from sarathi.models.decoder import whole_model
from sarathi.models.model import open_model
from sarathi.sampling.sampler import Sampler
from sarathi.scheduler.budget.latency_model import LatencyModel, Work
from sarathi.system.cpu_contention import CpuTimes
from sarathi.telemetry.recorder import StageTime
from tests import tiny_models

TYPICAL = TYPICAL_DECODES
COEFFICIENTS = (9e-3, 3e-4, 1.5e-7, 2e-6, 1e-4)


class KnownExecutor:
    """Advances its own clock as `COEFFICIENTS` predict; the first run of a shape is slower.

    Two threads compute, and others may take a share of their processors.
    """

    def __init__(
        self,
        num_blocks: int = 4096,
        max_position: int = 8192,
        slowness: float = 1.0,
        others: float = 0.0,
    ) -> None:
        self.num_blocks = num_blocks
        self.max_position = max_position
        self.block_size = BLOCK_SIZE
        self.others = others
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

    @property
    def clocks(self) -> Clocks:
        def own() -> float:
            return 2 * (1 - self.others) * self.now

        return Clocks(self.clock, own, lambda: CpuTimes(self.now, own(), 2 * self.now, 2))

    def pooled(self) -> np.ndarray:
        raise AssertionError("no request asks for an embedding")

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
        alone = self._truth.predict(work) / (1 - self.others)
        self.now += alone * (1 if shape in self._shapes else 3)
        self._shapes.add(shape)
        self.num_steps += 1
        return np.empty((0, 0), np.float32)


def inline(executor: StepExecutor) -> InlineRunner:
    return InlineRunner(executor, Sampler(1))


class KnownStages(InlineRunner):
    """Two stages, of which the second takes twice as long, and 2 ms between them."""

    def __init__(self, executor: KnownExecutor) -> None:
        super().__init__(executor, Sampler(1), executor.clock)
        self.executor = executor

    def result(self) -> StepResult:
        ((_, busy),) = super().result().stages
        self.executor.now += 2e-3
        return StepResult(NOTHING_SAMPLED, (StageTime(0.0, busy / 3), StageTime(0.0, 2 * busy / 3)))


def silent(line: str) -> None:
    """Ignore a line."""


def test_the_model_is_that_of_the_machine() -> None:
    executor = KnownExecutor()
    reported: list[str] = []
    found = profile(inline(executor), executor.cache, reported.append, TYPICAL, 2, executor.clocks)
    assert found.model.coefficients == pytest.approx(COEFFICIENTS, rel=0.02)
    assert found.decodes == pytest.approx(LatencyModel(COEFFICIENTS).predict(TYPICAL.work))
    assert found.quiet
    assert reported == ["measuring the speed of this machine"]


def test_on_a_gpu_contexts_and_chunks_are_long() -> None:
    executor = KnownExecutor(num_blocks=8192, slowness=0.01)
    found = profile(
        inline(executor), executor.cache, silent, PAPER_DECODES, None, executor.clocks, gpu=True
    )
    truth = LatencyModel([0.01 * c for c in COEFFICIENTS])
    for work in (PAPER_DECODES.work, Work(4096, 4096 * 2048, 0, 1)):
        assert found.model.predict(work) == pytest.approx(truth.predict(work), rel=0.02)
    assert found.decodes == pytest.approx(truth.predict(PAPER_DECODES.work))


def test_with_several_stages_it_is_that_of_the_slowest() -> None:
    """Time outside the stages is divided among them."""
    executor = KnownExecutor()
    model, decodes, _ = profile(
        KnownStages(executor), executor.cache, silent, TYPICAL, None, executor.clocks
    )
    work = Work(100, 5000.0, 0, 1)
    expected = 2 / 3 * LatencyModel(COEFFICIENTS).predict(work) + 1e-3
    assert model.predict(work) == pytest.approx(expected, rel=0.02)
    expected = 2 / 3 * LatencyModel(COEFFICIENTS).predict(TYPICAL.work) + 1e-3
    assert decodes == pytest.approx(expected)


def test_clocks_that_disagree_do_not_make_a_stage_faster() -> None:
    assert stage_seconds(1.0, [StageTime(0.0, 0.6), StageTime(0.0, 0.5)]) == 0.6


def test_measuring_takes_about_two_seconds_at_most() -> None:
    for slowness in (0.01, 0.3, 1, 2, 4, 8):
        executor = KnownExecutor(slowness=slowness)
        profile(inline(executor), executor.cache, silent, TYPICAL, 2, executor.clocks)
        assert executor.now < 2.6, slowness


def test_a_slow_machine_measures_the_indispensable_only() -> None:
    executor = KnownExecutor(slowness=100)
    found = profile(inline(executor), executor.cache, silent, TYPICAL, 2, executor.clocks)
    assert executor.num_steps == 4  # one token, and 16, twice each
    assert found.model.predict(Work(16, 128, 0, 1)) == pytest.approx(1.39, 0.1)
    # What there was no time for follows from that.
    assert found.decodes == found.model.predict(TYPICAL.work)


def test_other_processes_on_the_machine_do_not_make_a_target_longer() -> None:
    """The model is of iterations as they are now, the decodes are as they would be alone."""
    executor = KnownExecutor(others=0.75)
    found = profile(inline(executor), executor.cache, silent, TYPICAL, 2, executor.clocks)
    alone = LatencyModel(COEFFICIENTS).predict(TYPICAL.work)
    assert not found.quiet
    assert found.decodes == pytest.approx(alone / 0.9)
    assert found.model.predict(TYPICAL.work) == pytest.approx(4 * alone, rel=0.02)


def test_time_of_other_processes_and_gpus_is_not_estimated() -> None:
    executor = KnownExecutor(others=0.75)
    found = profile(inline(executor), executor.cache, silent, TYPICAL, None, executor.clocks)
    assert found.decodes == pytest.approx(4 * LatencyModel(COEFFICIENTS).predict(TYPICAL.work))


def test_decodes_that_share_blocks_do_not_make_contexts_cheap() -> None:
    class Cached(KnownExecutor):
        """Reads contexts at no cost if decodes share their blocks."""

        def execute(self, step: Step) -> np.ndarray:
            first = step.block_ids[step.block_starts[:-1]]
            c0, c1, c2, c3, c4 = COEFFICIENTS
            context = c3 if len(set(first)) == len(first) else 0.0
            self._truth = LatencyModel((c0, c1, c2, context, c4), COEFFICIENTS)
            return super().execute(step)

    executor = Cached()
    found = profile(inline(executor), executor.cache, silent, TYPICAL, 2, executor.clocks)
    assert found.model.coefficients == pytest.approx(COEFFICIENTS, rel=0.02)


@pytest.mark.parametrize("typical", [TypicalDecodes(1, 0), TypicalDecodes(32, 4095)])
def test_typical_decodes_of_any_size(typical: TypicalDecodes) -> None:
    """If a context does not fit into the blocks that are used, its time is predicted."""
    executor = KnownExecutor()
    found = profile(inline(executor), executor.cache, silent, typical, 2, executor.clocks)
    expected = LatencyModel(COEFFICIENTS).predict(typical.work)
    assert found.decodes == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("max_position", [1, 2, 36, 8192])
@pytest.mark.parametrize("num_blocks", [1, 2, 4, 31, 33])
def test_small_caches_and_short_models_do(num_blocks: int, max_position: int) -> None:
    executor = KnownExecutor(num_blocks, max_position)
    typical = TYPICAL.fitting(128, max_position)
    found = profile(inline(executor), executor.cache, silent, typical, 2, executor.clocks)
    assert found.model.predict(Work(1, 0.0, 1, 1)) == pytest.approx(9.4e-3, rel=0.05)


def test_few_pages_of_the_cache_are_written() -> None:
    executor = KnownExecutor()
    profile(inline(executor), executor.cache, silent, TYPICAL, 2, executor.clocks)
    assert len(executor.written) <= 64


def test_a_real_executor_can_be_measured(tmp_path: Path) -> None:
    tiny_models.save_tiny("llama", tmp_path)
    checkpoint = open_model(tmp_path)
    options = ExecutorOptions(max_position=64, max_tokens=64)
    part = ExecutorPart(whole_model(checkpoint.config))
    executor = OpenVinoExecutor(checkpoint, options, part)
    executor.allocate(4)
    cache = KvCache(4, BLOCK_SIZE, 64)
    found = profile(inline(executor), cache, silent, TYPICAL.fitting(128, 64), 1)
    assert 1e-6 < found.model.predict(Work(1, 0.0, 1, 1)) < 1
    assert 1e-6 < found.decodes < 1
