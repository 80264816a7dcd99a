"""What a Kafka bridge counts; every metric starts with `stt_bridge_`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serve_app.telemetry import buckets

CONNECTED = "stt_bridge_connected"


class BridgeMetrics:
    """One bridge's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        """The registry these metrics are in."""
        self.chunks_total = self._counter("stt_bridge_chunks_total", "Chunks of audio that were dealt with.")
        self.transcripts_total = self._counter("stt_bridge_transcripts_total", "Chunks that got a transcript.")
        self.dead_letters_total = self._counter("stt_bridge_dead_letters_total", "Messages that could not be used.")
        self.duplicates_total = self._counter("stt_bridge_duplicates_total", "Chunks that had come before.")
        self.transactions_total = self._counter("stt_bridge_transactions_total", "Transactions that were committed.")
        self.aborts_total = self._counter("stt_bridge_transactions_aborted_total", "Transactions that were aborted.")
        self.processing_seconds = Histogram(
            "stt_bridge_processing_seconds",
            "Time from a chunk's arrival at the bridge until its words were complete.",
            buckets=buckets.CHUNKS,
            registry=registry,
        )
        self.connected = self._gauge(CONNECTED, "1 while the brokers and the service answer, else 0.")
        self.lag = self._gauge("stt_bridge_lag", "Messages without an answer on the partitions of this bridge.")
        self.pending = self._gauge("stt_bridge_pending", "Chunks that were read and have no answer.")
        self.partitions = self._gauge("stt_bridge_partitions", "Partitions of this bridge.")
        self.devices = self._gauge("stt_bridge_devices", "Devices that are speaking.")
        self.sessions = self._gauge("stt_bridge_sessions", "Sessions that are with the service now.")

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)
