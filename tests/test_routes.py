"""What `GET /` says of the service's endpoints, and `GET /readyz` of its bridge."""

import httpx
import pytest
from prometheus_client import CollectorRegistry

from serve_app.settings import key_digest
from serve_app.telemetry.board import BRIDGE, Report, Source
from serve_app.telemetry.bridge_metrics import BridgeMetrics
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


async def test_readiness_tells_how_the_bridge_is_where_there_is_one(engines):
    """Nobody is sent away because of it: sessions need no brokers."""
    bridge = BridgeMetrics(CollectorRegistry())
    bridge.connected.set(1)
    async with (
        serving(engines, kafka={"bootstrap_servers": "nowhere:1", "replicas": 2}) as service,
        httpx.AsyncClient(base_url=service.http) as http,
    ):
        nobody = await http.get("/readyz")
        service.board.board.post(Report(Source(BRIDGE, "bridge-1"), tuple(bridge.registry.collect())))
        one = await http.get("/readyz")
    assert (nobody.status_code, nobody.text) == (200, "ready; Kafka bridge: 0 of 2 replicas connected")
    assert (one.status_code, one.text) == (200, "ready; Kafka bridge: 1 of 2 replicas connected")
