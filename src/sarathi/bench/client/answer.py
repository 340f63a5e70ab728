"""The answer to one request, from the status line to the time of each token.

Answers are server-sent events with chunks of the OpenAI API.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

import httptools
import msgspec

# The bound keeps a wrong count from filling the memory with times.
Count = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]

# What decoding JSON of unknown origin raises.
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_LONGEST = 4 * 2**20  # bytes of an event


class EventError(ValueError):
    """An event is malformed; the message quotes it."""


class EventSplitter:
    """Finds the events in a stream that comes in arbitrary pieces.

    After the event stream of the HTML standard, section 9.2.6; only the `data` field is read. A
    bare carriage return does not end a line: no server writes such.
    """

    def __init__(self) -> None:
        self._rest = b""  # the unfinished line
        self._data: list[bytes] = []  # the lines of the unfinished event

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of events that this piece ends; raise EventError for one too long."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            raise EventError(f"an event has more than {_LONGEST} bytes")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events


class ChunkDelta(msgspec.Struct, frozen=True, gc=False):
    """New text of a chat completion."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True, gc=False):
    """New text of an answer."""

    text: str | None = None  # of completions
    delta: ChunkDelta | None = None  # of chat completions
    finish_reason: str | None = None

    @property
    def length(self) -> int:
        """The number of new characters."""
        if self.text is not None:
            return len(self.text)
        delta = self.delta
        if delta is None:
            return 0
        reasoning = delta.reasoning_content or delta.reasoning or ""
        return len(delta.content or "") + len(reasoning)


class PromptDetails(msgspec.Struct, frozen=True, gc=False):
    """How much of a prompt came from the prefix cache."""

    cached_tokens: Count | None = None


class ChunkUsage(msgspec.Struct, frozen=True, gc=False):
    """The tokens of a request so far."""

    completion_tokens: Count
    prompt_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else 0


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """The fields of an event that matter here. Only an error has neither choices nor usage."""

    choices: list[ChunkChoice] | None = None
    usage: ChunkUsage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(Chunk)


def read_chunk(event: bytes) -> Chunk:
    """Decode an event; raise EventError where it is not JSON, or not of the API's shape."""
    try:
        chunk = _DECODER.decode(event)
    except MALFORMED as error:
        raise EventError(f"{error}: {quoted(event)}") from None
    if chunk.choices is None and chunk.usage is None and chunk.error is None:
        message = error_message(event)
        if message is None:
            raise EventError(f"neither choices nor usage nor an error: {quoted(event)}")
        return Chunk(error=message)
    return chunk


def error_message(body: bytes) -> str | None:
    """Return the error message in a JSON body, in any of the usual forms, or None."""
    try:
        decoded = msgspec.json.decode(body)
    except MALFORMED:
        return None
    return _message(decoded) if isinstance(decoded, dict) else None


def _message(body: dict[str, Any]) -> str | None:
    for name in ("error", "message", "detail"):
        value = body.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, dict) or (isinstance(value, list) and value):
            inner = _message(value) if isinstance(value, dict) else None
            return inner or quoted(msgspec.json.encode(value))
    return None


def quoted(data: bytes, limit: int = 200) -> str:
    """Return bytes of unknown origin as a short text for a message."""
    return data[:limit].decode(errors="replace").strip()


class Answer:
    """Parses HTTP and the events in it, without touching a connection.

    It is complete when the HTTP message has ended properly and the stream has announced its end:
    `[DONE]` or a `finish_reason`. An answer with far more tokens than were asked for, which may
    never end, is malformed.

    Failures are "client", "connect", "dropped", "status_NNN", "timeout", "malformed",
    "error_event" and "short".
    """

    def __init__(self, asked: int, exact: bool = False) -> None:
        """`exact`: an answer with fewer tokens than are asked for is short."""
        self.over = False
        self.failure: str | None = None  # once it is over; None for a complete answer
        self.detail: str | None = None  # of the failure, one line of bounded length
        self.last_progress: float | None = None  # when the latest token came
        self.scheduling_delay: float | None = None  # seconds
        self.times = TokenTimes()
        self.tokens: list[float] = []  # once it is over
        self.estimated = False  # the times of the tokens
        self._asked = asked
        self._exact = exact
        # Events count as tokens where the server does not count, and some bring parts of one.
        self._most = 2 * asked + 16
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._events = EventSplitter()
        self._now = 0.0
        self._new = 0  # tokens of this piece of data
        self._received = 0  # tokens of all pieces before
        self._has_events = False
        self._finished = False  # the stream has announced its end
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._refusal: bytearray | None = None  # the body of anything but a stream

    def feed(self, data: bytes, now: float) -> int:
        """Parse received data; return how many tokens it brought, by the best estimate."""
        self._now = now
        self._received += self._new
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
        """Handle the end of the connection; a reason means that it was not closed in order."""
        self._parser = None  # it refers to this object
        has_length = {b"content-length", b"transfer-encoding"} & self._headers.keys()
        if not reason and self._status and not has_length:
            self.on_message_complete()  # closing is how such an answer ends
        else:
            self.fail("dropped", reason or "the server closed the connection before the end")

    def fail(self, kind: str, detail: str) -> None:
        """Record a failure, unless the answer is over; a status other than 200 takes precedence."""
        if self._status not in (0, 200):
            kind, detail = f"status_{self._status}", self._refusal_message()
        self._end(kind, detail)

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        before = self._headers.get(name)
        self._headers[name] = value if before is None else before + b", " + value

    def on_headers_complete(self) -> None:
        if self._parser is None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._headers.clear()  # the final answer is still to come
            return
        self._status = status
        kind = self._headers.get(b"content-type", b"")
        if status != 200 or kind.lower().startswith(b"application/json"):
            self._refusal = bytearray()
        timing = self._headers.get(b"server-timing")
        if timing is not None:
            self.scheduling_delay = server_timing(timing.decode("latin-1"), "queue")

    def on_body(self, body: bytes) -> None:
        if self._refusal is not None:
            if len(self._refusal) < 2**16:
                self._refusal += body
            return
        try:
            for event in self._events.feed(body):
                if self.over:
                    return
                self._has_events = True
                if event == b"[DONE]":
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
        elif not self._has_events:
            self.fail("malformed", "the answer holds no event")
        elif not self._finished:
            self.fail("dropped", "the stream ended without [DONE] and without a finish_reason")
        else:
            self._end()

    def _read(self, event: bytes) -> None:
        chunk = read_chunk(event)
        if chunk.error is not None:
            self.fail("error_event", error_message(event) or quoted(event))
            return
        counted = chunk.usage.completion_tokens if chunk.usage is not None else 0
        if max(counted, self._received + self._new) > self._most:
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

    def _end(self, failure: str | None = None, detail: str = "") -> None:
        if self.over:
            return
        self.over = True
        self.tokens, self.estimated = self.times.settle()
        known = self.times.usage is not None or not self.tokens
        if failure is None and self._exact and known and len(self.tokens) < self._asked:
            failure = "short"
            detail = (
                f"{len(self.tokens)} of {self._asked} tokens came, although ignore_eos was "
                "accepted (see --no-ignore-eos)"
            )
        if failure is not None:
            self.failure, self.detail = failure, " ".join(detail.split())[:300]

    def _refusal_message(self) -> str:
        body = bytes(self._refusal or b"")
        target = self._headers.get(b"location")
        moved = f"see {quoted(target)} " if target is not None else ""
        return moved + (error_message(body) or quoted(body))


class TokenTimes:
    """Derives the time of each token of an answer from its events.

    Where every event with text comes with the number of tokens so far, the times are exact.
    Otherwise each event with text counts as a token, corrected by the usage at the end.
    """

    def __init__(self) -> None:
        self.usage: ChunkUsage | None = None  # the latest
        self._counted: list[float] = []  # a time for each token in the usage
        self._all_count = True  # every event with text came with its usage
        self._extra = False  # usage has counted tokens that no event brought
        self._times: list[float] = []  # of events with text
        self._lengths: list[int] = []  # of their texts

    def add(self, now: float, length: int, usage: ChunkUsage | None, choices: bool) -> int:
        """Add an event; return how many tokens it brought, by the best estimate.

        Args:
            length: characters of text.
            choices: the event is part of the answer, not only about it.
        """
        new = 0
        if usage is not None:
            self.usage = usage
            new = usage.completion_tokens - len(self._counted)
            if new > 0:
                self._counted += [now] * new
                if not choices:
                    self._extra = True
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
        """Return the time of every token, and whether these times are estimated."""
        if self._all_count and self.usage is not None:
            return self._counted, self._extra
        tokens = self.usage.completion_tokens if self.usage is not None else 0
        if not tokens:
            return self._times, True
        times = spread_over_tokens(self._times, self._lengths, tokens)
        return times, tokens != len(self._times)


def spread_over_tokens(times: Sequence[float], lengths: Sequence[int], tokens: int) -> list[float]:
    """Estimate the times of tokens from those of the pieces of their text.

    With more tokens than pieces, every piece brought one, and the others are distributed by the
    length of the text beyond that of an average token (largest remainder). With fewer, some pieces
    are parts of a token: those with the shortest gaps before them.

    Args:
        times: of the pieces, in order; at least one.
        lengths: of their texts, at least 1 each.
    """
    if tokens < len(times):
        by_gap = sorted(range(1, len(times)), key=lambda i: times[i - 1] - times[i])
        return [times[0], *(times[i] for i in sorted(by_gap[: tokens - 1]))]
    spare = tokens - len(times)
    total = sum(lengths)
    beyond = [max(0.0, tokens * length / total - 1) for length in lengths]
    # Where nothing is left to distribute, all of these are zero but for rounding.
    scale = spare / sum(beyond) if spare else 0.0
    exact = [amount * scale for amount in beyond]
    extra = [int(amount) for amount in exact]
    ranked = sorted(range(len(times)), key=lambda i: extra[i] - exact[i])
    for i in ranked[: spare - sum(extra)]:
        extra[i] += 1
    return [time for time, more in zip(times, extra, strict=True) for _ in range(1 + more)]


_QUOTED = r'"(?:\\.|[^"\\])*"?'
_METRIC = re.compile(rf'(?:[^",]|{_QUOTED})+')
_PARAMETER = re.compile(rf'(?:[^";]|{_QUOTED})+')


def server_timing(header: str, metric: str) -> float | None:
    """Return the duration of a metric in a `Server-Timing` header, in seconds, or None.

    After W3C Server Timing: metrics are separated by commas, parameters by semicolons, names do
    not depend on case, and the first of several metrics or parameters counts.
    """
    for part in _METRIC.findall(header):
        name, *parameters = [text.strip() for text in _PARAMETER.findall(part)] or [""]
        if name.lower() == metric:
            pairs = (text.partition("=") for text in parameters)
            values = (value for key, _, value in pairs if key.strip().lower() == "dur")
            try:
                milliseconds = float(next(values, "").strip().strip('"'))
            except ValueError:
                return None
            return milliseconds / 1000 if 0 <= milliseconds < math.inf else None
    return None
