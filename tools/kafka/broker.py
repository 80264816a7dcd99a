"""A real Apache Kafka on this machine: one process, KRaft mode, for tests and for trying things.

`python -m tools.kafka.broker --port 9092` runs one until Ctrl-C. Maven fetches what `pom.xml` names, once.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Annotated

import typer
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from serve_app.cli.processes import signals_as_exits, signals_ignored
from serve_app.cli.server import free_port

CACHE = Path(__file__).resolve().parent.parent.parent / ".kafka"
"""What git does not see: where the jars are, and the data of `make kafka`."""

HOST = "127.0.0.1"
JAVA_PACKAGE, MAVEN_PACKAGE = "default-jre-headless", "maven"
JAVA_VERSION = 17
"""The oldest that the broker runs on."""

CLUSTER = "c3R0LWJyb2tlci1jbHVzdA"
HEAP = "512m"
FETCH_SECONDS = 600
FORMAT_SECONDS = 300
START_SECONDS = 300
STOP_SECONDS = 30

PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
log.dirs={data}
num.partitions=4
message.max.bytes=16777216
# There is one broker, so one copy of everything.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# Groups begin at once instead of waiting for more members.
group.initial.rebalance.delay.ms=0
"""


class BrokerFailed(Exception):
    """The broker did not come up; the text says why."""


class MissingProgram(BrokerFailed):
    """Java or Maven is not here."""


class Broker:
    """A broker whose data stay in `folder`, whatever happens to its process."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.log = folder / "broker.log"
        self._folder = folder
        self._controller_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """What clients call bootstrap servers."""
        return f"{HOST}:{self.port}"

    def start(self) -> None:
        """Start, or start again with the same data; returns once it answers. Raises `BrokerFailed`."""
        with contextlib.closing(socket.socket()) as probe:
            if probe.connect_ex((HOST, self.port)) == 0:
                raise BrokerFailed(f"{self.address}: expected a free port, but somebody listens there")
        jars = classpath()
        data, properties = self._folder / "data", self._folder / "server.properties"
        self._folder.mkdir(parents=True, exist_ok=True)
        places = {"host": HOST, "port": self.port, "controller_port": self._controller_port, "data": data}
        properties.write_text(PROPERTIES.format_map(places), encoding="utf-8")
        java = [_program("java", JAVA_PACKAGE), f"-Xmx{HEAP}", "-Dorg.apache.logging.log4j.level=WARN", "-cp", jars]
        if not (data / "meta.properties").exists():
            _run([*java, "kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", str(properties)], FORMAT_SECONDS)
        with self.log.open("ab") as log:
            # A group of its own: Ctrl-C is for whoever runs the broker, who then stops it.
            self._process = subprocess.Popen(
                [*java, "kafka.Kafka", str(properties)], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in good order: what is written is on disk. Without a running process nothing happens."""
        if self._process:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            self.kill()

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wait(self) -> int:
        """Wait until it ends by itself; its exit status."""
        if self._process is None:
            raise BrokerFailed("expected a running broker, this one was not started")
        return self._process.wait()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if answers(self.address):
                return
            time.sleep(0.1)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise BrokerFailed(f"expected an answer at {self.address} within {START_SECONDS} s, got none:\n{tail}")


def answers(address: str, timeout_s: float = 2.0) -> bool:
    """Tell whether a broker is there."""
    silent = logging.Logger("nobody", level=logging.CRITICAL)
    try:
        AdminClient({"bootstrap.servers": address, "log_level": 0}, logger=silent).list_topics(timeout=timeout_s)
    except KafkaException:
        return False
    return True


def classpath() -> str:
    """The broker's jars, fetched by Maven where they are not here yet. Raises `BrokerFailed`."""
    _program("java", JAVA_PACKAGE)  # without which they are of no use
    pom = Path(__file__).with_name("pom.xml")
    file = CACHE / f"classpath-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if file.exists() and all(Path(jar).exists() for jar in file.read_text().split(os.pathsep)):
        return file.read_text()
    maven = _program("mvn", MAVEN_PACKAGE)
    CACHE.mkdir(exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    goal = ["dependency:build-classpath", f"-Dmdep.outputFile={part}"]
    _run([maven, "--batch-mode", "--quiet", "--file", str(pom), *goal], FETCH_SECONDS)
    part.replace(file)
    return file.read_text()


def _program(name: str, debian_package: str) -> str:
    if found := shutil.which(name):
        return found
    wanted = f"Java {JAVA_VERSION} or newer" if name == "java" else name
    raise MissingProgram(f"Kafka needs {wanted}: install it first (Debian: apt-get install {debian_package})")


def _run(command: list[str], timeout_s: float) -> None:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise BrokerFailed(f"{Path(command[0]).name}: not done after {timeout_s:g} s") from None
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise BrokerFailed(f"{Path(command[0]).name} ended with status {done.returncode}:\n{tail}")


def main(
    port: Annotated[int, typer.Option(help="Where it listens, on 127.0.0.1.")] = 9092,
    data: Annotated[
        Path | None, typer.Option(help="Folder for its data; those of an earlier run are used again.")
    ] = None,
) -> None:
    """Run Apache Kafka on this machine until Ctrl-C."""
    broker = Broker(data or CACHE / f"broker-{port}", port)
    with signals_as_exits():
        try:
            typer.echo("kafka: starting; the first time Maven fetches 45 MB", err=True)
            broker.start()
            typer.echo(f"kafka: ready at {broker.address}; Ctrl-C ends it", err=True)
            raise typer.Exit(broker.wait())
        except BrokerFailed as error:
            typer.echo(f"kafka: {error}", err=True)
            raise typer.Exit(1) from None
        finally:
            with signals_ignored():
                broker.stop()


if __name__ == "__main__":
    typer.run(main)
