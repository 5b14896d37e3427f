"""The hot paths whose instructions are counted: python paths.py MARKS_LIBRARY, beneath callgrind.

It imports fastpresence and nothing of the bench, so that it runs against any revision's package. A path that a revision
can't go yet, in its preparation or when it is called, prints `missing NAME` there. Nothing here looks at a clock: two
runs do the same.
"""

import contextlib
import ctypes
import gc
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

ROUNDS = 200
WARM_UP = 60
USERS = 1000
CHANGES = 16
RECIPIENTS = 50
QUIET_MS = 1
TURNS_MOST = 10_000
NOW_S = 1_700_000_000
SECRET = "a-secret-of-the-guard-of-sufficient-length"
DELTA = (
    b'{"type":"user_online_status","user_status":[{"user_id":"kol_1","user_type":"kol","status":"busy",'
    b'"online":true,"last_seen":1700000000,"rev":1700000000000000}],"full":false,"cursor":"0123456789ab~p~1234"}'
)
HEARTBEAT = b'{"type":"heartbeat","user_id":"user_123","user_type":"user","timestamp":1700000000}'
STATUS_CHANGE = b'{"type":"status_change","user_id":"user_123","user_type":"user","status":"busy","id":17}'

#: What clients read into: a buffer anew for each read costs more or less as the heap happens to lie.
ROOM = bytearray(1 << 16)

CLOSING = contextlib.ExitStack()  #: ends what the paths have opened

Path = Callable[[], Callable[[], Any]]


def frames_of_one_read() -> Callable[[], Any]:
    """A hundred masked heartbeats in one read: parse, unmask, check UTF-8."""
    from fastpresence._native.framing import TEXT, Stream, build_masked

    stream, data = Stream(), build_masked(TEXT, HEARTBEAT, b"mask") * 100
    return lambda: stream.feed(data)


def large_frame() -> Callable[[], Any]:
    """60,000 bytes in one frame: what unmasking and UTF-8 cost a byte."""
    from fastpresence._native.framing import TEXT, Stream, build_masked

    stream, data = Stream(), build_masked(TEXT, ("é" * 100 + "a" * 800).encode() * 60, b"mask")
    return lambda: stream.feed(data)


def build_frame() -> Callable[[], Any]:
    from fastpresence._native.framing import TEXT, build

    return lambda: build(TEXT, DELTA)


def wheel() -> Callable[[], Any]:
    """A thousand deadlines move later, and a tick goes by."""
    from fastpresence._native.wheel import Wheel

    timers, now_ms = Wheel(now_ms=0), 0

    def tick() -> None:
        nonlocal now_ms
        now_ms += 250
        for timer in range(USERS):
            timers.arm(timer, now_ms + 60_000)
        timers.advance(now_ms)

    return tick


def decode_heartbeat() -> Callable[[], Any]:
    from fastpresence.codec import JSON

    return lambda: JSON.decode_request(HEARTBEAT)


def decode_status_change() -> Callable[[], Any]:
    from fastpresence.codec import JSON

    return lambda: JSON.decode_request(STATUS_CHANGE)


def _present() -> tuple[Any, list[Any], Any]:
    from fastpresence.presence.service import OnlineStatusService
    from fastpresence.presence.sessions import Now

    now = Now(1_000_000, NOW_S * 1_000_000)
    service = OnlineStatusService(
        epoch="e", public_types={"kol"}, heartbeat_timeout_ms=60_000, disconnect_grace_ms=None
    )
    sessions = [service.handle_user_online(f"kol_{n}", "kol", connection=f"socket {n}", now=now) for n in range(USERS)]
    return service, sessions, now


def _changes() -> tuple[Any, Callable[[], None]]:
    """A service, and what makes so many users change there."""
    service, sessions, now = _present()
    number = 0

    def change() -> None:
        nonlocal number
        for _ in range(CHANGES):
            number += 1
            service.handle_status_change(sessions[number * 37 % USERS], ("busy", "away")[number // USERS % 2], now=now)

    return service, change


def heartbeat() -> Callable[[], Any]:
    service, sessions, now = _present()
    return lambda: service.handle_heartbeat(sessions[7], now=now)


def status_changes() -> Callable[[], Any]:
    """Sixteen users change, in the core alone."""
    return _changes()[1]


def flush() -> Callable[[], Any]:
    """Sixteen users change, and what a flush tells of it is collected and encoded for JSON and MessagePack."""
    from fastpresence.messages import UserOnlineStatus
    from fastpresence.presence.roster import PUBLIC_SCOPE, make_cursor
    from fastpresence.worker.flush import frame_of

    service, change = _changes()

    def once() -> None:
        since = service.version
        change()
        delta = service.collect(since)
        cursor = make_cursor("e", PUBLIC_SCOPE, delta.version)
        message = UserOnlineStatus([record.entry() for record in delta.public], full=False, cursor=cursor)
        for variant in range(2):
            frame_of(variant, message)

    return once


def token() -> Callable[[], Any]:
    """A handshake's token is checked."""
    from fastpresence.settings import TokenKey
    from fastpresence.tokens import TokenKeys

    keys = TokenKeys((TokenKey("k1", SECRET),))
    issued, _ = keys.issue("user_123", "user", room=None, now=NOW_S, expire_time=3600)
    return lambda: keys.verify(issued, now=NOW_S)


class _Crowd:
    """An engine with peers on loopback sockets, each of whom is upgraded and owned by its own handle."""

    def __init__(self, **settings: int) -> None:
        from fastpresence._native import engine as native

        self.native = native
        self.heard: list[tuple[int, bytes]] = []
        self.handles: list[int] = []
        self.engine = native.Engine(self._on_batch, **settings)
        listener = socket.create_server(("127.0.0.1", 0), backlog=RECIPIENTS)
        listener.setblocking(False)
        self.engine.listen(listener.fileno())
        self.sockets = [socket.create_connection(listener.getsockname()) for _ in range(RECIPIENTS)]
        self._listener = listener  # open as long as this is
        CLOSING.callback(self._close)
        self.say(b"GET /ws HTTP/1.1\r\n\r\n")
        self.turn_until(lambda: len(self.handles) == RECIPIENTS)

    def _on_batch(self, events: Any) -> None:
        for kind, _, what, data in events:
            if kind == self.native.REQUEST:
                self.engine.upgrade(what, True, 0)
                self.engine.own(what, what)
                self.handles.append(what)
            elif kind == self.native.TEXT:
                self.heard.append((what, data))

    def _close(self) -> None:
        self.engine.close_all()
        for each in (self._listener, *self.sockets):
            each.close()

    def say(self, data: bytes) -> None:
        for client in self.sockets:
            client.sendall(data)

    def turn_until(self, done: Callable[[], bool]) -> None:
        """Bounded: an engine of another revision may never come to that."""
        for _ in range(TURNS_MOST):
            if done():
                return
            self.engine.run()
        raise RuntimeError("the engine does not do what this path asks for")

    def drain(self) -> None:
        for client in self.sockets:
            client.recv_into(ROOM)


def fan_out() -> Callable[[], Any]:
    """One prepared frame to fifty sockets, through audience and flush; the clients' reading is in it."""
    from fastpresence._native.framing import TEXT, build

    crowd, frame, version = _Crowd(), build(TEXT, DELTA), 0
    audience = crowd.engine.new_audience()
    for handle in crowd.handles:
        crowd.engine.join(handle, audience)

    def once() -> None:
        nonlocal version
        version += 1
        crowd.engine.flush_begin(version, [(audience, (frame, None, None, None))])
        while not crowd.engine.flush_step(1_000_000):
            pass
        crowd.engine.send()
        crowd.drain()

    return once


def echo() -> Callable[[], Any]:
    """Fifty sockets with a heartbeat each: one turn of the engine, an answer each; the clients' half is in it."""
    from fastpresence._native.framing import TEXT, build_masked

    crowd, data = _Crowd(), build_masked(TEXT, HEARTBEAT, b"mask")

    def once() -> None:
        crowd.say(data)
        crowd.turn_until(lambda: len(crowd.heard) == RECIPIENTS)
        for handle, _ in crowd.heard:
            crowd.engine.answer(handle, DELTA)
        crowd.heard.clear()
        crowd.engine.send()
        crowd.drain()

    return once


def likeness() -> Callable[[], Any]:
    """What of a heartbeat may differ, so that the engine learns it."""
    from fastpresence.codec import JSON
    from fastpresence.worker.beats import likeness as find

    beat: Any = JSON.decode_request(HEARTBEAT)
    return lambda: find(JSON, HEARTBEAT, beat)


def learnt_heartbeat() -> Callable[[], Any]:
    """Fifty sockets with a heartbeat each that the engine has learnt: answered in its turn, Python is not entered."""
    from fastpresence._native.framing import TEXT, build, build_masked

    crowd, data = _Crowd(quiet_ms=QUIET_MS), build_masked(TEXT, HEARTBEAT, b"mask")
    crowd.engine.stand(0, build(TEXT, DELTA), 1 << 50)
    for handle in crowd.handles:
        crowd.engine.learn(handle, HEARTBEAT, *likeness()())
    answered = 0

    def once() -> None:
        nonlocal answered
        answered += RECIPIENTS
        time.sleep(2 * QUIET_MS / 1000)  # the silence before
        crowd.say(data)
        crowd.turn_until(lambda: crowd.engine.stats()["answered"] == answered)
        crowd.drain()

    return once


class _StillLoop:
    """A worker's loop with a clock that the path moves. What is put off to a later time is not done."""

    def __init__(self) -> None:
        self.now_s = 1.0
        self._soon: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def time(self) -> float:
        return self.now_s

    def call_soon(self, do: Callable[..., object], *arguments: object) -> None:
        self._soon.append((do, arguments))

    def call_later(self, *_: object) -> None:
        return None

    add_reader = call_at = call_later

    def turn(self) -> None:
        soon, self._soon = self._soon, []
        for do, arguments in soon:
            do(*arguments)


def one_change() -> Callable[[], Any]:
    """A host's change of status through a whole worker, to the one who hears it, himself: what is the same for all."""
    from fastpresence._native.framing import TEXT, build_masked
    from fastpresence.settings import AuthSettings, LimitsSettings, Settings, TokenKey
    from fastpresence.worker.worker import Worker

    limits = LimitsSettings(rate=1_000_000, burst=1_000_000)
    settings = Settings(auth=AuthSettings(token_keys=(TokenKey("k1", SECRET),)), limits=limits)
    loop: Any = _StillLoop()
    worker = Worker(settings, 0, loop)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    worker.start(listener.fileno())
    client = socket.create_connection(listener.getsockname(), timeout=10)
    for each in (listener, client):
        CLOSING.callback(each.close)
    CLOSING.callback(worker.engine.close_all)

    def say(data: bytes) -> None:
        loop.now_s += 1.0  # the flush window is over
        client.sendall(data)
        worker.engine.run()
        loop.turn()

    worker.engine.run()  # accepts
    token, _ = worker.keys.issue("kol_1", "kol", room=None, now=int(time.time()), expire_time=86_400)
    say(
        f"GET /ws?token={token} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Protocol: fastpresence.v1.json\r\n\r\n".encode()
    )
    say(build_masked(TEXT, b'{"type":"user_online"}', b"mask"))
    client.recv(1 << 16)
    changes = [
        build_masked(TEXT, b'{"type":"status_change","status":"%s"}' % each, b"mask") for each in (b"busy", b"away")
    ]
    number = 0

    def once() -> None:
        nonlocal number
        number += 1
        say(changes[number % 2])
        if b"user_online_status" not in client.recv(1 << 16):
            raise RuntimeError("nobody was told of the change")

    return once


PATHS: dict[str, Path] = {
    "frames-of-one-read": frames_of_one_read,
    "large-frame": large_frame,
    "build-frame": build_frame,
    "wheel": wheel,
    "decode-heartbeat": decode_heartbeat,
    "decode-status-change": decode_status_change,
    "heartbeat": heartbeat,
    "status-changes": status_changes,
    "flush": flush,
    "one-change": one_change,
    "token": token,
    "fan-out": fan_out,
    "echo": echo,
    "likeness": likeness,
    "learnt-heartbeat": learnt_heartbeat,
}


def prepared() -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, prepare in PATHS.items():
        with told_if_missing(name):
            yield name, prepare()


@contextlib.contextmanager
def told_if_missing(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever an older package makes of it
        print(f"missing {name} {error!r}", flush=True)


def main() -> None:
    marks = ctypes.CDLL(sys.argv[1])
    paths = list(prepared())
    gc.collect()
    gc.disable()
    marks.mark_on()
    for name, path in paths:
        with told_if_missing(name):
            for _ in range(WARM_UP):
                path()
            marks.mark_begin()
            for _ in range(ROUNDS):
                path()
            marks.mark_end(name.encode())
    print("done", flush=True)


if __name__ == "__main__":
    main()
