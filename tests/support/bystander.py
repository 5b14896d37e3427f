"""A well-behaved client in a process of its own, whose heartbeats are timed: `bystander PORT TOKEN SOURCE [CERT]`.

With a certificate that it is to trust it speaks TLS.

Says `ready` when it is online; at the end of its standard input it prints what it measured, in JSON, and goes. It
shares no code with the server and needs nothing but the standard library, so that it starts quickly.
"""

import json
import os
import select
import socket
import ssl
import sys
import time

EVERY_S = 0.025  #: 40 a second: below the default rate
TEXT, CLOSE = 0x1, 0x8


class Bystander:
    """One WebSocket, by hand: messages of less than 126 bytes out, whole frames in."""

    def __init__(self, port: int, token: str, source: str, cert: str | None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 30, source_address=(source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if cert is not None:
            context = ssl.create_default_context(cafile=cert)
            self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self.data = b""
        head = (
            f"GET /ws?public=0 HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        )
        self.socket.sendall(head.encode())
        while b"\r\n\r\n" not in self.data:
            self.more()
        answer, _, self.data = self.data.partition(b"\r\n\r\n")
        if b" 101 " not in answer:
            raise ConnectionError(answer.decode("latin-1"))

    def more(self) -> None:
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionError("the server is gone")
        self.data += data

    def send(self, **message: object) -> None:
        payload = json.dumps(message).encode()
        self.socket.sendall(bytes([0x80 | TEXT, 0x80 | len(payload), 0, 0, 0, 0]) + payload)

    def answer(self, reply_to: object) -> None:
        """Wait for it."""
        while True:
            opcode, payload = self.frame()
            if opcode == CLOSE:
                raise ConnectionError(f"closed: {payload!r}")
            if json.loads(payload).get("reply_to") == reply_to:
                return

    def frame(self) -> tuple[int, bytes]:
        while True:
            if len(self.data) >= 2:
                begin, size = 2, self.data[1] & 0x7F
                if size == 126:
                    begin, size = 4, int.from_bytes(self.data[2:4], "big")
                elif size == 127:
                    begin, size = 10, int.from_bytes(self.data[2:10], "big")
                if len(self.data) >= max(begin, 4) and len(self.data) >= begin + size:
                    opcode, payload = self.data[0] & 0x0F, self.data[begin : begin + size]
                    self.data = self.data[begin + size :]
                    return opcode, payload
            self.more()


def main() -> None:
    port, token, source = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    bystander = Bystander(port, token, source, sys.argv[4] if len(sys.argv) > 4 else None)
    bystander.send(type="user_online", id="hello")
    bystander.answer("hello")
    print("ready", flush=True)
    times_ms: list[float] = []
    fault = None
    due_s = time.monotonic()
    try:
        while not select.select([0], [], [], max(0.0, due_s - time.monotonic()))[0] or os.read(0, 1):
            due_s = max(due_s + EVERY_S, time.monotonic())
            begun_s = time.monotonic()
            bystander.send(type="heartbeat", id=len(times_ms))
            bystander.answer(len(times_ms))
            times_ms.append((time.monotonic() - begun_s) * 1000)
    except (OSError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
    ordered = sorted(times_ms) or [0.0]
    print(
        json.dumps(
            {
                "count": len(times_ms),
                "median_ms": ordered[len(ordered) // 2],
                "p99_ms": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
                "worst_ms": ordered[-1],
                "fault": fault,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
