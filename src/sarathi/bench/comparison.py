"""Several targets measured with the same requests, and the ratios between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from statistics import median

import msgspec

from sarathi.bench.results import Run

# What is compared, by name, and how to read it from a run.
FIGURES: dict[str, Callable[[Run], float | None]] = {
    "ttft_p50": lambda run: run.summary.ttft.p50,
    "ttft_p99": lambda run: run.summary.ttft.p99,
    "tbt_p50": lambda run: run.summary.tbt.p50,
    "tbt_p99": lambda run: run.summary.tbt.p99,
    "max_gap_p99": lambda run: run.summary.max_gap.p99,
    "output_tokens_per_second": lambda run: run.summary.output_tokens_per_second,
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One target at one rate: medians over the rounds."""

    label: str
    rate: float | None
    requests: int  # in all rounds
    failed: int  # in all rounds
    invalid: int  # runs that are left out of all figures
    figures: dict[str, float | None]  # by the names of `FIGURES`
    ratios: dict[str, float | None]  # to the first target, round by round


def measurement_order(
    rates: Sequence[float | None], num_targets: int, rounds: int
) -> Iterator[tuple[int, float | None, list[int]]]:
    """Yield the round, the rate, and the order of the targets for each set of measurements.

    All targets are measured at a rate before the next rate. Each round starts with another target,
    so that a machine that becomes slower or faster, and warm caches, affect all of them alike.
    """
    for number in range(rounds):
        for rate in rates:
            yield number, rate, [(number + at) % num_targets for at in range(num_targets)]


def compare_runs(runs: Sequence[Run], labels: Sequence[str]) -> list[Row]:
    """Return a row for each target at each rate.

    Args:
        runs: as many of each target at each rate, rounds in order.
        labels: of the targets; ratios are to the first.
    """

    def key(run: Run) -> tuple[float, int]:
        return (0.0 if run.rate is None else run.rate, labels.index(run.label))

    grouped = {group: list(found) for group, found in groupby(sorted(runs, key=key), key=key)}
    rows = []
    for (rate, index), own in grouped.items():
        valid = [run for run in own if run.invalid is None]
        pairs = [
            (run, first)
            for run, first in zip(own, grouped[rate, 0], strict=False)
            if run.invalid is None and first.invalid is None
        ]
        rows.append(
            Row(
                label=labels[index],
                rate=own[0].rate,
                requests=sum(run.summary.requests for run in own),
                failed=sum(run.summary.requests - run.summary.completed for run in own),
                invalid=len(own) - len(valid),
                figures={
                    name: _median([read(run) for run in valid]) for name, read in FIGURES.items()
                },
                ratios={
                    name: _median([_ratio(read(run), read(first)) for run, first in pairs])
                    for name, read in FIGURES.items()
                },
            )
        )
    return rows


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
