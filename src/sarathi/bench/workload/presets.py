"""Named workloads: those of the Sarathi-Serve paper, sampled from their published statistics.

Source: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
OSDI 2024, Table 2: median, 90th percentile and standard deviation of prompts and answers, in tokens
of Llama 2, and the longest total that the authors kept (8192 and 16384). Between known quantiles,
lengths are taken as uniform; a log-normal distribution through the same median and 90th percentile
would often exceed the longest total.

- `sharegpt` (openchat_sharegpt4): prompts 1730, 5696, 2088; answers 415, 834. The quartiles, the
  10th and the 99th percentile are those of the token counts published with the paper's code.
- `arxiv` (arxiv_summarization): prompts 7059, 12985, 3638; answers 208, 371. The other quantiles
  are not published: they are chosen to give the standard deviations.

The table prints standard deviations of answers of 101 for sharegpt and 265 for arxiv. The published
counts of sharegpt have 266, and no distribution with such a median and 90th percentile can have as
little as 101, so the two values are assumed to be exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sarathi.bench.workload.lengths import Tokens, whole

Quantiles = dict[float, int]  # share of the lengths -> the length that they do not exceed


@dataclass(frozen=True)
class Preset:
    """Prompts and answers, independent but for the cap on both together."""

    prompts: Quantiles
    outputs: Quantiles
    max_total: int

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Return the lengths of `count` prompts and answers.

        Pairs above the cap are left out rather than cut, as the authors did. Their replacements
        follow at the end, so that a larger count keeps the first pairs.
        """
        for_prompts, for_outputs = rng.spawn(2)
        pairs = np.empty((2, 0), np.int64)
        while missing := count - pairs.shape[1]:
            prompts = _sample(self.prompts, missing, for_prompts)
            sampled = np.stack([prompts, _sample(self.outputs, missing, for_outputs)])
            pairs = np.hstack([pairs, sampled[:, sampled.sum(axis=0) <= self.max_total]])
        return pairs[0], pairs[1]


PRESETS = {
    "sharegpt": Preset(
        {0: 1, 0.1: 74, 0.25: 580, 0.5: 1730, 0.75: 3734, 0.9: 5696, 0.99: 7434, 1: 8150},
        {0: 2, 0.1: 84, 0.25: 228, 0.5: 415, 0.75: 628, 0.9: 834, 0.99: 998, 1: 1024},
        8192,
    ),
    "arxiv": Preset(
        {0: 300, 0.1: 4000, 0.5: 7059, 0.9: 12985, 1: 16000},
        {0: 20, 0.1: 120, 0.5: 208, 0.9: 371, 0.99: 470, 1: 600},
        16384,
    ),
}


def _sample(quantiles: Quantiles, count: int, rng: np.random.Generator) -> Tokens:
    shares, lengths = list(quantiles), list(quantiles.values())
    return whole(np.interp(rng.random(count), shares, lengths))
