"""A real Apache Kafka, a real service, and bridges as processes of their own, all of which can be killed."""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from serve_app.bridges.settings import KafkaSettings
from serve_app.cli.server import free_port
from tests.kafka_support import new_settings
from tests.support import PROJECT
from tests.system_packages import find_program
from tools.kafka.broker import JAVA_PACKAGE, MAVEN_PACKAGE, Broker, BrokerFailed, classpath

START_SECONDS = 300
STOP_SECONDS = 120


class ServiceProcess:
    """The service without Ray, on the same port whenever it is started."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/v1/stream"
        self._log = folder / "service.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it is ready."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.kafka.service", str(self.port)],
                cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.1)
        pytest.fail(f"the service did not become ready:\n{self._log.read_text()[-4_000:]}")

    def kill(self) -> None:
        """End it without a word."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


class BridgeProcess:
    """A bridge beside the service; those with the same topics share the partitions."""

    def __init__(self, kafka: KafkaSettings, service: ServiceProcess, folder: Path) -> None:
        name = f"{kafka.input_topic}-{uuid.uuid4().hex[:4]}"
        self._config, self._log = folder / f"{name}.yaml", folder / f"{name}.log"
        config = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
        config["applications"][0]["args"] = {"kafka": kafka.model_dump(exclude_unset=True)}
        self._config.write_text(yaml.safe_dump(config))
        self._command = [sys.executable, "-m", "serve_app.bridges.kafka", "--config", str(self._config)]
        self._command += ["--url", service.url, "--port", "0"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start; nothing is waited for."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LOOM_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=PROJECT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_for_partitions(self) -> None:
        """Until it has some."""
        deadline = time.monotonic() + START_SECONDS
        while "partition assigned" not in self.log:
            assert time.monotonic() < deadline, f"no partitions:\n{self.log[-4_000:]}"
            self.check()
            time.sleep(0.1)

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def check(self) -> None:
        """Fail where it has ended by itself."""
        if self._process and self._process.poll() is not None:
            pytest.fail(f"the bridge ended with status {self._process.returncode}:\n{self.log[-4_000:]}")

    def kill(self) -> None:
        """End it without a word."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """End it in good order; its exit status."""
        assert self._process
        self._process.terminate()
        status = self._process.wait(STOP_SECONDS)
        self._process = None
        return status


@pytest.fixture(scope="session")
def jars() -> None:
    """What a broker needs; where it cannot be had tests are skipped, saying why."""
    for program, package in (("java", JAVA_PACKAGE), ("mvn", MAVEN_PACKAGE)):
        find_program(program, package)
    try:
        classpath()
    except BrokerFailed as error:
        pytest.skip(f"no Kafka here: {error}")


@pytest.fixture(scope="session")
def broker(jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for all tests."""
    made = Broker(tmp_path_factory.mktemp("kafka"))
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One service for all tests."""
    made = ServiceProcess(tmp_path_factory.mktemp("service"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture
def kafka(broker: Broker) -> KafkaSettings:
    """Topics of the test's own."""
    return new_settings(broker.address, session_gap_seconds=20.0)


@pytest.fixture
def bridge(kafka: KafkaSettings, service: ServiceProcess, tmp_path: Path) -> Iterator[Callable[..., BridgeProcess]]:
    """Makes bridges of the test's topics, with further settings; none outlives the test."""
    made: list[BridgeProcess] = []

    def make(**settings: object) -> BridgeProcess:
        made.append(BridgeProcess(kafka.model_copy(update=settings), service, tmp_path))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.kill()
