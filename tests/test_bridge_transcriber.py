"""Sessions of devices with servers that follow a script; tests/test_bridge.py has the real service."""

import asyncio
import json

import pytest
from websockets.asyncio.server import ServerConnection

from serve_app.bridges import transcriber
from serve_app.bridges.transcriber import MOST_TRIES, Live, Transcriber, Turns
from tests.test_bridge_device import piece
from tests.test_client import DONE, READY, peer, say, until_end


class Told:
    """What became of the pieces."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, list[str]]] = []
        self.refusals: list[tuple[int, str]] = []

    def answered(self, answer) -> None:
        self.answers.append((answer.piece.offset, [word.text for word in answer.words]))

    def refused(self, one, reason: str) -> None:
        self.refusals.append((one.offset, reason))


def ended(pieces: int) -> Live:
    """A session of pieces of a second that has ended."""
    live = Live(30.0)
    for number in range(pieces):
        live.add(piece(number, 1.0, 24_000))
    live.end()
    return live


async def test_turns_are_taken_in_order_and_given_back():
    turns, order = Turns(1), []

    async def work(name: str) -> None:
        async with turns.take():
            order.append(name)
            await asyncio.sleep(0)

    async with turns.take():
        workers = [asyncio.create_task(work(name)) for name in "abc"]
        await asyncio.sleep(0)
        assert turns.are_asked_for
        workers[1].cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert order == ["a", "c"]
    assert not turns.are_asked_for


async def test_pieces_are_answered_while_the_session_goes_on():
    async def script(connection: ServerConnection) -> None:
        await say(connection, READY)
        await connection.recv()
        await say(connection, {"type": "word", "text": "one", "start": 0.2, "end": 0.6, "confidence": 0.5, "seq": 1})
        await say(connection, {"type": "settled", "time": 1.2})
        await until_end(connection)
        await say(connection, {"type": "word", "text": "two", "start": 1.2, "end": 1.9, "confidence": 0.5, "seq": 2})
        await say(connection, DONE)

    live, told = Live(30.0), Told()
    live.add(piece(0, 1.0, 24_000))
    async with peer(script) as address, asyncio.timeout(30):
        bringing = Transcriber(address, None, 1)
        running = asyncio.create_task(bringing.transcribe(live, told.answered, told.refused))
        while not told.answers:
            await asyncio.sleep(0.01)
        assert told.answers == [(0, ["one"])]
        live.add(piece(1, 1.0, 24_000))
        live.end()
        await running
    assert told.answers == [(0, ["one"]), (1, ["two"])]
    assert (bringing.model, bringing.is_well, bringing.sessions) == ("demo", True, 0)


async def test_a_piece_that_was_spoken_before_the_first_one_is_heard_before_it():
    heard = []

    async def script(connection: ServerConnection) -> None:
        await say(connection, READY)
        heard.append(len(await connection.recv()) // 4)
        if len(heard) == 1:
            live.add_before(piece(0, 0.5, 24_000))
            await connection.wait_closed()
            live.end()
        else:
            heard.append(len(await until_end(connection)))
            await say(connection, {"type": "word", "text": "word", "start": 0.1, "end": 0.4, "seq": 1})
            await say(connection, DONE)

    live, told = Live(30.0), Told()
    live.add(piece(1, 1.0, 24_000))
    async with peer(script) as address, asyncio.timeout(60):
        await Transcriber(address, None, 1).transcribe(live, told.answered, told.refused)
    assert heard == [24_000, 12_000, 24_000]
    assert told.answers == [(0, ["word"]), (1, [])]


async def test_a_session_that_is_let_go_of_while_its_stream_ends_does_not_go_on(monkeypatch):
    began, ending, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def send(stream, live: Live) -> None:
        """Takes a moment to end."""
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await may_end.wait()

    async def script(connection: ServerConnection) -> None:
        await say(connection, READY)
        await began.wait()
        await say(connection, {"type": "error", "code": "internal_error", "message": "the service failed"})

    monkeypatch.setattr(transcriber, "_send", send)
    told = Told()
    async with peer(script) as address:
        running = asyncio.create_task(Transcriber(address, None, 1).transcribe(ended(1), told.answered, told.refused))
        async with asyncio.timeout(30):
            await ending.wait()
        running.cancel()
        await asyncio.wait([running], timeout=30)
        may_end.set()
        assert running.cancelled()


@pytest.mark.parametrize("code", ["invalid_audio", "step_failed"])
async def test_the_piece_on_which_the_service_fails_is_given_up_and_the_others_are_heard(code, monkeypatch):
    """Tried alone, good pieces before it and behind it are not blamed."""
    monkeypatch.setattr(transcriber, "LONGEST_RETRY_SECONDS", 0.01)
    heard = []

    async def script(connection: ServerConnection) -> None:
        await say(connection, READY)
        heard.append(len(await until_end(connection)))
        if (heard[-1] // 2_400) % 10:  # the bad piece is there, for which alone the length is no whole second
            await say(connection, {"type": "error", "code": code, "message": "it failed"})
        else:
            await say(connection, DONE)

    told, live = Told(), Live(30.0)
    for number, seconds in enumerate((1.0, 0.5, 1.0)):
        live.add(piece(number, seconds, 24_000))
    live.end()
    async with peer(script) as address, asyncio.timeout(60):
        await Transcriber(address, None, 1).transcribe(live, told.answered, told.refused)
    assert told.answers == [(0, []), (2, [])]
    assert told.refusals == [(1, f"the service failed on it {MOST_TRIES[code]} times: it failed ({code})")]
    assert heard.count(24_000) == 1
    assert heard[-1] == 48_000


@pytest.mark.parametrize("code", ["step_failed", "internal_error", "invalid_key", "of a later version"])
async def test_a_service_that_fails_for_a_while_costs_no_piece(code, monkeypatch):
    monkeypatch.setattr(transcriber, "LONGEST_RETRY_SECONDS", 0.01)
    tries = 0

    async def script(connection: ServerConnection) -> None:
        nonlocal tries
        tries += 1
        await say(connection, READY)
        await until_end(connection)
        if tries < MOST_TRIES["step_failed"]:
            await say(connection, {"type": "error", "code": code, "message": "the service failed"})
        else:
            await say(connection, DONE)

    told = Told()
    async with peer(script) as address, asyncio.timeout(60):
        await Transcriber(address, None, 1).transcribe(ended(2), told.answered, told.refused)
    assert (told.answers, told.refusals) == ([(0, []), (1, [])], [])


async def test_a_full_service_and_none_at_all_are_waited_for():
    tries = 0

    async def script(connection: ServerConnection) -> None:
        nonlocal tries
        tries += 1
        if tries <= 4:
            full = {"type": "error", "code": "at_capacity", "message": "full", "retry_after_s": 0.1}
            await connection.send(json.dumps(full))
            return
        await say(connection, READY)
        await until_end(connection)
        await say(connection, DONE)

    told = Told()
    async with peer(script) as address:
        port = address
    waiting = Transcriber(port, None, 1)
    running = asyncio.create_task(waiting.transcribe(ended(1), told.answered, told.refused))
    async with asyncio.timeout(30):
        while waiting.is_well:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    async with peer(script) as address, asyncio.timeout(60):
        await Transcriber(address, None, 1).transcribe(ended(1), told.answered, told.refused)
    assert told.answers == [(0, [])]
    assert told.refusals == []
