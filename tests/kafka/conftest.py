"""A real Apache Kafka, a real service, and bridges as processes of their own, all of which can be killed."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve_app.cli.server import free_port
from tests.support import PROJECT
from tests.system_packages import find_program
from tools.kafka.broker import JAVA_PACKAGE, MAVEN_PACKAGE, Broker, BrokerFailed, classpath

START_SECONDS = 300


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


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for all tests; where none can run they are skipped, saying why."""
    for program, package in (("java", JAVA_PACKAGE), ("mvn", MAVEN_PACKAGE)):
        find_program(program, package)
    try:
        classpath()
    except BrokerFailed as error:
        pytest.skip(f"no Kafka here: {error}")
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
