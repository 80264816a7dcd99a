"""What Kyutai's moshi-server answers over HTTP.

POST /api/asr-streaming   an audio file as the body; what comes back is a JSON list of its Word and EndWord messages,
                          or {"type": "Error", "message": …} with the error's status. ?wait_s=30 waits in line for a
                          slot, at most so long; without it, as long as the service allows. ?model=NAME chooses one
                          of the models that are served
GET /api/build_info       the fields of moshi-server's; those about Rust and git are empty
GET /api/modules_info     one module for each model: this replica's view of its engines, numbers as text, as there
"""

from contextlib import aclosing
from importlib.metadata import version
from typing import BinaryIO

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serve_app.audio.threads import in_thread
from serve_app.audio.upload import decode_upload
from serve_app.errors import SpeechError
from serve_app.protocols.conversation import Host
from serve_app.protocols.query import number
from serve_app.protocols.requests import uploaded, while_client_stays
from serve_app.protocols.upload import measure, recognise
from serve_app.session.models import Models, ServedModel
from serve_app.transcript import Word

PATH = "/api/asr-streaming"

NAME = "moshi_http"
"""What metrics and logs call this dialect."""

_BUILD_FIELDS = (
    "build_timestamp", "build_date", "git_branch", "git_timestamp", "git_date", "git_hash", "git_describe",
    "rustc_host_triple", "rustc_version", "cargo_target_triple",
)  # fmt: skip


class Upload:
    """`POST /api/asr-streaming`, as an ASGI application."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._settings = host.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; stop as soon as its client has left."""
        request = Request(scope, receive)
        longest_s = self._settings.max_wait_seconds
        try:
            wait_s = number(request.query_params, "wait_s", longest_s, default=longest_s)
            model = self._host.models.named(request.query_params.get("model"))
            async with uploaded(request, self._settings.max_upload_megabytes) as file:
                await while_client_stays(receive, self._answer(file, model, wait_s, request, send))
        except ClientDisconnect:
            return
        except SpeechError as error:
            self._host.count_unusable(NAME, error)
            retry = {"Retry-After": f"{error.retry_after_s:.0f}"} if error.retry_after_s is not None else {}
            answer = JSONResponse({"type": "Error", "message": error.message}, error.http_status, headers=retry)
            await answer(scope, receive, send)

    async def _answer(self, file: BinaryIO, model: ServedModel, wait_s: float, request: Request, send: Send) -> None:
        await measure(file, self._host)
        audio = in_thread(decode_upload(file, self._settings.max_upload_seconds))
        credential = request.headers.get("authorization", "")
        words: list[dict[str, object]] = []
        events = recognise(audio, credential, self._host, dialect=NAME, model=model, wait_s=wait_s)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Word):
                    words.append({"type": "Word", "text": event.text, "start_time": event.start_s})
                    words.append({"type": "EndWord", "stop_time": event.end_s})
        await JSONResponse(words)(request.scope, request.receive, send)


def build_info() -> dict[str, str]:
    """What is running here."""
    return dict.fromkeys(_BUILD_FIELDS, "") | {"git_describe": f"stt-serve {version('stt-serve')}"}


def modules_info(models: Models) -> list[dict[str, str]]:
    """A module for each model, with the slots of all its engines together."""
    return [
        {
            "type": "batched_asr",
            "path": PATH,
            "lm": model.name,
            "audio_tokenizer": model.name,
            "used_slots": str(int(sum(load["slots_used"] for load in model.engines.loads().values()))),
            "total_slots": str(int(sum(load["slots"] for load in model.engines.loads().values()))),
        }
        for model in models
    ]
