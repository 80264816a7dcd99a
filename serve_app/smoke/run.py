"""Every check in order, and a verdict for each.

First health and readiness: without them there is nothing to check. Then the endpoints; then `/v1/stream` alone, whose
words are the reference where none is known; then the other live dialects, a few at a time; at last uploads, one by one,
because they take whatever the engines have left.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from serve_app import client
from serve_app.client.stream import PASSING_FAILURES
from serve_app.measuring.dialects import WIRES
from serve_app.measuring.hearing import word_errors
from serve_app.smoke import endpoints, live
from serve_app.smoke.endpoints import ENDPOINTS
from serve_app.smoke.heard import Heard, Said, Unexpected
from serve_app.smoke.target import Target
from serve_app.smoke.uploads import UPLOADS

MOST_AT_ONCE = 4
"""Sessions side by side; fewer where fewer slots are free."""

PATIENCE_S = 15.0
"""How long a check asks again where every slot is taken."""

CHECK_SECONDS = 60.0
"""How long a check may take in all, on top of the clip's length."""

FIRST_DIALECT = "WS /v1/stream f32"


class NotReady(Exception):
    """The service is there and takes no sessions; the text is its own."""


@dataclass(frozen=True)
class Verdict:
    """One line of the table."""

    name: str
    ok: bool
    seconds: float
    note: str = ""
    """What is wrong, or worth knowing."""
    text: str | None = None
    """What a dialect heard."""
    wer: float | None = None
    """Its word error rate against the reference."""
    first_word_s: float | None = None
    """From sending the beginning of the first word (an upload: the request) to the first text."""


@dataclass
class Report:
    """What came of it."""

    url: str
    model: str = ""
    reference: str | None = None
    reference_is: str = "known"
    """`known`, or the name of the dialect whose words the others are compared with."""
    checks: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every check is."""
        return bool(self.checks) and all(verdict.ok for verdict in self.checks)


Dialect: TypeAlias = Callable[[Target, Said], Awaitable[Heard]]

LIVE: Mapping[str, Dialect] = {
    "WS /v1/stream s16 16 kHz": functools.partial(live.speak, format="s16", sample_rate=16_000),
    "WS /v1/stream opus": functools.partial(live.speak, format="opus"),
    # Not at telephones' own rate: at 8 kHz the demo model hears "three" for "six".
    "WS /v1/stream mulaw 16 kHz": functools.partial(live.speak, format="mulaw", sample_rate=16_000),
    **{f"WS {wire.path}": functools.partial(live.speak, dialect=name) for name, wire in WIRES.items()},
}
"""All that take audio in real time but the first."""


async def run(
    target: Target,
    said: Said,
    reference: Callable[[str], str | None],
    *,
    most_errors: float,
    ready_s: float,
    tell: Callable[[Verdict], None],
) -> Report:
    """Check everything; `tell` hears each verdict as it falls.

    `reference` says what is said in the clip as the named model hears it, or None: then those of `/v1/stream` count.
    Waits `ready_s` for the service to be ready. Raises `NotReady`, `Unexpected` where something else answers, and
    `ClientError` where nobody does or the key is refused.
    """
    began = time.monotonic()
    await _wait_until_ready(target, ready_s)
    model = await endpoints.model(target)
    checking = _Run(target, said, Report(target.name, model, reference(model)), most_errors, tell)
    for name, endpoint in ENDPOINTS.items():
        await checking.endpoint(name, endpoint)
    await checking.dialect(FIRST_DIALECT, live.speak)
    gate = asyncio.Semaphore(await _at_once(target))

    async def one(name: str, dialect: Dialect) -> None:
        async with gate:
            await checking.dialect(name, dialect)

    async with asyncio.TaskGroup() as group:
        for name, dialect in LIVE.items():
            group.create_task(one(name, dialect))
    for name, dialect in UPLOADS.items():
        await checking.dialect(name, dialect)
    checking.report.seconds = time.monotonic() - began
    return checking.report


class _Run:
    """What the checks of one run share."""

    def __init__(
        self, target: Target, said: Said, report: Report, most_errors: float, tell: Callable[[Verdict], None]
    ) -> None:
        self.report = report
        self._target = target
        self._said = said
        self._most_errors = most_errors
        self._tell = tell
        self._is_patient = True  # until a check has waited for a slot in vain: one such wait is enough

    async def endpoint(self, name: str, check: Callable[[Target], Awaitable[str]]) -> None:
        began = time.monotonic()
        try:
            ok, note = True, await check(self._target)
        except (client.ClientError, Unexpected) as error:
            ok, note = False, str(error)
        self._fell(Verdict(name, ok, time.monotonic() - began, note))

    async def dialect(self, name: str, dialect: Dialect) -> None:
        if not self._is_patient:
            self._fell(Verdict(name, False, 0.0, "not tried: another one has found no free slot"))
            return
        began, limit_s = time.monotonic(), self._said.clip.seconds + CHECK_SECONDS
        try:
            async with asyncio.timeout(limit_s):
                heard = await self._patiently(dialect)
        except TimeoutError:
            note = f"expected an end within {limit_s:.0f} s, there was none"
        except (client.ClientError, Unexpected) as error:
            note = str(error)
        except (LookupError, TypeError, ValueError) as error:
            note = f"what came back makes no sense: {error!r}"
        else:
            self._fell(self._judged(name, heard, time.monotonic() - began))
            return
        self._fell(Verdict(name, False, time.monotonic() - began, note))

    async def _patiently(self, dialect: Dialect) -> Heard:
        """Ask again where every slot is taken: other people use the service, too."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await dialect(self._target, self._said)
            except client.ServerError as error:
                if error.code not in PASSING_FAILURES:
                    raise
                if time.monotonic() > deadline:
                    self._is_patient = False
                    raise
                await asyncio.sleep(1.0)

    def _judged(self, name: str, heard: Heard, seconds: float) -> Verdict:
        report = self.report
        if report.reference is None and heard.text:
            report.reference, report.reference_is = heard.text, name
        if self._said.first_word_s is None:
            self._said = replace(self._said, first_word_s=heard.begins_s)
        if not heard.text:
            return Verdict(name, False, seconds, "expected words, heard nothing", "")
        errors, words = word_errors(report.reference or "", heard.text)
        wer = errors / max(1, words)
        ok = wer <= self._most_errors
        note = "" if ok else f"expected {report.reference!r}, heard {heard.text!r}"
        return Verdict(name, ok, seconds, note, heard.text, wer, heard.first_word_s)

    def _fell(self, verdict: Verdict) -> None:
        self.report.checks.append(verdict)
        self._tell(verdict)


async def _wait_until_ready(target: Target, ready_s: float) -> None:
    deadline = time.monotonic() + ready_s
    while True:
        try:
            await endpoints.health(target)
            if (reason := await endpoints.not_ready(target)) is None:
                return
            error: Exception = NotReady(f"{target.name} is not ready: {reason}")
        except (client.ConnectionRefused, client.ServerSilent, client.ServerError) as failure:
            error = failure  # while a service starts, nobody answers, or the proxy alone
        if time.monotonic() >= deadline:
            raise error
        await asyncio.sleep(min(1.0, ready_s))


async def _at_once(target: Target) -> int:
    try:
        slots = await endpoints.free_slots(target)
    except (client.ClientError, Unexpected):
        slots = None  # its own check has told
    return max(1, min(MOST_AT_ONCE, slots[0])) if slots else MOST_AT_ONCE
