"""Is the executor as fast as the same model, exported by optimum-intel, in OpenVINO GenAI?

Usage: python -m perf.versus_genai FOLDER

FOLDER is an export in bf16; docs/performance.md describes how to make one. OpenVINO GenAI is not a
dependency of this project: without it nothing is measured.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from perf.prompts import random_prompts
from perf.report import MODEL, Figure, rounds, show
from sarathi.backends.openvino.openvino_executor import default_precision
from sarathi.backends.runner import InlineRunner
from sarathi.backends.step import Step
from sarathi.engine.config import EngineConfig
from sarathi.engine.startup.load import load_engine
from sarathi.models.locate import locate
from sarathi.sampling.params import SamplingParams

TARGET = 1.0  # times the other's
NOISE = 0.03  # ratios of medians differ from 1 by as much when both sides are the same engine
_PREFILL = 2000  # tokens
_DECODES = (1, 16, 64)  # sequences
_CONTEXT = 100  # tokens, before the first decode
_ROUNDS = 5
_STEPS = 10  # decodes of one side before it is the other's turn
_TURNS = 4  # of each side in a round


class TimedExecutor:
    """Stands in for the executor of an engine."""

    def __init__(self, executor: Any) -> None:
        self.seconds = 0.0  # of the latest step
        self._executor = executor

    def execute(self, step: Step) -> Any:
        began = time.perf_counter()
        try:
            return self._executor.execute(step)
        finally:
            self.seconds = time.perf_counter() - began

    def pooled(self) -> Any:
        return self._executor.pooled()


class Sarathi:
    def __init__(self) -> None:
        # As the other side: no prefix caching, and every prompt in one iteration.
        config = EngineConfig(token_budget=2**15, kv_cache_memory=2**30, prefix_caching=False)
        self._core, _ = load_engine(locate(MODEL).path, config, lambda line: None)
        runner = self._core._runner
        assert isinstance(runner, InlineRunner)
        self.executor = TimedExecutor(runner._executor)
        runner._executor = self.executor

    def add(self, request_id: int, prompt: list[int], output: int) -> None:
        params = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
        self._core.submit(request_id, prompt, params, time.monotonic())

    def step(self) -> None:
        self._core.step()

    def finish(self) -> None:
        while self._core.has_work:
            self._core.step()


class GenAi:
    def __init__(self, genai: Any, folder: Path) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 1  # GB
        scheduler.max_num_batched_tokens = 2**15
        scheduler.dynamic_split_fuse = False
        scheduler.enable_prefix_caching = False
        precision = default_precision()
        properties = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision}
        self._genai = genai
        self._pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
        self._handles: list[Any] = []

    def add(self, request_id: int, prompt: list[int], output: int) -> None:
        config = self._genai.GenerationConfig(
            max_new_tokens=output, ignore_eos=True, do_sample=False
        )
        ids = ov.Tensor(np.array([prompt], np.int64))
        # Without its handle a request is dropped.
        self._handles.append(self._pipeline.add_request(request_id, ids, config))

    def step(self) -> None:
        self._pipeline.step()

    def finish(self) -> None:
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        self._handles.clear()


class Comparison:
    """Times of both sides in turns, by what was done."""

    def __init__(self, ours: Sarathi, theirs: GenAi) -> None:
        self.seconds: dict[str, dict[str, list[float]]] = {}
        self._ours, self._theirs = ours, theirs
        self._next_id = 0

    def prefill(self, name: str) -> None:
        [prompt] = random_prompts(1, _PREFILL, self._next_id)
        for side in (self._ours, self._theirs):
            side.add(self._take_id(), prompt, 2)
            self._time(name, side)
            side.finish()

    def decode(self, name: str, batch: int) -> None:
        for prompt in random_prompts(batch, _CONTEXT, self._next_id):
            for side in (self._ours, self._theirs):
                side.add(self._take_id(), prompt, _STEPS * _TURNS + 2)
        for side in (self._ours, self._theirs):
            side.step()  # the prompts
        for _ in range(_TURNS):
            for side in (self._ours, self._theirs):
                for _ in range(_STEPS):
                    self._time(name, side)
        for side in (self._ours, self._theirs):
            side.finish()

    def _time(self, name: str, side: Sarathi | GenAi) -> None:
        began = time.perf_counter()
        side.step()
        took = time.perf_counter() - began
        times = self.seconds.setdefault(name, {"executor": [], "engine": [], "genai": []})
        if isinstance(side, Sarathi):
            times["executor"].append(side.executor.seconds)
            times["engine"].append(took)
        else:
            times["genai"].append(took)

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id


def main() -> None:
    if len(sys.argv) != 2:
        print("OpenVINO GenAI: skipped, it takes the folder of an export: see docs/perf.md")
        return
    try:
        openvino_genai = importlib.import_module("openvino_genai")
    except ImportError:
        print("OpenVINO GenAI: skipped, openvino-genai is not installed: see docs/perf.md")
        return
    comparison = Comparison(Sarathi(), GenAi(openvino_genai, Path(sys.argv[1])))
    for number in rounds(range(_ROUNDS + 1), "both engines in turns"):
        comparison.prefill(f"prefill of {_PREFILL}")
        for batch in _DECODES:
            comparison.decode(f"decode of {batch} at {_CONTEXT}", batch)
        if not number:  # warms up
            comparison.seconds.clear()
    figures = []
    for name, times in comparison.seconds.items():
        medians = {side: float(np.median(seconds)) for side, seconds in times.items()}
        figures += [
            Figure(f"{name}: executor", 1000 * medians["executor"], "ms"),
            Figure("  whole engine step", 1000 * medians["engine"], "ms"),
            Figure("  GenAI step", 1000 * medians["genai"], "ms"),
            Figure(
                "  executor / GenAI", medians["executor"] / medians["genai"], "", TARGET + NOISE
            ),
            Figure("  engine / GenAI", medians["engine"] / medians["genai"]),
        ]
    note = f"The target is {TARGET} with {100 * NOISE:.0f} % for noise."
    show(f"Against OpenVINO GenAI, {default_precision()}", figures, note)


if __name__ == "__main__":
    main()
