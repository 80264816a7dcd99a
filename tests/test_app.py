"""The application builder, as far as it goes without Ray."""

import pytest

from serve_app.app import build, listening_host
from serve_app.engine.deployment import CONTROL_CALLS
from serve_app.settings import MOST_SLOTS, SettingsError


def test_where_no_serve_runs_nothing_listens():
    assert listening_host() is None
    assert build({"auth": {"mode": "auto"}})


def test_every_build_has_a_secret_of_its_own_for_tokens():
    secrets = [build({})._bound_deployment.init_args[2] for _ in range(2)]
    assert all(len(secret) == 32 for secret in secrets)
    assert secrets[0] != secrets[1]


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_the_builder_asks_where_its_serve_listens(monkeypatch, host):
    """Serve itself runs in tests/system; here only its answer is given."""
    monkeypatch.setattr("serve_app.app.listening_host", lambda: host)
    for auth in ({"mode": "none"}, {"keys": [{"name": "ann", "sha256": "a" * 64}]}):
        assert build({"auth": auth})
    if host == "127.0.0.1":
        assert build({})
    else:
        with pytest.raises(SettingsError, match=r"http_options\.host: expected 127\.0\.0\.1"):
            build({})


@pytest.mark.parametrize(("slots", "most"), [(8, 8), ("auto", MOST_SLOTS)])
def test_serve_lets_through_what_an_engine_may_have_slots_for(slots, most):
    engine = build({"engine": {"slots": slots}})._bound_deployment.init_args[1]["demo"]
    assert engine._bound_deployment.max_ongoing_requests == most + CONTROL_CALLS


def test_each_model_has_a_deployment_of_its_own():
    small = {"model": "demo", "name": "org/small.1", "engine": {"slots": 3, "autoscaling": {"max_replicas": 2}}}
    engines = build({"engine": {"slots": 8}, "models": [small]})._bound_deployment.init_args[1]
    assert list(engines) == ["demo", "org/small.1"]
    first, second = (bound._bound_deployment for bound in engines.values())
    assert (first.name, second.name) == ("engine", "engine-org-small-1")
    assert (first.max_ongoing_requests, second.max_ongoing_requests) == (8 + CONTROL_CALLS, 3 + CONTROL_CALLS)
    assert first.num_replicas == 1
    assert second._deployment_config.autoscaling_config.max_replicas == 2
    assert second.init_args[0].engine.slots == 3


def test_a_bridge_is_part_of_the_application_where_the_settings_say_so():
    assert build({})._bound_deployment.init_args[3] is None
    args = {"kafka": {"bootstrap_servers": "here:9092", "replicas": 3}}
    bridge = build(args)._bound_deployment.init_args[3]._bound_deployment
    assert (bridge.name, bridge.num_replicas, bridge.init_args[1:]) == ("bridge", 3, ("ws://127.0.0.1:8000", None))


def test_a_bridge_needs_a_key_where_the_service_does():
    args = {"kafka": {"bootstrap_servers": "here:9092"}, "auth": {"keys": [{"name": "ann", "sha256": "a" * 64}]}}
    with pytest.raises(SettingsError, match=r"kafka\.service_key: expected an API key"):
        build(args)
    args["kafka"]["service_key"] = "secret"
    assert build(args)._bound_deployment.init_args[3]._bound_deployment.init_args[2] == "secret"
