"""How a `ScriptedServer` answers a request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TOKEN = " word"  # all are alike, so that the length of a text is their number
PING = b": ping\n\n"

# What may come after the last step: all that a server should say; the end of the HTTP message and
# no more; a connection that is closed in the middle; silence.
Ending = Literal["done", "bare", "dropped", "hung"]


@dataclass(frozen=True)
class Received:
    """A generation request."""

    index: int  # counts generation requests from 0
    at: float  # perf_counter
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        return int(self.body["max_tokens"])

    @property
    def prompt(self) -> str:
        if "messages" in self.body:
            return str(self.body["messages"][-1]["content"])
        return str(self.body["prompt"])


@dataclass(frozen=True)
class Tokens:
    """An event with text."""

    at: float  # seconds after the request has come, at which its last byte is sent
    count: int = 1  # of tokens
    text: str | None = None  # by default that of `count` tokens
    split: bool = False  # its first half is sent before, in a TCP segment of its own


@dataclass(frozen=True)
class Raw:
    """Bytes of the stream as they are: comments, other events, nonsense."""

    at: float
    data: bytes


@dataclass(frozen=True)
class Reply:
    """What becomes of one request."""

    steps: Iterable[Tokens | Raw] = ()  # may have no end
    ending: Ending = "done"
    # "asked": as the request's `stream_options` say; otherwise whatever they say.
    usage: Literal["asked", "continuous", "final", "none"] = "asked"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""  # of any status but 200
    instead: bytes | None = None  # is sent in place of HTTP


Script = Callable[[Received], Reply]


def steady(ttft: float, tbt: float, **others: Any) -> Script:
    """As many tokens as asked for: one after `ttft` seconds, then one every `tbt`.

    Args:
        others: fields of `Reply`.
    """

    def script(request: Received) -> Reply:
        steps = [Tokens(ttft + i * tbt) for i in range(request.tokens)]
        return Reply(steps, **others)

    return script


def in_turn(*replies: Reply | Script) -> Script:
    """One for each request in turn, from the first again after the last."""

    def script(request: Received) -> Reply:
        chosen = replies[request.index % len(replies)]
        return chosen if isinstance(chosen, Reply) else chosen(request)

    return script


def error_body(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "server_error"}}).encode()
