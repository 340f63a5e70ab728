"""Who looks on while requests are sent and answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sarathi.telemetry import RequestRecord


class RunListener(Protocol):
    """Told of everything at once, between two events of the network: it must be quick.

    Times are seconds since the run began. `index` is that of the call.
    """

    def sent(self, index: int, now: float) -> None: ...

    def progressed(self, index: int, times: Sequence[float]) -> None:
        """New tokens came. Where the server does not count the tokens of each event, an event with
        text is taken for one token here; the record has what the whole answer tells."""

    def ended(self, index: int, record: RequestRecord) -> None: ...

    def verdict(self, now: float) -> str | None:
        """Asked a few times a second: why the run should stop at once, or None."""


@dataclass(frozen=True)
class RunListeners:
    """Several in one, or none. The first that wants to stop gives the reason; all are asked each
    time."""

    members: Sequence[RunListener]

    def sent(self, index: int, now: float) -> None:
        for member in self.members:
            member.sent(index, now)

    def progressed(self, index: int, times: Sequence[float]) -> None:
        for member in self.members:
            member.progressed(index, times)

    def ended(self, index: int, record: RequestRecord) -> None:
        for member in self.members:
            member.ended(index, record)

    def verdict(self, now: float) -> str | None:
        reasons = [member.verdict(now) for member in self.members]
        return next((reason for reason in reasons if reason is not None), None)
