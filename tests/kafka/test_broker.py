"""The broker that `make kafka` runs."""

import pytest

from tests.kafka.topics import Topics
from tools.kafka import broker as module
from tools.kafka.broker import Broker, BrokerFailed, MissingProgram, answers


@pytest.mark.timeout(400)
def test_what_was_written_outlives_a_kill(broker):
    topics = Topics(broker.address)
    topics.send([{"device_id": "d", "chunk_id": "before"}])
    broker.kill()
    assert not answers(broker.address)
    broker.start()
    topics.send([{"device_id": "d", "chunk_id": "after"}])
    reader = topics.inputs()
    reader.wait_for(2, 60)
    assert reader.chunk_ids() == ["before", "after"]
    reader.close()


def test_a_port_that_is_taken_is_named(broker, tmp_path):
    with pytest.raises(BrokerFailed, match=f"127.0.0.1:{broker.port}: expected a free port"):
        Broker(tmp_path, broker.port).start()


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    with pytest.raises(MissingProgram, match=r"Java 17 or newer: .*apt-get install default-jre-headless"):
        Broker(tmp_path).start()
