"""The times of one request."""

from __future__ import annotations

from itertools import pairwise

import msgspec


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request as its client saw it. Times are seconds since the run began.

    `tokens` holds the time of every output token in order. Tokens that came together have the same
    time, and hence gaps of zero between them.
    """

    arrival: float  # when it was sent
    prompt_tokens: int
    output_tokens: int  # asked for
    tokens: list[float] = []  # when each came
    end: float  # when it was complete, or failed
    scheduling_delay: float | None = None  # as reported by the server; None if it does not
    cached_tokens: int = 0  # of the prompt, found in the server's prefix cache
    failure: str | None = None  # its kind; None for a complete answer
    detail: str | None = None  # of a failure: the message of the server or the connection
    estimated: bool = False  # the server did not report the number of tokens of each event
    lag: float = 0.0  # how much later than planned it was sent

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first token; None without tokens."""
        return self.tokens[0] - self.arrival if self.tokens else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between consecutive tokens; one less than there are tokens."""
        return [after - before for before, after in pairwise(self.tokens)]

    @property
    def max_gap(self) -> float | None:
        """The longest gap, in seconds; None with fewer than two tokens."""
        return max(self.gaps, default=None)

    @property
    def end_to_end(self) -> float | None:
        """Seconds from arrival to the last token; None without tokens."""
        return self.tokens[-1] - self.arrival if self.tokens else None

    @property
    def normalized(self) -> float | None:
        """End-to-end latency per output token, as Orca and vLLM report it."""
        return None if not self.tokens else (self.tokens[-1] - self.arrival) / len(self.tokens)
