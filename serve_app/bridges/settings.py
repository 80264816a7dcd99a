"""How the service is bridged to Kafka: a group of `serve_app.settings`, whose environment names these keys, too."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator

from serve_app.settings_group import Group

UNDETERMINED = "und"
"""ISO 639's code for a language that nobody has named."""

DEAD_LETTER_SUFFIX = ".dead-letter"

RESERVED = (
    "bootstrap.servers", "metadata.broker.list", "group.id", "transactional.id", "enable.auto.commit",
    "auto.commit.enable", "enable.auto.offset.store", "enable.idempotence", "acks", "request.required.acks",
    "batch.num.messages", "isolation.level", "partition.assignment.strategy", "auto.offset.reset", "group.protocol",
    "group.instance.id",
)  # fmt: skip
"""Properties of librdkafka on which the bridge's promises rest, and other names of them."""

CODE = ("logger", "on_commit", "on_delivery", "opaque", "default.topic.config")
"""Properties that are objects of a program; so are all whose name ends in `_cb`."""

LONGEST_GAP_SECONDS = 25.0
"""Sessions end by themselves after `session.idle_audio_timeout_seconds` (30 s) without audio."""

SECURITY: Mapping[str, str] = MappingProxyType(
    {
        "security_protocol": "security.protocol",
        "sasl_mechanism": "sasl.mechanism",
        "sasl_username": "sasl.username",
        "sasl_password": "sasl.password",
        "ssl_ca_location": "ssl.ca.location",
        "ssl_certificate_location": "ssl.certificate.location",
        "ssl_key_location": "ssl.key.location",
        "ssl_key_password": "ssl.key.password",
    }
)
"""Settings that are handed on to librdkafka, and what it calls them."""


def _upper_case(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class KafkaSettings(Group):
    """The bridge between Kafka topics and the service: chunks of devices' audio in, timed words out."""

    bootstrap_servers: str = Field(min_length=1)
    """Brokers to begin with: host:port, separated by commas."""

    input_topic: str = Field(default="device.audio.raw", min_length=1, max_length=237)
    """Where chunks of audio come from."""

    output_topic: str = Field(default="media.text.transcribed.words", min_length=1, max_length=249)
    """Where transcripts go to."""

    group_id: str = Field(default="kyutai-stt", min_length=1)
    """Consumer group of the bridge's replicas, which share the partitions of the input topic."""

    transactional_id_prefix: str = Field(default="kyutai-stt", min_length=1)
    """What replicas' transactional ids begin with; brokers may grant rights by it."""

    transaction_timeout_seconds: float = Field(default=10.0, ge=1, le=30)
    """How long the transaction of a replica that has died holds its readers up."""

    security_protocol: (
        Annotated[Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(_upper_case)] | None
    ) = None
    """How to speak to the brokers; where missing, PLAINTEXT."""

    sasl_mechanism: str | None = None
    """PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, ..."""

    sasl_username: str | None = None
    """User for SASL."""

    sasl_password: SecretStr | None = None
    """Password for SASL."""

    ssl_ca_location: str | None = None
    """File with certificates of authorities to trust."""

    ssl_certificate_location: str | None = None
    """File with the bridge's own certificate."""

    ssl_key_location: str | None = None
    """File with the key of that certificate."""

    ssl_key_password: SecretStr | None = None
    """Password of that key."""

    librdkafka: dict[str, SecretStr | int | float | bool] = Field(default={})
    """Any other property of librdkafka, by its own name, but for those that the bridge relies on. Text is never shown:
    many of them are passwords and keys, and later versions have more."""

    session_gap_seconds: float = Field(default=5.0, gt=0, le=LONGEST_GAP_SECONDS)
    """A device's session ends where its audio has a gap longer than this, or its next chunk is late by this."""

    reorder_chunks: int = Field(default=16, ge=0, le=1000)
    """Chunks that are held back while one before them is missing; then it counts as lost."""

    reorder_seconds: float = Field(default=3.0, ge=0, le=LONGEST_GAP_SECONDS)
    """How long a chunk is held back at most while one before it is missing."""

    history_seconds: float = Field(default=30.0, ge=0, le=120)
    """Audio of each device from which a new session is rebuilt: after a crash, or when a session was lost."""

    history_messages: int = Field(default=500, ge=0, le=100_000)
    """Messages of each partition that a new owner reads again, before its first one without an answer. Duplicates that
    lie further apart than this may be answered twice after a crash."""

    max_message_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Larger messages are dead letters."""

    max_chunk_seconds: float = Field(default=60.0, gt=0, le=600)
    """Chunks with more audio are dead letters, however small they are."""

    dead_letter_bytes: int = Field(default=512 * 1024, ge=0)
    """Of larger dead letters only the beginning is kept: brokers take 1 MiB unless told otherwise."""

    max_pending_chunks: int = Field(default=1024, ge=2, le=4096)
    """Chunks of a partition that may wait for their answers; then it is read no further until half of them are out.
    A device that speaks always has a few: as many as make up the model's delay, and the latest."""

    max_sessions: int = Field(default=16, ge=1, le=4096)
    """Devices that a replica transcribes at once; others wait for their turn, and live sessions find room."""

    language: str = Field(default=UNDETERMINED, min_length=1)
    """What transcripts say of their language: the models do not tell which one they hear."""

    service_url: str | None = Field(default=None, min_length=1)
    """Where the service is; where missing, on the bridge's own machine, at the port that Serve listens on."""

    service_key: SecretStr | None = None
    """API key for the service, where it wants one; where missing, the environment's STT_API_KEY."""

    replicas: int = Field(default=1, ge=1, le=1000)
    """Number of bridge replicas; more than the input topic has partitions are of no use."""

    num_cpus: float = Field(default=0.0, ge=0)
    """CPU cores Ray reserves per replica: none, as two cores are all that an engine and an ingress leave."""

    @field_validator("librdkafka")
    @classmethod
    def _only_what_is_open(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name.removeprefix("topic.") in RESERVED:  # with it librdkafka knows properties of topics, too
                raise ValueError(f"expected properties that the bridge leaves open, got {name!r}")
            if name in CODE or name.endswith("_cb"):
                raise ValueError(f"expected properties that are numbers, text, true or false, got {name!r}")
        return value

    @property
    def dead_letter_topic(self) -> str:
        """Where messages go that are no audio chunks."""
        return self.input_topic + DEAD_LETTER_SUFFIX

    @property
    def client_properties(self) -> dict[str, Any]:
        """What every client of these brokers needs, by librdkafka's names."""
        named = {name: getattr(self, field) for field, name in SECURITY.items()}
        values = {name: value for name, value in named.items() if value is not None} | self.librdkafka
        return {"bootstrap.servers": self.bootstrap_servers} | {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in values.items()
        }
