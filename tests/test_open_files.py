"""Open files: what `stt serve` says before HAProxy would, with the real HAProxy as the judge."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig, get_haproxy_binary

from serve_app.cli.open_files import problem
from serve_app.cli.server import free_port
from tests.support import PROJECT

LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, int(sys.argv[1])), int(sys.argv[1])))
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs a command with a hard limit of open files, and a low soft one."""

REPLICAS = 100


def test_without_haproxy_any_number_will_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (16, 16))
    assert problem({}) is None
    assert problem({"RAY_SERVE_ENABLE_HA_PROXY": "0"}) is None


@pytest.mark.parametrize(
    ("hard", "more", "expected"),
    [
        (10_376, {}, None),
        (resource.RLIM_INFINITY, {}, None),
        (10_375, {}, "expected a hard limit of at least 10376, for HAProxy with 4096 connections, got 10375: raise it"),
        (4096, {}, "or take RAY_SERVE_HAPROXY_MAXCONN=1584"),
        (4096, {"RAY_SERVE_HAPROXY_MAXCONN": "1584"}, None),
        (4096, {"RAY_SERVE_HAPROXY_MAXCONN": "1584", "RAY_SERVE_HAPROXY_NBTHREAD": "5"}, "at least 4099, "),
        (386, {}, "or take RAY_SERVE_HAPROXY_MAXCONN=100"),
    ],
)
def test_the_hard_limit_decides(monkeypatch: pytest.MonkeyPatch, hard: int, more: dict[str, str], expected: str | None):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, hard))
    said = problem({"RAY_SERVE_ENABLE_HA_PROXY": "1"} | more)
    assert said is None if expected is None else expected in str(said)


@pytest.mark.parametrize("hard", [0, 64, 137, 385])
def test_a_limit_for_hardly_a_connection_can_only_be_raised(monkeypatch: pytest.MonkeyPatch, hard: int):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
    said = str(problem({"RAY_SERVE_ENABLE_HA_PROXY": "1"}))
    assert f"expected a hard limit of at least 10376, for HAProxy with 4096 connections, got {hard}: raise it" in said
    assert "MAXCONN" not in said


@pytest.mark.parametrize("missing", [0, 1])
def test_haproxy_with_rays_configuration_wants_as_many_as_we_say(tmp_path: Path, missing: int):
    folder = str(tmp_path)
    config = HAProxyConfig(
        socket_path=f"{folder}/s", server_state_base=folder, server_state_file=f"{folder}/state",
        stats_port=free_port(), metrics_port=free_port(), metrics_enabled=False,
    )  # fmt: skip
    config.http_options.port = free_port()
    file = tmp_path / "haproxy.cfg"
    HAProxyApi(config, {}, str(file))._generate_config_file_internal()
    servers = "".join(f"  server s{number} 127.0.0.1:1 check\n" for number in range(REPLICAS))
    file.write_text(f"{file.read_text()}backend more\n{servers}")
    command = [sys.executable, "-c", LIMITED, str(10_376 - missing), get_haproxy_binary(), "-db", "-f", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as haproxy:
        assert haproxy.stderr is not None
        try:
            said = ""
            while "Cannot raise FD limit" not in said and "is DOWN" not in said:
                line = haproxy.stderr.readline()
                assert line, said
                said += line
        finally:
            haproxy.kill()
    assert ("Cannot raise FD limit to 10376" in said) == bool(missing), said


def test_stt_serve_tells_it_before_anything_starts():
    command = [str(Path(sys.executable).with_name("python")), "-m", "serve_app.cli.main", "serve", "--port"]
    told = subprocess.run(
        [sys.executable, "-c", LIMITED, "4096", *command, str(free_port())],
        cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert told.returncode == 1
    assert told.stderr.startswith("stt: open files (`ulimit -Hn`): expected a hard limit of at least 10376")
