"""A Serve config file with the changes a command line asks for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from serve_app.cli.serve_schema import problems
from serve_app.settings import PROJECT_ROOT, Settings, load, with_model

DEFAULT_CONFIG = PROJECT_ROOT / "serve_config.yaml"
DEFAULT_PORT = 8000


class UnusableConfig(Exception):
    """The config file cannot be read, or is none of Serve's."""


@dataclass(frozen=True)
class Overrides:
    """What replaces the config file's values; None leaves them."""

    host: str | None = None
    port: int | None = None
    model: str | None = None
    name: str | None = None
    auth: str | None = None

    @classmethod
    def from_environment(
        cls, *, host: str | None = None, port: int | None = None, model: str | None = None, auth: str | None = None
    ) -> Self:
        """The command line's values, and the application's name from KYUTAI_APP_NAME."""
        return cls(host=host, port=port, model=model, name=os.environ.get("KYUTAI_APP_NAME"), auth=auth)

    def environment(self) -> dict[str, str]:
        """Our own environment, in which the command line's model wins over MODEL_NAME, and `auth` over STT_AUTH.

        It always has a RAY_ADDRESS: `local` where the user names none.
        """
        own = _environment()
        replaced = {"MODEL_NAME": self.model, "STT_AUTH": self.auth, "RAY_ADDRESS": own.get("RAY_ADDRESS") or "local"}
        return {**own, **{name: value for name, value in replaced.items() if value}}

    @property
    def private(self) -> bool:
        """Whether the service gets a Ray of its own on this machine, not the cluster that RAY_ADDRESS names."""
        return self.environment()["RAY_ADDRESS"] == "local"

    def settings(self, file: Path) -> Settings:
        """The settings that the service will run with. Raises `SettingsError`, which blames what the user wrote."""
        return load(file, _environment(), {"model": self.model} if self.model else {})


@dataclass(frozen=True)
class Address:
    """Where the service listens."""

    host: str
    port: int

    @property
    def reachable_host(self) -> str:
        """The host to connect to from this machine, as addresses have it."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "", "::") else self.host
        return f"[{host}]" if ":" in host else host


def effective_config(file: Path, overrides: Overrides) -> tuple[dict[str, Any], Address]:
    """The config to run and the address it makes the service listen on. Raises `UnusableConfig`."""
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UnusableConfig(f"{file}: {error}") from None
    if not isinstance(config, dict):
        raise UnusableConfig(f"{file}: expected a Serve config with a list of applications")
    # A group whose every key is commented out reads as None in YAML: that is an empty group, not a mistake.
    config = _without_empty(config)
    if isinstance(applications := config.get("applications"), list):
        config["applications"] = [_without_empty(one) if isinstance(one, dict) else one for one in applications]
    if wrong := problems(config):
        raise UnusableConfig("\n".join(f"{file}: {problem}" for problem in wrong))
    if len(config["applications"]) != 1:
        raise UnusableConfig(f"{file}: applications: expected one application, got {len(config['applications'])}")
    http, application = config.get("http_options") or {}, config["applications"][0]
    # Serve's own default is every interface; ours is this machine only.
    host = overrides.host or http.get("host") or "127.0.0.1"
    port = int(overrides.port or http.get("port", DEFAULT_PORT))
    if not 0 < port < 65_536:
        raise UnusableConfig(f"{file}: http_options.port: expected 1 to 65535, got {port}")
    config["http_options"] = {**http, "host": host, "port": port}
    if overrides.model:
        application["args"] = dict(with_model(application.get("args") or {}, overrides.model))
    if overrides.name:
        application["name"] = overrides.name
    return config, Address(host, port)


def _environment() -> dict[str, str]:
    """Our own, in which a relative STT_KEYS_FILE is made absolute: the service runs in another folder."""
    environment = dict(os.environ)
    if file := environment.get("STT_KEYS_FILE"):
        environment["STT_KEYS_FILE"] = str(Path(file).expanduser().absolute())
    return environment


def _without_empty(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if value is not None}
