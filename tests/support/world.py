"""A real worker in the test's own loop, and raw sockets to it: for what has to happen between two of its turns.

Shares a process with the test, so that a test can look at what a connection left behind, and change users without one.
"""

import asyncio
import socket
import time
from typing import Final

import uvloop

from fastpresence.codec import JSON, Codec
from fastpresence.settings import AuthSettings, LimitsSettings, ServerSettings, Settings, TokenKey
from fastpresence.worker.worker import Worker

__all__ = ["API_KEY", "World"]

API_KEY: Final = "an-api-key-of-ours"
DEADLINE_S: Final = 15.0


class World:
    """One worker, its listener on loopback, and the loop of both it and its clients."""

    def __init__(self, *, limits: LimitsSettings | None = None, server: ServerSettings | None = None) -> None:
        self.loop = uvloop.new_event_loop()
        settings = Settings(
            server=server or ServerSettings(),
            auth=AuthSettings(token_keys=(TokenKey("k", "a-secret-of-thirty-two-characters"),), api_keys=(API_KEY,)),
            limits=limits or LimitsSettings(),
        )
        self.worker = Worker(settings, 0, self.loop)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.worker.start(self.listener.fileno())
        self._clients: list[socket.socket] = []

    def stat(self, name: str) -> int:
        return self.worker.engine.stats()[name]

    def request(
        self, user_id: str, user_type: str, codec: Codec = JSON, *, room: str | None = None, query: str = ""
    ) -> bytes:
        """The upgrade request of a user. `query`: more parameters, each with its `&`."""
        token, _ = self.worker.keys.issue(user_id, user_type, room=room, expire_time=86_400, now=int(time.time()))
        return (
            f"GET /ws?token={token}{query} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Sec-WebSocket-Protocol: {codec.subprotocol}\r\n\r\n"
        ).encode()

    async def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """Closed with the world."""
        client = socket.socket()
        self._clients.append(client)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self.loop.sock_connect(client, self.listener.getsockname())
        return client

    async def upgrade(self, client: socket.socket, request: bytes) -> bytes:
        """It is a WebSocket from here on; what came behind the answer's head."""
        await self.loop.sock_sendall(client, request)
        head = b""
        while b"\r\n\r\n" not in head:
            got = await asyncio.wait_for(self.loop.sock_recv(client, 65_536), DEADLINE_S)
            assert got, f"closed behind {head!r}"
            head += got
        head, _, rest = head.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return rest

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.worker.stop()
        self.listener.close()
        self.loop.close()
