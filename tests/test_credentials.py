"""Where a key may stand in a request, and that it stands nowhere afterwards."""

from urllib.parse import quote_plus

from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress.credentials import take_credentials

# No header can hold control characters; spaces around a value are not part of it.
HEADER = st.binary(min_size=1, max_size=64).filter(lambda value: min(value) > 32 and max(value) < 256)
WITHOUT_COMMA = HEADER.filter(lambda value: b"," not in value)
UNIQUE = st.uuids().map(lambda uuid: uuid.hex.encode())


def scope_of(*headers: tuple[bytes, bytes], query: bytes = b"", subprotocols: list[str] | None = None) -> dict:
    return {"headers": list(headers), "query_string": query, "subprotocols": subprotocols or []}


@given(key=HEADER, scheme=st.sampled_from([b"Bearer", b"bearer", b"BEARER"]))
def test_bearer(key, scheme):
    assert take_credentials(scope_of((b"authorization", scheme + b" " + key))) == [key]


@given(key=HEADER)
def test_kyutai_api_key(key):
    assert take_credentials(scope_of((b"kyutai-api-key", key))) == [key]


@given(key=HEADER, secret=HEADER, turned=st.booleans())
def test_modal_pair_is_one_key(key, secret, turned):
    pair = [(b"modal-key", key), (b"modal-secret", secret)]
    assert take_credentials(scope_of(*(reversed(pair) if turned else pair))) == [key + b":" + secret]
    assert take_credentials(scope_of(pair[turned])) == []


@given(key=WITHOUT_COMMA, spaced=st.booleans())
def test_openai_subprotocol(key, spaced):
    offers = [b"realtime", b"openai-insecure-api-key." + key, b"openai-beta.realtime-v1"]
    scope = scope_of(
        (b"sec-websocket-protocol", (b", " if spaced else b",").join(offers)),
        subprotocols=[offer.decode("latin-1") for offer in offers],
    )
    assert take_credentials(scope) == [key]
    assert scope["headers"] == [(b"sec-websocket-protocol", b"realtime, openai-beta.realtime-v1")]
    assert scope["subprotocols"] == ["realtime", "openai-beta.realtime-v1"]


@given(key=st.binary(min_size=1, max_size=64), name=st.sampled_from(["auth_id", "token", "%74oken"]))
def test_query(key, name):
    scope = scope_of(query=f"words=true&{name}={quote_plus(key)}&last_seq=3&words=%74rue".encode())
    assert take_credentials(scope) == [key]
    assert scope["query_string"] == b"words=true&last_seq=3&words=%74rue"


@given(keys=st.lists(UNIQUE, min_size=6, max_size=6, unique=True))
def test_nothing_is_left_of_any_of_them(keys):
    bearer, kyutai, modal, secret, openai, query = keys
    scope = scope_of(
        (b"authorization", b"Bearer " + bearer),
        (b"host", b"here"),
        (b"kyutai-api-key", kyutai),
        (b"modal-key", modal),
        (b"modal-secret", secret),
        (b"sec-websocket-protocol", b"openai-insecure-api-key." + openai),
        query=b"token=" + query + b"&a=b",
        subprotocols=["openai-insecure-api-key." + openai.decode()],
    )
    assert set(take_credentials(scope)) == {bearer, kyutai, modal + b":" + secret, openai, query}
    assert not [key for key in keys if key in repr(scope).encode()]


@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                [b"authorization", b"kyutai-api-key", b"modal-key", b"modal-secret", b"sec-websocket-protocol", b"x"]
            ),
            st.binary(),
        )
    ),
    query=st.binary(),
)
def test_any_request_is_read_and_what_is_no_credential_stays(headers, query):
    scope = scope_of(*headers, query=query)
    assert all(take_credentials(scope))
    assert [header for header in scope["headers"] if header[0] == b"x"] == [one for one in headers if one[0] == b"x"]
    assert take_credentials(scope) == []


def test_a_password_is_no_key_and_does_not_stay_either():
    scope = scope_of((b"authorization", b"Basic dXNlcjpwYXNz"))
    assert take_credentials(scope) == []
    assert scope["headers"] == []
