"""The job in picows: echo, and `!...` to everybody. python picows_server.py PORT

As its documentation advises for speed: uvloop, and one buffer that takes the frame's head in front of the message
(`send_reuse_external_bytearray`) instead of a copy for each recipient. Buffers are never changed once sent.
"""

import asyncio
import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

HEAD = 14  #: bytes that picows wants in front of a message
clients: set[WSTransport] = set()


class Client(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        clients.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        clients.discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
            return
        said = frame.get_payload_as_bytes()
        buffer = bytearray(HEAD) + said
        if said[:1] != b"!":
            transport.send_reuse_external_bytearray(WSMsgType.TEXT, buffer, HEAD)
            return
        for client in clients:
            client.send_reuse_external_bytearray(WSMsgType.TEXT, buffer, HEAD)


async def serve(port: int) -> None:
    def client(_: WSUpgradeRequest) -> WSListener:
        return Client()

    server = await ws_create_server(client, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(serve(int(sys.argv[1])))
