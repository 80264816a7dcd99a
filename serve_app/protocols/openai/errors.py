"""Errors in OpenAI's own form."""

from starlette.responses import JSONResponse

from serve_app.errors import InvalidMessage, SpeechError, UnknownModel

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class InvalidParameter(InvalidMessage):
    """A parameter of a request, or a field of an event, that cannot be used."""

    def __init__(self, param: str | None, message: str, code: str = "invalid_value") -> None:
        """`param` is its name, `code` one of those that OpenAI uses."""
        super().__init__(message)
        self.param = param
        self.code = code


def described(error: SpeechError) -> dict[str, str | None]:
    """What stands under `error`, in HTTP answers and in realtime events alike."""
    unknown = isinstance(error, UnknownModel)
    server = "server_error" if error.http_status >= 500 else "invalid_request_error"
    return {
        "message": error.message,
        "type": _TYPES.get(error.http_status, server),
        "param": "model" if unknown else error.param if isinstance(error, InvalidParameter) else None,
        "code": "model_not_found" if unknown else error.code,
    }


def error_response(error: SpeechError) -> JSONResponse:
    """The HTTP answer, which says when to try again where that makes sense."""
    retry = {"Retry-After": f"{error.retry_after_s:.0f}"} if error.retry_after_s is not None else {}
    return JSONResponse({"error": described(error)}, error.http_status, headers=retry)
