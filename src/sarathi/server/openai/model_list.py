"""GET /v1/models and GET /v1/models/{name}."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sarathi.models.locate import RANDOM_WEIGHTS
from sarathi.server.responses import json_response
from sarathi.server.service import Service


async def list_models(service: Service, request: Request) -> Response:
    """Answer GET /v1/models."""
    return json_response({"object": "list", "data": [_model_card(service)]})


async def show_model(service: Service, request: Request) -> Response:
    """Answer GET /v1/models/{name}; raises `ApiError`, status 404, for an unknown name."""
    service.check_model(request.path_params["name"].rstrip("/"))
    return json_response(_model_card(service))


def _model_card(service: Service) -> dict[str, Any]:
    info = service.fleet.info
    card = {
        "id": service.model,
        "object": "model",
        "created": service.created,
        "owned_by": "sarathi",
        "root": service.model,
        "parent": None,
        "max_model_len": None if info is None else info.max_model_len,  # tokens; null while loading
    }
    if info is not None and info.random_weights:
        card["warning"] = RANDOM_WEIGHTS
    return card
