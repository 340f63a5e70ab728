"""Several contenders, the same requests, and ratios between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from statistics import median

import msgspec

from sarathi.bench.results import Run

# What is compared, by name, and how to read it off a run.
FIGURES: dict[str, Callable[[Run], float | None]] = {
    "ttft_p50": lambda run: run.summary.ttft.p50,
    "ttft_p99": lambda run: run.summary.ttft.p99,
    "tbt_p50": lambda run: run.summary.tbt.p50,
    "tbt_p99": lambda run: run.summary.tbt.p99,
    "max_gap_p99": lambda run: run.summary.max_gap.p99,
    "output_tokens_per_second": lambda run: run.summary.output_tokens_per_second,
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One contender at one rate: medians over the rounds."""

    label: str
    rate: float | None
    requests: int  # in all rounds, as the next
    failed: int
    invalid: int  # runs that count in no figure
    figures: dict[str, float | None]  # by the names of `FIGURES`
    ratios: dict[str, float | None]  # to the first contender, round by round


def turns(
    rates: Sequence[float | None], contenders: int, rounds: int
) -> Iterator[tuple[int, float | None, list[int]]]:
    """Who is measured when: all contenders at a rate before the next rate.

    Each round begins with another contender, so that a machine that grows slower or faster, and
    whatever the one before left in its caches, hurts all alike.

    Yields:
        The round, the rate, and the contenders in order.
    """
    for number in range(rounds):
        for rate in rates:
            order = [(number + at) % contenders for at in range(contenders)]
            yield number, rate, order


def compared(runs: Sequence[Run], labels: Sequence[str]) -> list[Row]:
    """
    Args:
        runs: as many of each contender at each rate, rounds in order.
        labels: of the contenders; ratios are to the first.
    """

    def key(run: Run) -> tuple[float, int]:
        return (0.0 if run.rate is None else run.rate, labels.index(run.label))

    grouped = {group: list(members) for group, members in groupby(sorted(runs, key=key), key=key)}
    rows = []
    for (rate, place), members in grouped.items():
        pairs = list(zip(members, grouped[rate, 0], strict=False))
        figures, ratios = {}, {}
        for name, read in FIGURES.items():
            figures[name] = _median([read(run) for run in members if run.invalid is None])
            ratios[name] = _median(
                [
                    _ratio(read(run), read(first))
                    for run, first in pairs
                    if run.invalid is None and first.invalid is None
                ]
            )
        rows.append(
            Row(
                label=labels[place],
                rate=members[0].rate,
                requests=sum(run.summary.requests for run in members),
                failed=sum(run.summary.requests - run.summary.completed for run in members),
                invalid=sum(run.invalid is not None for run in members),
                figures=figures,
                ratios=ratios,
            )
        )
    return rows


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
