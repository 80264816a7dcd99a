"""The page for browsers: served from memory, and allowed to load nothing that does not come from here."""

import hashlib
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

_FOLDER = Path(__file__).parent.parent / "web"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
    # Asked for each time and hardly ever sent again: the files belong together, and an upgrade changes all of them.
    "Cache-Control": "no-cache",
}


class WebPage:
    """ASGI middleware: answers browsers that ask for the page or a part of it, whoever they are, and nothing else.

    The page is the same for everybody, and must be there before it can ask for a key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._files = {
            "/" if file.name == "index.html" else f"/web/{file.name}": (_MEDIA_TYPES[file.suffix], file.read_bytes())
            for file in _FOLDER.iterdir()
            if file.suffix in _MEDIA_TYPES
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        is_ours = scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and path in self._files
        if is_ours and (path != "/" or _from_browser(scope)):
            await self._answer(scope, path)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _answer(self, scope: Scope, path: str) -> Response:
        media_type, body = self._files[path]
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'  # of the content: every replica says the same
        headers = {**_HEADERS, "ETag": tag}
        if tag in Headers(scope=scope).get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=media_type)


def _from_browser(scope: Scope) -> bool:
    """Only browsers say that they take HTML; programs get the service's information."""
    return "text/html" in Headers(scope=scope).get("accept", "")
