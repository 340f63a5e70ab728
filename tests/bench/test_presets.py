"""Presets against what is published of the datasets, and against the counts where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sarathi.bench.workload.lengths import Tokens, read_trace
from sarathi.bench.workload.presets import PRESETS

TRACES = Path(__file__).parents[3] / "shared" / "traces"


def sampled(name: str, count: int = 10_000) -> tuple[Tokens, Tokens]:
    return PRESETS[name].sample(count, np.random.default_rng(1))


@pytest.mark.parametrize(
    ("name", "prompts", "outputs", "max_total"),
    [
        ("sharegpt", (1730, 5696, 2088), (415, 834, 265), 8192),
        ("arxiv", (7059, 12985, 3638), (208, 371, 101), 16384),
    ],
)
def test_median_p90_and_deviation_are_those_published(
    name: str, prompts: tuple[int, ...], outputs: tuple[int, ...], max_total: int
) -> None:
    found = sampled(name)
    for lengths, (median, p90, deviation) in zip(found, (prompts, outputs), strict=True):
        assert np.percentile(lengths, [50, 90]) == pytest.approx([median, p90], rel=0.05)
        assert lengths.std() == pytest.approx(deviation, rel=0.1)
        assert lengths.min() >= 1
    assert (found[0] + found[1]).max() <= max_total


def test_sharegpt_has_the_shape_of_the_published_counts() -> None:
    path = TRACES / "sharegpt_8k.csv"
    if not path.exists():
        pytest.skip("needs the published token counts")
    trace = read_trace(str(path))
    for lengths, real in zip(sampled("sharegpt"), (trace.prompts, trace.outputs), strict=True):
        grid = np.unique(real)
        shares = [
            np.searchsorted(np.sort(some), grid, side="right") / len(some)
            for some in (lengths, real)
        ]
        assert np.abs(shares[0] - shares[1]).max() < 0.05
        assert lengths.mean() == pytest.approx(real.mean(), rel=0.05)
