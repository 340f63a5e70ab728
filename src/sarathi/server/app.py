"""The HTTP application: routes, and errors as answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import metadata

from msgspec import UNSET
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sarathi.fleet.engine_api import Engine, by_state
from sarathi.models.load_format import RANDOM_WEIGHTS
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.server.access import AccessControl, AccessRules, AdminOnly, key_name
from sarathi.server.openai.api_errors import ApiError, unknown_model
from sarathi.server.openai.chat_completions import create_chat_completion
from sarathi.server.openai.completions import create_completion
from sarathi.server.openai.response_bodies import Health, ModelCard, ModelList, Version
from sarathi.server.openai.tokenization import detokenize, tokenize
from sarathi.server.prometheus import Metrics
from sarathi.server.reply import error_response, json_response, until_disconnect
from sarathi.server.scale import scale
from sarathi.server.service import RequestContext, Service
from sarathi.server.stats_endpoint import stats_body

MAX_BODY = 8 * 2**20  # bytes

Post = Callable[[Service, RequestContext], Awaitable[ASGIApp]]


def create_app(
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    served_name: str,
    access: AccessRules | None = None,
    max_body: int = MAX_BODY,
) -> ASGIApp:
    """The ASGI application for one engine.

    Args:
        engine: may still be loading; requests are answered with 503 until it is ready.
        served_name: the model name that requests give.
        access: who may ask; None: everybody, but for what changes the server. Of several API
            keys, each is a tenant.
        max_body: bytes of a request body.
    """
    service = Service(engine, tokenizer, served_name, created=int(time.time()))
    own_version = Version(_version())  # asked for once: it is looked up on disk
    metrics = Metrics(engine)

    async def models(request: Request) -> Response:
        return json_response(ModelList(data=[_model(service)]))

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != service.model:
            raise unknown_model(name, service.model)
        return json_response(_model(service))

    async def health(request: Request) -> Response:
        return _health(service)

    async def stats(request: Request) -> Response:
        return json_response(stats_body(service.ready(), engine))

    async def prometheus(request: Request) -> Response:
        return metrics.response()

    async def version(request: Request) -> Response:
        return json_response(own_version)

    rules = access or AccessRules()
    posts: dict[str, Post] = {
        "/v1/completions": create_completion,
        "/v1/chat/completions": create_chat_completion,
        "/tokenize": tokenize,
        "/detokenize": detokenize,
    }
    change = PostEndpoint(service, scale, max_body)
    app = Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/stats", stats),
            Route("/metrics", prometheus),
            Route("/version", version),
            Route("/scale", AdminOnly(change, rules), methods=["POST"]),
            *(
                Route(path, PostEndpoint(service, handler, max_body), methods=["POST"])
                for path, handler in posts.items()
            ),
        ],
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_error,
            Exception: _on_failure,
        },
    )
    app.router.redirect_slashes = False
    return AccessControl(app, rules)


@dataclass(frozen=True)
class PostEndpoint:
    """Reads the body of a POST, and gives up the work on it when the client goes away."""

    service: Service
    handler: Post
    max_body: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await _read(Request(scope, receive), self.max_body)
        except ClientDisconnect:
            return
        call = RequestContext(body, key_name(scope))

        async def work() -> None:
            reply = await self.handler(self.service, call)
            await reply(scope, receive, send)

        await until_disconnect(receive, work())


async def _read(request: Request, limit: int) -> bytes:
    too_large = ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")
    length = request.headers.get("content-length", "0").lstrip("0")
    if length.isdecimal() and (len(length) > len(str(limit)) or int(length) > limit):
        raise too_large
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    if not size:
        raise ApiError(400, "The body is empty, expected JSON.", code="invalid_json")
    return b"".join(parts)


def _model(service: Service) -> ModelCard:
    info = service.engine.info
    return ModelCard(
        id=service.model,
        created=service.created,
        max_model_len=None if info is None else info.max_model_len,
        warning=RANDOM_WEIGHTS if info is not None and info.random_weights else UNSET,
    )


def _health(service: Service) -> Response:
    engine = service.engine
    replicas = by_state(engine.replicas)
    if engine.error is not None:
        return json_response(Health("failed", engine.error, replicas), 503)
    if engine.info is None:
        return json_response(Health("loading", "the model is still loading", replicas), 503)
    if not replicas["ready"]:
        # Requests are accepted, and whoever ended this process now would lose those that go on.
        return json_response(Health("restarting", _last_reason(engine), replicas))
    return json_response(Health("ok", replicas=replicas))


def _last_reason(engine: Engine) -> str:
    reasons = [replica.reason for replica in engine.replicas if replica.reason is not None]
    return f"all engines are being started again: {reasons[-1] if reasons else 'scaled'}"


def _version() -> str:
    try:
        return metadata.version("sarathi-serve")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    known = {
        404: (f"There is nothing at {path[:200]}.", "unknown_url"),
        405: (f"{method[:20]} is not possible at {path[:200]}.", "method_not_allowed"),
    }
    message, code = known.get(error.status_code, (error.detail, None))
    headers = dict(error.headers or {})
    return error_response(ApiError(error.status_code, message, code=code, headers=headers))


async def _on_failure(request: Request, error: Exception) -> Response:
    return error_response(ApiError(500, "The server failed on this request."))
