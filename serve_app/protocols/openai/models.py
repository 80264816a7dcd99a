"""`GET /v1/models` and `GET /v1/models/{id}`: the models that are served here, and what OpenAI's names stand for."""

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve_app.errors import UnknownModel
from serve_app.protocols.openai.errors import error_response
from serve_app.session.models import Models, ServedModel

_OPENAI_MODEL = re.compile(r"(whisper|gpt)-[\w.-]{1,60}")
"""What OpenAI's own models for transcription are called: clients that name one of them get the default model."""


def choose(models: Models, asked: str | None) -> ServedModel:
    """The model that a client of OpenAI's gets. Raises UnknownModel."""
    if asked not in models.names and _OPENAI_MODEL.fullmatch(asked or ""):
        return models.default
    return models.named(asked)


def model_routes(models: Models, owner: str, created: int) -> list[Route]:
    """The two routes; `created` is in seconds since the epoch."""

    def described(model: ServedModel) -> dict[str, object]:
        return {"id": model.name, "object": "model", "created": created, "owned_by": owner}

    async def listed(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(model) for model in models]})

    async def retrieved(request: Request) -> Response:
        try:
            return JSONResponse(described(choose(models, request.path_params["model"])))
        except UnknownModel as error:
            return error_response(error)

    return [Route("/v1/models", listed), Route("/v1/models/{model:path}", retrieved)]
