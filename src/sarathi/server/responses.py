"""JSON responses, and errors in the form of the OpenAI API."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

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


def error_response(error: ApiError) -> Response:
    """Return the response for an error."""
    return json_response(error.body, error.status, error.headers)


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
