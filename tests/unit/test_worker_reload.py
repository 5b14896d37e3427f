"""A worker takes new settings over in place: all of them that it can, or, when one is bad, none."""

import json
import logging
import time
from collections.abc import Iterator

import pytest
import uvloop

from fastpresence.errors import StartError, TokenError
from fastpresence.settings import AuthSettings, LimitsSettings, LogSettings, ServerSettings, Settings, TokenKey
from fastpresence.tokens import TokenKeys
from fastpresence.worker.worker import Worker

OLD = TokenKey("k1", "the-old-secret-of-32-characters!")
NEW = TokenKey("k2", "the-new-secret-of-32-characters!")
NOW = int(time.time())


def settings(key: TokenKey, **auth: str) -> Settings:
    return Settings(
        auth=AuthSettings(token_keys=(key,), **auth),  # type: ignore[arg-type]
        server=ServerSettings(port=1 if key is OLD else 2, allowed_origins=(f"https://{key.kid}.example",)),
        limits=LimitsSettings(connections=10, rate=5 if key is OLD else 6),
        log=LogSettings(level="info" if key is OLD else "debug"),
    )


def token(key: TokenKey) -> str:
    return TokenKeys([key]).issue("u", "user", room=None, expire_time=60, now=NOW)[0]


@pytest.fixture
def worker() -> Iterator[Worker]:
    loop = uvloop.new_event_loop()
    ours, root = logging.getLogger("fastpresence"), logging.getLogger()
    levels = ours.level, root.level
    made = Worker(settings(OLD), 0, loop)
    yield made
    made.engine.close_all()
    loop.close()
    ours.setLevel(levels[0])
    root.setLevel(levels[1])


def test_a_reload_replaces_keys_origins_and_log_level_and_leaves_port_and_limits(worker: Worker) -> None:
    worker.reload(settings(NEW), None)
    assert worker.keys.verify(token(NEW), now=NOW).user_id == "u"
    with pytest.raises(TokenError):
        worker.keys.verify(token(OLD), now=NOW)
    assert worker._origins.allows("https://k2.example", "here")
    assert not worker._origins.allows("https://k1.example", "here")
    assert logging.getLogger("fastpresence").level == logging.DEBUG
    assert (worker.settings.server.port, worker.settings.limits.rate) == (1, 5)


@pytest.mark.parametrize(
    ("wanted", "jwks"),
    [
        (settings(NEW, login_keys=("-----BEGIN PUBLIC KEY-----",)), None),  # type: ignore[arg-type]
        (settings(NEW, login_jwks_file="f"), json.dumps({"keys": []})),
        (settings(TokenKey("k2", "")), None),
    ],
)
def test_settings_of_which_one_is_bad_change_nothing(worker: Worker, wanted: Settings, jwks: str | None) -> None:
    before = worker.settings
    with pytest.raises((StartError, ValueError)):
        worker.reload(wanted, jwks)
    assert worker.settings is before
    assert worker.keys.verify(token(OLD), now=NOW).user_id == "u"
    assert worker._origins.allows("https://k1.example", "here")
