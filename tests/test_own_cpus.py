"""CPUs of this machine, and replicas that reserve some."""

from typing import Any

import pytest

from serve_app.cli import own_cpus
from serve_app.settings import SettingsError, from_args

COMES_AND_GOES: dict[str, Any] = {"autoscaling": {"min_replicas": 0}}


@pytest.mark.parametrize(
    ("count", "args"),
    [
        (2, {}),
        (1, {"engine": {"num_cpus": 0.1, "replicas": 3}, "ingress": {"num_cpus": 0.7}}),
        (1, {"engine": {"num_cpus": 0, "replicas": 5}}),
        (2, {"engine": COMES_AND_GOES, "models": [{"model": "demo", "name": "small", "engine": COMES_AND_GOES}]}),
        (2, {"ingress": {"autoscaling": {"min_replicas": 1, "max_replicas": 10}}}),
    ],
)
def test_replicas_that_can_start(count: int, args: dict[str, Any]):
    own_cpus.check(from_args(args, {}), count)


@pytest.mark.parametrize(
    ("count", "args", "expected"),
    [
        (
            1,
            {},
            "at most 1 CPUs in all, which this machine has, got 2 (ingress: 1 of 1, engine of demo: 1 of 1)",
        ),
        (3, {"engine": {"replicas": 3}}, "got 4 (ingress: 1 of 1, engine of demo: 3 of 1)"),
        (3, {"engine": {"autoscaling": {"min_replicas": 3}}}, "got 4 (ingress: 1 of 1, engine of demo: 3 of 1)"),
        (8, {"engine": {"num_cpus": 8} | COMES_AND_GOES}, "got 9 (ingress: 1 of 1, engine of demo: 1 of 8)"),
        (2, {"models": [{"model": "demo", "name": "small"}]}, "engine of demo: 1 of 1, engine of small: 1 of 1)"),
        (
            2,
            {"kafka": {"bootstrap_servers": "x:1", "num_cpus": 0.5, "replicas": 2}},
            "got 3 (ingress: 1 of 1, kafka: 2",
        ),
    ],
)
def test_replicas_that_would_wait_without_end(count: int, args: dict[str, Any], expected: str):
    with pytest.raises(SettingsError) as error:
        own_cpus.check(from_args(args, {}), count)
    assert expected in str(error.value)


def test_rays_own_count_is_asked(monkeypatch):
    assert own_cpus.found() >= 1
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 8}')
    assert own_cpus.found() == 8
