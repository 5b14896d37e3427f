"""A worker that obeys the link and little else: what the supervisor's tests start instead of the real one.

    dying_worker.py MODE --link-fd N

serve: accepts, answers each connection with its own pid; ends on Stop with 0, on the end of the link with 3.
lazy FILE: as `serve`, but in its first life (FILE is missing, and made) it never accepts.
deaf: ready, and takes no notice of Stop.  flap: ends as soon as it was ready.  early: ends before.
mute: is never ready.  closed: ready, then closes its link and stays.
reload: as `serve`, and answers Reload; its problem is the settings' public_url, if there is one.
env: tells its environment instead of its pid.  garbage: talks nonsense on the link after each connection.
"""

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from fastpresence.link import Boot, FrameReader, Ready, Reload, Reloaded, Stats, Stop, encode


def main() -> int:
    mode, link_fd = sys.argv[1], int(sys.argv[-1])
    link = socket.socket(fileno=link_fd)
    reader = FrameReader()
    if mode == "early":
        return 4
    (boot,) = reader.feed(link.recv(1 << 20))
    assert isinstance(boot, Boot)
    listener = socket.socket(fileno=boot.listener_fd)
    if mode == "mute":
        signal.pause()
    answer = json.dumps(dict(os.environ)) if mode == "env" else str(os.getpid())
    is_accepting = mode != "lazy"
    if mode == "lazy":
        path = Path(sys.argv[2])
        is_accepting = path.exists()
        path.touch()
    if is_accepting:
        listener.setblocking(True)
        threading.Thread(
            target=accept, args=(listener, answer.encode(), link if mode == "garbage" else None), daemon=True
        ).start()
    link.sendall(encode(Ready(port=listener.getsockname()[1], pid=os.getpid())))
    if mode == "flap":
        return 5
    if mode == "closed":
        link.close()
        signal.pause()
    link.sendall(encode(Stats(connections=7, users=3)))
    while data := link.recv(65536):
        for frame in reader.feed(data):
            if isinstance(frame, Stop) and mode != "deaf":
                return 0
            if isinstance(frame, Reload) and mode == "reload":
                link.sendall(encode(Reloaded(frame.generation, frame.settings.server.public_url)))
    return 3


def accept(listener: socket.socket, answer: bytes, confused: socket.socket | None) -> None:
    while True:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(answer)
            if confused:
                confused.sendall(b"\xff" * 64)


if __name__ == "__main__":
    sys.exit(main())
