"""The rivals' table: who is not here or fails takes nothing from the others, and is not beaten by that."""

import os
from pathlib import Path

import pytest

from bench.load.setting import Cpus, Setting
from bench.outcome import Outcome
from bench.rivals import table
from bench.rivals.known import Rival
from bench.rivals.table import ECHO, JOINED, LIMIT, MANY, OURS, SINGLE, Crowd, _bar, _Contest

CROWD = Crowd(observers=8, questions=(SINGLE, MANY, ECHO), seconds=0.1, warmup_s=0.05)
#: Answers an upgrade like any rival, and is gone as soon as somebody speaks.
DIES = """
import base64, hashlib, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=256)
clients = []
while True:
    client, _ = listener.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        got = client.recv(4096)
        if not got:
            break
        head += got
    else:
        key = head.lower().split(b"sec-websocket-key:")[1]
        key = head[len(head) - len(key):].split(b"\\r\\n")[0].strip()
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        client.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                       b"Sec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n")
        clients.append(client)
        if len(clients) == CLIENTS:
            clients[0].recv(1)
            sys.exit(0)
"""


def python(source: str) -> Rival:
    def command(port: int, folder: Path) -> list[str]:
        file = folder / "server.py"
        file.write_text(source)
        return ["python3", str(file), str(port)]

    return Rival("dies", "-", command, lambda: False)


@pytest.mark.long
def test_one_that_is_not_here_one_that_does_not_start_and_one_that_dies_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Rival("missing", "get it", lambda port, _: ["false"], lambda: True)
    broken = Rival("broken", "-", lambda port, _: ["false"], lambda: False)
    dies = python(DIES.replace("CLIENTS", str(CROWD.connections)))
    monkeypatch.setattr(table, "RIVALS", (missing, broken, dies))
    outcome = Outcome("rivals", "What?", "nothing", "none", columns=[""] * 16)
    allowed = os.sched_getaffinity(0)
    try:
        _Contest(Setting(Cpus.allowed(), tmp_path, quick=True), outcome, CROWD, judged=True).run()
    finally:
        os.sched_setaffinity(0, allowed)
    cells = {row[0]: row[2] for row in outcome.rows}
    assert list(cells) == [OURS, LIMIT, JOINED, "missing", "broken", "dies"]
    assert cells["missing"] == "not here"
    assert cells["broken"] == cells["dies"] == "failed"
    assert not outcome.faults
    assert "missing not here: get it" in outcome.notes
    assert [bar.verdict(quick=False) for bar in outcome.bars] == ["NOT JUDGED"] * 4


@pytest.mark.parametrize(
    ("ratios", "unknown", "verdict", "words"),
    [
        ([0.9, 0.95, 0.96], [], "met", "here 0.950 times, median of 3 pairs, 0.900 to 0.960)"),
        ([0.9, 0.95, 1.1], [], "met", "0.900 to 1.100, not sure)"),
        ([0.9, 0.95, 0.96], ["nchan"], "NOT JUDGED", "not measured: nchan)"),
        ([1.2, 1.3, 1.1], ["nchan"], "MISSED", "here 1.200 times"),
        ([0.9, 0.95], [], "NOT JUDGED", "2 pairs count, and it takes 3"),
        ([], [], "NOT JUDGED", "0 pairs count"),
    ],
)
def test_a_bar_is_judged_when_all_of_whom_it_speaks_were_measured_and_says_how_sure_it_is(
    ratios: list[float], unknown: list[str], verdict: str, words: str
) -> None:
    bar = _bar("cheaper than anybody", ratios, 1.0, unknown)
    assert bar.verdict(quick=False) == verdict
    assert words in bar.text
