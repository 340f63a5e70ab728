"""Early stopping: ends a run that can no longer meet its targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sarathi.bench.capacity.verdict import FAILED_SHARE, CapacityTargets, Z
from sarathi.telemetry import RequestRecord
from sarathi.units import format_duration

_TAIL = 0.01  # what may be above a P99


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
            number = request.long
            if (
                request.last is not None
                and now - request.last > self._targets.tbt
                and request.tokens < self._output_tokens[index]
            ):
                number += 1
            long += number
            squares += number**2
        if long - Z * math.sqrt(squares) <= _TAIL * self._num_gaps:
            return None
        return (
            f"stopped early: {long} of {self._num_gaps} times between tokens are above "
            f"{format_duration(self._targets.tbt)} already, more than 1 %"
        )

    def _delays(self, now: float) -> str | None:
        late, number = self._late, self._num_delays
        if self._by_ttft:
            late += sum(
                request.slow_start
                if request.last is not None
                else now - request.sent > self._targets.delay
                for request in self._open.values()
            )
        if late - Z * math.sqrt(number) / 2 <= number / 2:
            return None
        what = "TTFT" if self._by_ttft else "scheduling delay"
        return (
            f"stopped early: {late} of {number} requests have a {what} above "
            f"{format_duration(self._targets.delay)} already, more than half"
        )
