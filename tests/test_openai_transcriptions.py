"""`POST /v1/audio/transcriptions` and `GET /v1/models`, asked by OpenAI's own client over real sockets."""

import asyncio
import contextlib
import encodings.aliases
import io
import re
import struct
from collections.abc import AsyncIterator

import httpx
import numpy as np
import openai
import pytest
import soxr
import websockets
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.requests import Request

from serve_app.protocols.openai.errors import InvalidParameter
from serve_app.protocols.openai.form import FORMATS, read_form
from serve_app.settings import IngressSettings
from tests.audio_signals import cut, encoded
from tests.support import SAMPLES, Service, serving

PATH = "/v1/audio/transcriptions"


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(
        engines, ingress={"max_upload_megabytes": 4, "max_upload_seconds": 60.0, "ping_seconds": 0.2}
    ) as made:
        yield made


@pytest.fixture
async def client(service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="any", base_url=f"http://127.0.0.1:{service.port}/v1", max_retries=0) as made:
        yield made


@pytest.fixture
async def http(service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", timeout=60) as made:
        yield made


async def test_models(client):
    models = await client.models.list()
    assert [(model.id, model.object, model.owned_by) for model in models.data] == [("demo", "model", "stt")]
    assert await client.models.retrieve("demo") == models.data[0]
    assert (await client.models.retrieve("whisper-1")).id == "demo"  # what clients get that name it
    for name in ("tts-1", "kyutai/stt-1b-en_fr"):
        with pytest.raises(openai.NotFoundError) as error:
            await client.models.retrieve(name)
        assert (error.value.code, error.value.param, error.value.type) == (
            "model_not_found", "model", "invalid_request_error",
        )  # fmt: skip


async def test_a_file_becomes_text_and_leaves_no_session_behind(service, client, clip):
    result = await client.audio.transcriptions.create(model="whisper-1", file=clip.path, language="en", prompt="Hm.")
    assert result.text.split() == clip.words
    assert result.text == result.text.strip()
    assert result.usage.seconds == round(len(clip.samples) / 24_000, 3)
    await service.wait_until_empty()
    assert service.outcomes("done") == 1


@pytest.mark.parametrize(
    ("container", "codec", "rate_hz"),
    [("wav", "pcm_s16le", 16_000), ("flac", "flac", 24_000), ("mp3", "libmp3lame", 24_000), ("ogg", "libopus", 24_000),
     ("webm", "libopus", 24_000), ("mp4", "aac", 24_000)],
)  # fmt: skip
async def test_every_format_of_file(client, clip, container, codec, rate_hz):
    samples = clip.samples if rate_hz == 24_000 else _resampled(clip.samples, rate_hz)
    file = encoded(samples, rate_hz, container, codec)
    result = await client.audio.transcriptions.create(model="demo", file=(f"a.{container}", file))
    assert result.text.split() == clip.words


async def test_words_and_segments(client, clip):
    result = await client.audio.transcriptions.create(
        model="demo", file=clip.path, response_format="verbose_json", timestamp_granularities=["word", "segment"],
        language="en",
    )  # fmt: skip
    assert [word.word for word in result.words] == clip.words
    for word, (start, end) in zip(result.words, clip.times, strict=True):
        assert word.start == pytest.approx(start, abs=0.3)
        assert word.end == pytest.approx(end, abs=0.4)
    assert " ".join(segment.text for segment in result.segments) == result.text
    assert [segment.id for segment in result.segments] == list(range(len(result.segments)))
    assert (result.segments[0].start, result.segments[-1].end) == (result.words[0].start, result.words[-1].end)
    assert (result.language, result.duration) == ("en", round(len(clip.samples) / 24_000, 3))


async def test_segments_alone_are_what_verbose_json_has_by_default(client, clip):
    result = await client.audio.transcriptions.create(model="demo", file=clip.path, response_format="verbose_json")
    assert result.words is None
    assert result.segments
    assert result.language == "und"


async def test_text_and_subtitles(client, clip):
    async def asked(response_format: str) -> str:
        return await client.audio.transcriptions.create(
            model="demo", file=clip.path, response_format=response_format
        )  # fmt: skip

    assert (await asked("text")).split() == clip.words
    srt = (await asked("srt")).strip().split("\n\n")
    vtt = (await asked("vtt")).strip().split("\n\n")
    assert vtt.pop(0) == "WEBVTT"
    assert len(srt) == len(vtt)
    for number, (with_comma, with_point) in enumerate(zip(srt, vtt, strict=True), 1):
        index, times, _ = with_comma.split("\n", 2)
        assert index == str(number)
        assert re.fullmatch(r"00:00:\d\d,\d\d\d --> 00:00:\d\d,\d\d\d", times)
        assert with_comma == f"{number}\n" + with_point.replace(".", ",")
    assert " ".join(cue.split("\n", 1)[1] for cue in vtt).split() == clip.words


async def test_the_transcript_streams(service, client, http, clip):
    events = [
        event async for event in await client.audio.transcriptions.create(model="demo", file=clip.path, stream=True)
    ]
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text
    assert done.text.split() == clip.words
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    await service.wait_until_empty()
    silence = {"file": ("a.flac", encoded(np.zeros(50 * 24_000, np.float32), 24_000, "flac", "flac"))}
    answer = await http.post(PATH, files=silence, data={"stream": "true"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    comments = re.findall(r"^: ([\d.]+) of 50.0 s$", answer.text, re.MULTILINE)
    assert comments[0] == "0.0"
    assert sorted(map(float, comments)) == list(map(float, comments))
    assert len(comments) > 1


async def test_uploads_run_side_by_side_with_a_live_stream(service, client, clip):
    async with websockets.connect(service.url) as live:
        uploads = [client.audio.transcriptions.create(model="demo", file=clip.path) for _ in range(3)]
        uploading = asyncio.gather(*uploads)
        for start in range(0, len(clip.samples), 4_800):
            await live.send(clip.samples[start : start + 4_800].astype("<f4").tobytes())
        await live.send("EOS")
        with contextlib.suppress(websockets.ConnectionClosed):
            text = ""
            while True:
                message = await live.recv()
                text += re.sub(r'.*"text": "([^"]*)".*|.*', r"\1", message)
        assert text.split() == clip.words
        assert {result.text for result in await uploading} == {" ".join(clip.words)}
    await service.wait_until_empty()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_its_slot(service, client, clip, stream):
    long = io.BytesIO(encoded(np.tile(clip.samples, 7), 24_000, "flac", "flac"))
    upload = asyncio.create_task(client.audio.transcriptions.create(model="demo", file=("a", long), stream=stream))
    while not service.engines.slots_used():
        await asyncio.sleep(0.01)
    upload.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        events = await upload
        if stream:
            await events.close()
    await service.wait_until_empty()
    assert service.outcomes("left") == 1


async def test_at_capacity_it_says_when_to_come_back(service, client, clip):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            connection = await stack.enter_async_context(websockets.connect(service.url))
            await connection.recv()
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as error:
                await client.audio.transcriptions.create(model="demo", file=clip.path, stream=stream)
            assert (error.value.status_code, error.value.code, error.value.type) == (503, "at_capacity", "server_error")
            assert int(error.value.response.headers["retry-after"]) > 0
    await service.wait_until_empty()


@pytest.mark.parametrize("way", ["extra_body", "extra_query"])
async def test_a_file_waits_in_line_for_a_slot(service, client, clip, way):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            connection = await stack.enter_async_context(websockets.connect(service.url))
            await connection.recv()
        upload = asyncio.create_task(
            client.audio.transcriptions.create(model="demo", file=clip.path, **{way: {"wait_s": "30"}})
        )
        await asyncio.sleep(0.3)
        assert not upload.done()
        await connection.close()
        assert (await upload).text.split() == clip.words


async def test_a_replica_that_stops_tells_its_uploads(service, client, clip):
    long = encoded(np.tile(clip.samples, 7), 24_000, "flac", "flac")
    uploads = [
        asyncio.create_task(client.audio.transcriptions.create(model="demo", file=("a", long), stream=stream))
        for stream in (False, True)
    ]
    while service.engines.slots_used() < 2:
        await asyncio.sleep(0.01)
    service.ingress.sessions.close()
    service.ingress.sessions.move_out(everyone=True)
    with pytest.raises(openai.InternalServerError) as error:
        await uploads[0]
    assert (error.value.status_code, error.value.code) == (503, "restarting")
    with pytest.raises(openai.APIError, match="send the audio again") as late:
        async for _ in await uploads[1]:
            pass
    assert late.value.code == "restarting"
    await service.wait_until_empty()


# ---------------------------------------------------------------------- bad input

WAV = (SAMPLES / "hello-en.wav").read_bytes()


@pytest.mark.parametrize(
    ("data", "files", "status", "param", "code", "complaint"),
    [
        ({"model": "demo"}, {"other": WAV}, 400, "file", "missing_required_parameter", "expected an audio file"),
        ({"model": "demo", "file": "text"}, {"a": b""}, 400, "file", "missing_required_parameter", "expected an"),
        ({"model": "tiny"}, {"file": WAV}, 404, "model", "model_not_found", "expected the model 'demo', got 'tiny'"),
        ({"response_format": "xml"}, {"file": WAV}, 400, "response_format", "unsupported_value", "got 'xml'"),
        ({"stream": "perhaps"}, {"file": WAV}, 400, "stream", "unsupported_value", "got 'perhaps'"),
        ({"stream": "true", "response_format": "srt"}, {"file": WAV}, 400, "response_format", "unsupported_value", ""),
        ({"timestamp_granularities[]": "word"}, {"file": WAV}, 400, "response_format", "unsupported_value", "verbose"),
        ({"timestamp_granularities[]": "day", "response_format": "verbose_json"}, {"file": WAV}, 400,
         "timestamp_granularities", "unsupported_value", "got 'day'"),
        ({"prompt": "x" * 100_000}, {"file": WAV}, 400, None, "invalid_value", "maximum size"),
        ({f"field{n}": "x" for n in range(65)}, {"file": WAV}, 400, None, "invalid_value", "Too many fields"),
        ({"wait_s": "-1"}, {"file": WAV}, 400, "wait_s", "invalid_value", "a number from 0 to 300, got '-1'"),
        ({}, {"file": WAV, "more": WAV}, 400, None, "invalid_value", "Too many files"),
        ({}, {"file": b""}, 400, None, "invalid_audio", "got an empty one"),
        ({}, {"file": b"not audio at all"}, 400, None, "invalid_audio", "begins with b'not audio at all'"),
        ({}, {"file": b"#EXTM3U\nfile:///etc/passwd\n"}, 400, None, "invalid_audio", "begins with"),
        ({}, {"file": WAV[:44]}, 400, None, "invalid_audio", "without a single sample"),
        ({}, {"file": bytes(5 * 2**20)}, 413, None, "message_too_large", "at most 4 MiB"),
    ],
)  # fmt: skip
async def test_bad_requests_are_told_in_openais_form(service, http, data, files, status, param, code, complaint):
    answer = await http.post(PATH, data=data, files={name: ("a.wav", each) for name, each in files.items()})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), error
    assert complaint in error["message"]
    assert error["type"] == "invalid_request_error"
    await service.wait_until_empty()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("", b""),
        ("multipart/form-data", b"--x"),
        ("multipart/form-data; boundary=x", b"no boundary"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nv\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 1_000 + b"\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 1_000, b""),
        (
            "multipart/form-data; boundary=x; charset=undefined",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nv',
        ),
    ],
)
async def test_what_is_no_form_is_refused(http, content_type, body):
    answer = await http.post(PATH, content=body, headers={"content-type": content_type})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_bomb_of_silence_is_refused_before_it_takes_a_slot(service, http):
    bomb = encoded(np.zeros(3_600 * 24_000, np.float32), 24_000, "flac", "flac")
    assert len(bomb) < 2**20
    answer = await http.post(PATH, files={"file": ("a.flac", bomb)}, data={"stream": "true"})
    assert answer.status_code == 413
    assert answer.json()["error"] == {
        "message": "expected at most 60 s of audio, got 3600 s", "type": "invalid_request_error", "param": None,
        "code": "audio_too_long",
    }  # fmt: skip
    assert not service.outcomes("audio_too_long")


async def test_damaged_files_give_what_is_left_of_them(client, clip):
    lying = WAV[:4] + struct.pack("<I", 2**31) + WAV[8:40] + struct.pack("<I", 2**31 - 40) + WAV[44:]
    assert (await client.audio.transcriptions.create(model="demo", file=lying)).text.split() == clip.words
    mp3 = encoded(clip.samples, 24_000, "mp3", "libmp3lame")
    half = (await client.audio.transcriptions.create(model="demo", file=mp3[: len(mp3) // 2])).text.split()
    assert 0 < len(half) < len(clip.words)
    assert half[:-1] == clip.words[: len(half) - 1]


async def test_one_that_leaves_in_the_middle_of_its_upload(service, clip):
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: form-data; name=file"
    )
    await writer.drain()
    writer.close()
    assert await reader.read() == b""
    await service.wait_until_empty()


NAMES = st.sampled_from([b"file", b"model", b"stream", b"response_format", b"timestamp_granularities[]", b"", b'"'])
HEADS = st.builds(
    b'Content-Disposition: form-data; name="%s"%s\r\n'.__mod__,
    st.tuples(NAMES, st.sampled_from([b"", b'; filename="a.wav"', b"; filename", b"; filename*=utf-8''%ff"])),
)
PARTS = st.builds(
    b"--x\r\n%s\r\n%s\r\n".__mod__,
    st.tuples(HEADS | st.binary(max_size=30), st.binary(max_size=30) | st.just(WAV[:99])),
)
BODIES = st.lists(st.one_of(PARTS, st.just(b"--x--"), st.binary(max_size=20)), max_size=5).map(b"".join)
CONTENT_TYPES = st.one_of(
    st.just("multipart/form-data; boundary=x"),
    st.text(st.characters(max_codepoint=255), max_size=20).map("multipart/form-data; ".__add__),
    st.text(st.characters(max_codepoint=255), max_size=20).map("multipart/form-data; boundary=x; charset=".__add__),
    st.sampled_from(list(encodings.aliases.aliases.values())).map("multipart/form-data; boundary=x; charset=".__add__),
)


@given(CONTENT_TYPES, BODIES, st.integers(1, 100))
@hypothesis_settings(max_examples=300)
def test_the_form_parser_takes_anything(content_type, body, piece_bytes):
    async def read() -> str:
        messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in cut(body, piece_bytes)]
        messages.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> dict:
            return messages.pop(0)

        scope = {"type": "http", "headers": [(b"content-type", content_type.encode("latin-1"))], "query_string": b""}
        async with read_form(Request(scope, receive), IngressSettings()) as form:
            return form.response_format

    with contextlib.suppress(InvalidParameter):
        assert asyncio.run(read()) in FORMATS


def _resampled(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    return soxr.resample(samples, 24_000, rate_hz)
