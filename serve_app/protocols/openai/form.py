"""Reads the form of `POST /v1/audio/transcriptions`: the file goes to disk, nothing is without a limit."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

from starlette.datastructures import FormData, QueryParams, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve_app.errors import SHOWN_CHARACTERS, InvalidMessage, MessageTooLarge, shown
from serve_app.protocols.openai.errors import InvalidParameter
from serve_app.protocols.query import number
from serve_app.protocols.requests import limited, read_on
from serve_app.settings import IngressSettings

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
STREAM_FORMATS = ("json", "text")
GRANULARITIES = ("word", "segment")

MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Form:
    """What a client asks for. `prompt`, `temperature` and whatever else there is have no effect here."""

    file: BinaryIO
    model: str | None
    response_format: str
    stream: bool
    granularities: frozenset[str]
    language: str | None
    wait_s: float
    """How long the client would wait for a slot; ours, OpenAI has no such thing."""


@asynccontextmanager
async def read_form(request: Request, settings: IngressSettings) -> AsyncIterator[Form]:
    """The form; its file lives as long as the block. Raises SpeechError, and ClientDisconnect."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidParameter(None, "expected a body of multipart/form-data with the field 'file'")
    async with aclosing(request.stream()) as stream:
        try:
            async with aclosing(limited(stream, settings.max_upload_megabytes)) as body:
                parser = MultiPartParser(
                    request.headers, body, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
                )
                data = await parser.parse()
        except MessageTooLarge:
            await read_on(stream)
            raise
        except (MultiPartException, ValueError) as error:  # the latter comes of a charset that is none
            await read_on(stream)
            raise InvalidParameter(None, f"expected a form: {getattr(error, 'message', error)}") from None
    try:
        yield _checked(data, request.query_params, settings.max_wait_seconds)
    finally:
        await data.close()


def _checked(data: FormData, query: QueryParams, longest_wait_s: float) -> Form:
    file = data.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidParameter("file", "expected an audio file in the field 'file'", "missing_required_parameter")
    response_format = _choice(data, "response_format", FORMATS, "json")
    stream = _choice(data, "stream", ("true", "false", "True", "False", "1", "0"), "false") in ("true", "True", "1")
    if stream and response_format not in STREAM_FORMATS:
        raise _wrong("response_format", f"one of {', '.join(STREAM_FORMATS)} with stream", response_format)
    given = {str(value) for name in ("timestamp_granularities[]", "timestamp_granularities")
             for value in data.getlist(name)}  # fmt: skip
    for value in given.difference(GRANULARITIES):
        raise _wrong("timestamp_granularities", f"some of {', '.join(GRANULARITIES)}", value)
    if given and response_format != "verbose_json":
        raise _wrong("response_format", "verbose_json with timestamp_granularities", response_format)
    return Form(
        file=file.file,
        model=_text(data, "model"),
        response_format=response_format,
        stream=stream,
        granularities=frozenset(given) or frozenset({"segment"}),
        language=_text(data, "language"),
        wait_s=_wait_s(data, query, longest_wait_s),
    )


def _text(data: FormData, name: str) -> str | None:
    value = data.get(name)
    return value[:SHOWN_CHARACTERS] if isinstance(value, str) and value else None


def _wait_s(data: FormData, query: QueryParams, longest_s: float) -> float:
    asked = _text(data, "wait_s")
    try:
        return number(query if asked is None else {"wait_s": asked}, "wait_s", longest_s)
    except InvalidMessage as error:
        raise InvalidParameter("wait_s", error.message) from None


def _choice(data: FormData, name: str, choices: tuple[str, ...], default: str) -> str:
    value = _text(data, name) or default
    if value not in choices:
        raise _wrong(name, f"one of {', '.join(choices)}", value)
    return value


def _wrong(param: str, expected: str, got: str) -> InvalidParameter:
    return InvalidParameter(param, f"{param}: expected {expected}, got {shown(got)}", "unsupported_value")
