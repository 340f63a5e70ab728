"""Stages in separate processes compute what one executor computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor
from sarathi.backends.parallel.pipeline import Pipeline
from sarathi.backends.parallel.rank_layout import ParallelLayout
from sarathi.backends.step import StepError, StepPart, join_parts
from sarathi.errors import ExecutorError
from tests.backends.engines import NUM_BLOCKS, load
from tests.backends.pipelines import Spawned, gone, hybrid_steps, opened, pipelined
from tests.tiny_models import save_tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny("llama-biases", folder, num_layers=6)
    return folder


@pytest.fixture(scope="module")
def alone(path: Path) -> OpenVinoExecutor:
    return load(path, threads=1)


@pytest.fixture(scope="module")
def pipeline(path: Path):
    with opened(path, ParallelLayout(pp=2)) as pipeline:
        yield pipeline


def test_two_stages_give_the_very_logits_of_one(
    pipeline: Pipeline, alone: OpenVinoExecutor
) -> None:
    steps = hybrid_steps()
    expected = [alone.execute(step).copy() for step in steps]
    for found, wanted in zip(pipelined(pipeline.runner, steps), expected, strict=True):
        assert np.array_equal(found, wanted)


def test_three_stages_over_tcp_give_the_very_logits_of_one(
    path: Path, alone: OpenVinoExecutor
) -> None:
    steps = hybrid_steps(seed=1)
    expected = [alone.execute(step).copy() for step in steps]
    spawner = Spawned(host="127.0.0.1")
    with opened(path, ParallelLayout(pp=3), spawner) as pipeline:
        with pipeline.warming_up():
            pipeline.check_computing()
        pipeline.allocate(NUM_BLOCKS)
        found = pipelined(pipeline.runner, steps)
        assert pipeline.runner.depth == 3
        assert [part.rank_id for part in pipeline.parts] == list(ParallelLayout(pp=3).ranks)
    assert all(map(np.array_equal, found, expected))
    assert gone(spawner.pids)


def test_each_process_has_its_layers_only(pipeline: Pipeline, alone: OpenVinoExecutor) -> None:
    first, last = pipeline.parts
    assert first.block_bytes == last.block_bytes == alone.block_bytes / 2
    assert first.weight_bytes + last.weight_bytes == alone.weight_bytes
    assert first.memory == last.memory


def test_the_time_of_every_stage_is_reported(pipeline: Pipeline) -> None:
    for step in hybrid_steps()[:2]:
        pipeline.runner.submit(step)
        stages = pipeline.runner.result().stages
        assert len(stages) == 2
        assert all(stage.busy > 0 and stage.waited >= 0 for stage in stages)
    # The last one had nothing to do while the first one computed the second step.
    assert stages[1].waited > 0


def test_a_step_begins_when_the_first_stage_is_free(pipeline: Pipeline) -> None:
    runner, steps = pipeline.runner, hybrid_steps()
    assert runner.is_free
    runner.submit(steps[0])
    while not runner.is_free:
        if runner.wait(1.0):  # done before the first stage could report that it is free
            break
    runner.submit(steps[1])
    assert not runner.is_free  # as many are under way as there are stages
    with pytest.raises(StepError, match="2 steps are in flight"):
        runner.submit(steps[2])
    assert runner.wait(10.0)
    runner.result()
    runner.result()
    assert runner.is_free
    assert not runner.wait(0.001)  # nothing is under way


def test_a_malformed_step_does_no_harm(pipeline: Pipeline, alone: OpenVinoExecutor) -> None:
    with pytest.raises(StepError, match="block_ids"):
        pipeline.runner.submit(join_parts([StepPart([1], 0, [NUM_BLOCKS], True)], 32))
    step = hybrid_steps()[0]
    assert np.array_equal(pipelined(pipeline.runner, [step])[0], alone.execute(step))


def test_steps_can_be_abandoned(pipeline: Pipeline, alone: OpenVinoExecutor) -> None:
    for step in hybrid_steps()[:2]:
        pipeline.runner.submit(step)
    pipeline.runner.abandon()
    steps = hybrid_steps(seed=2)
    expected = [alone.execute(step).copy() for step in steps]
    assert all(map(np.array_equal, pipelined(pipeline.runner, steps), expected))


def test_closing_ends_the_processes_and_leaves_no_files(path: Path, tmp_path: Path) -> None:
    spawner = Spawned()
    with opened(path, ParallelLayout(pp=2), spawner) as pipeline:
        inbox = pipeline._stage_worker.hello.inbox
        assert inbox is not None
        folder = inbox.removeprefix("ipc://").rpartition("/")[0]
        assert Path(folder).is_dir()
    assert gone(spawner.pids)
    assert spawner.processes[0].ended() == "exit status 0"
    assert not Path(folder).exists()
    pipeline.close()  # harmless
    with pytest.raises(ExecutorError, match="have been ended"):
        pipeline.runner.submit(hybrid_steps()[0])
