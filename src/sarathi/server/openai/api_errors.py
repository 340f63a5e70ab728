"""Errors as the OpenAI API words them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sarathi.fleet.generation import EngineError, RequestLostError, ShuttingDownError


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


class ApiError(Exception):
    """An answer other than success, to be sent as it is."""

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
        self.body = ErrorBody(ErrorDetail(message, kind, param, code))
        self.headers = dict(headers or {})


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unknown_model(name: str, served: str) -> ApiError:
    return ApiError(
        404,
        f"The model {_quoted(name)} does not exist here; this server has {served!r}.",
        param="model",
        code="model_not_found",
    )


def too_long(limit: int, what: str) -> ApiError:
    """A request beyond the model's length; `what` completes the sentence with what it asks for."""
    return invalid(
        f"The model's limit is {limit} tokens, prompt and output together; {what}.",
        code="context_length_exceeded",
    )


def loading() -> ApiError:
    return ApiError(
        503,
        "The model is still loading.",
        code="model_loading",
        headers={"Retry-After": "2"},
    )


def overloaded(message: str) -> ApiError:
    """A request beyond what the server can hold, which may be tried again soon."""
    return ApiError(503, message, code="overloaded", headers={"Retry-After": "1"})


def engine_failed(reason: str) -> ApiError:
    return ApiError(503, f"The engine has failed: {reason}", code="engine_failed")


def refused(error: EngineError, engine_error: str | None) -> ApiError:
    """The answer to a request that the engine gave up: its own fault, or the request's."""
    if isinstance(error, ShuttingDownError):
        return ApiError(
            503,
            "The server is shutting down.",
            code="server_shutting_down",
            headers={"Retry-After": "5"},
        )
    if isinstance(error, RequestLostError):
        return ApiError(500, f"{str(error)[0].upper()}{str(error)[1:]}.", code="engine_died")
    return invalid(str(error)) if engine_error is None else engine_failed(engine_error)


def _quoted(text: str, limit: int = 100) -> str:
    """A caller's own words, cut so that the answer stays short."""
    return repr(text if len(text) <= limit else text[:limit] + "...")
