"""Two pipeline stages against one process on the same cores, and how long stages are idle.

The idle time of stages (bubbles) is compared between policies on the same requests, which come at
the same times.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from perf.prompts import random_prompts
from perf.report import MODEL, Figure, rounds, show
from sarathi.engine.config import EngineConfig
from sarathi.engine.core import EngineCore
from sarathi.engine.startup.load import load_engine
from sarathi.models.locate import locate
from sarathi.sampling.params import SamplingParams
from sarathi.system.machine import usable_cores

THROUGHPUT = 0.9  # times that of one process
_BUDGET = 256  # tokens
_PROMPT, _OUTPUT, _BATCH = 512, 8, 12  # of the throughput
_ROUNDS = 5
_POLICIES = ("sarathi", "vllm", "orca")
_REQUESTS = 48  # of the bubbles
_RATE = 0.7  # of what one engine computes, so that prompts and decodes overlap


def open_engine(pp: int, policy: str = "sarathi") -> EngineCore:
    config = EngineConfig(
        policy=policy,
        token_budget=_BUDGET if policy == "sarathi" else None,
        pp=pp,
        threads=max(1, usable_cores() // pp),
        kv_cache_memory=2**29,
        max_model_len=2048,
        prefix_caching=False,
    )
    core, _ = load_engine(locate(MODEL).path, config, lambda line: None)
    return core


def run(core: EngineCore, prompts: Sequence[Sequence[int]], outputs: Sequence[int]) -> float:
    """Seconds until all have been answered, submitted at once."""
    began = time.monotonic()
    for index, (prompt, length) in enumerate(zip(prompts, outputs, strict=True)):
        core.submit(index, prompt, _params(length), began)
    while core.has_work:
        core.step()
    return time.monotonic() - began


def run_open_loop(
    core: EngineCore,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[int],
    arrivals: Sequence[float],
) -> None:
    began = time.monotonic()
    coming = list(enumerate(zip(prompts, outputs, arrivals, strict=True)))
    while coming or core.has_work:
        now = time.monotonic() - began
        while coming and coming[0][1][2] <= now:
            index, (prompt, length, at) = coming.pop(0)
            core.submit(index, prompt, _params(length), began + at)
        if core.has_work:
            core.step()
        else:
            time.sleep(max(0.0, coming[0][1][2] - now))


def _params(length: int) -> SamplingParams:
    return SamplingParams(max_tokens=length, temperature=0, ignore_eos=True)


def throughput() -> float:
    """Print the throughput; return the tokens a second of one process."""
    cores = usable_cores()
    with closing(open_engine(1)) as one, closing(open_engine(2)) as two:
        seconds: dict[str, list[float]] = {"one": [], "two": []}
        tokens = _BATCH * (_PROMPT + _OUTPUT)
        for number in rounds(range(_ROUNDS + 1), "one process and two stages alternately"):
            prompts = random_prompts(_BATCH, _PROMPT, number)
            for name, core in (("one", one), ("two", two)):
                elapsed = run(core, prompts, [_OUTPUT] * _BATCH)
                if number:  # the first warms up
                    seconds[name].append(elapsed)
        ratio = float(np.median(np.array(seconds["one"]) / np.array(seconds["two"])))
        rate = tokens / float(np.median(seconds["one"]))
        show(
            f"{_BATCH} prompts of {_PROMPT} tokens, answers of {_OUTPUT}, {cores} cores",
            [
                Figure(f"one process, {cores} threads", rate, "tokens/s"),
                Figure("two stages", tokens / float(np.median(seconds["two"])), "tokens/s"),
                Figure("  times one process", ratio, "", THROUGHPUT, "at least"),
            ],
        )
        return rate


def bubbles(rate: float) -> None:
    """
    Args:
        rate: tokens a second that one engine computes.
    """
    rng = np.random.default_rng(5)
    lengths = np.clip(rng.lognormal(5.6, 0.9, _REQUESTS), 16, 1500).astype(int)
    prompts = [random_prompts(1, int(n), i)[0] for i, n in enumerate(lengths)]
    outputs = np.clip(rng.lognormal(3.4, 0.5, _REQUESTS), 8, 128).astype(int).tolist()
    # A decode takes as long as many a prompt's token: they fetch all weights for little.
    work = float(lengths.sum() + 8 * sum(outputs))
    arrivals = np.cumsum(rng.exponential(work / (_RATE * rate * _REQUESTS), _REQUESTS)).tolist()
    shares = {}
    for policy in rounds(_POLICIES, "policies"):
        with closing(open_engine(2, policy)) as core:
            run(core, random_prompts(2, 256), [4, 4])
            before = core.stats
            run_open_loop(core, prompts, outputs, arrivals)
            after = core.stats
        idle = np.subtract(after.stage_bubble, before.stage_bubble)
        busy = np.subtract(after.stage_busy, before.stage_busy)
        shares[policy] = float(idle.sum() / (idle.sum() + busy.sum()))
    others = min(share for policy, share in shares.items() if policy != "sarathi")
    show(
        f"Bubbles of two stages, {_REQUESTS} requests",
        [
            Figure(policy, share, "%", others if policy == "sarathi" else None)
            for policy, share in shares.items()
        ],
        note="of the time in which the engine had work; the target is the least of the others",
    )


def main() -> None:
    rate = throughput()
    bubbles(rate)


if __name__ == "__main__":
    main()
