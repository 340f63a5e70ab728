"""What do the iteration log and the trace cost, both together, of an iteration?

The offline engine decodes with both of them on. Their cost is timed from outside. Sums over
about a second are compared, since that is how often they write to their files.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from perf.prompts import random_prompts
from perf.report import MODEL, Figure, rounds, show
from sarathi.engine.config import EngineConfig
from sarathi.engine.core import EngineCore
from sarathi.engine.startup.load import load_engine
from sarathi.models.locate import locate
from sarathi.sampling.params import SamplingParams
from sarathi.telemetry.recorder import FLUSH_INTERVAL

TARGET = 0.01  # of an iteration
_DECODES = (1, 32)  # running requests
_PROMPT = 100  # tokens
_WINDOWS = 12  # of each number of requests

Seconds = dict[str, float]  # by what they were spent on


class Stopwatch:
    """Seconds spent in calls, by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return call


def open_engine(folder: Path, watch: Stopwatch) -> EngineCore:
    config = EngineConfig(
        tbt_target=60.0,  # far away: all prompts run in one iteration
        iteration_log=str(folder / "iterations.jsonl"),
        trace=str(folder / "trace.json"),
    )
    core: Any
    core, _ = load_engine(locate(MODEL).path, config, lambda line: None)
    # The record for both is built once, which is part of the cost.
    core._record = watch.timed("both", core._record)
    for recorder in core._recorders:
        recorder.record = watch.timed(type(recorder).__name__, recorder.record)
    core.step = watch.timed("iteration", core.step)
    engine: EngineCore = core
    return engine


def windows(core: EngineCore, watch: Stopwatch, decodes: int, seed: int) -> list[Seconds]:
    """Seconds an iteration, of windows in which so many requests decode and nothing else."""
    room = core.scheduler.max_model_len - _PROMPT - 1
    params = SamplingParams(max_tokens=room, temperature=0, ignore_eos=True)
    names = range(seed, seed + decodes)
    for name, prompt in zip(names, random_prompts(decodes, _PROMPT, seed), strict=True):
        core.submit(name, prompt, params, time.monotonic())
    for _ in range(3):  # the prompts, and decodes that warm up
        core.step()
    found = []
    for _ in rounds(range(_WINDOWS), f"recording {decodes} decodes"):
        watch.seconds.clear()
        iterations = 0
        while watch.seconds["iteration"] < FLUSH_INTERVAL:
            core.step()
            iterations += 1
        found.append({name: spent / iterations for name, spent in watch.seconds.items()})
    for name in names:
        core.cancel(name)
    return found


def main() -> None:
    watch = Stopwatch()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        core = open_engine(Path(folder), watch)
        for decodes in _DECODES:
            found = windows(core, watch, decodes, seed=1000 * decodes)
            share = np.median([one["both"] / one["iteration"] for one in found])
            figures.append(Figure(f"{decodes} decoding: share", float(share), "%", TARGET))
            for name in sorted(found[0], key=lambda name: found[0][name]):
                spent = float(np.median([one[name] for one in found]))
                figures.append(Figure(f"  {name}", 1e6 * spent, "us"))
        core.close()
    show("Iteration log and trace together, of an iteration", figures)


if __name__ == "__main__":
    main()
