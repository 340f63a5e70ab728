"""API keys: who may ask, and which of several keys asked."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from sarathi.server.errors import ApiError
from sarathi.server.reply import error_response

OPEN_PATHS = frozenset({"/health", "/version"})  # need no API key

_STATE = "api_key"


@dataclass(frozen=True)
class ApiKeys:
    """Lets through who has a key. Replies pass untouched, so streams cost nothing more."""

    app: ASGIApp
    keys: tuple[bytes, ...]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = dict(scope["headers"]).get(b"authorization", b"")
            number = self._number(given)
            if number is None:
                app = error_response(_unauthorised(given))
            elif len(self.keys) > 1:
                scope.setdefault("state", {})[_STATE] = f"key {number}"
        await app(scope, receive, send)

    def _number(self, header: bytes) -> int | None:
        """Which key it is, from 1; None for none."""
        scheme, _, key = header.partition(b" ")
        # All are compared, so that the time taken tells nothing.
        fits = [hmac.compare_digest(key.strip(), one) for one in self.keys]
        if scheme.lower() != b"bearer" or not any(fits):
            return None
        return fits.index(True) + 1


def key_name(scope: Mapping[str, Any]) -> str | None:
    """Which of several keys a request came with, such as "key 2"; never the key itself.

    None where the server has one key or none, so that keys tell nobody apart.
    """
    name: str | None = scope.get("state", {}).get(_STATE)
    return name


def _unauthorised(given: bytes) -> ApiError:
    message = (
        "Incorrect API key provided."
        if given
        else "An API key is needed: send the header 'Authorization: Bearer KEY'."
    )
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(401, message, code="invalid_api_key", headers=headers)
