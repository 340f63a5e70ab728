"""Server-sent events, and the chunks of the OpenAI API in them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

# The bound keeps a wrong count from filling the memory with times.
Count = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]

DONE = b"[DONE]"

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
        """Return the data of all events that are complete with this piece.

        Raises:
            EventError: an event is longer than any server would send.
        """
        lines = (self._rest + data if self._rest else data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _LONGEST:
            raise EventError(f"an event has more than {_LONGEST} bytes")
        events = []
        pending = self._data
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if not line:
                if pending:
                    events.append(pending[0] if len(pending) == 1 else b"\n".join(pending))
                    pending.clear()
            elif line.startswith(b"data:"):
                pending.append(line[6:] if line.startswith(b"data: ") else line[5:])
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
    """Decode an event.

    Raises:
        EventError: it is not JSON, or not of the API's shape.
    """
    try:
        chunk = _DECODER.decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return _message(decoded) if isinstance(decoded, dict) else None


def _message(body: dict[str, Any]) -> str | None:
    for name in ("error", "message", "detail"):
        value = body.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, dict):
            return _message(value) or quoted(msgspec.json.encode(value))
        if isinstance(value, list) and value:
            return quoted(msgspec.json.encode(value))
    return None


def quoted(data: bytes, limit: int = 200) -> str:
    """Return bytes of unknown origin as a short text for a message."""
    return data[:limit].decode(errors="replace").strip()
