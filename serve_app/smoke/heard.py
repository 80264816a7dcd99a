"""What is said to the service, and what comes back of it."""

from dataclasses import dataclass

from serve_app.samples import Clip


@dataclass(frozen=True)
class Said:
    """The audio that every dialect gets."""

    clip: Clip
    file: bytes
    """The same as a file, for uploads."""
    first_word_s: float | None = None
    """Where the first word begins, if that is known beforehand."""


@dataclass(frozen=True)
class Heard:
    """What a dialect told of it."""

    text: str
    first_word_s: float | None = None
    """When the first text came: after its beginning had been sent, for an upload after the request."""
    begins_s: float | None = None
    """Where in the audio the first word begins, from a dialect that tells."""


class Unexpected(Exception):
    """The service answered something else than its documents say; the text says what was expected and what came."""
