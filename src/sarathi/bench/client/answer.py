"""What comes back for one request, from the status line to the last token."""

from __future__ import annotations

from dataclasses import dataclass

import httptools

from sarathi.bench.client.server_timing import duration
from sarathi.bench.client.sse_events import (
    DONE,
    EventError,
    EventSplitter,
    error_message,
    quoted,
    read_chunk,
)
from sarathi.bench.client.token_times import TokenTimes

_LONGEST_DETAIL = 300  # characters
_LONGEST_REFUSAL = 2**16  # bytes
# Events are taken for tokens where the server does not count, and some bring parts of one.
_MOST_BEYOND = 2, 16  # times as many as asked for, and tokens more


@dataclass(frozen=True)
class Failure:
    """Why an answer is not complete.

    Kinds: "client", "connect", "dropped", "status_NNN", "timeout", "malformed", "error_event",
    "short".
    """

    kind: str
    detail: str

    @classmethod
    def of(cls, kind: str, detail: str) -> Failure:
        return cls(kind, " ".join(detail.split())[:_LONGEST_DETAIL])


class Answer:
    """Reads HTTP and the events in it, without touching a connection.

    It is complete when the HTTP message has ended as HTTP wants it and the stream has said that
    nothing is to come: `[DONE]` or a `finish_reason`. One that brings far more tokens than were
    asked for, and may never end, is malformed.
    """

    def __init__(self, asked: int, exact: bool = False) -> None:
        """
        Args:
            asked: tokens.
            exact: an answer with fewer tokens is short.
        """
        self.over = False
        self.failure: Failure | None = None  # once it is over; None for a complete answer
        self.last_progress: float | None = None  # when the latest token came
        self.scheduling_delay: float | None = None  # seconds
        self.times = TokenTimes()
        self.tokens: list[float] = []  # once it is over
        self.estimated = False  # the times of the tokens
        self._asked = asked
        self._exact = exact
        self._most = _MOST_BEYOND[0] * asked + _MOST_BEYOND[1]
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._events = EventSplitter()
        self._now = 0.0
        self._new = 0  # tokens of this piece of data
        self._brought = 0  # tokens of all before
        self._begun = False  # an event has come
        self._finished = False  # the stream has said so
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._refusal: bytearray | None = None  # the body of anything but a stream

    def feed(self, data: bytes, now: float) -> int:
        """Take what has come.

        Returns:
            How many tokens it brought, as far as one can tell.
        """
        self._now = now
        self._brought += self._new
        self._new = 0
        if self._parser is None:
            return 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail("malformed", f"the answer is not HTTP ({error}): {quoted(data)}")
        if self._new:
            self.last_progress = now
        return self._new

    def end_of_data(self, reason: str = "") -> None:
        """The connection is closed.

        Args:
            reason: why, where it was not closed in order.
        """
        self._parser = None  # it refers to this object
        told_length = {b"content-length", b"transfer-encoding"} & self._headers.keys()
        if not reason and self._status and not told_length:
            self.on_message_complete()  # closing is how such an answer ends
        else:
            self.fail("dropped", reason or "the server closed the connection before the end")

    def fail(self, kind: str, detail: str) -> None:
        """Give up, unless it is over already. A status other than 200 is the first thing to tell,
        whatever happened then."""
        if self._status not in (0, 200):
            kind, detail = f"status_{self._status}", self._refusal_message()
        self._end(Failure.of(kind, detail))

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        before = self._headers.get(name)
        self._headers[name] = value if before is None else before + b", " + value

    def on_headers_complete(self) -> None:
        if self._parser is None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._headers.clear()  # the answer proper is still to come
            return
        self._status = status
        kind = self._headers.get(b"content-type", b"")
        if status != 200 or kind.lower().startswith(b"application/json"):
            self._refusal = bytearray()
        timing = self._headers.get(b"server-timing")
        if timing is not None:
            self.scheduling_delay = duration(timing.decode("latin-1"), "queue")

    def on_body(self, body: bytes) -> None:
        if self._refusal is not None:
            if len(self._refusal) < _LONGEST_REFUSAL:
                self._refusal += body
            return
        try:
            for event in self._events.feed(body):
                if self.over:
                    return
                self._begun = True
                if event == DONE:
                    self._finished = True
                else:
                    self._read(event)
        except EventError as error:
            self.fail("malformed", str(error))

    def on_message_complete(self) -> None:
        if not self._status:  # a provisional answer
            return
        if self._refusal is not None:
            self.fail("malformed", f"the answer is not a stream: {self._refusal_message()}")
        elif not self._begun:
            self.fail("malformed", "the answer holds no event")
        elif not self._finished:
            self.fail("dropped", "the stream ended without [DONE] and without a finish_reason")
        else:
            self._end(None)

    def _read(self, event: bytes) -> None:
        chunk = read_chunk(event)
        if chunk.error is not None:
            self.fail("error_event", error_message(event) or quoted(event))
            return
        told = chunk.usage.completion_tokens if chunk.usage is not None else 0
        if max(told, self._brought + self._new) > self._most:
            self.fail(
                "malformed", f"more than {self._most} tokens came; {self._asked} were asked for"
            )
            return
        length = 0
        choices = chunk.choices or ()
        for choice in choices:
            length += choice.length
            if choice.finish_reason is not None:
                self._finished = True
        self._new += self.times.add(self._now, length, chunk.usage, bool(choices))

    def _end(self, failure: Failure | None) -> None:
        if self.over:
            return
        self.over = True
        self.tokens, self.estimated = self.times.settle()
        told = self.times.usage is not None or not self.tokens
        if failure is None and self._exact and told and len(self.tokens) < self._asked:
            words = f"{len(self.tokens)} of {self._asked} tokens came, although ignore_eos was"
            failure = Failure.of("short", f"{words} accepted (see --no-ignore-eos)")
        self.failure = failure

    def _refusal_message(self) -> str:
        body = bytes(self._refusal or b"")
        target = self._headers.get(b"location")
        moved = f"see {quoted(target)} " if target is not None else ""
        return moved + (error_message(body) or quoted(body))
