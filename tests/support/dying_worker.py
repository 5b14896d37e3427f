"""A worker that obeys the link and little else: what the supervisor's tests start instead of the real one.

    dying_worker.py MODE --link-fd N

serve: accepts, answers each connection with its own pid; ends on Stop with 0, on the end of the link with 3.
lazy FILE: as `serve`, but in its first life (FILE is missing, and made) it never accepts.
deaf: ready, and takes no notice of Stop.  flap: ends as soon as it was ready.  early: ends before.
mute: is never ready.  closed: ready, then closes its link and stays.
reload: as `serve`, and answers Reload; its problem is the settings' public_url, if there is one.
revoke: answers with the users whose tokens were revoked as far as it was told; before that it says a Revoke of its pid.
flood: the first one says Revoke 20,000 times once another is ready; no other one reads its link.
env: tells its environment instead of its pid.  garbage: talks nonsense on the link after each connection.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fastpresence.link import Boot, FrameReader, Ready, Reload, Reloaded, Revoke, Revoked, Stats, Stop, encode


def main() -> int:
    mode, link_fd = sys.argv[1], int(sys.argv[-1])
    link = socket.socket(fileno=link_fd)
    reader = FrameReader()
    if mode == "early":
        return 4
    boot, *early = reader.feed(link.recv(1 << 20))
    assert isinstance(boot, Boot)
    listener = socket.socket(fileno=boot.listener_fd)
    if mode == "mute":
        signal.pause()
    revoked: list[str] = []
    while not any(isinstance(frame, Revoked) and frame.is_last for frame in early):
        early += reader.feed(link.recv(65536))
    for frame in early:
        if isinstance(frame, Revoked):
            revoked += [user_id for user_id, _ in frame.entries]
        elif isinstance(frame, Revoke):
            revoked.append(frame.user_id)

    def answer() -> str:
        if mode == "revoke":
            return json.dumps({"pid": os.getpid(), "revoked": revoked})
        return json.dumps(dict(os.environ)) if mode == "env" else str(os.getpid())

    is_accepting = mode != "lazy"
    if mode == "lazy":
        path = Path(sys.argv[2])
        is_accepting = path.exists()
        path.touch()
    if mode == "revoke":
        link.sendall(encode(Revoke(str(os.getpid()), before=int(time.time()))))
    if is_accepting:
        listener.setblocking(True)
        threading.Thread(
            target=accept, args=(listener, answer, link if mode == "garbage" else None), daemon=True
        ).start()
    link.sendall(encode(Ready(port=listener.getsockname()[1], pid=os.getpid())))
    if mode == "flap":
        return 5
    if mode == "closed":
        link.close()
        signal.pause()
    link.sendall(encode(Stats(connections=7, users=3)))
    if mode == "flood":
        if boot.worker:
            link.sendall(encode(Revoke("the blind one is ready", 0)))
            signal.pause()
        while not revoked:
            revoked += [frame.user_id for frame in reader.feed(link.recv(65536)) if isinstance(frame, Revoke)]
        link.sendall(b"".join(encode(Revoke(f"user_{number}", number)) for number in range(20_000)))
    while data := link.recv(65536):
        for frame in reader.feed(data):
            if isinstance(frame, Stop) and mode != "deaf":
                return 0
            if isinstance(frame, Revoke):
                revoked.append(frame.user_id)
            if isinstance(frame, Reload) and mode == "reload":
                link.sendall(encode(Reloaded(frame.generation, frame.settings.server.public_url)))
    return 3


def accept(listener: socket.socket, answer: Callable[[], str], confused: socket.socket | None) -> None:
    while True:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(answer().encode())
            if confused:
                confused.sendall(b"\xff" * 64)


if __name__ == "__main__":
    sys.exit(main())
