"""The bridge as a process of its own."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.kafka_support import Reader, cut, mock_brokers, new_settings, send
from tests.support import PROJECT, serving

PATIENCE_SECONDS = 90


@contextmanager
def process(log: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "serve_app.bridges.kafka", *arguments]
    with log.open("wb") as output:
        running = subprocess.Popen(
            command, cwd=PROJECT, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def lines_of(log: Path) -> list[dict]:
    """What was logged: nothing else goes to stdout or stderr. The last line may still be on its way."""
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def logged(log: Path, event: str) -> dict | None:
    return next((line for line in lines_of(log) if line["event"] == event), None)


async def test_it_serves_the_topics_tells_how_it_is_and_ends_when_told_to(engines, clip, tmp_path):
    log = tmp_path / "log"
    with mock_brokers() as brokers:
        settings = new_settings(brokers)
        chunks = cut(clip.samples[: 2 * 24_000], "phone", format="s16")
        send(settings, *chunks)
        environment = {
            "LOOM_KAFKA_BOOTSTRAP_SERVERS": brokers,
            "LOOM_KAFKA_INPUT_TOPIC": settings.input_topic,
            "LOOM_KAFKA_OUTPUT_TOPIC": settings.output_topic,
            "LOOM_KAFKA_GROUP_ID": settings.group_id,
            "SESSION_GAP_SECONDS": "1",
        }
        async with serving(engines) as service:
            with process(log, "--url", service.url, "--port", "0", **environment) as bridge:
                reader = Reader(settings, settings.output_topic)
                await asyncio.to_thread(reader.wait_for, len(chunks), PATIENCE_SECONDS)
                reader.close()
                listening = logged(log, "bridge is listening")
                assert listening
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listening['port']}") as http:
                    assert (await http.get("/")).json()["ready"] is True
                    assert (await http.get("/healthz")).text == "ok"
                    assert (await http.get("/readyz")).status_code == 200
                    metrics = (await http.get("/metrics")).text
                assert "kyutai_stt_audio_chunks_processed_total{" in metrics
                assert "kyutai_stt_processing_duration_seconds_bucket{" in metrics
                bridge.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(bridge.wait, PATIENCE_SECONDS) == 0
    assert logged(log, "partition assigned")


def test_wrong_settings_are_told(tmp_path):
    log = tmp_path / "log"
    with process(log, LOOM_KAFKA_BOOTSTRAP_SERVERS="") as bridge:
        assert bridge.wait(PATIENCE_SECONDS) == 2
    assert log.read_text() == "LOOM_KAFKA_BOOTSTRAP_SERVERS: expected brokers (host:port), got nothing\n"


def test_a_port_that_is_taken_is_told(tmp_path):
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process(log, "--port", str(port), LOOM_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1") as bridge:
            assert bridge.wait(PATIENCE_SECONDS) == 2
    [line] = log.read_text().splitlines()
    assert line.startswith(f"cannot listen on 127.0.0.1:{port} (Address already in use")


async def test_without_brokers_it_is_not_ready_and_still_ends_when_told_to(tmp_path):
    log = tmp_path / "log"
    with process(log, "--port", "0", LOOM_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1") as bridge:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (listening := logged(log, "bridge is listening")) is None:
                await asyncio.sleep(0.1)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listening['port']}") as http:
            assert (await http.get("/readyz")).status_code == 503
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (told := [line for line in lines_of(log) if line.get("facility") == "FAIL"]):
                await asyncio.sleep(0.1)
        assert "Connection refused" in told[0]["event"]
        assert told[0]["client"].startswith("rdkafka#")
        assert (told[0]["level"], told[0]["logger"]) == ("error", "serve_app.bridges.librdkafka_log")
        bridge.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(bridge.wait, PATIENCE_SECONDS) == 0
