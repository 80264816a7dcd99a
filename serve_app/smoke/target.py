"""The service under test: its addresses, and a way in with the caller's key."""

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import httpx

from serve_app.client.address import DEFAULT_PATH, is_loopback, shown, stream_url
from serve_app.client.errors import ConnectionRefused, KeyRefused, ServerError, ServerSilent

OPEN_TIMEOUT_S = 10.0

ANSWER_TIMEOUT_S = 60.0
"""How long an answer over HTTP may take: an upload is transcribed before it comes."""

SHOWN_CHARACTERS = 200

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Target:
    """A service; use it as an asynchronous context manager."""

    def __init__(self, address: str, api_key: str | None = None, headers: Mapping[str, str] = _NO_HEADERS) -> None:
        """`address` is one that `client.connect` takes. Raises `InvalidAddress`."""
        parts = urlsplit(stream_url(address))
        path = parts.path.removesuffix(DEFAULT_PATH).rstrip("/")
        self.web_url = f"{parts.scheme.replace('ws', 'http')}://{parts.netloc}{path}"
        """What paths come behind, as in `http://127.0.0.1:8000`."""
        self.name = shown(self.web_url)
        """What messages call it."""
        self.api_key = api_key
        self.headers = dict(headers)
        self._query = dict(parse_qsl(parts.query, keep_blank_values=True))
        key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._web = self._client(headers={**self.headers, **key}, params=self._query)

    async def __aenter__(self) -> Self:
        """Open it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close its connections."""
        await self._web.aclose()

    @property
    def has_key(self) -> bool:
        """Whether the caller shows anything that may be a key."""
        return bool(self.api_key or self.headers or self._query.keys() & {"auth_id", "token"})

    def socket_address(self, path: str) -> str:
        """Of a WebSocket, as `client.connect` takes it."""
        return stream_url(f"{self.web_url}{path}", self._query)

    async def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """An answer to a request. Raises `ServerError` for an HTTP error, `KeyRefused`, and what `reach` raises."""
        answer = await self.reach(method, path, **request)
        self._check(answer)
        return answer

    async def reach(self, method: str, path: str, *, with_key: bool = True, **request: Any) -> httpx.Response:
        """An answer, whatever its status. Raises `ConnectionRefused` and `ServerSilent`."""
        with self._failures(path):
            if with_key:
                return await self._web.request(method, path, **request)
            async with self._client() as stranger:
                return await stranger.request(method, path, **request)

    @asynccontextmanager
    async def lines(self, method: str, path: str, **request: Any) -> AsyncIterator[AsyncIterator[str]]:
        """The lines of an answer, as they come. Raises as `ask` does."""
        with self._failures(path):
            async with self._web.stream(method, path, **request) as answer:
                if not answer.is_success:
                    await answer.aread()
                self._check(answer)
                yield answer.aiter_lines()

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        status = answer.status_code
        if status == httpx.codes.UNAUTHORIZED:
            asked = "another API key" if self.has_key else "an API key"
            raise KeyRefused(f"{self.name}: the server asks for {asked} (HTTP 401)")
        is_busy = status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
        message = f"expected HTTP 200, got {status} and {answer.text[:SHOWN_CHARACTERS]!r}"
        raise ServerError("at_capacity" if is_busy else f"http_{status}", message)

    @contextmanager
    def _failures(self, path: str) -> Iterator[None]:
        """The client's errors instead of httpx's."""
        try:
            yield
        except httpx.TimeoutException:
            raise ServerSilent(f"{self.name}{path}: no answer within {ANSWER_TIMEOUT_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConnectionRefused(f"{self.name}{path}: no connection ({error})") from None

    def _client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.web_url,
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=OPEN_TIMEOUT_S),
            verify=ssl.create_default_context(),  # what WebSockets trust, too
            trust_env=not is_loopback(self.web_url),  # proxies
            **options,
        )
