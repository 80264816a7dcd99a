"""Sessions that are handed on, through a real ingress: what a key may hold, and what a vault in trouble costs."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from serve_app import client
from serve_app.client.send_buffer import BUFFER_SECONDS
from serve_app.session import keeper
from serve_app.session.vault import Answer, Saved, VaultUnavailable
from serve_app.speech import SAMPLE_RATE_HZ
from tests.support import LocalVault, serving
from tests.test_client_resume import network

SLOTS = 8


async def first(connection: ClientConnection) -> dict:
    """Ready, or the error."""
    while (message := json.loads(await connection.recv()))["type"] not in ("ready", "error"):
        pass
    return message


async def ask(url: str, **query: str) -> tuple[ClientConnection, dict]:
    address = url + "?" + "&".join(f"{name}={value}" for name, value in query.items())
    connection = await websockets.connect(address, additional_headers={"Authorization": "a key"})
    return connection, await first(connection)


async def test_sessions_that_come_back_count_like_new_ones(engines):
    async with serving(engines, engine={"slots": SLOTS}) as service:
        share = SLOTS * 3 // 4
        old = [await ask(service.url) for _ in range(share)]
        for connection, _ in old:
            connection.transport.abort()
        await service.wait_until_empty()
        new = [await ask(service.url) for _ in range(share)]
        assert {answer["type"] for _, answer in new} == {"ready"}
        token = old[0][1]["resume_token"]
        connection, refused = await ask(service.url, resume=token, last_seq="0")
        assert refused["code"] == "too_many_sessions"
        await connection.close()
        await new[0][0].close()
        connection, resumed = await ask(service.url, resume=token, last_seq="0")
        assert resumed["type"] == "ready", "the token is still good"
        for other in (connection, *(made for made, _ in new[1:])):
            other.transport.abort()


async def test_a_vault_that_was_away_when_a_client_was_cut_off_still_has_the_session(engines, clip, monkeypatch):
    monkeypatch.setattr(keeper, "LAST_SAVE_SECONDS", 0.2)
    vault = LocalVault(60)
    async with serving(engines, vault) as service:
        connection, ready = await ask(service.url)
        await connection.send(clip.samples[:24_000].tobytes())
        async with asyncio.timeout(20):
            while not vault.vault._entries:
                await asyncio.sleep(0.05)
        vault.available = False
        connection.transport.abort()
        await service.wait_until_empty()
        vault.available = True
        await asyncio.sleep(2 * keeper.ROUND_SECONDS)
        connection, answer = await ask(service.url, resume=ready["resume_token"], last_seq="0")
        assert answer["type"] == "ready"
        await connection.close()


@pytest.mark.parametrize("seconds", [0.0, 1.0])
async def test_a_mistake_while_saving_costs_that_round_only(engines, monkeypatch, seconds):
    monkeypatch.setattr(keeper, "LAST_SAVE_SECONDS", 0.2)
    vault = LocalVault(60)
    save = vault.save

    async def broken(*_: object) -> None:
        raise RuntimeError("surprise")

    async with serving(engines, vault) as service:
        connection, _ = await ask(service.url)
        vault.save = broken
        await asyncio.sleep(seconds)
        if seconds:
            vault.save = save
            async with asyncio.timeout(20):
                while not vault.vault._entries:
                    await asyncio.sleep(0.05)
        connection.transport.abort()
        await service.wait_until_empty()


class Forgetful(LocalVault):
    """A vault that saves nothing any more once a session was taken: as if its taker had died at once."""

    def __init__(self) -> None:
        super().__init__(60)
        self.saves = True

    async def save(self, *arguments: Any) -> Answer:
        if not self.saves:
            raise VaultUnavailable("nobody answers")
        return await super().save(*arguments)

    async def take(self, *arguments: Any) -> Saved | None:
        saved = await super().take(*arguments)
        self.saves = saved is None
        return saved


async def test_an_ingress_that_dies_before_it_saved_who_came_back_loses_nobody(engines, clip, monkeypatch):
    """The client has a token that nobody knows; the one before still works."""
    monkeypatch.setattr(keeper, "LAST_SAVE_SECONDS", 0.2)
    vault = Forgetful()
    async with serving(engines, vault) as service, network(service) as net:
        async with client.connect(f"127.0.0.1:{net.port}", words=True) as stream:
            listening = asyncio.create_task(words_of(stream))
            for _ in range(int(1.2 * BUFFER_SECONDS)):  # so that the session cannot simply be begun again
                await stream.send(np.zeros(SAMPLE_RATE_HZ, np.float32))
            async with asyncio.timeout(60):
                [seat] = service.ingress.sessions._seats.values()
                while saved_samples(seat) < 10 * SAMPLE_RATE_HZ:
                    await asyncio.sleep(0.05)
                net.cut()
                while stream.reconnects < 1:
                    await asyncio.sleep(0.05)
                net.cut()
                await service.wait_until_empty()
                vault.saves = True
            await stream.send(clip.samples)
            await stream.end()
            async with asyncio.timeout(60):
                assert await listening == clip.words
        assert stream.reconnects == 2


def saved_samples(kept: keeper.Kept) -> int:
    _, (samples, _, _), _ = kept.saved
    return samples


async def words_of(stream: client.Stream) -> list[str]:
    return [event.text async for event in stream if isinstance(event, client.Word)]
