"""The figures of a run: latencies, throughput and goodput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from sarathi.telemetry.percentiles import Distribution, distribution
from sarathi.telemetry.request_record import RequestRecord


class Targets(msgspec.Struct, frozen=True):
    """The latencies that a request must keep to count for goodput; None: any."""

    ttft: float | None = None  # seconds
    tbt: float | None = None  # seconds, for the longest gap

    def met(self, ttft: float | None, max_gap: float | None) -> bool:
        """Return whether a complete request keeps them."""
        if self.ttft is not None and (ttft is None or ttft > self.ttft):
            return False
        return self.tbt is None or max_gap is None or max_gap <= self.tbt


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of many requests. Times are seconds; latencies are those of complete requests.

    Throughput is over the whole duration, which includes the time until the last request ends.
    Rates of sent requests, and of those that met their targets, are over the time of sending.
    """

    requests: int
    completed: int
    failures: dict[str, int]  # by kind; empty if all requests are complete
    duration: float  # from the first arrival to the last end
    request_rate: float  # requests sent per second, over the time of sending
    completed_per_second: float
    output_tokens_per_second: float  # tokens of failed requests included
    total_tokens_per_second: float  # prompts of complete requests, and all output tokens
    ttft: Distribution
    tbt: Distribution
    max_gap: Distribution
    end_to_end: Distribution
    normalized: Distribution
    scheduling_delay: Distribution  # empty if the server does not report it
    goodput: float | None  # the part of `request_rate` that met the targets; None without targets
    attainment: float | None  # share of the requests that met the targets


def summarise(
    records: Sequence[RequestRecord], targets: Targets | None = None, send_time: float | None = None
) -> Summary:
    """Return the figures of a run.

    Args:
        records: in the order in which the requests arrived.
        send_time: seconds in which the requests were sent; by default until the last arrival.

    Raises:
        ValueError: there is no request.
    """
    if not records:
        raise ValueError("there is no request to summarise")
    complete = [record for record in records if record.failure is None]
    first = min(record.arrival for record in records)
    duration = max(record.end for record in records) - first
    sending = max(record.arrival for record in records) - first if send_time is None else send_time
    output = sum(len(record.tokens) for record in records)
    prompt = sum(record.prompt_tokens for record in complete)
    request_rate = len(records) / sending if sending > 0 else 0.0
    attainment = None
    if targets is not None:
        met = [targets.met(record.ttft, record.max_gap) for record in complete]
        attainment = sum(met) / len(records)

    def per_second(amount: float) -> float:
        return amount / duration if duration > 0 else 0.0

    def of(value: Callable[[RequestRecord], float | None]) -> Distribution:
        return distribution([[v] for v in map(value, complete) if v is not None])

    return Summary(
        requests=len(records),
        completed=len(complete),
        failures=_counted(record.failure for record in records),
        duration=duration,
        request_rate=request_rate,
        completed_per_second=per_second(len(complete)),
        output_tokens_per_second=per_second(output),
        total_tokens_per_second=per_second(prompt + output),
        ttft=of(lambda record: record.ttft),
        tbt=distribution([record.gaps for record in complete]),
        max_gap=of(lambda record: record.max_gap),
        end_to_end=of(lambda record: record.end_to_end),
        normalized=of(lambda record: record.normalized),
        scheduling_delay=of(lambda record: record.scheduling_delay),
        goodput=None if attainment is None else attainment * request_rate,
        attainment=attainment,
    )


def _counted(kinds: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(kind for kind in kinds if kind is not None).items()))
