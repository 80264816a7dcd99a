"""`stt mic`: what a microphone hears, as text while it is being said."""

import asyncio
import contextlib
import os
import signal
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from serve_app import client
from serve_app.audio.microphone import Capture, Microphone, MicrophoneError, input_devices
from serve_app.cli.failure import failures_reported
from serve_app.cli.printing import TextLines
from serve_app.cli.services import Access, Key, ServiceName, Url, Wait, WireFormat, find_access

METER_CHARACTERS = 30
QUIETEST_DECIBELS = -60.0
"""What an empty meter stands for; a full one is the loudest there is."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def mic(
    *,
    url: Url = None,
    service: ServiceName = None,
    api_key: Key = None,
    device: Annotated[str | None, typer.Option(metavar="N|NAME", help="The microphone; see --list-devices.")] = None,
    list_devices: Annotated[bool, typer.Option("--list-devices", help="List the microphones and stop.")] = False,
    format: WireFormat = "f32",
    wait: Wait = 0.0,
) -> None:
    """Print what a microphone hears until Ctrl-C."""
    with failures_reported():
        if list_devices:
            typer.echo("\n".join(input_devices()) or "no audio input on this machine")
            return
        access = find_access(url, service, api_key, os.environ)
        microphone = Microphone(device)
        console = Console(highlight=False)
        typer.echo(f"stt: listening to {microphone.name}; Ctrl-C ends it", err=True)
        with contextlib.closing(_Screen(console) if console.is_terminal else _Lines()) as screen:
            asyncio.run(listen(microphone, access, screen, format, wait))
        if microphone.lost_blocks:
            typer.echo(f"stt: {microphone.lost_blocks} pieces of audio (80 ms each) were lost", err=True)


class _Lines(TextLines):
    """Without a terminal: only the text."""

    def hear(self, block: NDArray[np.float32]) -> None:
        """Nobody looks."""


class _Screen:
    """On a terminal: the turn that is being said, above how loud it is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True, refresh_per_second=12)
        self._turn = ""
        self._meter = ""
        self._live.start()

    def show(self, event: client.Event) -> None:
        """Show what the event adds."""
        match event:
            case client.Token(text=text):
                self._turn += text
            case client.TurnEnd():
                self._end_turn()
            case client.Status(state=state, place=place):
                self._console.print(
                    f"({state if place is None else f'waiting for a slot, place {place}'})", style="dim"
                )
        self._update()

    def hear(self, block: NDArray[np.float32]) -> None:
        """Show how loud the block is."""
        self._meter = "█" * round(loudness(block) * METER_CHARACTERS)
        self._update()

    def close(self) -> None:
        """Leave the text, and only the text."""
        self._live.stop()
        self._end_turn()

    def _end_turn(self) -> None:
        if self._turn:
            self._console.print(self._turn.strip(), markup=False)
            self._turn = ""

    def _update(self) -> None:
        self._live.update(Group(Text(self._turn.strip()), Text(f"▕{self._meter:<{METER_CHARACTERS}}▏", style="green")))


def loudness(block: NDArray[np.float32]) -> float:
    """How much of the meter is full: 0 to 1."""
    power = float(np.mean(np.square(block))) if len(block) else 0.0
    decibels = 10 * np.log10(max(power, 1e-12))
    return float(np.clip(1 - decibels / QUIETEST_DECIBELS, 0, 1))


async def listen(
    capture: Capture, access: Access, screen: _Lines | _Screen, format: client.Format, wait_s: float
) -> None:
    """Stream what is captured until SIGINT or SIGTERM, after which the rest of the words comes.

    A second signal does not wait for them. Raises what `client.connect` and `capture` raise.
    """
    async with client.connect(
        access.url, api_key=access.api_key, headers=access.headers, format=format, wait_s=wait_s
    ) as stream:
        sending: asyncio.Task[None] | None = None
        try:
            async for event in stream:
                screen.show(event)
                if isinstance(event, client.Ready):
                    _stop_on_signals(capture)
                    sending = asyncio.create_task(_send(capture, stream, screen))
        except BaseException:
            if sending:
                sending.cancel()
                # Why sending failed is what reading has raised.
                await asyncio.wait([sending])
            raise
        if sending:
            await sending  # which knows why the microphone has stopped


async def _send(capture: Capture, stream: client.Stream, screen: _Lines | _Screen) -> None:
    try:
        async with contextlib.aclosing(capture.blocks()) as blocks:
            async for block in blocks:
                screen.hear(block)
                await stream.send(block)
    except MicrophoneError:
        await stream.end()
        raise
    await stream.end()


def _stop_on_signals(capture: Capture) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        capture.stop()

    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
