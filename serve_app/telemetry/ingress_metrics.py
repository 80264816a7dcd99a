"""What an ingress process counts; every metric starts with `stt_`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serve_app.telemetry import buckets, stages

REFUSALS = (
    "at_capacity", "not_ready", "restarting", "too_many_sessions", "too_many_connections", "too_many_requests",
    "invalid_key", "forbidden", "unknown_session",
)  # fmt: skip
"""Reasons that are there from the start, so that the first refusal is seen as a rise."""

MOVES = ("engine_lost", "draining", "restart", "unpark", "resume")


class IngressMetrics:
    """One ingress replica's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        """The registry these metrics are in."""
        self._count_sessions()
        self._count_what_is_said()
        self._time_what_is_waited_for()
        self._count_checkpoints()

    def _count_sessions(self) -> None:
        self.sessions_total = self._counter(
            "stt_sessions_total",
            "Sessions that ended here, by model, dialect and how: done, left, an error's code (at_capacity: no slot),"
            " or, going on elsewhere: disconnected, taken_over, restarting.",
            "model",
            "dialect",
            "outcome",
        )
        self.refusals_total = self._counter(
            "stt_refusals_total",
            "Clients that were turned away before they had a slot, by the code of the error they were told.",
            "reason",
        )
        self.decode_errors_total = self._counter(
            "stt_decode_errors_total",
            "Messages and files that could not be used, by dialect and by the error's code.",
            "dialect",
            "code",
        )
        self.key_sessions_open = Gauge(
            "stt_key_sessions_open", "Sessions open now, by the name of their key.", ["key"], registry=self.registry
        )
        self.key_sessions_total = self._counter(
            "stt_key_sessions_total", "Sessions that ended here, by the name of their key.", "key"
        )
        self.key_audio_seconds_total = self._counter(
            "stt_key_audio_seconds_total", "Audio of sessions that ended here, by the name of their key.", "key"
        )
        self.key_requests_total = self._counter(
            "stt_key_requests_total", "Requests and connections that showed a good key, by its name.", "key"
        )
        self.moves_total = self._counter(
            "stt_moves_total",
            "Sessions that took another slot, by why: engine_lost, draining, restart, unpark, resume.",
            "reason",
        )
        self.restarts_total = self._counter(
            "stt_decoder_restarts_total",
            "Decoders started again from a short history, by why: silent, repeating.",
            "reason",
        )
        self.resumes_total = self._counter(
            "stt_resumes_total", "Sessions that a client went on with after its connection."
        )
        for reason in REFUSALS:
            self.refusals_total.labels(reason)
        for reason in MOVES:
            self.moves_total.labels(reason)

    def _count_what_is_said(self) -> None:
        self.frames_total = self._counter("stt_frames_total", "Frames of 80 ms sent to engines.")
        self.tokens_total = self._counter("stt_tokens_total", "Text tokens sent to clients.")
        self.words_total = self._counter("stt_words_total", "Words sent to clients.")
        self.turns_total = self._counter("stt_turns_total", "Turn ends sent to clients.")

    def _time_what_is_waited_for(self) -> None:
        self.first_token_seconds = self._histogram(
            "stt_first_token_seconds",
            "Time from a session's first audio to its first text token (includes the silence before speech).",
            buckets.WORDS,
        )
        self.word_delay_seconds = self._histogram(
            "stt_word_delay_seconds",
            "Time from the arrival of a word's last audio to the word's way out to its client.",
            buckets.WORDS,
        )
        self.admission_seconds = self._histogram(
            "stt_admission_seconds", "Time a session waited for its slot.", buckets.SLOTS
        )
        self.move_seconds = self._histogram("stt_move_seconds", "Time a session was without a slot.", buckets.SLOTS)
        self.result_seconds = self._histogram(
            "stt_result_seconds", "Time from sending a frame to an engine to its result.", buckets.RESULTS
        )
        self.session_audio_seconds = self._histogram(
            "stt_session_audio_seconds", "Audio that a session brought over one connection.", buckets.SESSIONS
        )
        stage_seconds = Histogram(stages.NAME, stages.TEXT, ["stage"], buckets=buckets.STAGES, registry=self.registry)
        self.audio_seconds = stage_seconds.labels(stages.AUDIO)
        self.link_seconds = stage_seconds.labels(stages.LINK)
        self.socket_seconds = stage_seconds.labels(stages.SOCKET)

    def _count_checkpoints(self) -> None:
        self.checkpoint_seconds = self._histogram(
            "stt_checkpoint_seconds", "Time to save sessions once.", buckets.SLOTS
        )
        self.checkpoint_bytes_total = self._counter("stt_checkpoint_bytes_total", "Bytes of sessions saved.")
        self.checkpoint_failures_total = self._counter(
            "stt_checkpoint_failures_total", "Times that sessions could not be saved."
        )
        self.vault_sessions = Gauge(
            "stt_vault_sessions", "Sessions in the vault, of all ingress replicas, open or not.", registry=self.registry
        )
        self.vault_bytes = Gauge("stt_vault_bytes", "Memory that the vault's sessions take.", registry=self.registry)
        self.vault_copies = Gauge(
            "stt_vault_copies", "Vaults that have every session; two where there are two nodes.", registry=self.registry
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=bounds, registry=self.registry)
