"""When things happened to one request."""

from __future__ import annotations

from itertools import pairwise

import msgspec


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, as whoever sent it saw it. Times are seconds since the run began.

    `tokens` holds the time of every output token in order. Tokens that came together have the same
    time, and hence gaps of zero between them: that is how a reader saw them.
    """

    arrival: float  # when it was sent
    prompt_tokens: int
    output_tokens: int  # asked for
    tokens: list[float] = []  # when each came
    end: float  # when the answer was complete, or had failed
    scheduling_delay: float | None = None  # as told by the server; None where it does not say
    cached_tokens: int = 0  # of the prompt, found in the server's prefix cache
    failure: str | None = None  # its kind; None for a complete answer
    detail: str | None = None  # of a failure: what the server or the connection said
    estimated: bool = False  # the server did not tell how many tokens each event held
    lag: float = 0.0  # how much later than planned it was sent

    @property
    def ttft(self) -> float | None:
        """None where no token came."""
        return self.tokens[0] - self.arrival if self.tokens else None

    @property
    def gaps(self) -> list[float]:
        """The times between tokens; one less than there are tokens."""
        return [after - before for before, after in pairwise(self.tokens)]

    @property
    def max_gap(self) -> float | None:
        """None for answers of fewer than two tokens."""
        return max(self.gaps, default=None)

    @property
    def end_to_end(self) -> float | None:
        """From arrival to the last token; None where no token came."""
        return self.tokens[-1] - self.arrival if self.tokens else None

    @property
    def normalized(self) -> float | None:
        """End-to-end latency per output token, as Orca and vLLM report it."""
        return None if not self.tokens else (self.tokens[-1] - self.arrival) / len(self.tokens)
