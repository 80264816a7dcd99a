"""A process that holds sessions, as many as it is told to: `python -m loadtest.speaker`, for `loadtest.speakers`.

Locust runs on gevent, which takes sockets, threads and time over; audio at the pace of speech and our client want a
plain asyncio. So each of Locust's processes has one of these beside it. It reads lines of JSON and writes some:

    in   {"manner": {…}, "clips": FOLDER|null, "length": "5-30", "seed": "…"}    first
    out  {"ready": true} or {"error": "…"}
    in   {"say": 7}            out  {"said": 7, "outcome": {…}}
    in   {"stop": 7}           the session is cut off; nothing comes of it

It ends when its standard input does.
"""

import asyncio
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.script import InvalidLength, parse_length, write_script
from serve_app.audio.files import AudioFileError
from serve_app.measuring.speaking import InvalidManner, Manner, speak
from serve_app.samples import Clip, choose_clips


def clips_of(folder: str | None) -> list[Clip]:
    """The clips to speak: a folder's, or the bundled ones that are short; longer sessions are made of several.

    Raises `AudioFileError`.
    """
    return choose_clips([Path(folder)] if folder else [])


class Speaker:
    """Holds sessions side by side."""

    def __init__(self, order: dict[str, Any], output: asyncio.WriteTransport) -> None:
        """Raises `AudioFileError`, `InvalidLength` and `InvalidManner`."""
        self._manner = Manner(**order["manner"])
        self._clips = clips_of(order["clips"])
        self._length = parse_length(order["length"])
        self._seed = order["seed"]
        self._output = output
        self._sessions: dict[int, asyncio.Task[None]] = {}

    def tell(self, **fields: Any) -> None:
        """Write a line."""
        self._output.write(json.dumps(fields).encode() + b"\n")

    def obey(self, order: dict[str, Any]) -> None:
        """Begin a session, or cut one off."""
        if "say" in order:
            number = order["say"]
            self._sessions[number] = task = asyncio.create_task(self._say(number))
            task.add_done_callback(lambda _: self._sessions.pop(number))
        elif session := self._sessions.get(order["stop"]):
            session.cancel()

    async def close(self) -> None:
        """Cut everything off."""
        sessions = list(self._sessions.values())
        for session in sessions:
            session.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)

    async def _say(self, number: int) -> None:
        script = write_script(self._clips, self._length, random.Random(f"{self._seed} {number}"))
        outcome = await speak(script, self._manner, flush=number % 2 == 0)
        self.tell(said=number, outcome=asdict(outcome))


async def main() -> None:
    """Obey until the orders end."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=2**20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    output, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout)
    try:
        speaker = Speaker(json.loads(await orders.readline()), output)
    except (AudioFileError, InvalidLength, InvalidManner) as error:
        output.write(json.dumps({"error": str(error)}).encode() + b"\n")
        return
    speaker.tell(ready=True)
    try:
        while line := await orders.readline():
            speaker.obey(json.loads(line))
    finally:
        await speaker.close()


if __name__ == "__main__":
    asyncio.run(main())
