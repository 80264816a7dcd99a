"""The page for browsers: served from memory, and allowed to load nothing that does not come from here."""

import hashlib
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent.parent / "web"
_PAGE = "index.html"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_NAMES = sorted(file.name for file in _FOLDER.iterdir() if file.suffix in _MEDIA_TYPES)

PATHS = ("/", *(f"/web/{name}" for name in _NAMES if name != _PAGE))
"""Where the page and its parts are; they are the same for everybody, whoever may use the service."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked for each time and hardly ever sent again: the files belong together, and an upgrade changes all of them.
    "Cache-Control": "no-cache",
}


class WebPage:
    """Our page and its parts."""

    def __init__(self) -> None:
        self._files = {name: (_FOLDER / name).read_bytes() for name in _NAMES}

    def routes(self) -> list[Route]:
        """The parts; the page itself shares its path with the service's information."""
        return [Route("/web/{name}", self.part)]

    async def part(self, request: Request) -> Response:
        """`GET /web/…`."""
        name = request.path_params["name"]
        if name not in self._files or name == _PAGE:
            return Response(status_code=404)
        return self._answer(request, name)

    def page(self, request: Request) -> Response:
        """The page, for a request that `is_wanted`."""
        return self._answer(request, _PAGE)

    @staticmethod
    def is_wanted(request: Request) -> bool:
        """Whether a browser asks, rather than a program: only browsers say that they take HTML."""
        return "text/html" in request.headers.get("accept", "")

    def _answer(self, request: Request, name: str) -> Response:
        body = self._files[name]
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'  # of the content: every replica says the same
        unchanged = tag in request.headers.get("if-none-match", "")
        response = Response(
            b"" if unchanged else body, 304 if unchanged else 200, media_type=_MEDIA_TYPES[Path(name).suffix]
        )
        MutableHeaders(scope=None, raw=response.raw_headers).update({**HEADERS, "ETag": tag, "Vary": "Accept"})
        return response
