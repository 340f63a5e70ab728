"""Whether the runs at a rate met the targets, and how certain that is.

Early stopping ends a run that can no longer meet them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from sarathi.bench.results import Run
from sarathi.telemetry import RequestRecord, Summary, summarise
from sarathi.units import format_duration

FAILED_SHARE = 0.01  # of the requests; with more, a run misses whatever the latencies
Z = 1.96  # standard errors to either side that hold 95 %


@dataclass(frozen=True)
class CapacityTargets:
    """The latency targets of a capacity search or a plan, in seconds."""

    tbt: float  # for P99
    delay: float = 2.0  # for the median scheduling delay
    tail_delay: float | None = None  # for its 90th percentile
    by_ttft: bool = False  # TTFT instead of the delay, whether or not the server reports that
    ttft: float | None = None  # for P90 of TTFT


@dataclass(frozen=True)
class Verdict:
    """Whether a rate met the targets."""

    met: bool
    certain: bool  # with 95 % confidence, other requests would give the same verdict
    reason: str


def evaluate(summary: Summary, targets: CapacityTargets) -> Verdict:
    """Evaluate the targets for one or several runs; at most 1 % of the requests may fail.

    Where the server does not report its scheduling delay, or `by_ttft` is set, the median TTFT is
    used instead: it is longer, so that a server gains nothing by not reporting.

    The bound on the tail of the delay is for schedulers that let some requests overtake others:
    those meet any median while the other requests wait ever longer.

    A miss is certain if any of its reasons is: for a latency, if the whole interval lies above the
    target. The targets are certainly met if all intervals lie below them. Without an interval,
    which needs enough requests, nothing is certain.
    Answers of one token each have no TBT, and meet any target.
    """
    verdicts = [_failures(summary), _tbt(summary, targets.tbt), *_delays(summary, targets)]
    missed = [verdict for verdict in verdicts if not verdict.met]
    reason = ", ".join(verdict.reason for verdict in missed or verdicts)
    if missed:
        return Verdict(False, any(verdict.certain for verdict in missed), reason)
    return Verdict(True, all(verdict.certain for verdict in verdicts), reason)


def evaluate_runs(runs: Sequence[Run], targets: CapacityTargets) -> tuple[Verdict, Summary]:
    """Return one verdict on all runs at a rate, at least one, and their summary.

    Their requests are evaluated as those of one run. A run that was stopped early has certainly
    missed, and has only its first requests: it alone decides.
    """
    for run in runs:
        if run.stopped is not None:
            return Verdict(False, True, run.stopped), run.summary
    summary = pool_runs(runs)
    return evaluate(summary, targets), summary


def pool_runs(runs: Sequence[Run]) -> Summary:
    """Summarise runs of one load: latencies of all requests, and throughput weighted by duration.

    There is no goodput: the runs of a search have no targets of single requests.
    """
    parts = [run.summary for run in runs]
    if len(parts) == 1:
        return parts[0]
    duration = sum(part.duration for part in parts)
    requests = sum(part.requests for part in parts)

    def mean(name: str) -> float:
        total = sum(getattr(part, name) * part.duration for part in parts)
        return total / duration if duration else 0.0

    # Each run counts time from its own start, so rates are averages over the runs.
    sending = sum(part.requests / part.request_rate for part in parts if part.request_rate)
    per_second = ("completed_per_second", "output_tokens_per_second", "total_tokens_per_second")
    return replace(
        summarise([record for run in runs for record in run.records]),
        duration=duration,
        request_rate=requests / sending if sending else 0.0,
        **{name: mean(name) for name in per_second},
    )


def _failures(summary: Summary) -> Verdict:
    failed, requests = sum(summary.failures.values()), summary.requests
    if not failed:
        return Verdict(True, True, "no failures")
    allowed = FAILED_SHARE * requests
    # The number of failures is treated as a Poisson variable.
    certain = abs(failed - allowed) > Z * math.sqrt(failed)
    kinds = ", ".join(f"{number} {kind}" for kind, number in summary.failures.items())
    return Verdict(failed <= allowed, certain, f"{failed} of {requests} failed ({kinds})")


def _tbt(summary: Summary, target: float) -> Verdict:
    tbt = summary.tbt
    if tbt.p99 is None:
        return Verdict(True, True, "no time between tokens")
    return _latency("P99 TBT", tbt.p99, tbt.p99_interval, target)


def _delays(summary: Summary, targets: CapacityTargets) -> list[Verdict]:
    """Evaluate the scheduling delay, or TTFT in its place, and TTFT itself."""
    name, delay, ttft = "scheduling delay", summary.scheduling_delay, summary.ttft
    if targets.by_ttft or not delay.count:
        name, delay = "TTFT", ttft
    verdicts = []
    for what, value, interval, target in (
        (f"median {name}", delay.p50, delay.p50_interval, targets.delay),
        (f"P90 {name}", delay.p90, delay.p90_interval, targets.tail_delay),
        ("P90 TTFT", ttft.p90, ttft.p90_interval, targets.ttft),
    ):
        if target is not None and value is None:
            return [Verdict(False, True, "no complete answer has a token")]
        if target is not None and value is not None:
            verdicts.append(_latency(what, value, interval, target))
    return verdicts


def _latency(
    name: str, value: float, interval: tuple[float, float] | None, target: float
) -> Verdict:
    """Compare a percentile with its target; certain if all of its interval is on the same side."""
    low, high = interval or (-math.inf, math.inf)
    met = value <= target
    certain, side = (high <= target, "within") if met else (low > target, "above")
    reason = f"{name} {format_duration(value)} {side} {format_duration(target)}"
    return Verdict(met, certain, reason)


@dataclass(slots=True)
class _OpenRequest:
    """A measured request whose answer has not ended."""

    sent: float
    last: float | None = None  # when the latest token came
    tokens: int = 0
    long: int = 0  # gaps above the target
    slow_start: bool = False  # the first token came too late


class EarlyStopping:
    """A `RunListener` that ends a run once it is sure to miss, whatever happens in the rest of it.

    The number of gaps between tokens is known in advance. More than 1 % of them above the target
    are a P99 above the target; a gap counts as soon as it is too long, while it still lasts. More
    than half of the requests waiting too long are a median above the target; where the verdict is
    by TTFT, that is the wait for the first token, and counts while it lasts as well. And more than
    1 % of failures are too many.

    Each must hold by a margin of two standard errors, with requests taken as independent. At the
    capacity itself every second run would be stopped otherwise, and count as a certain miss,
    although other requests would have met the targets. A run that is close to its targets
    goes on to its end, and is then evaluated with its intervals.

    Assumes that running requests will be complete: gaps of failed ones do not count in the end, and
    they are removed here once a request has failed. An answer that ends early makes the number of
    gaps smaller. A run is not stopped before a measured request has ended.
    """

    def __init__(
        self,
        output_tokens: Sequence[int],
        num_warm_up: int,
        targets: CapacityTargets,
        tells_delay: bool,
    ) -> None:
        """
        Args:
            output_tokens: asked for, by index of the call.
            num_warm_up: calls before the measured ones.
            tells_delay: the server reports the scheduling delay of each request.
        """
        self._output_tokens = output_tokens
        self._num_warm_up = num_warm_up
        self._targets = targets
        self._by_ttft = targets.by_ttft or not tells_delay
        measured = output_tokens[num_warm_up:]
        self._num_gaps = sum(max(0, number - 1) for number in measured)
        self._num_requests = len(measured)
        self._num_delays = len(measured)
        self._open: dict[int, _OpenRequest] = {}
        self._ended = False
        self._failed = 0
        self._late = 0
        self._long = 0  # gaps of requests that have ended
        self._long_squares = 0  # of their numbers, by request

    def sent(self, index: int, now: float) -> None:
        if index >= self._num_warm_up:
            self._open[index] = _OpenRequest(now)

    def progressed(self, index: int, times: Sequence[float]) -> None:
        request = self._open.get(index)
        if request is None:
            return
        for time in times:
            if request.last is None:
                request.slow_start = time - request.sent > self._targets.delay
            elif time - request.last > self._targets.tbt:
                request.long += 1
            request.last = time
        request.tokens += len(times)

    def ended(self, index: int, record: RequestRecord) -> None:
        """Replace the estimates for this request by its record."""
        if self._open.pop(index, None) is None:
            return
        self._ended = True
        self._num_gaps -= max(0, self._output_tokens[index] - 1)
        if record.failure is not None:
            self._failed += 1
            self._num_delays -= 1
            return
        gaps = record.gaps
        long = sum(gap > self._targets.tbt for gap in gaps)
        self._num_gaps += len(gaps)
        self._long += long
        self._long_squares += long**2
        delay = record.ttft if self._by_ttft else record.scheduling_delay
        if delay is None:
            self._num_delays -= 1
        else:
            self._late += delay > self._targets.delay

    def stop_reason(self, now: float) -> str | None:
        if not self._ended:
            return None
        return self._failures() or self._gaps(now) or self._delays(now)

    def _failures(self) -> str | None:
        if self._failed - Z * math.sqrt(self._failed) <= FAILED_SHARE * self._num_requests:
            return None
        return f"stopped early: {self._failed} of {self._num_requests} requests failed already"

    def _gaps(self, now: float) -> str | None:
        long, squares = self._long, self._long_squares
        for index, request in self._open.items():
            number, last = request.long, request.last
            if request.tokens < self._output_tokens[index] and last is not None:
                number += now - last > self._targets.tbt  # of the gap that still lasts
            long += number
            squares += number**2
        if long - Z * math.sqrt(squares) <= 0.01 * self._num_gaps:
            return None
        return (
            f"stopped early: {long} of {self._num_gaps} times between tokens are above "
            f"{format_duration(self._targets.tbt)} already, more than 1 %"
        )

    def _delays(self, now: float) -> str | None:
        late, number = self._late, self._num_delays
        if self._by_ttft:
            for request in self._open.values():
                is_waiting = request.last is None and now - request.sent > self._targets.delay
                late += request.slow_start or is_waiting
        if late - Z * math.sqrt(number) / 2 <= number / 2:
            return None
        what = "TTFT" if self._by_ttft else "scheduling delay"
        return (
            f"stopped early: {late} of {number} requests have a {what} above "
            f"{format_duration(self._targets.delay)} already, more than half"
        )
