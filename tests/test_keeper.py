"""The keeper with real sessions: what the vault has is enough, whatever happened to the vault meanwhile."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serve_app.session import keeper as keeper_module
from serve_app.session import vault_copies
from serve_app.session.keeper import Keeper, Kept, digest
from serve_app.session.session import Session
from serve_app.session.vault import Vault, VaultClient
from serve_app.session.vault_copies import VaultCopies
from serve_app.settings import SessionSettings
from serve_app.telemetry import IngressMetrics
from tests.support import DirectEngines, LocalVault, served


def new_session(engines: DirectEngines, metrics: IngressMetrics) -> Session:
    return Session("session-1", served(engines), SessionSettings(), metrics)


async def speak(session: Session, samples: np.ndarray) -> None:
    reading = asyncio.create_task(anext(session.events()))
    await session.feed(samples)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def taken(keeper: Keeper, kept: Kept, sessions: int = 1) -> int:
    """Samples that the vault's copy has; it is put back."""
    saved = await keeper.take(kept.token, "credential", "elsewhere")
    assert saved is not None
    return len(b"".join(saved.records[0]))


@pytest.fixture
def metrics() -> IngressMetrics:
    return IngressMetrics(CollectorRegistry())


async def keeping(
    engines: DirectEngines,
    metrics: IngressMetrics,
    vault: VaultClient,
    on_taken: Callable[[Kept], None] = lambda _: None,
) -> tuple[Keeper, Session, Kept]:
    """A keeper that has not started, and the open session that it keeps in `vault`."""
    keeper = Keeper(vault, metrics, on_taken=on_taken)
    session = new_session(engines, metrics)
    await session.open()
    kept = Kept(session, "credential")
    keeper.add(kept)
    return keeper, session, kept


async def test_a_vault_that_lost_everything_gets_it_again(engines, clip, metrics, monkeypatch):
    monkeypatch.setattr(keeper_module, "SAVE_SECONDS", 0.05)
    vault, ended = LocalVault(60), []
    keeper, session, kept = await keeping(engines, metrics, vault, ended.append)
    keeper.start()
    await speak(session, clip.samples[:40_000])
    await asyncio.sleep(0.4)
    assert metrics.registry.get_sample_value("stt_vault_sessions") == 1
    vault.vault = Vault(60, 2**30)
    await speak(session, clip.samples[40_000:80_000])
    await asyncio.sleep(0.6)
    assert await taken(keeper, kept) > 0
    await asyncio.sleep(0.4)
    assert ended == [kept]  # it hears that somebody else has its session
    await keeper.stop()
    await session.close()


async def test_a_session_that_cannot_be_saved_costs_no_other_its_checkpoint(engines, clip, metrics, monkeypatch):
    keeper = Keeper(LocalVault(60), metrics, on_taken=lambda _: None)
    sessions = [new_session(engines, metrics) for _ in range(2)]
    all_kept = [Kept(session, "credential") for session in sessions]
    for session, kept in zip(sessions, all_kept, strict=True):
        await session.open()
        await speak(session, clip.samples[:30_000])
        keeper.add(kept)
    monkeypatch.setattr(sessions[0], "checkpoint", lambda since: 1 / 0)
    keeper.start()
    await asyncio.sleep(0.5)
    assert await keeper.take(all_kept[0].token, "credential", "elsewhere") is None
    assert await taken(keeper, all_kept[1]) > 0
    await keeper.stop()
    for session in sessions:
        await session.close()


async def test_what_is_over_is_forgotten_even_if_the_vault_was_away(engines, clip, metrics, monkeypatch):
    monkeypatch.setattr(keeper_module, "SAVE_SECONDS", 0.05)
    vault = LocalVault(60)
    keeper, session, kept = await keeping(engines, metrics, vault)
    keeper.start()
    await speak(session, clip.samples[:30_000])
    await asyncio.sleep(0.3)
    vault.available = False
    keeper.forget(kept)
    await asyncio.sleep(0.3)
    assert metrics.registry.get_sample_value("stt_checkpoint_failures_total") >= 1
    vault.available = True
    await asyncio.sleep(0.3)
    assert await keeper.take(kept.token, "credential", "elsewhere") is None
    await keeper.stop()
    await session.close()


async def test_a_vault_without_room_costs_the_other_one_nothing(engines, clip, metrics, monkeypatch):
    monkeypatch.setattr(keeper_module, "LAST_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(keeper_module, "SAVE_SECONDS", 0.05)
    monkeypatch.setattr(keeper_module, "RENEWAL_SECONDS", 3600.0)
    good, full = LocalVault(60), LocalVault(60, capacity_bytes=1)
    keeper, session, kept = await keeping(engines, metrics, VaultCopies([good, full]))
    keeper.start()
    for spoken in range(1, 4):
        await speak(session, clip.samples[(spoken - 1) * 24_000 : spoken * 24_000])
        async with asyncio.timeout(60):  # far less than until it is sent whole again
            while kept.saved != kept.progress:
                await asyncio.sleep(0.01)
    assert await keeper.let_go(kept)
    await keeper.stop()
    await session.close()
    saved = good.vault.take(digest(kept.token), digest("credential"), "elsewhere")
    assert len(b"".join(saved.records[0])) > 0


async def test_a_vault_that_comes_back_empty_has_everything_again_though_nothing_is_new(engines, clip, metrics):
    good, emptied = LocalVault(60), LocalVault(60)
    keeper, session, kept = await keeping(engines, metrics, VaultCopies([good, emptied]))
    await speak(session, clip.samples[:40_000])
    keeper.start()
    async with asyncio.timeout(30):
        while kept.saved != kept.progress:
            await asyncio.sleep(0.01)
        emptied.vault = Vault(60, 2**30)
        while not emptied.vault.take(digest(kept.token), digest("credential"), "elsewhere"):
            await asyncio.sleep(0.01)
    await keeper.stop()
    await session.close()


async def test_an_ingress_without_sessions_still_tells_a_vault_that_was_silent(engines, clip, metrics, monkeypatch):
    monkeypatch.setattr(vault_copies, "REST_SECONDS", 0.0)
    good, silent = LocalVault(60), LocalVault(60)
    keeper, session, kept = await keeping(engines, metrics, VaultCopies([good, silent]))
    keeper.start()
    async with asyncio.timeout(30):
        while not silent.vault.save([], [], []).sessions:
            await asyncio.sleep(0.01)
        silent.available = False
        keeper.forget(kept)
        while good.vault.save([], [], []).sessions:
            await asyncio.sleep(0.01)
        assert silent.vault.save([], [], []).sessions == 1
        silent.available = True
        while silent.vault.save([], [], []).sessions:
            await asyncio.sleep(0.01)
    await keeper.stop()
    await session.close()
