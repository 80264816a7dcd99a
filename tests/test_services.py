"""Which service the command line talks to, and with which key."""

from pathlib import Path

import pytest

from serve_app.cli.services import LOCAL_URL, Access, UnknownService, find_access

FILE = """
local: {url: "here:1"}
office: {url: "wss://office.example", api_key_env: OFFICE_KEY}
club: {url: "club.example:9"}
"""

KEY = {"STT_API_KEY": "mine"}
PAIR = {"MODAL_KEY": "k", "MODAL_SECRET": "s"}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "stt").mkdir()
    (tmp_path / "stt" / "services.yaml").write_text(FILE)
    return {"XDG_CONFIG_HOME": str(tmp_path)}


@pytest.mark.parametrize(
    ("url", "service", "environ", "expected"),
    [
        (None, None, {}, "here:1"),
        (None, None, {"LOCAL_WS_URL": "there:2"}, "there:2"),
        (None, "local", {"LOCAL_WS_URL": "there:2", "STT_URL": "far:3"}, "there:2"),
        (None, None, {"LOCAL_WS_URL": "there:2", "STT_URL": "far:3"}, "far:3"),
        (None, "club", {"STT_URL": "far:3"}, "club.example:9"),
        ("typed:4", "club", {"STT_URL": "far:3", "LOCAL_WS_URL": "there:2"}, "typed:4"),
    ],
)
def test_addresses(home, url, service, environ, expected):
    assert find_access(url, service, None, {**home, **environ}) == Access(expected)


@pytest.mark.parametrize(
    ("service", "option", "environ", "expected"),
    [
        ("office", "typed", {"OFFICE_KEY": "o", **KEY, **PAIR}, "typed"),
        ("office", None, {"OFFICE_KEY": "o", **KEY, **PAIR}, "o"),
        ("club", None, {**KEY, **PAIR}, "mine"),
        (None, None, KEY, "mine"),
        ("club", None, {"MODAL_KEY": "k"}, None),
    ],
)
def test_keys(home, service, option, environ, expected):
    access = find_access(None, service, option, {**home, **environ})
    assert (access.api_key, access.headers) == (expected, {})


def test_the_pair_goes_into_headers(home):
    access = find_access("typed:4", None, None, {**home, **PAIR})
    assert (access.api_key, access.headers) == (None, {"Modal-Key": "k", "Modal-Secret": "s"})


def test_no_file(tmp_path):
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert find_access(None, None, None, environ) == Access(LOCAL_URL)
    with pytest.raises(UnknownService, match=r"service office: expected one of local \(.*services\.yaml\)"):
        find_access(None, "office", None, environ)


def test_a_key_that_is_not_there(home):
    with pytest.raises(UnknownService, match="service office: expected its key in the variable OFFICE_KEY"):
        find_access(None, "office", None, {**home, **KEY})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[", "cannot be read"),
        ("- a", "the file: Input should be a valid dictionary"),
        ("office: {api_key: secret}", "office.url: Field required"),
        ("office: {url: x, api_key: secret}", "office.api_key: Extra inputs"),
        ("office: 5", "office: Input should be"),
    ],
)
def test_a_file_that_cannot_be_used(home, text, expected):
    Path(home["XDG_CONFIG_HOME"], "stt", "services.yaml").write_text(text)
    with pytest.raises(UnknownService, match=r"services\.yaml: ") as raised:
        find_access(None, "office", None, home)
    assert expected in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
