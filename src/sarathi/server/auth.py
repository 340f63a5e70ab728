"""Authentication: API keys, admin keys, and calls from this machine."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sarathi.server.responses import ApiError, error_response

OPEN_PATHS = frozenset({"/health", "/version"})  # need no API key

_STATE = "api_key"
# A proxy on this machine forwards requests of other machines. Most add one of these headers.
_FORWARDED = (
    *("forwarded", "x-forwarded", "x-original", "x-real-ip", "x-client-ip", "via"),
    *("cf-connecting-ip", "true-client-ip"),
)


@dataclass(frozen=True)
class AuthRules:
    """The keys of a server; without `admin_keys`, admin paths are for programs on this machine.

    A web page that is open there is refused: it cannot send JSON, or its origin or host shows it.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)  # any opens all but admin paths
    admin_keys: tuple[str, ...] = field(default=(), repr=False)  # any opens admin paths
    host: str = "127.0.0.1"  # the address or name that the server listens on


@dataclass(frozen=True)
class AuthMiddleware:
    """Refuses requests without the API key that they need.

    Replies pass untouched: streams cost no more. A path that is written in an unusual way needs
    the key: only `OPEN_PATHS` and `admin_paths`, letter by letter, are exempt.
    """

    app: ASGIApp
    rules: AuthRules
    admin_paths: frozenset[str]  # of endpoints in `RequireAdmin`

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                app = error_response(error, scope["path"])
        await app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raise `ApiError` unless the request is allowed; record which of several keys it has."""
        if scope["method"] == "OPTIONS":  # has only methods as an answer; browsers send no key
            return
        keys = self.rules.api_keys
        exempt = OPEN_PATHS | self.admin_paths if self.rules.admin_keys else OPEN_PATHS
        if not keys or scope["path"] in exempt:
            return
        headers = Headers(scope=scope)
        number = _matching(keys, headers)
        if number is None:
            raise _unauthorised(headers, "API key")
        if len(keys) > 1:
            scope.setdefault("state", {})[_STATE] = f"key {number}"


@dataclass(frozen=True)
class RequireAdmin:
    """Wraps an endpoint that changes the server; refuses requests that may not do that."""

    app: ASGIApp
    rules: AuthRules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if not self.rules.admin_keys:
            self._check_local(scope, headers)
        elif _matching(self.rules.admin_keys, headers) is None:
            if _matching(self.rules.api_keys, headers) is not None:
                raise _forbidden("an API key is not enough: it needs the admin key")
            raise _unauthorised(headers, "admin key")
        await self.app(scope, receive, send)

    def _check_local(self, scope: Scope, headers: Headers) -> None:
        client = scope.get("client")
        forwarded = any(name.startswith(_FORWARDED) for name in headers)
        if client is None or forwarded or not _is_loopback(client[0]):
            raise _forbidden("it needs an admin key, except from the server's own machine")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own_url(f"//{hosts[0]}"):
            raise _forbidden("the header Host does not name this machine")
        own_origins = all(map(self._is_own_url, headers.getlist("origin")))
        if not own_origins or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise _forbidden("it is not for web pages of other origins")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                415,
                "What changes the server needs the header 'Content-Type: application/json', or an "
                "admin key.",
                code="unsupported_media_type",
            )

    def _is_own_url(self, url: str) -> bool:
        try:
            name = urlsplit(url).hostname
        except ValueError:
            return False
        if not name:
            return False
        return name in ("localhost", self.rules.host.lower()) or _is_loopback(name)


def key_name(scope: Mapping[str, Any]) -> str | None:
    """Return which of several API keys a request has, such as "key 2"; None without several."""
    name: str | None = scope.get("state", {}).get(_STATE)
    return name


def _matching(keys: Sequence[str], headers: Headers) -> int | None:
    """Return which of `keys` a request has, from 1; None for none."""
    scheme, _, token = headers.get("authorization", "").encode("latin-1").partition(b" ")
    given = [token.strip()] if scheme.lower() == b"bearer" else []
    if "x-api-key" in headers:  # as Anthropic's clients send it
        given.append(headers["x-api-key"].encode("latin-1"))
    # All are compared, so that the time does not depend on the token.
    matches = [
        index
        for index, key in enumerate(keys, 1)
        for token in given
        if hmac.compare_digest(token, key.encode())
    ]
    return matches[0] if matches else None


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)  # on a socket for both versions of IP
    return bool((mapped or parsed).is_loopback)


def _unauthorised(headers: Headers, kind: str) -> ApiError:
    message = (
        f"Incorrect {kind} provided."
        if "authorization" in headers or "x-api-key" in headers
        else f"An {kind} is needed: send the header 'Authorization: Bearer KEY'."
    )
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _forbidden(reason: str) -> ApiError:
    return ApiError(403, f"This changes the server; {reason}.", code="forbidden")
