"""Headers that every reply has, whatever its endpoint: its request's id, CORS, ignored fields."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ANY_ORIGIN = "*"
IGNORED = b"x-sarathi-ignored"

_STATE = "reply_headers"
_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")
# What a page may read of a reply, besides what all pages may.
_EXPOSED = b"x-request-id, x-sarathi-ignored, server-timing, retry-after"
_PREFLIGHT_SECONDS = 600  # that a browser may remember the answer; Chromium allows 2 hours


@dataclass(frozen=True)
class ReplyHeaders:
    """Wraps the application. Streams pay for it with one function call per message.

    Pages of `cors_origins` may call all paths but those of `private_paths`. Preflight requests,
    which browsers send without a key, are answered here.
    """

    app: ASGIApp
    cors_origins: frozenset[str] = frozenset()  # such as "https://example.org"; or `ANY_ORIGIN`
    private_paths: frozenset[str] = frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Headers(scope=scope)
        given = request.get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        added = [(b"x-request-id", request_id.encode())]
        if self.cors_origins and scope["path"].rstrip("/") not in self.private_paths:
            origin = request.get("origin", "")
            added += self._cors(origin)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in request:
                await self._preflight(request, added)(scope, receive, send)
                return
        scope.setdefault("state", {})[_STATE] = added

        def send_with_headers(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            return send(message)

        await self.app(scope, receive, send_with_headers)

    def _cors(self, origin: str) -> list[tuple[bytes, bytes]]:
        """Return the headers that let a page of `origin` read the reply."""
        if ANY_ORIGIN in self.cors_origins:
            allowed = [(b"access-control-allow-origin", b"*")]
        else:
            allowed = [(b"vary", b"Origin")]
            if origin not in self.cors_origins:
                return allowed
            allowed.append((b"access-control-allow-origin", origin.encode("latin-1")))
        return [*allowed, (b"access-control-expose-headers", _EXPOSED)]

    def _preflight(self, request: Headers, added: list[tuple[bytes, bytes]]) -> Response:
        response = Response(status_code=204)
        response.raw_headers += added
        if any(name == b"access-control-allow-origin" for name, _ in added):
            # SDKs send headers of their own, and "*" would not cover Authorization.
            asked = request.get("access-control-request-headers", "")
            response.headers["access-control-allow-headers"] = asked or "*"
            response.headers["access-control-allow-methods"] = "GET, HEAD, POST, OPTIONS"
            response.headers["access-control-max-age"] = str(_PREFLIGHT_SECONDS)
        return response


def added_headers(scope: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Return the list of headers that the reply to a request gets, to be extended."""
    headers: list[tuple[bytes, bytes]] = scope.get("state", {}).get(_STATE, [])
    return headers


def parse_origin(text: str) -> str:
    """Return the origin of web pages as browsers write it; raise `ValueError` if it is none."""
    text = text.strip()
    if text == ANY_ORIGIN:
        return text
    parts = urlsplit(text)
    if not parts.scheme or not parts.netloc or parts.path.strip("/") or parts.query:
        raise ValueError(f"{text!r} is no origin such as https://example.org, and not *")
    return f"{parts.scheme}://{parts.netloc}".lower()
