"""Errors that reach a client: each has a stable code, a WebSocket close code and an HTTP status.

The message says what was expected and what came. Close codes follow RFC 6455, section 7.4, and the IANA registry.
"""

NO_ENGINE = "no engine has loaded its model yet"
"""What is said of a model that nobody can use now."""

SHOWN_CHARACTERS = 80
"""How much of a wrong value a message repeats."""


def shown(value: object) -> str:
    """What came, for a message: its `repr`, of long text or bytes that of their beginning."""
    return repr(value[:SHOWN_CHARACTERS] if isinstance(value, str | bytes) else value)[: SHOWN_CHARACTERS + 3]


class SpeechError(Exception):
    """Base of all errors that end a session, and only that session."""

    code = "internal_error"
    close_code = 1011
    http_status = 500
    retry_after_s: float | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidMessage(SpeechError):
    """A message the dialect does not know: wrong type, wrong JSON, wrong order."""

    code = "invalid_message"
    close_code = 1003
    http_status = 400


class UnknownModel(InvalidMessage):
    """A model that is not served here."""

    code = "unknown_model"
    http_status = 404


class InvalidAudio(SpeechError):
    """Audio that cannot be what it claims to be: NaN, infinite samples, an odd number of bytes at the end."""

    code = "invalid_audio"
    close_code = 1007
    http_status = 400


class AudioTooLong(SpeechError):
    """An upload of more audio than the limit, however small the file is."""

    code = "audio_too_long"
    close_code = 1009
    http_status = 413


class MessageTooLarge(SpeechError):
    """One message over the size limit."""

    code = "message_too_large"
    close_code = 1009
    http_status = 413


class IdleTimeout(SpeechError):
    """No audio for too long."""

    code = "idle_timeout"
    close_code = 1008
    http_status = 408


class SessionTooLong(SpeechError):
    """The session reached the longest duration the settings allow."""

    code = "session_too_long"
    close_code = 1008
    http_status = 413


class UnknownSession(SpeechError):
    """A resume token that was never given out, was used before, has expired, or belongs to somebody else."""

    code = "unknown_session"
    close_code = 1008
    http_status = 404


class SlowClient(SpeechError):
    """The client does not read what it is sent."""

    code = "slow_client"
    close_code = 1008
    http_status = 408


class AtCapacity(SpeechError):
    """Every slot is taken, or one more session would cost the others their real time."""

    code = "at_capacity"
    close_code = 1013
    http_status = 503
    retry_after_s = 5.0


class TooManyConnections(SpeechError):
    """The client's address holds as many connections as one may. Like a full service it passes: try again later."""

    code = "too_many_connections"
    close_code = 1013
    http_status = 429
    retry_after_s = 5.0


class InvalidKey(SpeechError):
    """No API key came, or none that is good here."""

    code = "invalid_key"
    close_code = 1008
    http_status = 401


class Forbidden(SpeechError):
    """Nothing that another key of this kind would change: a page of a strange origin, a token that asks for tokens."""

    code = "forbidden"
    close_code = 1008
    http_status = 403


class TooManyRequests(SpeechError):
    """One key has as many requests running as it may."""

    code = "too_many_requests"
    close_code = 1013
    http_status = 429
    retry_after_s = 1.0


class ModelNotReady(SpeechError):
    """No engine has loaded its model yet."""

    code = "not_ready"
    close_code = 1013
    http_status = 503
    retry_after_s = 5.0


class TooManySessions(SpeechError):
    """One key holds as many sessions as it may; others need slots too."""

    code = "too_many_sessions"
    close_code = 1013
    http_status = 429
    retry_after_s = 5.0


class ServiceRestarting(SpeechError):
    """This ingress is being stopped or replaced, or cannot look after the session just now: try again in a moment."""

    code = "restarting"
    close_code = 1012
    http_status = 503
    retry_after_s = 1.0


class EngineLost(SpeechError):
    """The engine that held the session's slot is gone."""

    code = "engine_lost"
    close_code = 1011


class StepFailed(SpeechError):
    """The model failed on a step this session took part in; its state there is unknown."""

    code = "step_failed"
    close_code = 1011
