"""One typed, validated settings object for the whole application.

Its values come from three places, later ones win: the defaults below, the `args` of the application in a Serve config
file (`serve_config.yaml`), and the environment variables in `ENVIRONMENT`. Facts about one model (where its weights
are, its delay, its pause head) live in a model file of their own, `configs/models/<name>.yaml`.

Whatever is wrong is reported at once, one line per problem: file or variable, key, what was expected, what came.
"""

import hashlib
import ipaddress
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from serve_app.bridges.settings import SECURITY, KafkaSettings
from serve_app.gpus import Gpus
from serve_app.problems import describe, did_you_mean, written
from serve_app.settings_group import Group

_log = logging.getLogger(__name__)  # not structlog's: settings are read before logs are set up, and this goes to stderr

PROJECT_ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds `serve_app/` and `configs/`, wherever Ray unpacked it on this machine."""

MODELS_FOLDER = PROJECT_ROOT / "configs" / "models"
"""Where the named model files are."""

GPUS_FILE = PROJECT_ROOT / "configs" / "gpus.yaml"
"""What is known of GPUs."""

IMPORT_PATH = "serve_app.app:build"
"""The only application builder a Serve config file of ours may name."""

DEFAULT_ORIGIN = "serve_config.yaml"
"""How messages name the source of `args` where Serve does not tell the file."""

MEBIBYTE = 2**20

MOST_SLOTS = 4096
"""Largest number of slots of one engine replica."""

HEADROOM_MARGIN = 0.05
"""An engine counts as full a little before its admission closes, so that the next one has time to start."""

_Model = TypeVar("_Model", bound=BaseModel)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class SettingsError(Exception):
    """The settings cannot be used; the text has one line per problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


def _lower_case(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class ModelSettings(Group):
    """One model: the contents of a file in `configs/models`."""

    source: str
    """Checkpoint: a Hugging Face id (`organisation/name`) or a folder, relative to the model file."""

    description: str = ""
    """What the model is for, in a sentence."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the decoder's weights and caches; `auto` is bfloat16 on a GPU and float32 on a CPU."""

    audio_delay_frames: int | None = Field(default=None, ge=0, le=250)
    """Frames (80 ms) by which the text lags the audio; where missing, the checkpoint's `audio_delay_seconds`."""

    pause_head: int = Field(default=2, ge=0, le=3)
    """Which pause head ends a turn: 0, 1, 2 and 3 predict a pause of 0.5, 1, 2 and 3 s."""

    pause_threshold: float = Field(default=0.6, gt=0, lt=1)
    """Probability above which that head ends a turn (Unmute uses 0.6)."""

    restart_when_silent_seconds: float | None = Field(default=None, gt=0)
    """Speech without a word for so long starts the decoder again from a short history; where missing, never."""

    restart_when_repeated: int | None = Field(default=None, ge=4, le=100)
    """A phrase said so often in a row starts the decoder again; where missing, never."""

    @property
    def checkpoint(self) -> str | Path:
        """What to load on this machine: a Hugging Face id (str) or an absolute folder (Path)."""
        if is_hub_id(self.source):
            return self.source
        return (PROJECT_ROOT / self.source).resolve()


class AutoscalingSettings(Group):
    """Engines that come and go with the sessions; see `serve_app.autoscaling` for the rules."""

    min_replicas: int = Field(default=0, ge=0, le=100_000)
    """Engine replicas that always run; 0 for none while nobody speaks."""

    max_replicas: int = Field(default=10, ge=1, le=100_000)
    """Most engine replicas; each needs the CPUs and GPUs that `engine` reserves."""

    target_share: float = Field(default=0.8, gt=0, le=1)
    """Share of the slots that sessions should take; above it another replica is started."""

    steady_share: float = Field(default=0.95, gt=0, le=1)
    """The same for what is beyond ten replicas, while sessions do not rise: many sessions need relatively less room."""

    buffer_replicas: int = Field(default=0, ge=0, le=10_000)
    """Replicas on top of what is needed, ready for bursts, as long as there are sessions at all."""

    lead_seconds: float = Field(default=60.0, gt=0, le=3600)
    """About how long a replica takes to start: while sessions rise, room is made so far ahead."""

    scaledown_window_seconds: float = Field(default=60.0, ge=0, le=86_400)
    """A replica is stopped once fewer were enough for this long, the last one as well if `min_replicas` is 0."""

    start_timeout_seconds: float = Field(default=120.0, gt=0, le=3600)
    """How long a session waits for a slot while replicas may still be started; then it hears "at capacity"."""

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas: expected at most max_replicas ({self.max_replicas}), got {self.min_replicas}"
            )
        if self.steady_share < self.target_share:
            raise ValueError(
                f"steady_share: expected at least target_share ({self.target_share:g}), got {self.steady_share:g}"
            )
        return self


class EngineSettings(Group):
    """The engine deployment: the replicas that hold the model."""

    slots: int | Literal["auto"] = 32
    """Concurrent sessions per engine replica, 1 to 4096; `auto`: as many as a replica's memory and step time allow."""

    device: Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(_lower_case)] = "auto"
    """Where the model runs; `auto` takes the GPU Ray gave the replica, else the CPU."""

    gpu: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Accelerator type each replica asks Ray for (`L4`, `A100`, `H100`, ...); none for any GPU or no GPU at all."""

    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """How the decoder keeps keys and values: `auto` is the type of its weights; `fp8`, for GPUs of compute capability
    8.9 or newer, takes half of bfloat16's memory, and some tokens differ."""

    replicas: int = Field(default=1, ge=1, le=1000)
    """Number of engine replicas, without `autoscaling`."""

    autoscaling: AutoscalingSettings | None = None
    """Instead of `replicas`: how many there are follows from the sessions. An empty group takes its defaults."""

    placement: Literal["oldest", "spread"] = "oldest"
    """`oldest` fills the oldest replicas first, so that the newest, which Serve stops first, are empty; or `spread`."""

    num_cpus: float = Field(default=1.0, ge=0)
    """CPU cores Ray reserves per replica."""

    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs Ray reserves per replica, fractions too; where missing, 1 if `gpu` is set or `device` is cuda, else 0."""

    torch_threads: int | None = Field(default=None, ge=1, le=1024)
    """Most threads torch uses per replica on a CPU; where missing, as many as cores the process may run on."""

    model_cache_dir: str | None = None
    """Folder for downloaded checkpoints on the engine's machine; where missing, Hugging Face's own (`HF_HOME`)."""

    max_wait_seconds: float = Field(default=0.005, ge=0, le=0.08)
    """How long a ready frame waits for frames of other slots before a step starts without them."""

    queue_frames: int = Field(default=32, ge=1, le=10_000)
    """Frames (80 ms) buffered per slot."""

    backlog_step_seconds: float = Field(default=0.02, gt=0, le=0.08)
    """Longest step that backlogs (files, catch-up after a move) may cause, so that live frames never wait longer."""

    min_headroom: float = Field(default=0.1, ge=-100, lt=1)
    """Admission closes when headroom, 1 - p95(step) / 80 ms, falls below this; streams fall behind where that is less
    than 0, so a negative one is for tests on machines that do other things, too."""

    health_check_period_seconds: float = Field(default=1.0, gt=0)
    """Time between Serve's health checks; at 1 s a lost replica is replaced in 3-4 s instead of 11 s."""

    health_check_timeout_seconds: float = Field(default=10.0, gt=0)
    """How long a health check may take before Serve counts it as failed."""

    graceful_shutdown_timeout_seconds: float = Field(default=30.0, ge=0)
    """How long a stopping replica keeps its sessions while they move to other replicas; then Serve kills it."""

    @field_validator("slots", mode="before")
    @classmethod
    def _number_or_auto(cls, value: object) -> object:
        """Checked here, because a union's own errors speak of each of its types."""
        if isinstance(value, str) and value.lower() == "auto":
            return "auto"
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_SLOTS:
            raise ValueError(f"expected a whole number from 1 to {MOST_SLOTS}, or 'auto', got {value!r}")
        return value

    @field_validator("gpu", mode="before")
    @classmethod
    def _accelerator_type(cls, value: object) -> object:
        """`none` means no type; Ray writes short names in capitals (L4, A10G) and compares them exactly."""
        if not isinstance(value, str):
            return value
        if value.lower() == "none":
            return None
        return value if "-" in value or "_" in value else value.upper()

    @field_validator("gpu")
    @classmethod
    def _gpu_is_known(cls, value: str | None) -> str | None:
        if value:
            read_gpus().gpu(value)
        return value

    @field_validator("num_gpus")
    @classmethod
    def _part_of_one_or_whole_ones(cls, value: float | None) -> float | None:
        if value and value > 1 and value % 1:
            raise ValueError(f"expected a part of one GPU or a whole number of them, as Ray does, got {value:g}")
        return value

    @property
    def most_replicas(self) -> int:
        """Engine replicas that there may be."""
        return self.autoscaling.max_replicas if self.autoscaling else self.replicas

    @property
    def scaling_rules(self) -> dict[str, Any]:
        """The fields of `serve_app.autoscaling.Rules`; of use with `autoscaling` only."""
        autoscaling = self.autoscaling or AutoscalingSettings()
        return autoscaling.model_dump(exclude={"start_timeout_seconds"}) | {
            "slots": self.slots,
            "low_headroom": self.min_headroom + HEADROOM_MARGIN,
        }

    @property
    def reserved_gpus(self) -> float:
        """GPUs to reserve per replica: `num_gpus` with its default filled in."""
        if self.num_gpus is not None:
            return self.num_gpus
        return 1.0 if self.gpu or self.device == "cuda" else 0.0

    @model_validator(mode="after")
    def _device_and_gpus_agree(self) -> Self:
        if self.device == "cpu" and self.reserved_gpus:
            asked = f"gpu {self.gpu}" if self.gpu else f"num_gpus {self.num_gpus:g}"
            raise ValueError(f"device: expected auto or cuda together with {asked}, got 'cpu'")
        if (self.gpu or self.device == "cuda") and not self.reserved_gpus:
            # Ray would place others on a GPU that nobody has reserved.
            raise ValueError("num_gpus: expected more than 0 for an engine on a GPU, got 0")
        return self

    @model_validator(mode="after")
    def _either_fixed_or_autoscaled(self) -> Self:
        if self.autoscaling and "replicas" in self.model_fields_set:
            raise ValueError(f"replicas: expected no fixed number beside autoscaling, got {self.replicas}")
        if self.autoscaling and self.slots == "auto":
            # The policy divides sessions by slots before any engine runs that could tell its own number.
            raise ValueError("slots: expected a number together with autoscaling, got 'auto'")
        return self


class LinkSettings(Group):
    """The TCP connections between ingress replicas and engine replicas."""

    host: str = Field(default="auto", min_length=1)
    """Address the engine listens on and announces; `auto` is the node's own address."""

    port: int = Field(default=0, ge=0, le=65_535)
    """Port the engine listens on; 0 takes any free port (needed for several replicas on a node)."""

    coalesce_seconds: float = Field(default=0.002, ge=0, le=0.08)
    """How long messages are collected before one write sends them all."""

    heartbeat_seconds: float = Field(default=1.0, gt=0)
    """Time between heartbeats, both ways."""

    timeout_seconds: float = Field(default=5.0, gt=0)
    """Silence after which the other end counts as lost."""

    max_message_bytes: int = Field(default=16 * MEBIBYTE, ge=64 * 1024, le=1024 * MEBIBYTE)
    """Largest message; a session's history takes about 2 MiB."""

    @model_validator(mode="after")
    def _timeout_spans_heartbeats(self) -> Self:
        if self.timeout_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"timeout_seconds: expected at least twice link.heartbeat_seconds ({self.heartbeat_seconds:g}), "
                f"got {self.timeout_seconds:g}"
            )
        return self


class IngressAutoscalingSettings(Group):
    """Ingress replicas that come and go with the connections."""

    min_replicas: int = Field(default=1, ge=1, le=1000)
    """Ingress replicas that always run."""

    max_replicas: int = Field(default=10, ge=1, le=1000)
    """Most ingress replicas."""

    target_connections: int = Field(default=200, ge=1, le=4096)
    """Sessions that one replica should hold; with more another one is started."""

    scaledown_window_seconds: float = Field(default=300.0, ge=0, le=86_400)
    """A replica is stopped once fewer were enough for this long; its clients go on at the others."""

    @property
    def scaling_rules(self) -> dict[str, Any]:
        """The fields of `serve_app.autoscaling.Rules`: a replica's slots are its target, and all of them are filled."""
        return self.model_dump(exclude={"target_connections"}) | {
            "slots": self.target_connections,
            "target_share": 1.0,
            "steady_share": 1.0,
            "buffer_replicas": 0,
            "low_headroom": 0.0,
            "lead_seconds": 1.0,
        }

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas: expected at most max_replicas ({self.max_replicas}), got {self.min_replicas}"
            )
        return self


class IngressSettings(Group):
    """The ingress deployment: the replicas that clients talk to."""

    replicas: int = Field(default=1, ge=1, le=1000)
    """Number of ingress replicas, without `autoscaling`."""

    autoscaling: IngressAutoscalingSettings | None = None
    """Instead of `replicas`: how many there are follows from the connections. An empty group takes its defaults."""

    num_cpus: float = Field(default=1.0, ge=0)
    """CPU cores Ray reserves per replica."""

    admission_timeout_seconds: float = Field(default=3.0, gt=0, le=60)
    """How long a new session waits for an engine's answer before it hears "at capacity"; full engines say so sooner."""

    max_wait_seconds: float = Field(default=300.0, ge=0, le=3600)
    """Longest time that a client may ask to wait in line for a slot (`?wait_s=`)."""

    max_waiting: int = Field(default=256, ge=0)
    """Clients per ingress replica that may wait in line; one more hears "at capacity"."""

    key_share: float = Field(default=0.75, gt=0, le=1)
    """Largest share of all slots that one API key may hold at each ingress replica; at least one slot."""

    graceful_shutdown_timeout_seconds: float = Field(default=30.0, ge=5)
    """How long a stopping replica keeps its sessions, at most, while their clients go on elsewhere."""

    ping_seconds: float = Field(default=10.0, gt=0)
    """Time between keep-alive pings on an idle connection."""

    max_message_bytes: int = Field(default=16 * MEBIBYTE, ge=1024, le=16 * MEBIBYTE)
    """Largest message a client may send; Serve's Python proxy itself stops at 16 MiB."""

    max_upload_megabytes: int = Field(default=256, ge=1)
    """Largest audio file (MiB, with the form around it) that may be uploaded."""

    max_upload_seconds: float = Field(default=7200.0, gt=0)
    """Longest audio that an uploaded file may hold, however small the file is."""

    slow_client_seconds: float = Field(default=10.0, gt=0)
    """How long a client may leave its events unread before the session ends."""

    max_connections_per_address: int | None = Field(default=256, ge=1)
    """WebSockets that one address (IPv6: one /64 network) may hold open at an ingress replica; null for no limit."""

    trusted_proxies: int = Field(default=0, ge=0, le=16)
    """Proxies in front that add their peer's address to X-Forwarded-For. Serve's own HAProxy adds none: without
    another one it hides the addresses, and `max_connections_per_address` has no effect behind it."""

    allowed_origins: list[Annotated[str, Field(pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^/]+)$")]] = Field(default=[])
    """Origins (`https://app.example.org`) whose pages may use the service, besides its own host's; `*` for all."""

    @model_validator(mode="after")
    def _either_fixed_or_autoscaled(self) -> Self:
        if self.autoscaling and "replicas" in self.model_fields_set:
            raise ValueError(f"replicas: expected no fixed number beside autoscaling, got {self.replicas}")
        return self


class ApiKey(Group):
    """One API key, as far as the server knows it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """What logs call it."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the key, 64 hexadecimal digits, as `stt keys add NAME` writes it."""

    max_sessions: int | None = Field(default=None, ge=1)
    """Sessions it may hold at once at each ingress replica; where missing, `ingress.key_share` says."""

    max_requests: int | None = Field(default=None, ge=1)
    """HTTP requests of it that may run at once at each ingress replica; where missing, any number."""


class KeysFile(Group):
    """The contents of `auth.keys_file`."""

    keys: list[ApiKey]
    """The keys."""


class AuthSettings(Group):
    """Who may use the service."""

    mode: Literal["auto", "keys", "none"] = "auto"
    """`keys`: whoever has a key; `none`: everybody; `auto`: `keys` where keys are set, else everybody on this machine,
    and a start that listens beyond it is refused."""

    keys: list[ApiKey] = Field(default=[])
    """Keys, as hashes."""

    keys_file: str | None = Field(default=None, min_length=1)
    """More keys, in a YAML file with a list `keys`; a relative path starts at the project (STT_KEYS_FILE of a command
    `stt`: at the current folder). Where an ingress replica finds it, changes take effect at once; other machines keep
    what was in it at the start."""

    token_seconds: int = Field(default=600, ge=1, le=86_400)
    """How long a browser's token from `POST /v1/tokens` is good, at most."""

    metrics: Literal["key", "open"] = "key"
    """Who may read `/metrics` where keys are required."""

    _keys_in_file: tuple[ApiKey, ...] = PrivateAttr(default=())

    @property
    def keys_in_file(self) -> tuple[ApiKey, ...]:
        """What `keys_file` held when these settings were loaded."""
        return self._keys_in_file

    @property
    def keys_path(self) -> Path | None:
        """Where `keys_file` is."""
        return PROJECT_ROOT / Path(self.keys_file).expanduser() if self.keys_file else None

    @property
    def required(self) -> bool:
        """Whether clients must show a key."""
        return self.mode == "keys" or (self.mode == "auto" and bool(self.keys or self.keys_file))

    def check_host(self, host: str) -> None:
        """Raises `SettingsError` for an address at which strangers could come in, and nobody has said that they may."""
        if not self.required and self.mode != "none" and not _is_loopback(host):
            raise SettingsError(
                [
                    f"http_options.host: expected 127.0.0.1 as long as there are no API keys, got {host!r}: add a key"
                    " (stt keys add NAME), or let everybody in with auth.mode: none"
                ]
            )

    @model_validator(mode="after")
    def _keys_are_there_and_differ(self) -> Self:
        if self.keys_path:
            self._keys_in_file = read_keys(self.keys_path)
        keys = [*self.keys, *self._keys_in_file]
        if self.required and not keys:
            raise ValueError("keys: expected at least one here or in auth.keys_file, got none")
        for kind, values in {"names": [key.name for key in keys], "hashes": [key.sha256 for key in keys]}.items():
            if len(set(values)) < len(values):
                raise ValueError(f"keys: expected keys with different {kind}, here and in auth.keys_file")
        return self


class SessionSettings(Group):
    """The life of one session."""

    idle_audio_timeout_seconds: float = Field(default=30.0, gt=0)
    """A session that gets no audio for this long ends."""

    park_after_seconds: float = Field(default=10.0, gt=0)
    """A session that gets no audio for this long gives its slot up, and takes one again when audio comes."""

    resume_window_seconds: float = Field(default=60.0, ge=0)
    """How long a session whose client was cut off, or whose ingress died, can be resumed; 0: never."""

    vault_megabytes: int = Field(default=4096, ge=1)
    """Memory for checkpoints of sessions, 1 to 2 MB each; beyond it the longest abandoned ones are dropped."""

    move_timeout_seconds: float = Field(default=60.0, ge=0)
    """How long a session whose engine is gone waits for a slot on another one."""

    max_session_seconds: float = Field(default=3600.0, gt=0)
    """Longest duration of a session."""

    flush_silence_seconds: float = Field(default=1.0, ge=0, le=10)
    """Silence fed at a flush on top of the model's delay, to get the last words out."""

    event_buffer: int = Field(default=1024, ge=16)
    """Events buffered per session for a client that reads slowly."""

    window_frames: int = Field(default=24, ge=1, le=10_000)
    """Frames (80 ms) in flight to the engine without a result; at most `engine.queue_frames`."""


class FurtherModel(Group):
    """A model that is served beside the first one, by engines of its own."""

    model: str
    """As `model` of the whole."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9./_-]*$")
    """What clients ask for with `?model=`; where missing, what `model` says."""

    engine: EngineSettings = EngineSettings()
    """The deployment that holds it; nothing of the first model's is taken over."""

    @property
    def served_as(self) -> str:
        """`name` with its default filled in."""
        return self.name or self.model


class Settings(Group):
    """Everything that can be set."""

    app_name: str = Field(default="stt", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Name of the service in logs and metrics."""

    model: str = "demo"
    """A name in `configs/models`, a model file, a checkpoint folder, or a Hugging Face id (`organisation/name`).
    Without `engine` the name of one of `models` will do, too, which then is the first one."""

    engine: EngineSettings = EngineSettings()
    """The deployment that holds the model."""

    models: list[FurtherModel] = Field(default=[])
    """More models, each with engines of its own. Clients that ask for none get `model`."""

    link: LinkSettings = LinkSettings()
    """The connections between the two deployments."""

    ingress: IngressSettings = IngressSettings()
    """The deployment that clients talk to."""

    auth: AuthSettings = AuthSettings()
    """Who may use the service."""

    session: SessionSettings = SessionSettings()
    """The life of one session."""

    kafka: KafkaSettings | None = None
    """A bridge to Kafka; where missing, none."""

    log_level: Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower_case)] = (
        "info"
    )
    """Least severe level that is logged."""

    log_format: Literal["json", "console"] = "json"
    """One JSON object per line, or lines for people."""

    _model_settings: ModelSettings = PrivateAttr()
    _served: dict[str, "Settings"] = PrivateAttr(default_factory=dict)

    @property
    def model_settings(self) -> ModelSettings:
        """What `model` stands for; travels with this object, so replicas need no model file."""
        return self._model_settings

    @property
    def served(self) -> Mapping[str, "Settings"]:
        """For each model, by the name that clients know, these settings as if it were the only one; the first first."""
        return {self.model: self, **self._served}

    @field_validator("model")
    @classmethod
    def _model_is_known(cls, value: str) -> str:
        resolve_model(value)
        return value

    @model_validator(mode="after")
    def _window_fits_queue(self) -> Self:
        if self.session.window_frames > self.engine.queue_frames:
            raise ValueError(
                f"session.window_frames: expected at most engine.queue_frames ({self.engine.queue_frames}), "
                f"got {self.session.window_frames}"
            )
        self._model_settings = resolve_model(self.model)
        return self

    @model_validator(mode="after")
    def _each_model_could_be_alone(self, info: ValidationInfo) -> Self:
        first = (info.context or {}).get("served_as", self.model)
        for number, further in enumerate(self.models):
            name, place = further.served_as, written(_in_file(("models", number), info.context))
            if deployment_of(name) in map(deployment_of, (first, *self._served)):
                raise ValueError(f"{place}.name: expected another name than the other models, got {name!r}")
            alone = {"model": further.model, "engine": further.engine, "models": []}
            try:
                view = Settings(**{key: getattr(self, key) for key in type(self).model_fields} | alone)
            except ValidationError as error:
                # Each of these rules is about this group and the rest: so each begins with its key.
                rules = [problem["msg"].removeprefix("Value error, ") for problem in error.errors()]
                raise ValueError(f"{place}: {'; '.join(rules)}") from None
            self._served[name] = view.model_copy(update={"model": name})
        return self

    @model_validator(mode="after")
    def _model_fits_gpu(self, info: ValidationInfo) -> Self:
        engine = self.engine
        if engine.gpu and engine.slots != "auto":
            model, share = name_of_model(self.model), min(engine.reserved_gpus, 1.0)
            try:
                read_gpus().check_fit(engine.gpu, model, engine.slots, share, eight_bit=engine.kv_cache_dtype == "fp8")
            except ValueError as error:
                raise ValueError(f"{written(_in_file(('engine', 'slots'), info.context))}: {error}") from None
        return self


def deployment_of(name: str) -> str:
    """The name of the engine deployment of a further model, from the name that clients know."""
    return "engine-" + re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _in_file(location: tuple[str | int, ...], context: Mapping[str, Any] | None) -> tuple[str | int, ...]:
    """Where a key of `Settings` stands in the file, if the first model is one of `models` there; see `_validate`."""
    place = (context or {}).get("place")
    match location:
        case ("engine", *rest) if place is not None:
            return ("models", place, "engine", *rest)
        case ("models", int(number), *rest) if place is not None and number >= place:
            return ("models", number + 1, *rest)
    return location


def _slots(text: str) -> int | str:
    return text if text.lower() == "auto" else int(text)


ENVIRONMENT: Mapping[str, tuple[tuple[str, ...], Callable[[str], object]]] = MappingProxyType(
    {
        "KYUTAI_APP_NAME": (("app_name",), str),
        "MODEL_NAME": (("model",), str),
        "BATCH_SIZE": (("engine", "slots"), _slots),
        "MAX_CONCURRENT_SESSIONS": (("engine", "slots"), _slots),
        "KYUTAI_GPU": (("engine", "gpu"), str),
        "LOOM_MODEL_DEVICE": (("engine", "device"), str),
        "LOOM_MODEL_CACHE_DIR": (("engine", "model_cache_dir"), str),
        "IDLE_AUDIO_TIMEOUT_SECONDS": (("session", "idle_audio_timeout_seconds"), float),
        "PARK_AFTER_SECONDS": (("session", "park_after_seconds"), float),
        "RESUME_WINDOW_SECONDS": (("session", "resume_window_seconds"), float),
        "MAX_SESSION_SECONDS": (("session", "max_session_seconds"), float),
        "LOOM_LOG_LEVEL": (("log_level",), str),
        "STT_AUTH": (("auth", "mode"), str),
        "STT_API_KEY": (("auth", "keys"), lambda key: [{"name": "environment", "sha256": key_digest(key.encode())}]),
        "STT_KEYS_FILE": (("auth", "keys_file"), str),
        "LOOM_KAFKA_BOOTSTRAP_SERVERS": (("kafka", "bootstrap_servers"), str),
        "LOOM_KAFKA_INPUT_TOPIC": (("kafka", "input_topic"), str),
        "LOOM_KAFKA_OUTPUT_TOPIC": (("kafka", "output_topic"), str),
        "LOOM_KAFKA_GROUP_ID": (("kafka", "group_id"), str),
        "LOOM_KAFKA_TRANSACTIONAL_ID_PREFIX": (("kafka", "transactional_id_prefix"), str),
        "LOOM_KAFKA_LANGUAGE": (("kafka", "language"), str),
        "LOOM_KAFKA_SERVICE_URL": (("kafka", "service_url"), str),
        "LOOM_KAFKA_SERVICE_KEY": (("kafka", "service_key"), str),
        "SESSION_GAP_SECONDS": (("kafka", "session_gap_seconds"), float),
        **{f"LOOM_KAFKA_{name.upper()}": (("kafka", name), str) for name in SECURITY},
    }
)
"""Environment variables: the key each sets, and how its text is read. The names are those of the earlier services."""


_NO_OPTIONS: Mapping[str, object] = MappingProxyType({})


def load(path: Path, environ: Mapping[str, str] = os.environ, options: Mapping[str, object] = _NO_OPTIONS) -> Settings:
    """Read a Serve config file, the environment, and a command line's options as `from_args` takes them.

    Raises `SettingsError` where the file is missing, is no YAML, describes another application, or has a wrong setting.
    """
    return from_args(_arguments(path), environ, origin=str(path), options=options)


def load_for_fetching(path: Path, model: str, environ: Mapping[str, str] = os.environ) -> Settings:
    """As `load`, but of the file and the environment only what says what `model` is and where its checkpoint goes.

    Everything else is left at its defaults, and may be wrong.
    """
    args = _arguments(path)
    few = {key: args[key] for key in ("model", "models") if key in args} | _only_cache(args)
    if isinstance(models := args.get("models"), list):
        few["models"] = [
            {key: one[key] for key in ("model", "name") if key in one} | _only_cache(one)
            if isinstance(one, Mapping)
            else one
            for one in models
        ]
    variables = {name: environ[name] for name in ("LOOM_MODEL_CACHE_DIR",) if name in environ}
    return from_args(few, variables, origin=str(path), options={"model": model})


def _only_cache(group: Mapping[str, Any]) -> dict[str, Any]:
    """Of the `engine` in a group nothing but `model_cache_dir`; nothing at all where there is no `engine`."""
    if "engine" not in group:
        return {}
    engine = group["engine"]
    cached = isinstance(engine, Mapping) and "model_cache_dir" in engine
    return {"engine": {"model_cache_dir": engine["model_cache_dir"]} if cached else {}}


def _arguments(path: Path) -> Mapping[str, Any]:
    """The `args` in a Serve config file. Raises `SettingsError` as `load` does."""
    document = _read_yaml(path)
    applications = document.get("applications")
    if not isinstance(applications, list) or len(applications) != 1 or not isinstance(applications[0], Mapping):
        got = f"{len(applications)}" if isinstance(applications, list) and applications[1:] else repr(applications)
        raise SettingsError([f"{path}: applications: expected a list with one application, got {got}"])
    import_path = applications[0].get("import_path")
    if import_path != IMPORT_PATH:
        raise SettingsError([f"{path}: applications[0].import_path: expected {IMPORT_PATH!r}, got {import_path!r}"])
    args = applications[0].get("args")
    if args is not None and not isinstance(args, Mapping):
        raise SettingsError([f"{path}: applications[0].args: expected a mapping, got {args!r}"])
    return args or {}


def from_args(
    args: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
    origin: str = DEFAULT_ORIGIN,
    options: Mapping[str, object] = _NO_OPTIONS,
) -> Settings:
    """Build the settings from an application's `args` and the environment; `origin` names the file in messages.

    The environment wins over `args`, and over both win `options`, what a command line says of top-level keys. An empty
    variable counts as unset, and so do those of the Kafka bridge where nothing names brokers: they may be left over
    from another service, and only the log says so. Raises `SettingsError`.
    """
    if chosen := options.get("model") or environ.get("MODEL_NAME", "").strip():
        args = with_model(args, str(chosen))
    first = None if args.get("engine") is not None else _further(args, args.get("model"), _served_as)
    context: dict[str, Any] = {}
    if first:
        place = args["models"].index(first)
        context = {"served_as": _served_as(first), "place": place}
        # The engine is looked at below, with what variables say of it.
        facts = {key: value for key, value in first.items() if key != "engine"}
        _validate(FurtherModel, facts, f"{origin}: models[{place}]", {})
        others = [further for further in args["models"] if further is not first]
        args = {**args, "engine": first.get("engine"), "models": others}
    values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in args.items()}
    sources: dict[tuple[str, ...], str] = {}
    for variable, (key, convert) in ENVIRONMENT.items():
        text = environment_key(environ) if variable == "STT_API_KEY" else environ.get(variable, "").strip()
        if not text:
            continue
        try:
            value = convert(text)
        except ValueError:
            value = text  # The validation below says what was expected.
        group: Any = values
        for name in key[:-1]:
            if group.get(name) is None:
                group[name] = {}
            group = group[name]
        if not isinstance(group, dict):
            continue  # The file has something else where the group belongs; the validation below says so.
        if key in sources and group[key[-1]] != value:
            both, first = f"{sources[key]} and {variable}", group[key[-1]]
            raise SettingsError(
                [f"environment: {both}: expected one value of {'.'.join(key)}, got {first!r} and {value!r}"]
            )
        group[key[-1]] = value
        sources[key] = f"{sources[key]}, {variable}" if key in sources else variable
    if args.get("kafka") is None and ("kafka", "bootstrap_servers") not in sources and values.pop("kafka", None):
        ignored = ", ".join(names for key, names in sources.items() if key[0] == "kafka")
        _log.warning("%s: ignored, as LOOM_KAFKA_BOOTSTRAP_SERVERS names no brokers: there is no Kafka bridge", ignored)
    blamed: dict[tuple[str | int, ...], str] = {key: f"environment variable {names}" for key, names in sources.items()}
    for option, value in options.items():
        values[option] = value
        blamed[(option,)] = f"option --{option}"
    if not first:
        return _validate(Settings, values, origin, blamed)
    settings = _validate(Settings, values | {"model": first["model"]}, origin, blamed, context)
    return settings.model_copy(update={"model": context["served_as"]})


def with_model(args: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    """An application's `args` with another `model`.

    One of `models`, by its name or its `model`, is then the first one, with its own engines instead of `engine`.
    """
    if model == args.get("model", Settings.model_fields["model"].default):
        return args
    further = _further(args, model, _served_as) or _further(args, model, itemgetter("model"))
    if further is None:
        return {**args, "model": model}
    return {key: value for key, value in args.items() if key != "engine"} | {"model": _served_as(further)}


def _further(
    args: Mapping[str, Any], asked: object, called: Callable[[Mapping[str, Any]], object]
) -> Mapping[str, Any] | None:
    """The one of `models` that is `called` what is asked for; None also where they are not as they should be."""
    models = args.get("models")
    if not isinstance(models, list) or not all(isinstance(one, Mapping) and "model" in one for one in models):
        return None
    names = [_served_as(one) for one in models]
    if any(names.count(name) > 1 for name in names):
        return None
    return next((one for one in models if called(one) == asked), None)


def _served_as(further: Mapping[str, Any]) -> Any:
    return further.get("name") or further["model"]


def environment_key(environ: Mapping[str, str]) -> str:
    """The API key in the environment: STT_API_KEY, or an earlier service's MODAL_KEY and MODAL_SECRET; else nothing."""
    key, pair = environ.get("STT_API_KEY", "").strip(), [environ.get(f"MODAL_{part}", "") for part in ("KEY", "SECRET")]
    return key or (":".join(pair) if all(pair) else "")


def bridge_key(kafka: KafkaSettings, environ: Mapping[str, str] = os.environ) -> str | None:
    """The API key that the Kafka bridge shows to the service: its own, else the one in the environment."""
    return kafka.service_key.get_secret_value() if kafka.service_key else environment_key(environ) or None


def key_digest(key: bytes) -> str:
    """What is kept of a key. Its 256 random bits need no slow hash, which would let strangers keep the server busy."""
    return hashlib.sha256(key).hexdigest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys in a `KeysFile`. Raises `SettingsError`, which repeats nothing of the file: a key might be in it."""
    try:
        return tuple(KeysFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))).keys)
    except OSError as error:
        advice = (
            f" (stt keys add NAME --file {_display(path)} makes it)" if isinstance(error, FileNotFoundError) else ""
        )
        raise SettingsError([f"{_display(path)}: expected a readable file, got: {error.strerror}{advice}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise SettingsError([f"{_display(path)}: expected YAML"]) from None
    except ValidationError as error:
        places = dict.fromkeys(written(problem["loc"]) or "the file" for problem in error.errors())
        raise SettingsError(
            f"{_display(path)}: {place}: expected keys as `stt keys add` writes them" for place in places
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def resolve_model(model: str) -> ModelSettings:
    """Turn the setting `model` into the facts of that model.

    Raises `ValueError` where no such model exists, `SettingsError` where its file has a wrong key.
    """
    names = _model_names()
    if model in names:
        return _read_model_file(MODELS_FOLDER / f"{model}.yaml")
    path = Path(model).expanduser()
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ValueError(f"expected a model file that exists, got {model!r}")
        return _read_model_file(path.resolve())
    # An absolute folder may exist on the engines' machines only; a relative one travels with the application.
    if path.is_absolute() or path.is_dir():
        return ModelSettings(source=_portable(path))
    if is_hub_id(model):
        for name in names:
            known = _read_model_file(MODELS_FOLDER / f"{name}.yaml")
            if known.source == model:
                return known
        return ModelSettings(source=model)
    raise ValueError(
        f"expected one of {', '.join(names)}, a model file, a checkpoint folder or a Hugging Face id, "
        f"got {model!r}{did_you_mean(model, names)}"
    )


def name_of_model(model: str) -> str:
    """The name in `configs/models` of what the setting `model` says; the setting itself for any other model."""
    if is_hub_id(model):
        for name in _model_names():
            if _read_model_file(MODELS_FOLDER / f"{name}.yaml").source == model:
                return name
    return model


def _model_names() -> list[str]:
    return sorted(file.stem for file in MODELS_FOLDER.glob("*.yaml"))


def read_gpus() -> Gpus:
    """What is known of GPUs. Raises `SettingsError` where the file has a wrong key."""
    return _validate(Gpus, _read_yaml(GPUS_FILE), _display(GPUS_FILE), {})


def is_hub_id(source: str) -> bool:
    """Whether a source reads `organisation/name`; a folder of that shape is written `./folder/name`."""
    return _HUB_ID.fullmatch(source) is not None


def _read_model_file(path: Path) -> ModelSettings:
    """Read one model file; a relative `source` in it is relative to the file."""
    model = _validate(ModelSettings, _read_yaml(path), _display(path), {})
    if is_hub_id(model.source):
        return model
    return model.model_copy(update={"source": _portable(path.parent / Path(model.source).expanduser())})


def _portable(folder: Path) -> str:
    """Write a folder so that every machine finds it: relative to the project where it is inside, else absolute."""
    folder = folder.resolve()
    return f"./{folder.relative_to(PROJECT_ROOT)}" if folder.is_relative_to(PROJECT_ROOT) else str(folder)


def _display(path: Path) -> str:
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError([f"{_display(path)}: expected a readable file, got: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError([f"{_display(path)}: expected YAML, got: {' '.join(str(error).split())}"]) from error
    if not isinstance(document, dict):
        raise SettingsError([f"{_display(path)}: expected a mapping, got {document!r}"])
    return document


def _validate(
    model: type[_Model],
    values: Mapping[str, Any],
    origin: str,
    sources: Mapping[tuple[str | int, ...], str],
    context: Mapping[str, Any] = _NO_OPTIONS,
) -> _Model:
    """Validate, and raise all problems as one `SettingsError`; `sources` tells of keys that are not from `origin`.

    `context` are facts for the validators: of `Settings` whose first model is one of `models` in the file, `served_as`,
    its name if that is not `model`, and `place`, its place there.
    """
    try:
        return model.model_validate(dict(values), context=context)
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_url=False):
            location = problem["loc"]
            source = sources.get(location)
            at = location if source else _in_file(location, context)
            problems.append(f"{source or origin}: {describe(model, at, problem)}")
        raise SettingsError(problems) from None
