"""One replica's end of the board: posts its metrics every few seconds, and collects everybody's for a scrape."""

import asyncio

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from serve_app.telemetry.board import POST_SECONDS, BoardClient, BoardUnavailable, Report, Source
from serve_app.telemetry.exposition import merged
from serve_app.telemetry.logs import get_logger

_log = get_logger(__name__)


class Publisher:
    """Use it in one event loop."""

    def __init__(self, source: Source, registry: CollectorRegistry, board: BoardClient) -> None:
        """`registry` is the process's; its CPU time, memory and files are counted in it, too."""
        self._source = source
        self._registry = registry
        self._board = board
        self._reports = 0
        self._available = True
        self._task: asyncio.Task[None] | None = None
        ProcessCollector(registry=registry)

    def start(self) -> None:
        """Start posting."""
        self._task = asyncio.create_task(self._post_for_ever(), name="publisher")

    async def stop(self) -> None:
        """Post no more, and say so."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            try:
                await self._board.leave(self._source)
            except BoardUnavailable as error:
                _log.info("the board was not told that this replica stops", reason=str(error))

    async def everybody(self) -> list[Metric]:
        """The metrics of all replicas: this one's as they are now, the others' as they were at most seconds ago."""
        own = self._report()
        try:
            reports = await self._board.exchange(own)
            is_complete = True
        except BoardUnavailable as error:
            _log.warning("metrics of this replica alone: the others' cannot be read", reason=str(error))
            reports, is_complete = [own], False
        complete = GaugeMetricFamily(
            "stt_metrics_complete", "1 if these are the metrics of all replicas, 0 if only this one's.", is_complete
        )
        return merged([*reports, Report(None, (complete,))])

    def _report(self) -> Report:
        self._reports += 1
        return Report(self._source, tuple(self._registry.collect()), self._reports)

    async def _post_for_ever(self) -> None:
        while True:
            try:
                await self._board.post(self._report())
                self._note(True)
            except BoardUnavailable as error:
                self._note(False, str(error))
            except Exception as error:  # our own mistake, which must not end the posting
                _log.error("metrics cannot be posted", exc_info=error)
            await asyncio.sleep(POST_SECONDS)

    def _note(self, available: bool, why: str = "") -> None:
        """Log when the board comes or goes, not every try."""
        if available != self._available:
            log = _log.info if available else _log.warning
            log("metrics are posted again" if available else "metrics are not posted", reason=why)
        self._available = available
