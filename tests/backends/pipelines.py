"""Pipelines of real processes over tiny models."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sarathi.backends.parallel.pipeline import Pipeline
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.parallel.worker_messages import WorkerSpec
from sarathi.backends.registry import ExecutorOptions
from sarathi.backends.step import Step, StepPart, join_parts
from sarathi.models.model import open_model
from sarathi.sampling.sampler import SamplerOutput
from sarathi.system.processes import LocalSpawner, Process, Spawner
from tests.backends.engines import NUM_BLOCKS

SOON = 10.0  # seconds: far more than noticing takes, far less than any test may
_OPTIONS = ExecutorOptions(
    executor="openvino",
    device=None,
    precision="f32",
    threads=1,
    max_position=512,
    max_tokens=512,
)


def options(**changes: Any) -> ExecutorOptions:
    return msgspec.structs.replace(_OPTIONS, **changes)


class Spawned(LocalSpawner):
    """Remembers what it has started, and may change their specifications."""

    def __init__(
        self,
        change: Callable[[WorkerSpec], WorkerSpec] = lambda spec: spec,
        host: str | None = None,
    ) -> None:
        self.host = host  # type: ignore[assignment]
        self.processes: list[Any] = []
        self._change = change

    def spawn(self, module: str, arguments: Sequence[str]) -> Process:
        endpoint, text = arguments
        spec = self._change(msgspec.json.decode(text, type=WorkerSpec))
        process = super().spawn(module, (endpoint, msgspec.json.encode(spec).decode()))
        self.processes.append(process)
        return process

    @property
    def pids(self) -> list[int]:
        return [process._process.pid for process in self.processes]


class NeverStarting:
    """Processes that never connect."""

    host: str | None = None

    def spawn(self, module: str, arguments: Sequence[str]) -> Process:
        return _Silent()


class _Silent:
    def ended(self) -> str | None:
        return None

    def kill(self) -> None:
        pass


@contextmanager
def opened(
    path: Path,
    layout: ParallelLayout,
    spawner: Spawner | None = None,
    *,
    progress: Callable[[RankId, float], None] = lambda rank_id, share: None,
    connecting: float = 60.0,
    **changes: Any,
) -> Iterator[Pipeline]:
    """The model at `path` on several processes, with a KV cache."""
    pipeline = Pipeline(
        path, open_model(path), options(**changes), layout, spawner or LocalSpawner()
    )
    try:
        pipeline.load(progress, lambda part: None, connect_timeout=connecting)
        pipeline.allocate(NUM_BLOCKS)
        yield pipeline
    finally:
        pipeline.close()


def hybrid_steps(seed: int = 0) -> list[Step]:
    """A prompt in two chunks, the second with a decode, then two decodes, then a long one."""
    rng = np.random.default_rng(seed)

    def tokens(count: int) -> list[int]:
        return rng.integers(2, 256, count).tolist()

    first, second = range(3), range(3, 8)
    return [
        join_parts([StepPart(tokens(40), 0, first, True)], 32),
        join_parts(
            [StepPart(tokens(1), 40, first, True), StepPart(tokens(33), 0, second, False)], 32
        ),
        join_parts(
            [StepPart(tokens(1), 41, first, True), StepPart(tokens(50), 33, second, True)], 32
        ),
        join_parts(
            [StepPart(tokens(1), 42, first, True), StepPart(tokens(1), 83, second, True)], 32
        ),
        join_parts([StepPart(tokens(1), 84, second, True)], 32),
    ]


def pipelined(runner: Pipeline, steps: Sequence[Step]) -> list[np.ndarray]:
    """Logits of steps, with as many under way as can be."""
    recorder: Any = _Recorder()
    runner._sampler = recorder
    under_way = 0
    for step in steps:
        if under_way == runner.depth:
            runner.result()
            under_way -= 1
        runner.submit(step, np.arange(len(step.sample_rows)))
        under_way += 1
    for _ in range(under_way):
        runner.result()
    logits: list[np.ndarray] = recorder.logits
    return logits


class _Recorder:
    """A sampler that keeps the logits it is given."""

    def __init__(self) -> None:
        self.logits: list[np.ndarray] = []

    def sample(self, logits: np.ndarray, slots: np.ndarray) -> SamplerOutput:
        assert len(logits) == len(slots)
        self.logits.append(logits.copy())
        return SamplerOutput(np.zeros(len(slots), np.int64), None)


def gone(pids: Sequence[int], within: float = SOON) -> bool:
    """Whether these processes end within so many seconds."""
    end = time.monotonic() + within
    while any(_lives(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A process that has ended stays until its parent has waited for it.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
