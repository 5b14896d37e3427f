"""What every test here is held to."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _log(request: pytest.FixtureRequest) -> Iterator[None]:
    """A server that a module shares has nothing in its log, after each test, that should not be there."""
    server = request.getfixturevalue("server") if "server" in request.fixturenames else None
    yield
    if server is not None:
        server.check()
