"""`POST /v1/audio/transcriptions`: an audio file in, its transcript out, at once or as server-sent events.

An upload is a session like any other: it takes a slot, is fed as fast as the engine takes it, and counts there as
backlog behind live streams. A client that goes away gives the slot back at once.

out, events  transcript.text.delta, transcript.text.done; comments tell the progress while nothing is said
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from serve_app.audio.threads import in_thread
from serve_app.audio.upload import decode_upload
from serve_app.errors import SlowClient, SpeechError
from serve_app.protocols.conversation import Host
from serve_app.protocols.openai.errors import described, error_response
from serve_app.protocols.openai.form import Form, read_form
from serve_app.protocols.openai.models import choose
from serve_app.protocols.openai.transcript_formats import Transcript
from serve_app.protocols.requests import while_client_stays
from serve_app.protocols.upload import measure, recognise
from serve_app.session.models import ServedModel
from serve_app.settings import IngressSettings
from serve_app.telemetry import get_logger

_log = get_logger(__name__)

NAME = "openai_transcriptions"
"""What metrics and logs call this dialect."""

_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class Transcriptions:
    """The endpoint, as an ASGI application: one request after the other is one call."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; stop as soon as its client has left."""
        request = Request(scope, receive)
        try:
            async with read_form(request, self._host.settings) as form:
                model = choose(self._host.models, request.query_params.get("model", form.model))
                await while_client_stays(receive, self._answer(form, model, request, send))
        except ClientDisconnect:
            return
        except SpeechError as error:
            self._host.count_unusable(NAME, error)
            await error_response(error)(scope, receive, send)

    async def _answer(self, form: Form, model: ServedModel, request: Request, send: Send) -> None:
        """Transcribe and send the answer. Raises SpeechError while nothing has been sent."""
        settings = self._host.settings
        transcript = Transcript(await measure(form.file, self._host))
        stream = _EventStream(send, settings, transcript.audio_seconds) if form.stream else None
        events = recognise(
            in_thread(decode_upload(form.file, settings.max_upload_seconds)),
            request.headers.get("authorization", ""),
            self._host,
            dialect=NAME,
            model=model,
            wait_s=form.wait_s,
            on_audio=stream.progress if stream else lambda seconds: None,
        )
        try:
            async with aclosing(events):
                async for event in events:
                    text = transcript.add(event)
                    if stream and text:
                        await stream.tell({"type": "transcript.text.delta", "delta": text})
            transcript.finish()
            if stream:
                done = {"type": "transcript.text.done", "text": transcript.text, "usage": transcript.token_usage}
                await stream.tell(done, last=True)
            else:
                await transcript.response(form)(request.scope, request.receive, send)
        except SpeechError as error:
            if not stream or not stream.has_begun:
                raise
            if not isinstance(error, SlowClient):
                await stream.tell({"error": described(error)}, last=True)
        except Exception as error:
            _log.error("transcription failed", error=repr(error), exc_info=error)
            failure = SpeechError("the server failed")
            if not stream or not stream.has_begun:
                raise failure from error
            await stream.tell({"error": described(failure)}, last=True)
        finally:
            if stream:
                await stream.stop()


class _EventStream:
    """Server-sent events, and in between comments that tell the progress."""

    def __init__(self, send: Send, settings: IngressSettings, audio_seconds: float) -> None:
        self.has_begun = False
        """Whether it is too late for another HTTP status."""
        self._send = send
        self._settings = settings
        self._audio_seconds = audio_seconds
        self._taken_seconds = 0.0
        self._writing = asyncio.Lock()
        self._commenting: asyncio.Task[None] | None = None

    def progress(self, seconds: float) -> None:
        """So many seconds have been taken; the first call begins the stream."""
        self._taken_seconds = seconds
        if not self._commenting:
            self._commenting = asyncio.create_task(self._comment())

    async def tell(self, event: Mapping[str, object], *, last: bool = False) -> None:
        """Send an event. Raises SlowClient."""
        await self._write(f"data: {json.dumps(event)}\n\n", last=last)

    async def stop(self) -> None:
        """No more comments."""
        if self._commenting:
            self._commenting.cancel()
            await asyncio.gather(self._commenting, return_exceptions=True)

    async def _comment(self) -> None:
        while True:
            await self._write(f": {self._taken_seconds:.1f} of {self._audio_seconds:.1f} s\n\n")
            await asyncio.sleep(self._settings.ping_seconds)

    async def _write(self, text: str, *, last: bool = False) -> None:
        timeout_s = self._settings.slow_client_seconds
        try:
            async with asyncio.timeout(timeout_s), self._writing:
                if not self.has_begun:
                    self.has_begun = True
                    await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await self._send({"type": "http.response.body", "body": text.encode(), "more_body": not last})
        except TimeoutError:
            raise SlowClient(f"expected the client to read within {timeout_s:g} s, it did not") from None
