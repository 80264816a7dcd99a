"""`stt top`: watch a running service in the terminal."""

import json as json_module
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from serve_app.cli.failure import failures_reported
from serve_app.cli.figures import Figures, Scrape, figures
from serve_app.cli.services import Access, Key, ServiceName, Url, find_access
from serve_app.cli.top_view import line, screen
from serve_app.client import ConnectionRefused, KeyRefused
from serve_app.client.address import is_loopback, shown, stream_url

ANSWER_SECONDS = 10.0
"""How long the service may take to answer."""


class Watched:
    """A service whose metrics are read again and again."""

    def __init__(self, access: Access) -> None:
        """Raises InvalidAddress."""
        address = urlsplit(stream_url(access.url))
        base = f"{'https' if address.scheme == 'wss' else 'http'}://{address.netloc}"
        headers = {**access.headers, **({"Authorization": f"Bearer {access.api_key}"} if access.api_key else {})}
        self._http = httpx.Client(
            base_url=base, headers=headers, timeout=ANSWER_SECONDS, trust_env=not is_loopback(stream_url(access.url))
        )
        self._before: Scrape | None = None
        self.address = shown(base)

    def close(self) -> None:
        """Read no more."""
        self._http.close()

    def title(self) -> str:
        """What it is and where. Raises ConnectionRefused."""
        status = self._get("/status")
        try:
            about = status.json()
            return f"{about['service']}: {about['model']} at {self.address}"
        except (ValueError, KeyError, TypeError):
            raise ConnectionRefused(
                f"{self.address}/status: expected what our service says of itself, got another"
            ) from None

    def look(self) -> Figures:
        """The figures since the last look. Raises ConnectionRefused."""
        text = self._get("/metrics").text
        try:
            now = Scrape(text, time.monotonic())
        except ValueError as error:
            raise ConnectionRefused(f"{self.address}/metrics: expected metrics, got {error}") from None
        seen = figures(now, self._before)
        if now.is_complete:  # else the others would seem to begin anew at the next look
            self._before = now
        return seen

    def _get(self, path: str) -> httpx.Response:
        try:
            answer = self._http.get(path)
        except httpx.HTTPError as error:
            raise ConnectionRefused(f"{self.address}{path}: no answer ({error!r})") from None
        if answer.status_code in (401, 403):
            raise KeyRefused(f"{self.address}{path}: the key is refused ({answer.status_code})")
        if answer.is_error:
            raise ConnectionRefused(f"{self.address}{path}: expected metrics, got HTTP {answer.status_code}")
        return answer


def top(
    *,
    url: Url = None,
    service: ServiceName = None,
    api_key: Key = None,
    interval: Annotated[float, typer.Option(min=0.5, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once; delays are those of all time then.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per look.")] = False,
) -> None:
    """Watch a running service: replicas, sessions, headroom, delays. Ctrl-C ends it."""
    with failures_reported(), ExitStack() as stack:
        watched = Watched(find_access(url, service, api_key, os.environ))
        stack.callback(watched.close)
        title, first = watched.title(), watched.look()
        looks = chain([first], () if once else _further_looks(watched, interval))
        if json:
            _print(looks, lambda seen: json_module.dumps(asdict(seen)))
        elif not sys.stdout.isatty():
            print(title, flush=True)
            _print(looks, line)
        elif once:
            Console().print(screen(title, first))
        else:
            _show(looks, title)


def _further_looks(watched: Watched, interval: float) -> Iterator[Figures | ConnectionRefused]:
    """One after the other, without end: a service that does not answer may come back."""
    while True:
        time.sleep(interval)
        try:
            yield watched.look()
        except ConnectionRefused as error:
            yield error


def _print(looks: Iterable[Figures | ConnectionRefused], text: Callable[[Figures], str]) -> None:
    for seen in looks:
        if isinstance(seen, ConnectionRefused):
            print(f"stt: {seen}", file=sys.stderr, flush=True)
        else:
            print(text(seen), flush=True)


def _show(looks: Iterable[Figures | ConnectionRefused], title: str) -> None:
    shown: RenderableType = ""
    with Live(screen=True, auto_refresh=False) as live:
        for seen in looks:
            if isinstance(seen, ConnectionRefused):
                live.update(Group(shown, Text(f"{seen}; trying again", "red")), refresh=True)
            else:
                shown = screen(title, seen)
                live.update(shown, refresh=True)
