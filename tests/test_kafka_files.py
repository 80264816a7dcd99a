"""The files that run Kafka: what they say fits together. `tests/kafka` runs the broker itself."""

import re

import yaml

from serve_app.settings import ENVIRONMENT
from tests.support import PROJECT

COMPOSE = PROJECT / "cluster" / "docker" / "compose.kafka.yaml"
POM = PROJECT / "tools" / "kafka" / "pom.xml"


def test_the_bridge_finds_the_broker_and_nobody_else_does():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    [(variable, servers)] = services["stt"]["environment"].items()
    assert ENVIRONMENT[variable][0] == ("kafka", "bootstrap_servers")
    listeners = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    told = dict(listener.split("://") for listener in listeners)
    assert servers == told["INSIDE"]
    assert servers.split(":")[0] in services
    assert services["kafka"]["ports"] == [f"{told['HOST']}:9092"]
    assert told["HOST"].startswith("127.0.0.1:")


def test_containers_run_the_version_that_is_tested():
    image = yaml.safe_load(COMPOSE.read_text())["services"]["kafka"]["image"]
    tested = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([\d.]+)</version>", POM.read_text())
    assert image == f"apache/kafka:{tested[1]}"
