"""What can go wrong between a client and the service, named by meaning. All are `ClientError`."""


class ClientError(Exception):
    """Base of everything the client raises on its own account; the text is meant for people."""


class InvalidAddress(ClientError):
    """The address is not one of a service."""


class ConnectionRefused(ClientError):
    """Nobody answers at the address, or what answers does not open the connection."""


class KeyRefused(ConnectionRefused):
    """The service wants an API key, or another one; or it answered 403 for another reason, such as a wrong path."""


class ConnectionLost(ClientError):
    """The connection ended before the session did."""


class ServerSilent(ClientError):
    """The server took or sent nothing for longer than the timeout."""


class ProtocolViolation(ClientError):
    """The server sent what the protocol does not know."""


class ServerError(ClientError):
    """The server ended the session with an error of its own."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        """Stable name, such as `at_capacity`."""
        self.message = message
        """What was expected and what came, for people."""
        self.retry_after_s = retry_after_s
        """When it makes sense to try again, in seconds; None where the server does not say."""
