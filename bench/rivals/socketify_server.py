"""The job in socketify, uWebSockets' C++ core: echo, and `!...` to everybody. python socketify_server.py PORT

As its documentation advises for speed: compression off, and a topic that every client subscribes to, so that the
fan-out is C++ and joins what goes to one socket in one turn. It advises PyPy as well: the bench has one interpreter.
"""

import sys
from typing import Any

from socketify import App, AppListenOptions, CompressOptions

TOPIC = "updates"
IDLE_S = 960  #: seconds, the most that uWebSockets takes
app = App()


def opened(client: Any) -> None:
    client.subscribe(TOPIC)


def said(client: Any, message: Any, opcode: Any) -> None:
    if message[:1] in ("!", b"!"):
        app.publish(TOPIC, message, opcode)
    else:
        client.send(message, opcode)


app.ws(
    "/*",
    {
        "compression": CompressOptions.DISABLED,
        "max_payload_length": 64 * 1024,
        "max_backpressure": 4 * 1024 * 1024,
        "idle_timeout": IDLE_S,
        "open": opened,
        "message": said,
    },
)
app.listen(AppListenOptions(port=int(sys.argv[1]), host="127.0.0.1"), lambda _: None)
app.run()
