"""Whatever clients do, all that was held for them is given back."""

import asyncio
import json
import random

import httpx
import numpy as np
import websockets

from tests.support import serving

ENDINGS = ("abort", "abort unseen", "close", "end", "nonsense", "half a sample", "wait")


async def come_and_go(url: str, draw: random.Random) -> None:
    ending = draw.choice(ENDINGS)
    connection = await websockets.connect(f"{url}?wait_s=5" if ending == "wait" else url, close_timeout=5)
    try:
        if ending == "abort unseen" or json.loads(await connection.recv())["type"] == "error":
            return
        await connection.send(np.zeros(draw.randint(1, 40_000), np.float32).tobytes())
        await asyncio.sleep(draw.uniform(0, 0.1))
        match ending:
            case "close":
                await connection.close()
            case "end" | "half a sample" | "nonsense":
                if ending == "half a sample":
                    await connection.send(b"\0")
                await connection.send("EOS" if ending != "nonsense" else "good morning")
                async for message in connection:
                    if json.loads(message)["type"] in ("done", "error"):
                        break
    except websockets.ConnectionClosed:
        pass
    finally:
        connection.transport.abort()


async def held(service) -> dict[str, int]:
    async with httpx.AsyncClient() as http:
        return (await http.get(f"http://127.0.0.1:{service.port}/status")).json()["held"]


async def test_after_a_storm_nothing_is_held(engines):
    draw, gate = random.Random(1), asyncio.Semaphore(24)
    async with serving(engines) as service:
        before = await held(service)

        async def one() -> None:
            async with gate:
                await come_and_go(service.url, draw)

        await asyncio.gather(*(one() for _ in range(150)))
        await service.wait_until_empty()
        for _ in range(100):  # connections linger for a moment
            after = await held(service)
            more = {what: after[what] - before[what] for what in before if what != "memory_bytes"}
            if max(more.values()) <= 0:
                break
            await asyncio.sleep(0.1)
        assert max(more.values()) <= 0, more
        assert after["leases"] == after["session_tasks"] == after["sessions"] == after["clients_waiting"] == 0


async def test_what_is_held_is_seen(engines):
    async with serving(engines) as service:
        before = await held(service)
        async with websockets.connect(service.url) as connection:
            assert json.loads(await connection.recv())["type"] == "ready"
            now = await held(service)
            assert (now["sessions"], now["leases"]) == (1, 1)
            assert now["session_tasks"] >= 1
            assert now["sockets"] > before["sockets"]
            async with httpx.AsyncClient() as http:
                metrics = (await http.get(f"http://127.0.0.1:{service.port}/metrics")).text
        assert 'stt_ingress_leases{deployment="ingress",replica="ingress-1"} 1.0' in metrics
