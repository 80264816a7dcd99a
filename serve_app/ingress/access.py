"""Who may come in: the one place that decides, for HTTP and WebSockets alike, before anything else sees a request."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from serve_app.errors import Forbidden, InvalidKey, InvalidMessage, SpeechError, TooManyRequests
from serve_app.ingress.credentials import take_credentials
from serve_app.ingress.key_ring import KeyRing
from serve_app.ingress.origins import check_origin
from serve_app.protocols.openai.errors import error_response
from serve_app.settings import MOST_SLOTS, ApiKey, Settings
from serve_app.telemetry import IngressMetrics, get_logger

_log = get_logger(__name__)

OPEN_PATHS = ("/health", "/healthz", "/readyz")
"""What needs no key."""

TOKENS_PATH = "/v1/tokens"


class Access:
    """What an ingress replica knows of keys, and the parts of its ASGI application that follow from it."""

    def __init__(
        self,
        settings: Settings,
        token_secret: bytes,
        metrics: IngressMetrics,
        loads: Callable[[str], Mapping[str, Mapping[str, float]]] = lambda model: {},
    ) -> None:
        """`token_secret` is the same at all replicas; `loads(model)` are its engines' latest load reports, by name."""
        self._settings = settings
        self._metrics = metrics
        self._loads = loads
        self._origins = settings.ingress.allowed_origins
        self._token_seconds = settings.auth.token_seconds
        self._key_ring = KeyRing(settings.auth, token_secret) if settings.auth.required else None
        self._open_paths = OPEN_PATHS + (("/metrics",) if settings.auth.metrics == "open" else ())

    def middleware(self) -> list[Middleware]:
        """What every request passes."""
        control = Middleware(AccessControl, self._key_ring, self._origins, self._open_paths, self._metrics)
        if not self._origins:
            return [control]
        # Browsers ask whether they may send a key before they do, and read nothing of an answer that does not say so.
        sharing = Middleware(
            CORSMiddleware, allow_origins=self._origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
        return [sharing, control]

    def routes(self) -> list[Route]:
        """What is there only where keys are required."""
        return [Route(TOKENS_PATH, self.tokens, methods=["POST"])] if self._key_ring else []

    def key_name(self, credential: str) -> str:
        """The name of the key that a credential stands for; empty where nobody needs a key."""
        return credential if self._key_ring else ""

    def most_sessions(self, credential: str) -> int | None:
        """How many sessions of all models the credential's key may hold; None where it has no limit of its own.

        Where keys are required the credential is the key's name.
        """
        key = self._key_ring.named(credential) if self._key_ring else None
        return key.max_sessions if key else None

    def share_of(self, model: str) -> int:
        """How many sessions of a model a key without a limit of its own may hold, by `ingress.key_share`.

        Engines that choose their slots themselves tell how many they have.
        """
        engine = self._settings.served[model].engine
        told = [load["slots"] for load in self._loads(model).values() if "slots" in load]
        if engine.slots != "auto":
            each = float(engine.slots)
        elif told:
            each = sum(told) / len(told)
        else:
            return MOST_SLOTS  # in the first second nobody has told anything yet: the engines' own limit must do
        return max(1, int(self._settings.ingress.key_share * each * engine.most_replicas))

    async def tokens(self, request: Request) -> Response:
        """`POST /v1/tokens?expires_in_seconds=60`: a token for a browser, which stands for the key that asks for it."""
        assert self._key_ring  # else there is no such route
        asked = request.query_params.get("expires_in_seconds", str(self._token_seconds))
        if not (asked.isascii() and asked.isdigit() and len(asked) < 9 and 0 < int(asked) <= self._token_seconds):
            return refusal(InvalidMessage(f"expected expires_in_seconds from 1 to {self._token_seconds}"))
        token, expires_at = self._key_ring.issue(request.headers["authorization"], int(asked))
        return JSONResponse({"token": token, "expires_at": expires_at}, headers={"Cache-Control": "no-store"})


class AccessControl:
    """ASGI middleware. Behind it `Authorization` holds the name of the client's key, and nothing holds the key."""

    def __init__(
        self,
        app: ASGIApp,
        key_ring: KeyRing | None,
        origins: Sequence[str],
        open_paths: Sequence[str],
        metrics: IngressMetrics,
    ) -> None:
        """Without a key ring everybody may come in whom a browser does not bring from elsewhere."""
        self._app = app
        self._key_ring = key_ring
        self._origins = origins
        self._open_paths = open_paths
        self._metrics = metrics
        self._requests: Counter[str] = Counter()  # running, by name of the key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse it before it is accepted."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            key = self._admit(scope)
        except SpeechError as error:
            _log.info("refused", code=error.code)
            self._metrics.refusals_total.labels(error.code).inc()
            await refusal(error)(scope, receive, send)  # for a WebSocket, too: the answer to its handshake
            return
        if key is None:
            await self._app(scope, receive, send)
            return
        self._metrics.key_requests_total.labels(key.name).inc()
        self._requests[key.name] += scope["type"] == "http"
        try:
            with bound_contextvars(key=key.name):
                await self._app(scope, receive, send)
        finally:
            self._requests[key.name] -= scope["type"] == "http"

    def _admit(self, scope: Scope) -> ApiKey | None:
        """Whose connection it is, None where nobody asks. Raises InvalidKey, Forbidden and TooManyRequests."""
        if self._key_ring is None:
            check_origin(Headers(scope=scope), self._origins)
            return None
        credentials = take_credentials(scope)  # first, so that a refusal is logged without them
        check_origin(Headers(scope=scope), self._origins)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in self._open_paths:
            return None
        caller = self._key_ring.who(credentials)
        if caller is None:
            raise InvalidKey(f"expected an API key, got {'none that is good here' if credentials else 'none'}")
        if caller.by_token and path == TOKENS_PATH:
            raise Forbidden("expected an API key, got a token")
        key = caller.key
        if scope["type"] == "http" and key.max_requests and self._requests[key.name] >= key.max_requests:
            raise TooManyRequests(f"expected at most {key.max_requests} requests at once with one key, got one more")
        scope["headers"] = [*scope["headers"], (b"authorization", key.name.encode())]
        return key


def refusal(error: SpeechError) -> Response:
    """The error as HTTP tells it, in OpenAI's form wherever it is met."""
    response = error_response(error)
    if isinstance(error, InvalidKey | Forbidden):
        # For the latter: a 403 that is about access, not the path.
        response.headers["WWW-Authenticate"] = 'Bearer realm="stt"'
    return response
