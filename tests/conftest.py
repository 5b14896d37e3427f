"""Fixtures of all tests."""

from collections.abc import Callable, Iterator

import pytest

from tests.support.server import Server

Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers that live as long as the test."""
    servers: list[Server] = []

    def begin(**settings: object) -> Server:
        """Settings are named `section__key`."""
        servers.append(Server({key.replace("__", "."): value for key, value in settings.items()}))
        return servers[-1]

    yield begin
    faults = []
    for server in servers:
        try:
            server.end()
        except AssertionError as fault:
            faults.append(str(fault))
    assert not faults, "\n".join(faults)
