"""Logs: one printable line an event, whatever a stranger sent; and a reader who stops reading stops nobody."""

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from fastpresence import logs
from fastpresence.logs import Repeats, event, setup

LOG = logging.getLogger("fastpresence.test")
Lines = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("fastpresence")
    before = root.level, ours.level, logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    yield
    root.setLevel(before[0])
    ours.setLevel(before[1])
    logging.logThreads, logging.logProcesses, logging.logMultiprocessing = before[2:]


def lines(
    do: Callable[[], object],
    format: Literal["text", "json"] | None = "text",
    level: str = "info",
    worker: int | None = None,
) -> list[str]:
    stream = io.StringIO()
    stop = setup(level, format, stream, worker)
    try:
        do()
    finally:
        stop()
    return stream.getvalue().splitlines()


def test_an_event_is_one_line_with_its_time_level_name_worker_and_fields() -> None:
    (line,) = lines(lambda: event(LOG, logging.INFO, "user online", user_id="kol_1", sessions=2, device=None), worker=3)
    at, _, rest = line.partition(" ")
    assert at.endswith("Z")
    assert len(at) == len("2026-01-01T00:00:00.000Z")
    assert rest == "info    user online worker=3 user_id=kol_1 sessions=2"


def test_the_json_line_has_the_same_parts() -> None:
    (line,) = lines(lambda: event(LOG, logging.WARNING, "slow reader", lag_s=1.5, ok=True), "json", worker=0)
    parts = json.loads(line)
    assert parts.pop("time").endswith("Z")
    assert parts == {"level": "warning", "event": "slow reader", "worker": 0, "lag_s": 1.5, "ok": True}


def test_without_a_terminal_lines_are_json() -> None:
    (line,) = lines(lambda: event(LOG, logging.INFO, "x"), None)
    assert json.loads(line)["event"] == "x"


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize(
    "evil",
    [
        "a\nb",
        "a\r\nfake line",
        "\x1b[2J",
        "\x9b2J",
        "a=b user_id=root",
        'quo"te\\',
        "\u202eright to left",
        "\u2028",
        "\ud800",
        "ä",
        "\x00\x7f",
        b"\n\xff",
        "",
        [1, "\n"],
    ],
)
def test_nothing_a_stranger_sent_breaks_the_line_or_reaches_the_terminal(
    evil: object, format: Literal["text", "json"]
) -> None:
    (line,) = lines(lambda: event(LOG, logging.INFO, "rejected handshake", origin=evil, after="x"), format)
    assert line.isascii()
    assert line.isprintable()
    if format == "json":
        assert json.loads(line)["origin"] == (evil if isinstance(evil, str) else repr(evil))
    else:
        assert line.endswith(" after=x")
        value = line.partition("origin=")[2].removesuffix(" after=x")
        assert json.loads(value) == (evil if isinstance(evil, str) else repr(evil))


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_long_value_is_cut(format: Literal["text", "json"]) -> None:
    (line,) = lines(lambda: event(LOG, logging.INFO, "x", origin="a" * 100_000, other="\u1234" * 100_000), format)
    assert len(line) < 2000
    assert "a" * 200 + "..." in line


def test_a_foreign_librarys_message_is_one_line_as_well() -> None:
    found = lines(lambda: logging.getLogger("asyncio").error("broken:\n%s", "\x1b[31m"))
    assert len(found) == 1
    assert found[0].isprintable()
    assert "logger=asyncio" in found[0]


def test_a_traceback_stays_in_its_line() -> None:
    def fail() -> None:
        try:
            raise KeyError("gone")
        except KeyError:
            LOG.exception("unexpected")

    (line,) = lines(fail, "json")
    assert "KeyError" in json.loads(line)["error"]
    assert "test_logs.py" in json.loads(line)["trace"]


def test_a_number_that_json_does_not_know_becomes_a_text() -> None:
    (line,) = lines(lambda: event(LOG, logging.INFO, "x", lag_s=float("nan")), "json")
    assert json.loads(line, parse_constant=pytest.fail)["lag_s"] == "nan"


def test_a_field_that_cannot_be_shown_does_not_end_the_log() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    def both() -> None:
        event(LOG, logging.INFO, "one", value=Broken())
        event(LOG, logging.INFO, "two")

    first, second = lines(both)
    assert "log line failed" in first
    assert "two" in second


def test_below_the_level_nothing_is_written_and_foreign_libraries_only_warn() -> None:
    def quiet() -> None:
        event(LOG, logging.DEBUG, "heartbeat")
        logging.getLogger("asyncio").info("chatter")

    assert lines(quiet) == []
    assert len(lines(lambda: event(LOG, logging.DEBUG, "heartbeat"), level="debug")) == 1
    assert lines(lambda: event(LOG, logging.INFO, "x"), level="error") == []


def test_lines_come_in_the_order_of_their_events_and_stop_waits_for_the_last() -> None:
    def count() -> None:
        for n in range(2000):
            event(LOG, logging.INFO, "n", n=n)

    found = lines(count, "json")
    assert [json.loads(line)["n"] for line in found] == list(range(2000))


def test_after_stop_nothing_is_written_any_more() -> None:
    stream = io.StringIO()
    setup("info", "text", stream)()
    event(LOG, logging.ERROR, "too late")
    assert stream.getvalue() == ""


def test_a_full_pipe_never_stops_the_caller_and_what_was_lost_is_counted() -> None:
    reading, writing = os.pipe()
    sent = 40_000
    with os.fdopen(writing, "w") as stream:
        stop = setup("info", "json", stream)
        began = time.monotonic()
        for n in range(sent):  # far more than pipe and buffer hold, and nobody reads
            event(LOG, logging.INFO, "n", n=n)
        assert time.monotonic() - began < 10
        taken: list[bytes] = []

        def read() -> None:
            while data := os.read(reading, 65536):
                taken.append(data)

        reader = threading.Thread(target=read)
        reader.start()
        stop()
    reader.join(10)
    os.close(reading)
    found = [json.loads(line) for line in b"".join(taken).splitlines()]
    lost = sum(line["count"] for line in found if line["event"] == "log lines dropped")
    told = [line["n"] for line in found if line["event"] == "n"]
    assert lost > 0
    assert len(told) + lost == sent
    assert told == sorted(told)
    assert len(told) >= logs.BUFFER


def test_a_process_whose_log_nobody_reads_still_ends() -> None:
    code = (
        "import logging; from fastpresence.logs import *; stop = setup('info', 'json')\n"
        "for n in range(20000): event(logging.getLogger('fastpresence'), logging.INFO, 'n', n=n)\n"
        "stop()"
    )
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=writing)
    os.close(writing)
    assert process.wait(20) == 0
    os.close(reading)


def test_a_reader_who_went_away_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        stop = setup("info", "text", stream)
        event(LOG, logging.INFO, "x")
        stop()


def test_a_non_blocking_stream_gets_every_line() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(writing, "w") as stream:
        stop = setup("info", "json", stream)
        for n in range(3000):
            event(LOG, logging.INFO, "n", n=n, padding="x" * 100)
        taken: list[bytes] = []
        reader = threading.Thread(target=lambda: taken.extend(iter(lambda: os.read(reading, 65536), b"")))
        reader.start()
        stop()
    reader.join(10)
    os.close(reading)
    assert len(b"".join(taken).splitlines()) == 3000


def happen(repeats: Repeats, *times: float, name: str = "slow reader") -> list[str]:
    """The lines about an event that happens at these seconds, without their beginning; each has its second."""

    def do() -> None:
        for now_s in times:
            repeats.log(LOG, logging.WARNING, name, now_s=now_s, at=now_s)

    return [line.partition("warning ")[2] for line in lines(do)]


def rest(repeats: Repeats, now_s: float) -> list[str]:
    """The lines about what was not told."""
    return [line.partition("warning ")[2] for line in lines(lambda: repeats.rest(now_s))]


def test_a_repeated_event_is_told_once_and_then_with_a_count() -> None:
    repeats = Repeats(every_s=10)
    assert happen(repeats, 0, 1, 2, 9.9) == ["slow reader at=0"]
    assert happen(repeats, 10) == ["slow reader at=10 count=4"]
    assert happen(repeats, 19, 25) == ["slow reader at=25 count=2"]
    assert happen(repeats, 36) == ["slow reader at=36"]  # a count of one is not worth a field


def test_two_events_do_not_silence_each_other() -> None:
    repeats = Repeats(every_s=10)
    assert happen(repeats, 0, name="a") == ["a at=0"]
    assert happen(repeats, 1, name="b") == ["b at=1"]
    assert happen(repeats, 2, name="a") == []


def test_the_end_of_a_burst_is_told_without_a_further_event() -> None:
    repeats = Repeats(every_s=10)
    happen(repeats, 0, 1, 2)
    happen(repeats, 0, name="b")
    assert rest(repeats, 9.9) == []
    assert rest(repeats, 10) == ["slow reader at=2 count=2"]
    assert rest(repeats, 30) == []
    assert happen(repeats, 39) == ["slow reader at=39"]


def test_a_rest_that_was_told_counts_as_a_telling() -> None:
    repeats = Repeats(every_s=10)
    happen(repeats, 0, 1)
    assert rest(repeats, 15) == ["slow reader at=1"]
    assert happen(repeats, 24) == []
    assert rest(repeats, 25) == ["slow reader at=24"]
