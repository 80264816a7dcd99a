"""Events as lines on standard output."""

import sys
from typing import Protocol

from serve_app import client
from serve_app.segments import Segment, Segmenter
from serve_app.transcript import TurnEnd, Word


class Printer(Protocol):
    """Shows the events of one session."""

    def show(self, event: client.Event) -> None:
        """Show what the event adds."""

    def close(self) -> None:
        """Say that no more comes."""


class TextLines:
    """Text as it comes, a line per turn."""

    def __init__(self) -> None:
        self._is_open = False

    def show(self, event: client.Event) -> None:
        """Print what the event adds."""
        match event:
            case client.Token(text=text):
                print(text if self._is_open else text.lstrip(), end="", flush=True)
                self._is_open = True
            case client.TurnEnd():
                self.close()
            case client.Status(state="waiting", place=place):
                print(f"stt: waiting for a slot, place {place} in line", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line that is open."""
        if self._is_open:
            self._is_open = False
            print(flush=True)


class WordLines:
    """A word per line, with its times."""

    def show(self, event: client.Event) -> None:
        """Print the event if it is a word."""
        if isinstance(event, client.Word):
            print(f"{event.start:.2f}-{event.end:.2f} {event.text}", flush=True)

    def close(self) -> None:
        """Nothing is left open."""


class JsonLines:
    """An event per line."""

    def show(self, event: client.Event) -> None:
        """Print the event."""
        print(event.model_dump_json(exclude_none=True), flush=True)

    def close(self) -> None:
        """Nothing is left open."""


class Segments:
    """Collects segments instead of printing anything."""

    def __init__(self) -> None:
        self._segmenter = Segmenter()
        self.found: list[Segment] = []

    def show(self, event: client.Event) -> None:
        """Take the event."""
        match event:
            case client.Word(text=text, start=start, end=end):
                self._keep(self._segmenter.add(Word(text, start, end)))
            case client.TurnEnd():
                self._keep(self._segmenter.add(TurnEnd(0.0)))

    def close(self) -> None:
        """Take what is left."""
        self._keep(self._segmenter.finish())

    def _keep(self, segment: Segment | None) -> None:
        if segment:
            self.found.append(segment)
