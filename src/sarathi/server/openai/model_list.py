"""GET /v1/models and GET /v1/models/{name}."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from sarathi.models.locate import RANDOM_WEIGHTS
from sarathi.server.responses import json_response
from sarathi.server.service import Service


class ModelCard(Struct, frozen=True, kw_only=True):
    """The model that is served."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "sarathi"
    max_model_len: int | None = None  # tokens; null until the model is loaded
    warning: str | UnsetType = UNSET


async def list_models(service: Service, request: Request) -> Response:
    """Answer GET /v1/models."""
    return json_response({"object": "list", "data": [_model_card(service)]})


async def show_model(service: Service, request: Request) -> Response:
    """Answer GET /v1/models/{name}; raises `ApiError`, status 404, for an unknown name."""
    service.check_model(request.path_params["name"])
    return json_response(_model_card(service))


def _model_card(service: Service) -> ModelCard:
    info = service.engine.info
    return ModelCard(
        id=service.model,
        created=service.created,
        max_model_len=None if info is None else info.max_model_len,
        warning=RANDOM_WEIGHTS if info is not None and info.random_weights else UNSET,
    )
