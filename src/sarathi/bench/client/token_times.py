"""When each token of an answer came, told from events that may hold several or part of one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from sarathi.bench.client.sse_events import ChunkUsage


class TokenTimes:
    """Collects the events of one answer.

    Where every event with text tells how many tokens there are by then, the times are exact.
    Otherwise events with text are tokens, as many as the usage at the end says.
    """

    def __init__(self) -> None:
        self.usage: ChunkUsage | None = None  # the latest
        self._counted: list[float] = []  # a time for each token that usage tells of
        self._all_count = True  # every event with text came with its usage
        self._apart = False  # usage has told of tokens that no event brought
        self._times: list[float] = []  # of events with text
        self._lengths: list[int] = []  # of their texts

    def add(self, now: float, length: int, usage: ChunkUsage | None, choices: bool) -> int:
        """
        Args:
            length: characters of text.
            choices: the event belongs to the answer, and is not about it.

        Returns:
            How many tokens it brought, as far as one can tell.
        """
        new = 0
        if usage is not None:
            self.usage = usage
            new = usage.completion_tokens - len(self._counted)
            if new > 0:
                self._counted += [now] * new
                if not choices:
                    self._apart = True
        if length:
            self._times.append(now)
            self._lengths.append(length)
            # A count of zero beside text is a field that the server fills in at the end only.
            if usage is None or not usage.completion_tokens:
                self._all_count = False
        if self._all_count:
            return max(new, 0)
        return 1 if length else 0

    def settle(self) -> tuple[list[float], bool]:
        """
        Returns:
            The time of every token, and whether these times are estimated.
        """
        if self._all_count and self.usage is not None:
            return self._counted, self._apart
        told = self.usage.completion_tokens if self.usage is not None else 0
        if not told:
            return self._times, True
        return spread(self._times, self._lengths, told), told != len(self._times)


def spread(times: Sequence[float], lengths: Sequence[int], tokens: int) -> list[float]:
    """Times for as many tokens as there were, given when the pieces of their text came.

    With more tokens than pieces, every piece brought one, and the others are dealt out by the
    length of the text beyond that of an average token (largest remainder). With fewer, some pieces
    are parts of a token: those that came soonest after the piece before them, as parts do.

    Args:
        times: of the pieces, in order; at least one.
        lengths: of their texts, at least 1 each.
    """
    if tokens < len(times):
        gaps = [after - before for before, after in pairwise(times)]
        longest = sorted(range(len(gaps)), key=lambda i: -gaps[i])[: tokens - 1]
        return [times[0], *(times[i + 1] for i in sorted(longest))]
    spare = tokens - len(times)
    total = sum(lengths)
    beyond = [max(0.0, tokens * length / total - 1) for length in lengths]
    # Where nothing is left to deal out, all of these are zero but for rounding.
    scale = spare / sum(beyond) if spare else 0.0
    exact = [amount * scale for amount in beyond]
    extra = [int(amount) for amount in exact]
    ranked = sorted(range(len(times)), key=lambda i: extra[i] - exact[i])
    for i in ranked[: spare - sum(extra)]:
        extra[i] += 1
    return [time for time, more in zip(times, extra, strict=True) for _ in range(1 + more)]
