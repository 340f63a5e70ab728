"""The server's address, and the HTTP requests that are sent to it."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from sarathi.errors import BenchmarkError

Api = Literal["completions", "chat"]

_PATHS: dict[Api, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One API of one server."""

    scheme: str  # "http" or "https"
    host: str  # an IPv6 address has no brackets here
    port: int
    prefix: str = ""  # of all paths, without a slash at its end
    model: str | None = None  # None: the request names no model
    api_key: str | None = field(default=None, repr=False)
    api: Api = "completions"

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        api: Api = "completions",
    ) -> Endpoint:
        """Parse an address such as http://localhost:8000; `/v1` at its end makes no difference.

        Raises:
            BenchmarkError: the URL is no address, or the key cannot be sent.
        """
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname or ""
            if ":" in host:
                host = str(ipaddress.IPv6Address(host))
            else:
                host = host.encode("idna").decode("ascii")
        except ValueError as error:
            raise _no_address(url, str(error)) from None
        has_more = parts.username is not None or parts.query or parts.fragment
        problems = {
            "it holds a space or a control character": " " in url or not url.isprintable(),
            "it does not begin with http:// or https://": parts.scheme not in _PORTS,
            "it must not have a user, a query or a fragment": has_more,
            "ports are 1 to 65535": port == 0,
            "it names no host": not host,
        }
        for reason, found in problems.items():
            if found:
                raise _no_address(url, reason)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise BenchmarkError("the API key holds characters that no HTTP header can")
        path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
        prefix = quote(path, safe="/%:@!$&'()*+,;=~")
        port = port or _PORTS[parts.scheme]
        return cls(parts.scheme, host, port, prefix, model, api_key, api)

    @property
    def path(self) -> str:
        """The path of generation requests."""
        return self.prefix + _PATHS[self.api]

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The server's address, as it is shown to people and given to HTTP clients."""
        return f"{self.scheme}://{self.authority}{self.prefix}"

    @property
    def authorization(self) -> dict[str, str]:
        """The header with the key, if there is one."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return a context with the machine's own certificates; None for plain HTTP."""
        return ssl.create_default_context() if self.scheme == "https" else None

    def http_client(
        self, timeout: float, transport: httpx.BaseTransport | None = None
    ) -> httpx.Client:
        """Return a client for requests that are not timed; `transport` replaces the network."""
        return httpx.Client(
            headers=self.authorization,
            timeout=timeout,
            transport=transport,
            verify=self.ssl_context() or True,
            trust_env=False,  # timed requests do not go through proxies either
        )

    def named_prompt(self, text: str) -> dict[str, Any]:
        """Return the request fields of the model and of a prompt."""
        named = {} if self.model is None else {"model": self.model}
        if self.api == "chat":
            return {**named, "messages": [{"role": "user", "content": text}]}
        return {**named, "prompt": text}

    def post(self, body: bytes) -> bytes:
        """Build an HTTP request with a JSON body, after which the server closes the connection."""
        headers = {
            "Host": self.authority,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **self.authorization,
        }
        lines = [f"POST {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + body


@dataclass(frozen=True, slots=True)
class Call:
    """A request to be sent, with its text."""

    at: float  # seconds after the run begins
    prompt: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Dialect:
    """The optional request fields that a server accepts."""

    ignore_eos: bool = True  # answers have exactly `max_tokens` tokens
    usage: bool = True  # `stream_options.include_usage`: the number of tokens at the end
    continuous_usage: bool = True  # `stream_options.continuous_usage_stats`: in every event


def request(endpoint: Endpoint, dialect: Dialect, call: Call) -> bytes:
    """Build the HTTP request for a call: greedy and streamed."""
    fields = endpoint.named_prompt(call.prompt)
    fields |= {"max_tokens": call.output_tokens, "temperature": 0, "stream": True}
    if dialect.ignore_eos:
        fields["ignore_eos"] = True
    if dialect.usage or dialect.continuous_usage:
        fields["stream_options"] = {"include_usage": True}
    if dialect.continuous_usage:
        fields["stream_options"]["continuous_usage_stats"] = True
    return endpoint.post(msgspec.json.encode(fields))


def _no_address(url: str, reason: str) -> BenchmarkError:
    return BenchmarkError(
        f"{url!r} is no address of a server ({reason}); one looks like http://localhost:8000"
    )
