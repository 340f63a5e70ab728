"""A batch of requests that decode without end, to time its iterations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from perf.gpu_check.loaded import cancel_all
from sarathi.engine.core import EngineCore
from sarathi.sampling.params import SamplingParams

_WARM_UPS = 3  # iterations


def random_prompts(count: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts that share no prefix."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, length).tolist() for _ in range(count)]


def greedy(max_tokens: int) -> SamplingParams:
    """Parameters of an answer of exactly that length."""
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


class Decodes:
    """Requests of an engine that all decode."""

    def __init__(self, core: EngineCore, count: int) -> None:
        self._core = core
        self._count = count

    def iterate(self, iterations: int) -> list[float]:
        """Run so many iterations, and return the seconds between their ends."""
        gaps: list[float] = []
        before = time.perf_counter()
        while len(gaps) < iterations:
            outputs = self._core.step().outputs
            if not outputs:
                continue
            assert len(outputs) == self._count, "an iteration did not decode every request"
            now = time.perf_counter()
            gaps.append(now - before)
            before = now
        return gaps


@contextmanager
def decoding(
    core: EngineCore, count: int, context: int, iterations: int, vocab_size: int
) -> Iterator[Decodes]:
    """Compute the prompts of `count` requests, so that only decodes are left.

    Args:
        core: an engine without requests.
        context: tokens of each request halfway through the iterations.
        iterations: that will be run at most; the requests are cancelled at the end.
    """
    length = max(1, context - iterations // 2 - _WARM_UPS)
    prompts = random_prompts(count, length, vocab_size, seed=count)
    most = core.scheduler.max_model_len - length  # none ends before the last one decodes
    for name, prompt in enumerate(prompts):
        core.submit(name, prompt, greedy(most), time.monotonic())
    try:
        run_until_decoding(core, range(count))
        decodes = Decodes(core, count)
        decodes.iterate(_WARM_UPS)
        yield decodes
    finally:
        cancel_all(core, range(count))


def run_until_decoding(core: EngineCore, names: Sequence[int]) -> None:
    """Run iterations until each of the requests has had a token in the same one."""
    while len(core.step().outputs) < len(names):
        pass
