"""What a review of the worker found, against the real thing: each fault once, so that it does not come back."""

import asyncio

import uvloop

from fastpresence.settings import AuthSettings, PresenceSettings, Settings, TokenKey
from fastpresence.worker.worker import EXPIRE_AT_ONCE, Worker

TIMEOUT_S = 0.5


def test_the_last_of_a_crowd_whose_time_is_up_are_told_of_as_soon_as_the_first() -> None:
    # They were ended in the same tick, but told of in the next one: 250 ms later.
    async def play() -> tuple[int, int]:
        auth = AuthSettings(token_keys=(TokenKey("k", "an-integration-test-s-secret-of-a-length"),))
        presence = PresenceSettings(heartbeat_interval=TIMEOUT_S / 2, heartbeat_timeout=TIMEOUT_S)
        worker = Worker(Settings(auth=auth, presence=presence), 0, asyncio.get_running_loop())
        try:
            now = worker.now()
            for number in range(EXPIRE_AT_ONCE + 10):
                worker.service.handle_user_online(f"kol_{number}", "kol", now=now)
            worker.flusher.touch()
            await asyncio.sleep(TIMEOUT_S + 0.3)
            assert worker.users == EXPIRE_AT_ONCE + 10
            worker._cleanup(worker.now())  # the tick's part; this worker has no other
            await asyncio.sleep(0.05)
            assert worker.users == 0
            return worker.flusher.told, worker.service.version
        finally:
            worker.engine.close_all()

    told, version = uvloop.run(play())
    assert told == version
