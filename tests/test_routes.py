"""What `GET /` says of the service's endpoints."""

import httpx
import pytest

from serve_app.settings import key_digest
from tests.support import serving

UNLISTED = {"/", "/v1/models/{model:path}"}


@pytest.mark.parametrize(
    ("auth", "more"),
    [({}, {}), ({"keys": [{"name": "alice", "sha256": key_digest(b"secret")}]}, {"tokens": "/v1/tokens"})],
    ids=["open", "keys"],
)
async def test_every_endpoint_is_listed(engines, auth, more):
    async with serving(engines, auth=auth) as service, httpx.AsyncClient(base_url=service.http) as http:
        listed = (await http.get("/", headers={"Authorization": "Bearer secret"})).json()["endpoints"]
        assert set(listed.values()) == {route.path for route in service.ingress.application().routes} - UNLISTED
    assert listed == {
        "stream": "/v1/stream", "transcribe": "/v1/transcribe", "ws": "/ws", "asr-streaming": "/api/asr-streaming",
        "realtime": "/v1/realtime", "transcriptions": "/v1/audio/transcriptions", "models": "/v1/models",
        "build_info": "/api/build_info", "modules_info": "/api/modules_info", "health": "/health",
        "healthz": "/healthz", "readyz": "/readyz", "status": "/status", "metrics": "/metrics", **more,
    }  # fmt: skip
