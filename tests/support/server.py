"""The real server as a child process, on loopback and a free port, and what it says.

    start(...) -> Server: node + worker --stderr--> JSON lines --> Server.events
    end() -> SIGTERM -> exit status, and the log is read once more for what should not be in it

Every wait has a deadline. Settings go in by the environment, as an operator would give them. The log is the test's
second witness: a traceback, a line that is no event, or an event of level error that the test did not announce with
`expect` fails it.
"""

import contextlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.certificate import trusting

__all__ = ["ADMIN_KEY", "API_KEY", "DEADLINE", "TOKEN_SECRET", "Server", "shared"]

ROOT: Final = Path(__file__).parents[2]
#: Seconds that anything here may take.
DEADLINE: Final = 15.0
ADMIN_KEY: Final = "integration-tests-admin-key"
TOKEN_SECRET: Final = "integration-tests-token-secret-0123456789"
API_KEY: Final = "integration-tests-api-key"

Event = dict[str, Any]


class Server:
    """One running `fastpresence serve`. Settings are named `section.key`; None leaves one of the tests' own out.

    The default is thirty times as fast as the protocol's: beats every second, silence for 2 s is the end. `python` and
    `cwd`: which installation is run, and where. `env`: more variables, which are no settings.
    """

    def __init__(
        self,
        settings: dict[str, object] | None = None,
        *,
        python: str = sys.executable,
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
    ) -> None:
        given: dict[str, object] = {
            "server.host": "127.0.0.1",
            "server.drain_time": 2,
            "admin.port": 0,
            "admin.key": ADMIN_KEY,
            "database.url": "none",
            "auth.token_keys": f"k1:{TOKEN_SECRET}",
            "auth.api_keys": API_KEY,
            "presence.heartbeat_interval": 1,
            "presence.heartbeat_timeout": 2,
            **(settings or {}),
        }
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("FASTPRESENCE_") and name not in ("CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET")
        }
        ours = {
            f"FASTPRESENCE_{key.replace('.', '_').upper()}": str(value)
            for key, value in given.items()
            if value is not None
        }
        cert = given.get("server.tls_cert")
        #: What its clients connect with where it speaks TLS: trusts the certificate that it was started with.
        self.tls: ssl.SSLContext | None = None if cert is None else trusting(Path(str(cert)))
        self.cert = None if cert is None else str(cert)  #: the file
        self.heartbeat_timeout = float(str(given["presence.heartbeat_timeout"]))  #: seconds
        self.events: list[Event] = []
        self._expected: set[str] = set()
        self._strange: list[str] = []  # lines that are no event
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fastpresence",
                "serve",
                "--port",
                "0",
                "--log-format",
                "json",
                "--log-level",
                "debug",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env={**clean, **ours, **(env or {})},
        )
        self._reader = threading.Thread(target=self._read, name="server log", daemon=True)
        self._reader.start()
        try:
            self.port = int(self.event("listening")["port"])
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._reader.join(DEADLINE)
            self._close()
            raise

    def _close(self) -> None:
        if self._process.stderr:
            self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            with self._news:
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    self._strange.append(line.decode(errors="replace"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    # What it says.

    def event(self, name: str, *, nth: int = 1, deadline: float = DEADLINE, **fields: object) -> Event:
        """The `nth` event of that name with these fields, as soon as it is in the log. Blocks."""
        until = time.monotonic() + deadline
        with self._news:
            while True:
                found = self.logged(name, **fields)
                if len(found) >= nth:
                    return found[nth - 1]
                left = until - time.monotonic()
                if left <= 0 or (not self._reader.is_alive() and self._process.poll() is not None):
                    tail = [*map(str, self.events[-10:]), *self._strange]
                    raise AssertionError(f"no event {name!r} {fields} in the log, which ends:\n" + "\n".join(tail))
                self._news.wait(min(left, 0.5))

    def logged(self, name: str, **fields: object) -> list[Event]:
        """The events of that name with these fields, so far."""
        return [
            event
            for event in [*self.events]
            if event["event"] == name and all(event.get(key) == value for key, value in fields.items())
        ]

    def expect(self, name: str) -> None:
        """Events of that name may be of level error from now on."""
        self._expected.add(name)

    def check(self) -> None:
        """Fails when the log has what it should not have."""
        bad = [
            str(event)
            for event in [*self.events]
            if (event["level"] in ("error", "critical") or "trace" in event) and event["event"] not in self._expected
        ]
        assert not bad, "unexpected in the server's log:\n" + "\n".join(bad)
        assert not self._strange, "no event, but in the server's log:\n" + "".join(self._strange)

    # What it is.

    @property
    def pid(self) -> int:
        """Of the node."""
        return self._process.pid

    @property
    def worker_pid(self) -> int:
        """Of the worker that was started last."""
        return int(self.logged("worker started")[-1]["pid"])

    @property
    def url(self) -> str:
        """Of the WebSocket."""
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}/ws"

    # What it answers.

    def http(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = API_KEY,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """One request: status, JSON, headers (in lower case). `body`: bytes as they are, or what JSON is made of."""
        connection = (
            http.client.HTTPSConnection("127.0.0.1", self.port, timeout=DEADLINE, context=self.tls)
            if self.tls
            else http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        )
        with contextlib.closing(connection):
            sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            authorization = {} if key is None else {"Authorization": f"Bearer {key}"}
            connection.request(method, path, sent, {**authorization, **(headers or {})})
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return response.status, json.loads(response.read()), received

    def admin(self, path: str, *, key: str | None = ADMIN_KEY) -> tuple[int, Any]:
        """One question to the admin face: status and JSON."""
        port = int(self.event("admin listening")["port"])
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)) as connection:
            connection.request("GET", path, headers={} if key is None else {"Authorization": f"Bearer {key}"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def token(
        self, user_id: str, user_type: str = "user", *, room_id: str | None = None, expire_time: int = 3600
    ) -> str:
        """A token, as the application's server gets it."""
        asked = {"user_id": user_id, "user_type": user_type, "room_id": room_id, "expire_time": expire_time}
        status, answer, _ = self.http("POST", "/api/online-status/rts-token", asked)
        assert status == 200, answer
        assert answer["ws_url"] == self.url
        signature = answer["signature"]
        assert isinstance(signature, str)
        return signature

    # Its end.

    def end(self) -> None:
        """SIGTERM, and it has to go by itself, with nothing in its log that should not be there."""
        try:
            if self._process.poll() is None:
                self._process.terminate()
            status = self._process.wait(DEADLINE)
            self._reader.join(DEADLINE)
            self.check()
            assert status == 0, f"the server ended with status {status}"
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._reader.join(DEADLINE)
            self._close()

    def signal(self, number: int) -> None:
        """Send a signal to the node."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """The node's exit status."""
        return self._process.wait(DEADLINE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.end()


def shared(settings: dict[str, object] | None = None) -> Iterator[Server]:
    """For a fixture: one server for a whole module."""
    with Server(settings) as server:
        yield server
