"""Many decodes of two engines in this process that differ in their options, in turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perf.report import rounds
from sarathi.engine.config import EngineConfig
from sarathi.engine.startup.load import load_engine
from sarathi.sampling.params import SamplingParams

_BUDGET = 2048  # tokens of an iteration while prompts are computed
_STEPS = 5  # of one engine before it is the other's turn


def decode_seconds(
    model: Path,
    engines: Mapping[str, Mapping[str, Any]],
    batch: int,
    context: int,
    turns: int,
    kv_cache: int = 4 * 2**30,
) -> dict[str, float]:
    """Return the median seconds of an iteration in which so many requests decode.

    Args:
        engines: options of each, beside those that all have in common.
        context: tokens of a request when they begin to decode together, or a few more.
        turns: of each engine.
        kv_cache: bytes of each; pages that are not written to are not used.
    """
    cores = {}
    for name, options in engines.items():
        config = EngineConfig(
            token_budget=_BUDGET, kv_cache_memory=kv_cache, prefix_caching=False, **options
        )
        cores[name], _ = load_engine(model, config, lambda line: None)
    # While the last prompts are computed, the first requests decode.
    output = 2 * batch * context // _BUDGET + batch + turns * _STEPS
    params = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
    for core in rounds(cores.values(), f"{batch} prompts of {context} tokens"):
        vocabulary = core.runner.sampler_slots.vocab_size
        prompts = np.random.default_rng(0).integers(0, vocabulary, (batch, context))
        for number, prompt in enumerate(prompts.tolist()):
            core.submit(number, prompt, params, time.monotonic())
        while len(core.step().outputs) < batch:
            pass
    seconds: dict[str, list[float]] = {name: [] for name in cores}
    for turn in rounds(range(turns), f"{batch} decodes in turns"):
        for name in list(cores) if turn % 2 else reversed(list(cores)):
            for _ in range(_STEPS):
                began = time.perf_counter()
                cores[name].step()
                seconds[name].append(time.perf_counter() - began)
    for core in cores.values():
        core.close()
    return {name: float(np.median(times)) for name, times in seconds.items()}
