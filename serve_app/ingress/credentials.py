"""Where clients put their key: every place that one of the dialects' own clients knows.

Authorization: Bearer KEY                              ours, OpenAI's
kyutai-api-key: KEY                                    moshi-server's, Unmute's
Modal-Key: KEY and Modal-Secret: SECRET                the earlier services'; together they are the key KEY:SECRET
Sec-WebSocket-Protocol: openai-insecure-api-key.KEY    OpenAI's in browsers, which cannot set headers
?auth_id=KEY, ?token=KEY                               moshi-server's in browsers, ours
"""

from urllib.parse import unquote_to_bytes

from starlette.types import Scope

SUBPROTOCOL = b"openai-insecure-api-key."
PARAMETERS = (b"auth_id", b"token")


def take_credentials(scope: Scope) -> list[bytes]:
    """Take all that may be a key out of an ASGI scope, so that nothing that sees the scope later can tell it."""
    found: list[bytes] = []
    headers: list[tuple[bytes, bytes]] = []
    modal: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        match name:
            case b"authorization":
                scheme, _, credential = value.partition(b" ")
                if scheme.lower() == b"bearer":
                    found.append(credential.strip())
            case b"kyutai-api-key":
                found.append(value.strip())
            case b"modal-key" | b"modal-secret":
                modal[name] = value.strip()
            case b"sec-websocket-protocol":
                offers = [offer.strip() for offer in value.split(b",")]
                found += [offer.removeprefix(SUBPROTOCOL) for offer in offers if offer.startswith(SUBPROTOCOL)]
                headers.append((name, b", ".join(offer for offer in offers if not offer.startswith(SUBPROTOCOL))))
            case _:
                headers.append((name, value))
    if len(modal) == 2:
        found.append(modal[b"modal-key"] + b":" + modal[b"modal-secret"])
    scope["headers"] = headers
    if "subprotocols" in scope:
        prefix = SUBPROTOCOL.decode()
        scope["subprotocols"] = [offer for offer in scope["subprotocols"] if not offer.startswith(prefix)]
    fields = []
    for field in scope["query_string"].split(b"&"):
        name, _, value = (unquote_to_bytes(part.replace(b"+", b" ")) for part in field.partition(b"="))
        if name in PARAMETERS:
            found.append(value)
        else:
            fields.append(field)
    scope["query_string"] = b"&".join(fields)
    return [credential for credential in found if credential]
