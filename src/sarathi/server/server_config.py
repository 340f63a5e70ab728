"""The options of the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from sarathi.engine.config import MAX_REPLICAS
from sarathi.options import LogLevel, Option, TextForm, format_seconds
from sarathi.server.parsers.format_detection import REASONING_PARSERS, TOOL_PARSERS
from sarathi.server.reply_headers import parse_origin
from sarathi.units import parse_duration


def _parse_drain_timeout(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0s") else parse_duration(text)


DrainTimeout = Annotated[
    float,
    Meta(ge=0),
    TextForm(_parse_drain_timeout, "DURATION", format_seconds, "a time of at most a day"),
]


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where and how the HTTP server listens. Durations are in seconds."""

    host: Annotated[str, Option("address to listen on", metavar="HOST")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535), Option("port to listen on; 0: any")] = 8000
    served_name: Annotated[
        str,
        Option(
            "what clients call the model",
            default="its file, folder or hub name",
            name="served-model-name",
            metavar="NAME",
        ),
    ] = ""
    tool_call_parser: Annotated[
        str,
        Option("how the model writes tool calls; auto: by its chat template", choices=TOOL_PARSERS),
    ] = "auto"
    reasoning_parser: Annotated[
        str,
        Option(
            "how the model writes reasoning; auto: by its chat template", choices=REASONING_PARSERS
        ),
    ] = "auto"
    enable_auto_tool_choice: Annotated[
        bool, Option("no effect: tool calls are always possible (an option of vLLM)")
    ] = False
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_keys: tuple[str, ...] = field(default=(), repr=False)  # see `AuthRules`
    replicas: Annotated[
        int,
        Meta(ge=1, le=MAX_REPLICAS),
        Option("engines that share the requests, each with the whole model"),
    ] = 1
    strict: Annotated[
        bool,
        Option(
            "refuse requests with unknown fields, with values of another JSON type such as 256.0 "
            'or "256" for 256, and with max_tokens beyond the model\'s length'
        ),
    ] = False
    cors_origins: Annotated[
        tuple[Annotated[str, TextForm(parse_origin, "ORIGIN")], ...],
        Option(
            "let web pages of this origin call the API, such as https://example.org; *: of any; "
            "may be given several times",
            name="cors-origin",
        ),
    ] = ()
    drain_seconds: Annotated[
        DrainTimeout,
        Option(
            "how long open requests may take to end when the server is stopped; after it they end "
            "with an error; 0: at once",
            name="drain-timeout",
        ),
    ] = 30.0
    log_level: Annotated[LogLevel, Option("least severity of what is logged")] = "info"
