"""A small client of the service's own protocol (`/v1/stream`): asynchronous, and without asyncio as `client.sync`."""

from serve_app.client import sync
from serve_app.client.encoding import Format
from serve_app.client.errors import (
    ClientError,
    ConnectionLost,
    ConnectionRefused,
    InvalidAddress,
    KeyRefused,
    ProtocolViolation,
    ServerError,
    ServerSilent,
)
from serve_app.client.events import Done, Event, Flushed, Pauses, Ready, Settled, Status, Token, TurnEnd, Unknown, Word
from serve_app.client.stream import Stream, connect
from serve_app.client.transcribe import Arrival, Pace, transcribe

__all__ = [
    "Arrival",
    "ClientError",
    "ConnectionLost",
    "ConnectionRefused",
    "Done",
    "Event",
    "Flushed",
    "Format",
    "InvalidAddress",
    "KeyRefused",
    "Pace",
    "Pauses",
    "ProtocolViolation",
    "Ready",
    "ServerError",
    "ServerSilent",
    "Settled",
    "Status",
    "Stream",
    "Token",
    "TurnEnd",
    "Unknown",
    "Word",
    "connect",
    "sync",
    "transcribe",
]
