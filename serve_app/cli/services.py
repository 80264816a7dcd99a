"""Which service a command talks to, with which key, and how: the options that commands share.

`services.yaml` in `~/.config/stt` (or `$XDG_CONFIG_HOME/stt`) gives services names:

    office: {url: "wss://stt.example.com", api_key_env: OFFICE_STT_KEY}

Address: `--url`; else `--service NAME`; else STT_URL; else the service `local`, whose address is LOCAL_WS_URL, else
what the file says, else this machine's.

Key: `--api-key`; else the variable that the service's `api_key_env` names; else STT_API_KEY; else the pair MODAL_KEY
and MODAL_SECRET, which is sent in headers of those names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from serve_app.client import Format

LOCAL = "local"
LOCAL_URL = "ws://127.0.0.1:8000/v1/stream"

Url = Annotated[
    str | None,
    typer.Option(help=f"Where the service is; else --service, else STT_URL, else LOCAL_WS_URL, else {LOCAL_URL}."),
]
ServiceName = Annotated[
    str | None,
    typer.Option(help="local, or a name in ~/.config/stt/services.yaml ({NAME: {url: …, api_key_env: …}})."),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="One of the service's models (GET /v1/models); without it, its first.")
]
Key = Annotated[
    str | None,
    typer.Option(help="API key; else the service's api_key_env, else STT_API_KEY, else MODAL_KEY and MODAL_SECRET."),
]

Wait = Annotated[float, typer.Option(min=0, help="How many seconds to wait in line where every slot is taken.")]
WireFormat = Annotated[
    Format,
    typer.Option(
        "--format", help="How the audio travels: s16 is half as much as f32, mulaw a quarter, opus a twentieth."
    ),
]


class UnknownService(Exception):
    """The services file cannot be used, or does not say what is needed."""


class Service(BaseModel):
    """An entry of the services file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    api_key_env: str | None = None
    """The environment variable that holds the key: keys do not belong into the file."""


@dataclass(frozen=True)
class Access:
    """What `client.connect` needs."""

    url: str
    api_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


_services = TypeAdapter(dict[str, Service])


def find_access(url: str | None, service: str | None, api_key: str | None, environ: Mapping[str, str]) -> Access:
    """Apply the precedence above. Raises `UnknownService`."""
    address = url or (environ.get("STT_URL") if service is None else None)
    key_variable = None
    if service is not None or address is None:
        found = _find(service or LOCAL, environ)
        address, key_variable = address or found.url, found.api_key_env
    if api_key is None and key_variable:
        api_key = environ.get(key_variable)
        if not api_key:
            raise UnknownService(f"service {service or LOCAL}: expected its key in the variable {key_variable}")
    api_key = api_key or environ.get("STT_API_KEY", "").strip()
    pair = {f"Modal-{part.capitalize()}": environ.get(f"MODAL_{part}", "") for part in ("KEY", "SECRET")}
    return Access(address, api_key or None, {} if api_key or not all(pair.values()) else pair)


def services_file(environ: Mapping[str, str]) -> Path:
    """Where the services file is, if there is one."""
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "stt" / "services.yaml"


def _find(name: str, environ: Mapping[str, str]) -> Service:
    file = services_file(environ)
    services = {LOCAL: Service(url=LOCAL_URL), **_read(file)}
    if name not in services:
        raise UnknownService(f"service {name}: expected one of {', '.join(services)} ({file})")
    found = services[name]
    if name == LOCAL and (local_url := environ.get("LOCAL_WS_URL")):
        return found.model_copy(update={"url": local_url})
    return found


def _read(file: Path) -> dict[str, Service]:
    try:
        return _services.validate_python(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # which may be a key that somebody wrote there
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UnknownService(f"{file}: {place}: {first['msg']}; expected NAME: {{url: …, api_key_env: …}}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UnknownService(f"{file}: cannot be read ({reason})") from None
