"""Who comes in, over real sockets: real uvicorn, real WebSockets, a real engine."""

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import AsyncIterator

import httpx
import pytest
import websockets
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from serve_app import client
from serve_app import settings as settings_module
from serve_app.ingress.access import Access
from serve_app.settings import key_digest
from serve_app.telemetry import IngressMetrics, configure_logging
from tests.support import Service, serving

KEY, OTHER, PAIR = (secrets.token_urlsafe(32) for _ in range(3))
SECRET = secrets.token_urlsafe(32)
KEYS = [
    {"name": "ann", "sha256": key_digest(KEY.encode()), "max_sessions": 2, "max_requests": 1},
    {"name": "bob", "sha256": key_digest(OTHER.encode())},
    {"name": "modal", "sha256": key_digest(f"{PAIR}:{SECRET}".encode())},
]
BEARER = {"Authorization": f"Bearer {KEY}"}

CARRIERS = {
    "bearer": {"headers": BEARER},
    "kyutai": {"headers": {"kyutai-api-key": KEY}},
    "modal": {"headers": {"Modal-Key": PAIR, "Modal-Secret": SECRET}},
    "auth_id": {"query": f"?auth_id={KEY}"},
    "token": {"query": f"?token={KEY}"},
    "subprotocol": {"subprotocols": ["realtime", f"openai-insecure-api-key.{KEY}"]},
}


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines, auth={"keys": KEYS, "token_seconds": 60}) as made:
        yield made


def http(service: Service, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", headers=headers, trust_env=False)


def dial(service: Service, headers: dict | None = None, query: str = "", **options) -> websockets.connect:
    return websockets.connect(service.url + query, additional_headers=headers, **options)


async def refused(connecting: websockets.connect) -> websockets.Response:
    """The HTTP answer to a handshake that is refused."""
    with pytest.raises(websockets.InvalidStatus) as error:
        async with connecting:
            pass
    return error.value.response


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS)
async def test_every_way_to_carry_a_key(service, carrier):
    async with dial(service, **carrier) as connection:
        assert json.loads(await connection.recv())["type"] == "ready"
        await connection.send("EOS")
        assert json.loads(await connection.recv())["type"] == "done"
    await service.wait_until_empty()


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS)
async def test_a_wrong_key_is_refused_before_the_websocket_is_accepted(service, carrier):
    text = json.dumps(carrier).replace(KEY, f"{KEY}x").replace(SECRET, f"{SECRET}x")
    response = await refused(dial(service, **json.loads(text)))
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    error = json.loads(response.body)["error"]
    assert (error["code"], error["message"]) == ("invalid_key", "expected an API key, got none that is good here")


async def test_without_a_key_only_health_is_told(service):
    assert (await refused(dial(service))).status_code == 401
    async with http(service) as stranger, http(service, **BEARER) as friend:
        for path in ("/health", "/healthz", "/readyz"):
            assert (await stranger.get(path)).status_code == 200
        for path in ("/", "/status", "/metrics", "/nowhere", "//health", "/health/../status", "/v1/tokens"):
            answer = await stranger.get(path)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="stt"'), path
            error = answer.json()["error"]
            assert (error["type"], error["param"], error["code"]) == ("authentication_error", None, "invalid_key")
            assert answer.json()["error"]["message"] == "expected an API key, got none"
        for path, status in {"/": 200, "/status": 200, "/metrics": 200, "/nowhere": 404}.items():
            assert (await friend.get(path)).status_code == status
        assert (await friend.get("/status", params={"auth_id": "wrong"})).status_code == 200


async def test_metrics_may_be_open(engines):
    async with serving(engines, auth={"keys": KEYS, "metrics": "open"}) as service, http(service) as stranger:
        assert (await stranger.get("/metrics")).status_code == 200
        assert (await stranger.get("/status")).status_code == 401


async def test_without_keys_everything_is_open_and_there_are_no_tokens(engines):
    async with serving(engines) as service, http(service) as anybody:
        assert (await anybody.get("/status")).status_code == 200
        assert (await anybody.post("/v1/tokens")).status_code == 404
        async with dial(service, {"Authorization": "Bearer anything"}, "?token=anything") as connection:
            assert json.loads(await connection.recv())["type"] == "ready"


async def test_a_token_lets_a_browser_in(service):
    async with http(service, **BEARER) as backend, http(service) as browser:
        answer = await backend.post("/v1/tokens", params={"expires_in_seconds": 30})
        assert answer.headers["Cache-Control"] == "no-store"
        token = answer.json()["token"]
        for way in ({"query": f"?token={token}"}, {"query": f"?auth_id={token}"},
                    {"headers": {"Authorization": f"Bearer {token}"}},
                    {"subprotocols": ["realtime", f"openai-insecure-api-key.{token}"]}):  # fmt: skip
            async with dial(service, **way) as connection:
                assert json.loads(await connection.recv())["type"] == "ready"
        assert (await browser.get("/status", params={"token": token})).status_code == 200
        more = await browser.post("/v1/tokens", params={"token": token})
        assert (more.status_code, more.json()["error"]["code"]) == (403, "forbidden")
        assert more.json()["error"]["type"] == "permission_error"
        assert more.headers["WWW-Authenticate"]
        for wrong in ("0", "61", "-1", "1e1", "", "²", "9" * 5_000):
            answer = await backend.post("/v1/tokens", params={"expires_in_seconds": wrong})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_message"), wrong


async def test_expired_and_forged_tokens(service, engines):
    async with http(service, **BEARER) as backend:
        token = (await backend.post("/v1/tokens", params={"expires_in_seconds": 1})).json()["token"]
        strange = token[:-6] + ("AAAAAA" if token[-6:] != "AAAAAA" else "BBBBBB")
        assert (await refused(dial(service, query=f"?token={strange}"))).status_code == 401
        await asyncio.sleep(1.1)
        assert (await refused(dial(service, query=f"?token={token}"))).status_code == 401
        good = (await backend.post("/v1/tokens")).json()["token"]
    async with serving(engines, auth={"keys": KEYS}) as other:  # another secret
        assert (await refused(dial(other, query=f"?token={good}"))).status_code == 401


async def test_a_key_holds_so_many_sessions_however_it_is_carried(service):
    async with http(service, **BEARER) as backend:
        token = (await backend.post("/v1/tokens")).json()["token"]
    async with dial(service, BEARER) as one, dial(service, query=f"?token={token}") as two:
        for connection in (one, two):
            assert json.loads(await connection.recv())["type"] == "ready"
        async with dial(service, {"kyutai-api-key": KEY}) as third:
            error = json.loads(await third.recv())
            assert (error["code"], "at most 2 sessions" in error["message"]) == ("too_many_sessions", True)
        async with dial(service, {"kyutai-api-key": OTHER}) as neighbour:
            assert json.loads(await neighbour.recv())["type"] == "ready"


async def test_a_key_has_so_many_requests_running():
    arrived, over = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> PlainTextResponse:
        arrived.set()
        await over.wait()
        return PlainTextResponse(request.headers["authorization"])

    access = Access(
        settings_module.from_args({"auth": {"keys": KEYS}}, environ={}), b"s" * 32, IngressMetrics(CollectorRegistry())
    )
    app = Starlette(routes=[Route("/slow", slow)], middleware=access.middleware())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as http:
        first = asyncio.create_task(http.get("/slow", headers=BEARER))
        await asyncio.wait_for(arrived.wait(), 5)
        second = await http.get("/slow", headers={"kyutai-api-key": KEY})
        assert (second.status_code, second.json()["error"]["code"]) == (429, "too_many_requests")
        assert second.headers["Retry-After"] == "1"
        neighbours = asyncio.gather(*(http.get("/slow", headers={"kyutai-api-key": OTHER}) for _ in range(3)))
        await asyncio.sleep(0)
        over.set()
        assert [answer.text for answer in await neighbours] == ["bob"] * 3
        assert (await first).text == "ann"  # what is behind sees the name
        assert (await http.get("/slow", headers=BEARER)).status_code == 200


async def test_a_resume_token_is_bound_to_the_key_whichever_way_it_comes(service):
    async with dial(service, BEARER) as connection:
        token = json.loads(await connection.recv())["resume_token"]
        connection.transport.abort()
    await service.wait_until_empty()
    async with dial(service, {"kyutai-api-key": OTHER}, f"?resume={token}&last_seq=0") as thief:
        assert json.loads(await thief.recv())["code"] == "unknown_session"
    async with dial(service, query=f"?auth_id={KEY}&resume={token}&last_seq=0") as owner:
        assert json.loads(await owner.recv())["type"] == "ready"


async def test_no_key_gets_into_logs_metrics_or_answers(service, capfd, caplog):
    configure_logging("debug")
    try:
        caplog.set_level(logging.WARNING, "httpx")  # the client's
        for name in ("", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
            caplog.set_level(logging.INFO, name)
        said = []
        async with http(service, **BEARER) as friend:
            token = (await friend.post("/v1/tokens")).json()["token"]
            for carrier in [*CARRIERS.values(), {"query": f"?token={token}"}]:
                async with dial(service, **carrier) as connection:
                    said.append(str(await connection.recv()))
                    await connection.send('{"type": "nonsense"}')
                    with contextlib.suppress(websockets.ConnectionClosed):
                        said.append(str(await connection.recv()))
                wrong = (
                    json.dumps(carrier).replace(KEY, f"{KEY}x").replace(SECRET, f"{SECRET}x").replace(token, "a.b.c")
                )
                said.append((await refused(dial(service, **json.loads(wrong)))).body.decode())
            paths = ("/status", "/metrics", "/nowhere", f"/status?token={KEY}")
            said += [(await friend.get(path)).text for path in paths]
        await service.wait_until_empty()
    finally:
        configure_logging("info")
    captured = capfd.readouterr()
    logged = captured.err + captured.out + caplog.text
    assert '"key": "ann"' in logged  # whose session it was
    assert "/v1/stream" in logged  # uvicorn's own lines are there
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    for secret in (KEY, SECRET, PAIR, token):
        assert secret not in logged
        assert secret not in "".join(said)


ORIGINS = [
    (None, True),
    ("http://127.0.0.1:1", True),
    ("https://app.example.org", True),
    ("http://app.example.org", False),
    ("https://app.example.org.evil.example", False),
    ("https://evil.example", False),
    ("null", False),
    ("http://[", False),
    ("", False),
]


@pytest.mark.parametrize(("origin", "welcome"), ORIGINS)
async def test_pages_of_strange_origins_are_refused(engines, origin, welcome):
    async with serving(engines, ingress={"allowed_origins": ["https://app.example.org"]}) as service:
        headers = {} if origin is None else {"Origin": origin}
        async with http(service, **headers) as page:
            assert (await page.get("/status")).status_code == (200 if welcome else 403)
        if welcome:
            async with dial(service, headers) as connection:
                assert json.loads(await connection.recv())["type"] == "ready"
        else:
            response = await refused(dial(service, headers))
            assert (response.status_code, json.loads(response.body)["error"]["code"]) == (403, "forbidden")


async def test_only_pages_of_the_own_host_by_default_and_all_with_a_star(engines):
    for origins, status in (([], 403), (["*"], 200)):
        async with (
            serving(engines, ingress={"allowed_origins": origins}) as service,
            http(service, Origin="https://app.example.org") as page,
        ):
            assert (await page.get("/status")).status_code == status


async def test_browsers_hear_that_an_allowed_page_may_send_a_key(engines):
    settings = {"auth": {"keys": KEYS}, "ingress": {"allowed_origins": ["https://app.example.org"]}}
    async with serving(engines, **settings) as service, http(service, Origin="https://app.example.org") as page:
        asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        answer = await page.options("/v1/tokens", headers=asking)
        assert answer.status_code == 200
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
        refusal = await page.get("/status")
        assert refusal.status_code == 401
        assert refusal.headers["Access-Control-Allow-Origin"] == "https://app.example.org"


async def test_our_client_says_which_key_is_missing_and_keeps_it_to_itself(service):
    for key, words in ((None, "asks for an API key"), ("wrong-key", "asks for another API key")):
        with pytest.raises(client.KeyRefused, match=words) as error:
            async with client.connect(f"{service.url}?auth_id=also-wrong", api_key=key):
                pass
        assert "wrong" not in str(error.value)
    async with client.connect(service.url, api_key=KEY) as stream:
        await stream.end()
        assert [event.type async for event in stream][-1] == "done"


def test_the_share_of_a_key_follows_from_the_slots_that_engines_chose():
    loads: dict[str, dict[str, float]] = {}
    settings = settings_module.from_args(
        {"engine": {"slots": "auto", "replicas": 3}, "ingress": {"key_share": 0.5}}, environ={}
    )
    access = Access(settings, b"s" * 32, IngressMetrics(CollectorRegistry()), lambda model: loads)
    (model,) = settings.served
    assert access.share_of(model) == settings_module.MOST_SLOTS, "nobody knows yet"
    loads["one"] = {}
    assert access.share_of(model) == settings_module.MOST_SLOTS
    loads["one"], loads["two"] = {"slots": 10.0}, {"slots": 30.0}
    assert access.share_of(model) == 30, "half of three engines, the third as large as the others"


def test_the_share_of_a_key_is_counted_per_model_and_its_own_limit_over_all():
    settings = settings_module.from_args(
        {
            "engine": {"slots": 64},
            "models": [{"model": "demo", "name": "small", "engine": {"slots": 4}}],
            "auth": {"keys": KEYS},
        },
        environ={},
    )
    access = Access(settings, b"s" * 32, IngressMetrics(CollectorRegistry()))
    assert [access.share_of(model) for model in settings.served] == [48, 3]
    assert [access.most_sessions(name) for name in ("ann", "bob")] == [2, None]
