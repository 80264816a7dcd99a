"""`GET /v1/models` and `GET /v1/models/{id}`: the one model that is served here."""

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve_app.protocols.openai.errors import UnknownModel, error_response

_OPENAI_MODEL = re.compile(r"(whisper|gpt)-[\w.-]{1,60}")
"""What OpenAI's own models for transcription are called: clients that name one of them get the model served here."""


def check_model(asked: str | None, served: str) -> None:
    """Raise UnknownModel where a client asks for a model that is neither this one nor one of OpenAI's."""
    if asked and asked != served and not _OPENAI_MODEL.fullmatch(asked):
        raise UnknownModel(asked, served)


def model_routes(model: str, owner: str, created: int) -> list[Route]:
    """The two routes; `created` is in seconds since the epoch."""
    description = {"id": model, "object": "model", "created": created, "owned_by": owner}

    async def listed(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [description]})

    async def retrieved(request: Request) -> Response:
        asked: str = request.path_params["model"]
        return JSONResponse(description) if asked == model else error_response(UnknownModel(asked, model))

    return [Route("/v1/models", listed), Route("/v1/models/{model:path}", retrieved)]
