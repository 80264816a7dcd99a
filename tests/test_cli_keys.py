"""`stt keys add`: what is printed, and what is kept."""

import hashlib
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli.config import DEFAULT_CONFIG, Overrides
from serve_app.cli.main import app
from serve_app.settings import read_keys


def stt(*arguments: object, stdin: str = "") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def test_a_key_is_printed_once_and_its_hash_is_kept(tmp_path: Path):
    file = tmp_path / "keys.yaml"
    first = stt("keys", "add", "ann", "--file", file)
    second = stt("keys", "add", "bob", "--file", file, "--max-sessions", 4, "--max-requests", 2)
    assert (first.exit_code, second.exit_code) == (0, 0)
    printed = [result.stdout.strip() for result in (first, second)]
    assert all(key.startswith("stt_") and len(key) == 47 for key in printed)
    assert [(key.name, key.sha256, key.max_sessions, key.max_requests) for key in read_keys(file)] == [
        ("ann", hashlib.sha256(printed[0].encode()).hexdigest(), None, None),
        ("bob", hashlib.sha256(printed[1].encode()).hexdigest(), 4, 2),
    ]
    assert not [key for key in printed if key in file.read_text() + first.stderr + second.stderr]
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_key_that_exists_is_taken_from_standard_input(tmp_path: Path):
    file = tmp_path / "keys.yaml"
    result = stt("keys", "add", "modal", "--stdin", "--file", file, stdin="ak-1:as-2\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert [key.sha256 for key in read_keys(file)] == [hashlib.sha256(b"ak-1:as-2").hexdigest()]
    assert "as-2" not in file.read_text() + result.stderr


def test_who_could_read_the_file_still_can(tmp_path: Path):
    file = tmp_path / "keys.yaml"
    stt("keys", "add", "ann", "--file", file)
    owner = (1234, 5678) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(file, *owner)
    file.chmod(0o640)
    assert stt("keys", "add", "bob", "--file", file).exit_code == 0
    kept = file.stat()
    assert (kept.st_uid, kept.st_gid, kept.st_mode & 0o777) == (*owner, 0o640)


@pytest.mark.parametrize("text", ["", "\n", "one two\n", "one\ntwo\n"])
def test_what_is_no_key_is_not_taken(tmp_path: Path, text: str):
    result = stt("keys", "add", "ann", "--stdin", "--file", tmp_path / "keys.yaml", stdin=text)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "stt: standard input: expected a key, on one line and without spaces\n"
    assert list(tmp_path.iterdir()) == []


def test_what_people_wrote_in_the_file_stays(tmp_path: Path):
    file = tmp_path / "keys.yaml"
    stt("keys", "add", "ann", "--file", file)
    file.write_text(f"# ours\n{file.read_text()}  # the boss\n\n\n")
    assert stt("keys", "add", "bob", "--file", file).exit_code == 0
    assert file.read_text().startswith("# ours\nkeys:\n- name: ann\n")
    assert "# the boss" in file.read_text()
    assert [key.name for key in read_keys(file)] == ["ann", "bob"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["two words"], "name: expected text that matches"),
        (["-"], "name: expected text that matches"),
        (["bob", "--max-sessions", "0"], "max_sessions: expected at least 1, got 0"),
        (["ann"], "expected a new name, got 'ann'"),
    ],
)
def test_what_cannot_be_added_changes_nothing(tmp_path: Path, arguments: list, words: str):
    file = tmp_path / "keys.yaml"
    stt("keys", "add", "ann", "--file", file)
    before = file.read_text()
    result = stt("keys", "add", "--file", file, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert file.read_text() == before


@pytest.mark.parametrize("text", ["keys: []", "keys:\n  - {name: ann, sha256: %s}" % ("a" * 64), "something: else"])
def test_a_file_of_another_form_is_left_alone(tmp_path: Path, text: str):
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    result = stt("keys", "add", "bob", "--file", file)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_not_there(tmp_path: Path):
    result = stt("keys", "add", "bob", "--file", tmp_path / "no" / "keys.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cannot be written (No such file or directory)" in result.stderr


def test_without_a_file_it_is_the_one_of_the_environment_or_of_the_current_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STT_KEYS_FILE", raising=False)
    here = stt("keys", "add", "ann")
    assert f"is {tmp_path / 'keys.yaml'}" in here.stderr.replace("\n", " ")
    monkeypatch.setenv("STT_KEYS_FILE", "others.yaml")
    there = stt("keys", "add", "bob")
    assert f"is {tmp_path / 'others.yaml'}" in there.stderr.replace("\n", " ")
    assert [[key.name for key in read_keys(tmp_path / name)] for name in ("keys.yaml", "others.yaml")] == [
        ["ann"], ["bob"]
    ]  # fmt: skip


def test_the_service_reads_the_file_that_was_written(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STT_KEYS_FILE", "keys.yaml")
    assert stt("keys", "add", "ann").exit_code == 0
    overrides = Overrides.from_environment()
    assert [key.name for key in overrides.settings(DEFAULT_CONFIG).auth.keys_in_file] == ["ann"]
    assert overrides.environment()["STT_KEYS_FILE"] == str(tmp_path / "keys.yaml")
