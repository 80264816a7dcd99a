"""What Serve says of an application that does not start, for people."""

import re
from collections.abc import Mapping
from typing import Any

FIRST_FAILURE = "A replica failed to start with exception"
"""How the message of a deployment begins that Serve goes on trying to start: three times, each as slow as the first."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OUR_ERROR = re.compile(r"^serve_app\.[\w.]+: ", re.MULTILINE)


def failure(applications: Mapping[str, Any], name: str) -> str | None:
    """Why the application of this name fails, by Serve's REST API; None while nothing is wrong.

    An error of ours says what is wrong by itself; any other comes with its traceback.
    """
    application = applications.get(name)
    if application is None:
        return None
    failed = application["status"] in ("DEPLOY_FAILED", "UNHEALTHY")
    # The application's message may only name the deployments; theirs hold the exception.
    parts = [application, *application.get("deployments", {}).values()]
    messages = [_COLOURS.sub("", part.get("message") or "").strip() for part in parts]
    found = [message for message in messages if message and (failed or message.startswith(FIRST_FAILURE))]
    ours = [text for message in found if (text := _our_error(message))]
    if ours or not found:
        return ours[0] if ours else None
    return "\n".join(["the application does not start", *found])


def _our_error(message: str) -> str | None:
    """The text of the exception at the end of a traceback, if it is one of ours."""
    starts = [match.end() for match in _OUR_ERROR.finditer(message)]
    return message[starts[-1] :] if starts else None
