"""The broker that `make kafka` runs; `test_bridge.py` kills it."""

import pytest

from tools.kafka import broker as module
from tools.kafka.broker import Broker, BrokerFailed, MissingProgram


def test_a_port_that_is_taken_is_named(broker, tmp_path):
    with pytest.raises(BrokerFailed, match=f"127.0.0.1:{broker.port}: expected a free port"):
        Broker(tmp_path, broker.port).start()


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    with pytest.raises(MissingProgram, match=r"Java 17 or newer: .*apt-get install default-jre-headless"):
        Broker(tmp_path).start()
