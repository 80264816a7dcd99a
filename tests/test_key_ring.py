"""Whose a key or a token is."""

import json
import os
import time
from base64 import urlsafe_b64encode

import jwt
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serve_app import settings as settings_module
from serve_app.ingress.key_ring import KeyRing
from serve_app.settings import key_digest

SECRET = b"s" * 32


def entry(name: str, key: str) -> dict:
    return {"name": name, "sha256": key_digest(key.encode())}


def ring(**auth) -> KeyRing:
    return KeyRing(settings_module.from_args({"auth": auth}, environ={}).auth, SECRET)


@pytest.fixture
def two() -> KeyRing:
    return ring(keys=[entry("ann", "a-key"), entry("bob", "b-key")])


def test_the_first_good_credential_says_who(two):
    assert two.who([b"wrong", b"b-key", b"a-key"]).key.name == "bob"
    assert two.who([b"a-key"]).by_token is False
    assert two.who([b"wrong", b""]) is None
    assert two.who([]) is None
    assert two.who([key_digest(b"a-key").encode()]) is None


def test_a_token_stands_for_its_key_until_it_expires(two):
    before = time.time()
    token, expires_at = two.issue("bob", 60)
    assert before + 59 <= expires_at <= time.time() + 61
    caller = two.who([token.encode()])
    assert (caller.key.name, caller.by_token) == ("bob", True)
    old, _ = two.issue("bob", -1)
    assert two.who([old.encode()]) is None


def test_forged_tokens(two):
    later = int(time.time()) + 60
    good, _ = two.issue("bob", 60)
    head, body, signature = good.split(".")
    forged = [
        jwt.encode({"sub": "bob", "exp": later}, b"x" * 32, "HS256"),
        jwt.encode({"sub": "bob", "exp": later}, None, "none"),
        jwt.encode({"sub": "bob", "exp": later}, SECRET * 2, "HS512"),
        jwt.encode({"sub": "bob"}, SECRET, "HS256"),
        jwt.encode({"exp": later}, SECRET, "HS256"),
        jwt.encode({"sub": "eve", "exp": later}, SECRET, "HS256"),
        f"{head}.{urlsafe_b64encode(json.dumps({'sub': 'ann', 'exp': later}).encode()).decode()}.{signature}",
        f"{head}.{body}.",
        f"{head}.{body}",
    ]
    assert [two.who([token.encode()]) for token in forged] == [None] * len(forged)


@given(st.binary() | st.lists(st.binary().map(urlsafe_b64encode), min_size=3, max_size=3).map(b".".join))
def test_any_bytes_are_nobody(credential):
    assert ring(keys=[entry("ann", "a-key")]).who([credential]) is None


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=2))


@given(header=st.dictionaries(st.sampled_from(["alg", "typ", "b64", "crit", "kid"]), JSON), claims=JSON)
def test_any_token_of_a_stranger_is_nobody(header, claims):
    parts = [urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    assert ring(keys=[entry("ann", "a-key")]).who([b".".join([*parts, b"AAAA"])]) is None


def test_the_file_may_change_and_a_key_takes_its_tokens_along(tmp_path):
    path = tmp_path / "keys.yaml"

    def write(*entries: dict) -> None:
        new = tmp_path / "new"
        new.write_text(yaml.safe_dump({"keys": list(entries)}))
        os.replace(new, path)

    write(entry("ann", "a-key"))
    made = ring(keys_file=str(path), keys=[entry("bob", "b-key")])
    token = made.issue("ann", 60)[0].encode()
    assert made.who([token]).key.name == "ann"
    write(entry("cy", "c-key"))
    assert [made.who([key]) for key in (b"a-key", token)] == [None, None]
    assert made.who([b"c-key"]).key.name == "cy"
    assert made.who([b"b-key"]).key.name == "bob"
    assert (made.named("cy").name, made.named("ann")) == ("cy", None)
    path.write_text("keys: [c-key]")
    assert made.who([b"c-key"]).key.name == "cy"  # what makes no sense changes nothing
    path.unlink()
    assert made.who([b"c-key"]).key.name == "cy"  # nor does a file that is not on this machine
