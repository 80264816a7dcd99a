"""What Kyutai's moshi-server answers over HTTP.

POST /api/asr-streaming   an audio file as the body; what comes back is a JSON list of its Word and EndWord messages,
                          or {"type": "Error", "message": …} with the error's status
GET /api/build_info       the fields of moshi-server's; those about Rust and git are empty
GET /api/modules_info     one module: this replica's view of all engines, numbers as text, as there
"""

from collections.abc import Mapping
from contextlib import aclosing
from importlib.metadata import version

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from serve_app.errors import InvalidMessage, MessageTooLarge, SpeechError
from serve_app.protocols.conversation import Host
from serve_app.protocols.upload import recognise
from serve_app.transcript import Word

PATH = "/api/asr-streaming"

NAME = "moshi_http"
"""What metrics and logs call this dialect."""

_BUILD_FIELDS = (
    "build_timestamp", "build_date", "git_branch", "git_timestamp", "git_date", "git_hash", "git_describe",
    "rustc_host_triple", "rustc_version", "cargo_target_triple",
)  # fmt: skip


async def transcribe(request: Request, host: Host, max_seconds: float) -> Response:
    """Recognise the file in the request's body."""
    words: list[dict[str, object]] = []
    try:
        file = await _body(request, host.settings.max_message_bytes)
        credential, wait_s = request.headers.get("authorization", ""), host.settings.max_wait_seconds
        async with aclosing(recognise(file, credential, host, max_seconds, dialect=NAME, wait_s=wait_s)) as events:
            async for event in events:
                if isinstance(event, Word):
                    words.append({"type": "Word", "text": event.text, "start_time": event.start_s})
                    words.append({"type": "EndWord", "stop_time": event.end_s})
    except SpeechError as error:
        host.count_unusable(NAME, error)
        retry = {"Retry-After": f"{error.retry_after_s:.0f}"} if error.retry_after_s is not None else {}
        return JSONResponse({"type": "Error", "message": error.message}, error.http_status, headers=retry)
    return JSONResponse(words)


async def _body(request: Request, most_bytes: int) -> bytes:
    """The request's body. Raises MessageTooLarge before more than that is in memory."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most_bytes:
                raise MessageTooLarge(f"expected a body of at most {most_bytes} bytes, got more")
    except ClientDisconnect:
        raise InvalidMessage("expected a whole request, the client left in its middle") from None
    return bytes(body)


def build_info() -> dict[str, str]:
    """What is running here."""
    return dict.fromkeys(_BUILD_FIELDS, "") | {"git_describe": f"stt-serve {version('stt-serve')}"}


def modules_info(model: str, loads: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
    """The one module, with the slots of all engines together."""
    return [
        {
            "type": "batched_asr",
            "path": PATH,
            "lm": model,
            "audio_tokenizer": model,
            "used_slots": str(int(sum(load["slots_used"] for load in loads.values()))),
            "total_slots": str(int(sum(load["slots"] for load in loads.values()))),
        }
    ]
