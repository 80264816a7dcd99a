"""Numbers in query parameters and forms, the same for every dialect that takes them."""

import re
from collections.abc import Mapping

from serve_app.errors import InvalidMessage, shown

_PLAIN_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,6})?")


def number(values: Mapping[str, str], name: str, largest: float, default: float = 0.0) -> float:
    """A plain decimal number from 0 to `largest`, the default where it is missing. Raises InvalidMessage."""
    text = values.get(name)
    if text is None:
        return default
    value = float(text) if _PLAIN_NUMBER.fullmatch(text) else -1.0
    if not 0 <= value <= largest:
        raise InvalidMessage(f"?{name}=: expected a number from 0 to {largest:g}, got {shown(text)}")
    return value
