"""What answers plain requests: health, status, metrics, descriptions, the page for browsers, access.

Checks return a note for people, and raise `Unexpected` or a `ClientError`.
"""

import re
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from serve_app.errors import NO_ENGINE
from serve_app.smoke.heard import Unexpected
from serve_app.smoke.target import Target

METRIC = "stt_sessions_open"
"""One that every ingress has."""

_PARTS_OF_PAGE = re.compile(r'(?:src|href)="([^":#]+)"')


async def health(target: Target) -> str:
    """`GET /health`: the process answers."""
    answer = await target.ask("GET", "/health")
    if answer.text != "ok":
        raise Unexpected(f"{target.name}/health: expected ok, got {answer.text[:80]!r}: this is another service")
    return ""


async def readiness(target: Target) -> str:
    """`GET /readyz`: it has stayed ready."""
    if (reason := await not_ready(target)) is not None:
        raise Unexpected(f"expected it to be ready, got {reason!r}")
    return ""


async def not_ready(target: Target) -> str | None:
    """`GET /readyz`: why not every session would be taken, None once an engine of each model has loaded it."""
    answer = await target.reach("GET", "/readyz")
    return None if answer.is_success and NO_ENGINE not in answer.text else answer.text[:200]


async def information(target: Target) -> str:
    """`GET /`: what this is."""
    return f"model {await model(target)}"


async def model(target: Target) -> str:
    """The name of the model that is served."""
    return str(_fields(await target.ask("GET", "/"), "service", "model")["model"])


async def status(target: Target) -> str:
    """`GET /status`: engines and slots."""
    if (slots := await free_slots(target)) is None:
        return "closed to us by what is in front of the service"
    free, total = slots
    return f"{free} of {total} slots free"


async def free_slots(target: Target) -> tuple[int, int] | None:
    """Free slots and all slots of the engines, or None where a proxy keeps that to itself."""
    answer = await target.reach("GET", "/status")
    if _is_closed(answer):
        return None
    engines = _fields(answer, "ready", "engines")["engines"]
    try:
        total, used = (int(sum(load[name] for load in engines.values())) for name in ("slots", "slots_used"))
    except (AttributeError, LookupError, TypeError):
        raise Unexpected(f"expected engines with slots and slots_used, got {engines!r}") from None
    return total - used, total


async def metrics(target: Target) -> str:
    """`GET /metrics`: what Prometheus reads."""
    answer = await target.reach("GET", "/metrics")
    if _is_closed(answer):
        return "closed to us by what is in front of the service"
    try:
        names = [family.name for family in text_string_to_metric_families(answer.text)]
    except ValueError as error:
        raise Unexpected(f"expected Prometheus metrics, got HTTP {answer.status_code}: {error}") from None
    if METRIC not in names:
        raise Unexpected(f"expected the metric {METRIC}, got {len(names)} others (HTTP {answer.status_code})")
    return f"{len(names)} metrics"


async def page(target: Target) -> str:
    """`GET /` as a browser: the page and everything that it loads."""
    browser = {"Accept": "text/html"}
    answer = await target.ask("GET", "/", headers=browser)
    parts = _PARTS_OF_PAGE.findall(answer.text)
    if not answer.headers.get("content-type", "").startswith("text/html") or not parts:
        raise Unexpected(f"expected a page with scripts, got {answer.headers.get('content-type')}")
    for part in parts:
        await target.ask("GET", f"/{part}", headers=browser)
    return f"{1 + len(parts)} files"


async def models(target: Target) -> str:
    """`GET /v1/models`: OpenAI's list names the model."""
    listed = [entry.get("id") for entry in _fields(await target.ask("GET", "/v1/models"), "data")["data"]]
    if (expected := await model(target)) not in listed:
        raise Unexpected(f"expected the model {expected!r} in the list, got {listed}")
    return ""


async def build_info(target: Target) -> str:
    """`GET /api/build_info`, as moshi-server has it."""
    return str(_fields(await target.ask("GET", "/api/build_info"), "git_describe")["git_describe"])


async def modules_info(target: Target) -> str:
    """`GET /api/modules_info`, as moshi-server has it."""
    modules = _json(await target.ask("GET", "/api/modules_info"))
    try:
        return f"{modules[0]['used_slots']} of {modules[0]['total_slots']} slots used"
    except (LookupError, TypeError):
        raise Unexpected(f"expected a list with a module, got {modules!r}") from None


async def access(target: Target) -> str:
    """Who has no key is refused where the service wants one, and a token stands for a key."""
    if (await target.reach("GET", "/v1/models", with_key=False)).status_code != httpx.codes.UNAUTHORIZED:
        return "no key needed"
    answer = await target.reach("POST", "/v1/tokens", params={"expires_in_seconds": "30"})
    if answer.status_code == httpx.codes.FORBIDDEN:
        return "key needed; ours is a token"
    token = _fields(answer, "token", "expires_at")["token"]
    answer = await target.reach("GET", "/v1/models", with_key=False, params={"token": token})
    if not answer.is_success:
        raise Unexpected(f"expected a token to be as good as its key, got HTTP {answer.status_code}")
    return "key needed; tokens work"


def _is_closed(answer: httpx.Response) -> bool:
    """Whether a proxy refuses, as `cluster/nginx/stt.conf` does; the service itself says who may come in."""
    return answer.status_code == httpx.codes.FORBIDDEN and "www-authenticate" not in answer.headers


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise Unexpected(f"expected JSON, got HTTP {answer.status_code}: {answer.text[:80]!r}") from None


def _fields(answer: httpx.Response, *names: str) -> dict[str, Any]:
    fields = _json(answer)
    if not isinstance(fields, dict) or not set(names) <= fields.keys():
        raise Unexpected(f"expected an object with {', '.join(names)}, got HTTP {answer.status_code}: {fields!r:.80}")
    return fields


ENDPOINTS = {
    "GET /health": health,
    "GET /readyz": readiness,
    "GET /": information,
    "GET /status": status,
    "GET /metrics": metrics,
    "GET / (browser)": page,
    "GET /v1/models": models,
    "GET /api/build_info": build_info,
    "GET /api/modules_info": modules_info,
    "access": access,
}
"""By name."""
