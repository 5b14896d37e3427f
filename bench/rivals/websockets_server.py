"""The job in websockets: echo, and `!...` to everybody. python websockets_server.py PORT

As its documentation advises for speed and memory: uvloop, compression off, `broadcast()`, which frames once, and the C
extension, which its wheels have.
"""

import asyncio
import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

clients: set[ServerConnection] = set()


async def handle(client: ServerConnection) -> None:
    clients.add(client)
    try:
        async for said in client:
            if said[:1] in ("!", b"!"):
                broadcast(clients, said)
            else:
                await client.send(said)
    finally:
        clients.discard(client)


async def main(port: int) -> None:
    async with serve(handle, "127.0.0.1", port, compression=None, ping_interval=None, backlog=4096) as server:
        await server.serve_forever()


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main(int(sys.argv[1])))
