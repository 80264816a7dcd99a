"""The service behind nginx with TLS: the very configuration file that is shipped, a certificate of our own."""

import asyncio
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import websockets

from serve_app import client
from tests.support import PROJECT, Service, serving
from tests.system_packages import require_program
from tests.test_cli_transcribe import stt
from tests.test_smoke import WORDS, beginning

__all__ = ["beginning"]  # a fixture

SHIPPED = PROJECT / "cluster" / "nginx" / "stt.conf"

MAIN = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/stt.conf;
}}
"""
"""What a distribution's own nginx.conf has around the shipped file, for a user without rights."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """Each old text must be in the shipped file exactly once."""
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def make_certificate(certificate: Path, key: Path) -> None:
    """One that signs itself, for this machine."""
    subprocess.run(
        [require_program("openssl", "openssl"), "req", "-x509", "-nodes", "-days", "1",
         "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip


class Proxy:
    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.authority = folder / "stt.crt"

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    # Two connections, so that the third shows whose address is counted.
    async with serving(engines, ingress={"max_connections_per_address": 2, "trusted_proxies": 1}) as made:
        yield made


@pytest.fixture
async def proxy(service, tmp_path) -> AsyncIterator[Proxy]:
    nginx = require_program("nginx", "nginx-light")
    made = Proxy(tmp_path, free_port())
    certificate, key = tmp_path / "stt.crt", tmp_path / "stt.key"
    make_certificate(certificate, key)
    shipped = replaced(
        SHIPPED.read_text(),
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{service.port};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{made.port} ssl;"),
        ("/etc/nginx/stt.crt", str(certificate)),
        ("/etc/nginx/stt.key", str(key)),
    )
    (tmp_path / "stt.conf").write_text(shipped)
    (tmp_path / "nginx.conf").write_text(MAIN.format(folder=tmp_path))
    process = await asyncio.create_subprocess_exec(
        nginx, "-p", str(tmp_path), "-e", "stderr", "-c", str(tmp_path / "nginx.conf"),
        stderr=(tmp_path / "errors").open("wb"),
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            while True:
                assert process.returncode is None, (tmp_path / "errors").read_text()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", made.port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                break
        yield made
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_our_client_transcribes_over_wss(service, proxy, clip, monkeypatch):
    """A certificate of one's own is trusted as everywhere in Python: by SSL_CERT_FILE."""
    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.authority))
    events = [
        arrival.event
        async for arrival in client.transcribe(f"https://localhost:{proxy.port}", clip.samples, words=True, rtf=0)
    ]
    assert [event.text for event in events if isinstance(event, client.Word)] == clip.words
    await service.wait_until_empty()


async def test_every_endpoint_and_dialect_goes_through(service, proxy, beginning):
    """Two connections are few for `stt smoke`: it asks again."""
    url = f"https://localhost:{proxy.port}"
    status, output, errors = await stt(
        "smoke", "--url", url, "--clip", beginning, "--reference", WORDS, SSL_CERT_FILE=str(proxy.authority)
    )
    assert (status, errors) == (0, ""), output
    await service.wait_until_empty()


async def test_an_unknown_certificate_is_refused(proxy, clip):
    with pytest.raises(client.ConnectionRefused, match="certificate"):
        async with client.connect(f"wss://localhost:{proxy.port}"):
            pass


async def test_the_service_counts_the_client_that_nginx_saw(service, proxy):
    url = f"wss://localhost:{proxy.port}/v1/stream"
    forged = [{"X-Forwarded-For": f"1.2.3.{number}"} for number in range(3)]
    connections = [await websockets.connect(url, ssl=proxy.tls, additional_headers=headers) for headers in forged]
    kinds = ["ready" if '"ready"' in await connection.recv() else "refused" for connection in connections]
    for connection in connections:
        await connection.close()
    assert kinds == ["ready", "ready", "refused"]
    assert connections[2].close_code == 1013


async def test_http_behind_nginx(proxy):
    async with httpx.AsyncClient(base_url=f"https://localhost:{proxy.port}", verify=proxy.tls) as http:
        assert (await http.get("/readyz")).text == "ready"
        assert (await http.get("/metrics")).status_code == 200  # this machine's own address may see it
        assert (await http.get("/", headers={"x-padding": "x" * 40_000})).status_code == 400
        assert (await http.post("/", content=bytes(2_000_000))).status_code == 413


async def test_large_files_reach_the_service(proxy):
    noise = bytes(2_000_000)
    async with httpx.AsyncClient(base_url=f"https://localhost:{proxy.port}", verify=proxy.tls, timeout=60) as http:
        answers = [
            await http.post("/v1/audio/transcriptions", files={"file": noise}),
            await http.post("/api/asr-streaming?wait_s=0", content=noise),
        ]
    assert [answer.status_code for answer in answers] == [400, 400]  # it is no audio


def test_the_proxy_is_more_patient_than_our_pings():
    from serve_app.settings import IngressSettings

    patience = [float(seconds) for seconds in re.findall(r"proxy_(?:read|send)_timeout +(\d+)s;", SHIPPED.read_text())]
    assert len(patience) == 3
    assert min(patience) > 2 * IngressSettings().ping_seconds
