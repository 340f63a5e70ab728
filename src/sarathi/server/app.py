"""The HTTP application: the table of routes, and exceptions as error responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sarathi.fleet.fleet import Engines
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.server.anthropic.messages_api import count_tokens, create_message
from sarathi.server.auth import AuthMiddleware, AuthRules, RequireAdmin, key_name
from sarathi.server.ollama.ollama_api import chat, generate, list_tags, ollama_version, show
from sarathi.server.openai.chat_completions import create_chat_completion
from sarathi.server.openai.completions import create_completion
from sarathi.server.openai.embeddings import create_embeddings
from sarathi.server.openai.model_list import list_models, show_model
from sarathi.server.openai.responses_api import create_response, find_response
from sarathi.server.openai.tokenization import detokenize, tokenize, tokenizer_info
from sarathi.server.operations import health, index, metrics, scale, stats, version
from sarathi.server.parsers.format_detection import OutputFormats, model_formats
from sarathi.server.reply_headers import ReplyHeaders, added_headers
from sarathi.server.request_body import read_body
from sarathi.server.responses import ApiError, error_response
from sarathi.server.service import RequestContext, Service

GetHandler = Callable[[Service, Request], Awaitable[Response]]
PostHandler = Callable[[Service, RequestContext], Awaitable[ASGIApp]]
Endpoint = TypeVar("Endpoint")

# A new endpoint is a line in one of these tables, and its handler.
GET_ROUTES: dict[str, GetHandler] = {
    "/": index,
    "/v1/models": list_models,
    "/v1/models/{name:path}": show_model,
    "/v1/responses/{id:path}": find_response,
    "/tokenizer_info": tokenizer_info,
    "/api/tags": list_tags,
    "/api/version": ollama_version,
    "/health": health,
    "/version": version,
    "/stats": stats,
    "/metrics": metrics,
}
POST_ROUTES: dict[str, PostHandler] = {
    "/v1/completions": create_completion,
    "/v1/chat/completions": create_chat_completion,
    "/v1/responses": create_response,
    "/v1/messages": create_message,
    "/v1/messages/count_tokens": count_tokens,
    "/api/chat": chat,
    "/api/generate": generate,
    "/api/show": show,
    "/v1/embeddings": create_embeddings,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}
DELETE_ROUTES: dict[str, GetHandler] = {"/v1/responses/{id:path}": find_response}
ADMIN_ROUTES: dict[str, PostHandler] = {"/scale": scale}  # change the server

MAX_BODY = 8 * 2**20  # bytes


def create_app(
    engine: Engines,
    tokenizer: Tokenizer,
    *,
    served_name: str,
    auth: AuthRules | None = None,
    max_body: int = MAX_BODY,
    formats: OutputFormats | None = None,
    strict: bool = False,
    cors_origins: Sequence[str] = (),
) -> ASGIApp:
    """Return the ASGI application for one engine.

    Args:
        engine: may still be loading; requests are answered with 503 until it is ready.
        served_name: the model name that requests give.
        auth: which requests are allowed; None: all, except that changes of the server have to come
            from this machine. Of several API keys, each is a tenant.
        max_body: bytes of a request body.
        formats: of tool calls and reasoning; None: those that the tokenizer's template shows.
        strict: refuse unknown fields and unusual values instead of ignoring or adapting them.
        cors_origins: of web pages that may call the API.
    """
    formats = formats or model_formats(tokenizer)
    service = Service(engine, tokenizer, served_name, int(time.time()), formats, strict)
    rules = auth or AuthRules()

    def post_endpoint(handler: PostHandler) -> ASGIApp:
        return PostEndpoint(service, handler, max_body)

    posts = {path: post_endpoint(handler) for path, handler in POST_ROUTES.items()}
    gets = {path: partial(handler, service) for path, handler in GET_ROUTES.items()}
    routes = [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in _with_variants(posts)),
        *(
            Route(path, RequireAdmin(post_endpoint(handler), rules), methods=["POST"])
            for path, handler in ADMIN_ROUTES.items()
        ),
        *(Route(path, endpoint, methods=["GET"]) for path, endpoint in _with_variants(gets)),
        *(
            Route(path, partial(handler, service), methods=["DELETE"])
            for path, handler in DELETE_ROUTES.items()
        ),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers=dict.fromkeys((ApiError, HTTPException, Exception), _on_error),
    )
    app.router.redirect_slashes = False
    admin_paths = frozenset(ADMIN_ROUTES)
    with_keys = AuthMiddleware(app, rules, admin_paths)
    return ReplyHeaders(with_keys, frozenset(cors_origins), admin_paths)


def _with_variants(endpoints: Mapping[str, Endpoint]) -> list[tuple[str, Endpoint]]:
    """Return endpoints by path, after the paths also those that clients make of wrong base URLs.

    They end with a slash, or lack the version.
    """
    short = {path.removeprefix("/v1"): endpoint for path, endpoint in endpoints.items()}
    paths = {**endpoints, **{path: short[path] for path in short.keys() - endpoints.keys()}}
    slashed = {f"{path}/": endpoint for path, endpoint in paths.items() if path != "/"}
    # The first that matches counts: a path with a parameter matches the slash of another.
    return sorted({**paths, **slashed}.items(), key=lambda item: "{" in item[0])


@dataclass(frozen=True)
class PostEndpoint:
    """Reads the body of a POST, and cancels the work on it when the client disconnects."""

    service: Service
    handler: PostHandler
    max_body: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(Request(scope, receive), self.max_body)
        except ClientDisconnect:
            return
        call = RequestContext(body, key_name(scope), added_headers(scope))

        async def work() -> None:
            reply = await self.handler(self.service, call)
            await reply(scope, receive, send)

        await until_disconnect(receive, work())


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, cancelling it when the client disconnects.

    The whole body must have been read, so that the next message can only be a disconnect.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (worker, watcher):
            task.cancel()
        await asyncio.wait({worker, watcher})
    if not worker.cancelled():
        worker.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        method, path = request.method, request.url.path
        allow = (error.headers or {}).get("Allow")
        if method == "OPTIONS" and allow and path not in ADMIN_ROUTES:
            return Response(status_code=204, headers={"Allow": f"{allow}, OPTIONS"})
        known = {
            404: (f"There is nothing at {path[:200]}.", "unknown_url"),
            405: (f"{method[:20]} is not possible at {path[:200]}.", "method_not_allowed"),
        }
        message, code = known.get(error.status_code, (error.detail, None))
        error = ApiError(error.status_code, message, code=code, headers=error.headers)
    elif not isinstance(error, ApiError):
        error = ApiError(500, "The server failed on this request.")
    return error_response(error, request.url.path)
