"""`perf.engine_overhead` wraps private functions of the engine: these must exist and be called."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import sarathi.backends.openvino.openvino_executor
import sarathi.engine.core
from perf.engine_overhead import Stopwatch, instrument
from sarathi.engine.config import EngineConfig
from sarathi.engine.startup.load import load_engine
from sarathi.sampling.params import SamplingParams
from tests.tiny_models import save_tiny

MODULES = (sarathi.engine.core, sarathi.backends.openvino.openvino_executor)


def test_every_part_of_an_iteration_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in MODULES:  # so that what `instrument` replaces is restored
        for name in ("build_step", "check_step_for"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(module, name))
    save_tiny("llama-tied", tmp_path)
    config = EngineConfig(precision="f32", kv_cache_memory=2**22, threads=1, tbt_target=60.0)
    core, _ = load_engine(tmp_path, config, lambda line: None)
    watch = Stopwatch()
    instrument(core, watch)
    watch.watch(2)
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    for number in range(2):
        core.submit(number, [5, 6, 7], params, time.monotonic())
    while core.has_work:
        core.step()
        watch.lap()
    core.close()
    assert len(watch.iterations) == 3  # the first token of each comes with its prompt
    for part in (
        *("schedule", "build and check step", "set inputs", "model"),
        *("sample", "complete", "publish", "learn"),
    ):
        assert all(iteration.get(part, 0) > 0 for iteration in watch.iterations), part
