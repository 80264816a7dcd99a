"""The limit on connections per address, and what the HTTP server takes: real uvicorn, real WebSockets."""

import asyncio
import contextlib
import ipaddress
import json

import httpx
import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress.connections import forwarded_address
from serve_app.ingress.http_server import MAX_HEADER_BYTES
from tests.support import serving

ADDRESSES = st.ip_addresses(v=4).map(str)


@pytest.mark.parametrize(
    ("header", "trusted", "address"),
    [
        ("1.2.3.4", 1, "1.2.3.4"),
        ("9.9.9.9, 1.2.3.4", 1, "1.2.3.4"),
        ("9.9.9.9,1.2.3.4 , 10.0.0.1", 2, "1.2.3.4"),
        ("1.2.3.4:5678", 1, "1.2.3.4"),
        ("[2001:db8::1]:5678", 1, "2001:db8::/64"),
        ("2001:db8::ffff:1", 1, "2001:db8::/64"),
        ("::ffff:1.2.3.4", 1, "1.2.3.4"),
        ("fe80::1%eth0", 1, "fe80::/64"),
        ("1.2.3.4", 2, None),
        ("", 1, None),
        ("unknown", 1, None),
        ("1.2.3.4, _hidden", 1, None),
    ],
)
def test_the_address_is_the_one_that_the_outermost_trusted_proxy_saw(header, trusted, address):
    assert forwarded_address(header, trusted) == address


@given(forged=st.text(alphabet=st.characters(max_codepoint=255)), seen=st.lists(ADDRESSES, min_size=1, max_size=4))
def test_what_the_client_wrote_itself_does_not_matter(forged, seen):
    assert forwarded_address(", ".join([forged, *seen]), len(seen)) == seen[0]


@given(header=st.text(), trusted=st.integers(1, 16))
def test_any_header_gives_an_address_or_none(header, trusted):
    address = forwarded_address(header, trusted)
    assert address is None or ipaddress.ip_network(address)


async def first_message(url: str, forwarded: str | None = None) -> tuple[dict, websockets.ClientConnection]:
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    connection = await websockets.connect(url, additional_headers=headers)
    return json.loads(await connection.recv()), connection


async def test_an_address_holds_so_many_connections_and_no_more(engines):
    async with serving(engines, ingress={"max_connections_per_address": 2}) as service:
        held = [await first_message(service.url) for _ in range(2)]
        assert [message["type"] for message, _ in held] == ["ready", "ready"]
        # Without trusted proxies the header is anybody's invention.
        refusal, refused = await first_message(service.url, forwarded="1.2.3.4")
        assert (refusal["type"], refusal["code"]) == ("error", "too_many_connections")
        assert refusal["retry_after_s"] > 0
        assert "at most 2 connections" in refusal["message"]
        await refused.wait_closed()
        assert refused.close_code == 1013
        await held[0][1].close()
        await wait_for_slots(service, 1)
        message, again = await first_message(service.url)
        assert message["type"] == "ready"
        await again.close()
        await held[1][1].close()
        await service.wait_until_empty()


async def test_behind_a_trusted_proxy_each_client_has_its_own_count(engines):
    async with serving(engines, ingress={"max_connections_per_address": 1, "trusted_proxies": 1}) as service:
        addresses = ["1.2.3.4", "1.2.3.5", "2001:db8::1", "1.2.3.4, 1.2.3.6", None]
        held = [await first_message(service.url, address) for address in addresses]
        assert [message["type"] for message, _ in held] == ["ready"] * 5
        for address in ["9.9.9.9, 1.2.3.4", "2001:db8::2", "nonsense", None]:
            message, refused = await first_message(service.url, address)
            assert message["code"] == "too_many_connections"
            await refused.close()
        for _, connection in held:
            await connection.close()
        await service.wait_until_empty()


@pytest.mark.parametrize("proxied", [True, False], ids=["behind HAProxy", "no limit"])
async def test_where_addresses_are_hidden_or_free_nobody_is_refused(engines, monkeypatch, proxied):
    if proxied:
        monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    limit = 1 if proxied else None
    async with serving(engines, ingress={"max_connections_per_address": limit}) as service:
        held = [await first_message(service.url) for _ in range(3)]
        assert [message["type"] for message, _ in held] == ["ready"] * 3
        for _, connection in held:
            await connection.close()


async def wait_for_slots(service, used: int) -> None:
    async with asyncio.timeout(10):
        while service.engines.slots_used() != used:
            await asyncio.sleep(0.01)


async def test_compression_is_not_negotiated(engines):
    async with (
        serving(engines) as service,
        websockets.connect(service.url, compression="deflate") as connection,
    ):
        assert "Sec-WebSocket-Extensions" in connection.request.headers
        assert "Sec-WebSocket-Extensions" not in connection.response.headers
        assert not connection.protocol.extensions


async def test_headers_have_a_limit(engines):
    async with serving(engines) as service, httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as http:
        assert (await http.get("/health", headers={"x-padding": "x" * (MAX_HEADER_BYTES - 1_000)})).status_code == 200
        with contextlib.suppress(httpx.ReadError, httpx.WriteError):  # the answer may drown in the reset
            assert (await http.get("/health", headers={"x-padding": "x" * 100 * MAX_HEADER_BYTES})).status_code == 400


async def test_headers_that_never_end_take_no_memory(engines):
    async with serving(engines) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(30):
                while not reader.at_eof():
                    writer.write(b"x-more: " + b"x" * 4_000 + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0)
        writer.close()
