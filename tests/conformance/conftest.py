"""The echo application as a process, with and without compression, and one with small limits."""

from collections.abc import Iterator

import pytest

from tests.support.server import Server
from tests.support.wire import EchoProcess

SMALL_MESSAGE = 1_000
SMALL_FRAGMENTS = 16


def _run(*arguments: str) -> Iterator[EchoProcess]:
    process = EchoProcess(*arguments)
    yield process
    assert process.end() == 0


@pytest.fixture(scope="package")
def echo() -> Iterator[EchoProcess]:
    yield from _run()


@pytest.fixture(scope="package")
def deflating() -> Iterator[EchoProcess]:
    yield from _run("--deflate")


@pytest.fixture(scope="package")
def small() -> Iterator[EchoProcess]:
    yield from _run("--deflate", "--max-message", str(SMALL_MESSAGE), "--max-fragments", str(SMALL_FRAGMENTS))


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with Server({"presence.heartbeat_timeout": 60, "limits.rate": 100_000, "limits.burst": 100_000}) as running:
        yield running


@pytest.fixture(scope="package")
def token(server: Server) -> str:
    return server.token("kol_1", "kol")
