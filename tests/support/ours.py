"""Our own Python client, as fast as the tests' servers are."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastpresence.client import PresenceClient, Timing
from tests.support.server import DEADLINE, Server

__all__ = ["FAST", "client_of", "run"]

#: The reconnect table, 75 times as fast, and polls to match; what waits for a busy machine keeps its length.
FAST: Final = Timing(
    delays_ms=(0, 40, 80, 160, 320),
    slow_retry_ms=400,
    stable_after_ms=60_000,
    attempt_timeout_ms=5_000,
    silence_floor_ms=500,
    poll_interval_ms=150,
    poll_timeout_ms=5_000,
)


def client_of(server: Server, user_id: str, user_type: str = "user", *, url: str = "", **kwargs: Any) -> PresenceClient:
    """One that fetches its tokens where an application would."""
    kwargs.setdefault("token", lambda: server.token(user_id, user_type))
    return PresenceClient(url or server.url, user_id=user_id, user_type=user_type, timing=FAST, **kwargs)


def run(story: Callable[[], Awaitable[None]]) -> None:
    """Every story ends."""

    async def bounded() -> None:
        async with asyncio.timeout(2 * DEADLINE):
            await story()

    asyncio.run(bounded())
