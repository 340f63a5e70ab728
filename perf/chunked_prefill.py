"""What do chunks cost? A prompt in chunks against the same prompt in one call."""

from __future__ import annotations

import time

import numpy as np

from perf.report import Figure, rounds, show
from perf.steps import open_executor, prefill_steps
from sarathi.backends.step import Step

TARGETS = {64: None, 128: None, 256: 1.1, 512: None}  # times one call, by tokens of a chunk
_PROMPT = 2000  # tokens
_ROUNDS = 7


def main() -> None:
    executor = open_executor(_PROMPT)
    ways: dict[int, list[Step]] = {
        chunk: list(prefill_steps(_PROMPT, chunk)) for chunk in (_PROMPT, *TARGETS)
    }
    seconds: dict[int, list[float]] = {chunk: [] for chunk in ways}
    for number in rounds(range(_ROUNDS + 1), "chunks and whole prompts in turns"):
        for chunk, steps in ways.items():
            began = time.perf_counter()
            for step in steps:
                executor.execute(step)
            if number:  # the first warms up
                seconds[chunk].append(time.perf_counter() - began)
    whole = np.array(seconds[_PROMPT])
    figures = [Figure("one call", float(np.median(whole)), "s")]
    for chunk, target in TARGETS.items():
        took = np.array(seconds[chunk])
        figures.append(Figure(f"chunks of {chunk}", float(np.median(took)), "s"))
        ratio = float(np.median(took / whole))
        figures.append(Figure("  times one call", ratio, "", target))
    show(f"A prompt of {_PROMPT} tokens, {executor.precision}", figures)


if __name__ == "__main__":
    main()
