"""Audio files from the web, no larger and no slower than said."""

import time
from collections.abc import Iterator
from typing import BinaryIO, cast

import httpx
import numpy as np
from numpy.typing import NDArray

from serve_app.audio.files import AudioFileError, read_stream

DOWNLOAD_SECONDS = 300.0
"""Longest download."""

SILENT_SECONDS = 15.0
"""How long a server may say nothing."""


def is_web_address(text: str) -> bool:
    """Whether it is no file's name."""
    return text.lower().startswith(("http://", "https://"))


def read_url(url: str, timeout_s: float = DOWNLOAD_SECONDS) -> NDArray[np.float32]:
    """Read a file of any format that `read_audio` reads; as much of it as a pipe may bring.

    Raises `AudioFileError`, which leaves out the address's query: a key may be in it.
    """
    name = url.partition("?")[0]
    deadline = time.monotonic() + timeout_s
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=min(SILENT_SECONDS, timeout_s)) as response:
            if not response.is_success:
                raise AudioFileError(name, f"expected a file, got HTTP {response.status_code}")
            return read_stream(cast("BinaryIO", _Body(response.iter_bytes(), name, timeout_s, deadline)), name)
    except httpx.TimeoutException:
        raise AudioFileError(name, "the server takes too long") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise AudioFileError(name, f"cannot be read ({error})") from None


class _Body:
    """What comes, as a file that can be read."""

    def __init__(self, pieces: Iterator[bytes], name: str, timeout_s: float, deadline: float) -> None:
        self._pieces = pieces
        self._name = name
        self._timeout_s = timeout_s
        self._deadline = deadline

    def read(self, _size: int) -> bytes:
        """The next piece, of whatever size; nothing at the end."""
        if time.monotonic() > self._deadline:
            raise AudioFileError(self._name, f"expected it within {self._timeout_s:g} s")
        return next(self._pieces, b"")
