"""The keys that are good here, and the short-lived tokens that stand for them."""

import hmac
import time
from collections.abc import Iterable
from dataclasses import dataclass

import jwt

from serve_app.settings import ApiKey, AuthSettings, SettingsError, key_digest, read_keys
from serve_app.telemetry import get_logger

_log = get_logger(__name__)

ALGORITHM = "HS256"


@dataclass(frozen=True)
class Caller:
    """Who has shown a good key or token."""

    key: ApiKey
    by_token: bool


class KeyRing:
    """Tells whose a credential is."""

    def __init__(self, settings: AuthSettings, secret: bytes) -> None:
        """`secret` signs tokens: they are good at every replica that has the same one."""
        self._settings = settings
        self._secret = secret
        self._in_file = settings.keys_in_file
        self._file_version: object = None

    def who(self, credentials: Iterable[bytes]) -> Caller | None:
        """The first good one's owner, None if none is good."""
        keys = self._keys()
        for credential in credentials:
            if caller := _by_key(keys, credential) or self._by_token(keys, credential):
                return caller
        return None

    def named(self, name: str) -> ApiKey | None:
        """The key of this name."""
        return next((key for key in self._keys() if key.name == name), None)

    def issue(self, name: str, seconds: int) -> tuple[str, int]:
        """A token that stands for the key of this name, and when it expires (seconds since 1970)."""
        expires_at = int(time.time()) + seconds
        return jwt.encode({"sub": name, "exp": expires_at}, self._secret, ALGORITHM), expires_at

    def _by_token(self, keys: list[ApiKey], credential: bytes) -> Caller | None:
        try:
            claims = jwt.decode(credential, self._secret, [ALGORITHM], options={"require": ["sub", "exp"]})
        except (jwt.PyJWTError, UnicodeError):
            return None
        # A key that is gone takes its tokens along.
        return next((Caller(key, by_token=True) for key in keys if key.name == claims["sub"]), None)

    def _keys(self) -> list[ApiKey]:
        """All keys, the file's as it is now: nothing need be restarted to add one, or to take one back."""
        if path := self._settings.keys_path:
            try:
                status = path.stat()
                version = (status.st_mtime_ns, status.st_size, status.st_ino)
                if version != self._file_version:
                    self._file_version = version
                    self._in_file = read_keys(path)
            except FileNotFoundError:
                pass  # another machine's
            except (OSError, SettingsError) as error:
                _log.error("the keys file cannot be read, the keys stay as they were", error=str(error))
        return [*self._settings.keys, *self._in_file]


def _by_key(keys: list[ApiKey], credential: bytes) -> Caller | None:
    digest = key_digest(credential)
    # All of them, each in constant time: how long it takes tells nothing.
    good = [key for key in keys if hmac.compare_digest(key.sha256, digest)]
    return Caller(good[0], by_token=False) if good else None
