"""`cluster/observability`: checked by Prometheus' own tools, and by a real Prometheus that watches a service."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import websockets
import yaml

from serve_app import client
from serve_app.settings import key_digest
from tests.support import PROJECT, Service, serving
from tests.system_packages import require_program
from tests.test_reverse_proxy import free_port, replaced

FOLDER = PROJECT / "cluster" / "observability"
DASHBOARD = json.loads((FOLDER / "grafana" / "dashboards" / "stt.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
KEY = "a key that nobody guesses"
KEYS = [{"name": "ann", "sha256": key_digest(KEY.encode())}]
AUTHORIZATION = {"Authorization": f"Bearer {KEY}"}

RATE_INTERVAL = "20s"
"""What Grafana puts in for its variable: several scrapes."""


def promtool(*arguments: str, stdin: str | None = None) -> None:
    done = subprocess.run(
        [require_program("promtool", "prometheus"), *arguments],
        cwd=FOLDER, input=stdin, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration():
    promtool("check", "config", "prometheus.yml")


def test_every_alert_fires_when_it_should_and_not_otherwise():
    promtool("test", "rules", "alerts_test.yml")
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    cases = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    for case in cases:
        assert [test["alertname"] for test in case["alert_rule_test"]] == [rule["alert"] for rule in rules]


def test_the_panels_lie_side_by_side_and_ask_the_data_source_that_is_set_up():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    sources = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"] for source in sources}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_what_compose_mounts_is_there():
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    mounts = [mount.split(":")[:2] for service in services.values() for mount in service["volumes"]]
    own = {inside: FOLDER / outside for outside, inside in mounts if outside.startswith("./")}
    assert all(path.exists() for path in own.values())
    provider = yaml.safe_load((FOLDER / "grafana/provisioning/dashboards/stt.yml").read_text())["providers"][0]
    assert own[provider["options"]["path"]] == FOLDER / "grafana/dashboards"


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    """A service with keys, whose engine tells of its start as a deployed one does."""
    engines.service.metrics.start_seconds.labels("model").set(1.0)
    async with serving(engines, auth={"keys": KEYS, "metrics": "open"}) as made:
        yield made


async def speak(service: Service, samples: np.ndarray) -> None:
    """Sessions that end well, one after the other, and some that do not, without end."""
    while True:
        async for _ in client.transcribe(service.url, samples, rtf=4.0, words=True, api_key=KEY):
            pass
        async with websockets.connect(service.at("/ws"), additional_headers=AUTHORIZATION) as wrong:
            await wrong.send("good morning")
            await wrong.wait_closed()
        async with httpx.AsyncClient() as http:
            await http.get(f"{service.http}/status")  # without a key: refused


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    async def get(self, path: str, **query: str) -> Any:
        async with httpx.AsyncClient() as http:
            answer = (await http.get(f"{self.url}/api/v1/{path}", params=query)).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        return (await self.get("query", query=expression))["result"]


@pytest.fixture
async def prometheus(service, clip, tmp_path: Path) -> AsyncIterator[Prometheus]:
    """The shipped configuration, in a hurry, with this service as its target, after a while of load."""
    program, port = require_program("prometheus", "prometheus"), free_port()
    shipped = replaced(
        (FOLDER / "prometheus.yml").read_text(),
        ("127.0.0.1:8000", f"127.0.0.1:{service.port}"),
        ("scrape_interval: 5s", "scrape_interval: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ("scrape_timeout: 4s", "scrape_timeout: 1s"),
    )
    (tmp_path / "prometheus.yml").write_text(shipped)
    (tmp_path / "alerts.yml").write_text((FOLDER / "alerts.yml").read_text())
    process = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stderr=(tmp_path / "errors").open("wb"),
    )
    speaking = asyncio.create_task(speak(service, clip.samples))
    found = Prometheus(f"http://127.0.0.1:{port}")
    try:
        async with asyncio.timeout(60):
            while True:
                assert process.returncode is None, (tmp_path / "errors").read_text()
                assert not speaking.done(), speaking.exception()
                await asyncio.sleep(0.5)
                try:
                    sessions = await found.query("sum(increase(stt_sessions_total[20s]))")
                except httpx.HTTPError:
                    continue
                if sessions and float(sessions[0]["value"][1]) >= 2:
                    break
        yield found
    finally:
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        process.terminate()
        await process.wait()


async def test_every_panel_and_every_alert_has_data(prometheus):
    asked = {
        f"{panel['title']}, {target['refId']}": target["expr"].replace("$__rate_interval", RATE_INTERVAL)
        for panel in PANELS
        for target in panel["targets"]
    }
    rules = [rule for group in (await prometheus.get("rules"))["groups"] for rule in group["rules"]]
    for rule in rules:
        assert rule["health"] in ("ok", "unknown"), rule  # unknown: not evaluated yet
        asked[rule["name"]], comparisons = re.subn(r" (==|<|>) [\d.]+$", "", rule["query"])
        assert comparisons == 1
    assert len(rules) == len(yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"])
    for _ in range(20):  # a scrape that is late on a busy machine is a gap
        asked = {title: expression for title, expression in asked.items() if not await prometheus.query(expression)}
        if not asked:
            break
        await asyncio.sleep(0.5)
    assert not asked
    (used,) = await prometheus.query('sum(max_over_time(stt_key_sessions_open{key="ann"}[1m]))')
    assert float(used["value"][1]) == 1


async def test_the_metrics_are_named_as_prometheus_wants_them(service, clip):
    async for _ in client.transcribe(service.url, clip.samples, rtf=0.0, api_key=KEY):
        pass
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{service.http}/metrics")).text
    ours = [line for line in text.splitlines() if re.match(r"(# (HELP|TYPE) )?(stt|process|kyutai_stt)_", line)]
    promtool("check", "metrics", stdin="\n".join(ours) + "\n")
