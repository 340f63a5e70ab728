"""One request to be sent, and how it is worded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from sarathi.bench.client.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Call:
    """A request with its text."""

    at: float  # seconds after the run begins
    prompt: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Dialect:
    """Which fields a server takes beyond those that all take."""

    ignore_eos: bool = True  # output lengths can be had exactly
    usage: bool = True  # `stream_options.include_usage`: the number of tokens at the end
    continuous_usage: bool = True  # `stream_options.continuous_usage_stats`: in every event


def request(endpoint: Endpoint, dialect: Dialect, call: Call) -> bytes:
    """The HTTP request for a call: greedy and streamed."""
    fields: dict[str, Any] = {}
    if endpoint.model is not None:
        fields["model"] = endpoint.model
    if endpoint.api == "chat":
        fields["messages"] = [{"role": "user", "content": call.prompt}]
    else:
        fields["prompt"] = call.prompt
    fields |= {"max_tokens": call.output_tokens, "temperature": 0, "stream": True}
    if dialect.ignore_eos:
        fields["ignore_eos"] = True
    if dialect.usage or dialect.continuous_usage:
        fields["stream_options"] = {"include_usage": True}
    if dialect.continuous_usage:
        fields["stream_options"]["continuous_usage_stats"] = True
    return endpoint.post(msgspec.json.encode(fields))
