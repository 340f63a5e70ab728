"""JSON responses, and errors in the form of the API that a path belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from sarathi.fleet.engine_client import EngineError, RequestLostError, ShuttingDownError

_ENCODER = msgspec.json.Encoder()


class ApiError(Exception):
    """An error response, to be sent as it is; `param` names the request field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = dict(headers or {})


def json_response(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with `body` as JSON."""
    return Response(_ENCODER.encode(body), status, headers=headers, media_type="application/json")


def error_response(error: ApiError, path: str = "") -> Response:
    """Return the response for an error of a request to `path`; OpenAI's form is the default."""
    bodies = (body(error) for prefix, body in _BODIES.items() if path.startswith(prefix))
    return json_response(next(bodies, error.body), error.status, error.headers)


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """Return the body of an error in Anthropic's form."""
    other = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.status, other)
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def ollama_error(error: ApiError) -> dict[str, Any]:
    """Return the body of an error in Ollama's form."""
    return {"error": str(error)}


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# By the beginning of the path.
_BODIES: dict[str, Callable[[ApiError], dict[str, Any]]] = {
    "/v1/messages": anthropic_error,
    "/messages": anthropic_error,
    "/api/": ollama_error,
}


def raw_error_response(error: ApiError) -> bytes:
    """Return a whole HTTP response, for an error before there is a request for the application."""
    body = _ENCODER.encode(error.body)
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a request that is wrong, status 400."""
    return ApiError(400, message, param=param, code=code)


def missing(field: str) -> ApiError:
    """Return the error for a required field that is absent or null."""
    return invalid(f"{field} is required.", field, code="missing_required_parameter")


def too_long(max_model_len: int, what: str) -> ApiError:
    """Return the error for a request beyond the model's length; `what` is what it asks for."""
    return invalid(
        # Clients look for the beginning of OpenAI's message, to try a model with a longer context.
        f"This model's maximum context length is {max_model_len} tokens, prompt and output "
        f"together; {what}.",
        code="context_length_exceeded",
    )


def engine_failed(reason: str) -> ApiError:
    """Return the error for requests to an engine that cannot be started again."""
    return ApiError(503, f"The engine has failed: {reason}", code="engine_failed")


def generation_failed(error: EngineError, engine_error: str | None) -> ApiError:
    """Return the error for a request that the engine refused or could not finish.

    `engine_error` is why it answers no requests at all; if None, the request itself is at fault.
    """
    if isinstance(error, ShuttingDownError):
        return unavailable("The server is shutting down.", "server_shutting_down", retry_after=5)
    if isinstance(error, RequestLostError):
        return ApiError(500, f"{str(error)[0].upper()}{str(error)[1:]}.", code="engine_died")
    return invalid(str(error)) if engine_error is None else engine_failed(engine_error)


def unavailable(message: str, code: str, *, retry_after: int) -> ApiError:
    """Return the error, status 503, for a request that may be sent again in some seconds."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(retry_after)})
