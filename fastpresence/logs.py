"""Logs: one line for each event, on standard error, written by a thread of their own.

    event() --> bounded buffer --> thread: format, write       (a full pipe stops the thread, never the caller)

What does not fit into the buffer is counted, and reported as `log lines dropped` when lines flow again. Whatever a
stranger sent is cut and escaped: a line is printable ASCII and holds no newline, in both formats. An event costs its
caller some 3 µs, one below the level 0.2 µs. The thread waits a moment for company before it formats, so that a busy
loop is not interrupted for each line. May import nothing of the package.
"""

import json
import logging
import math
import os
import re
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import lru_cache
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal, TextIO

__all__ = ["BUFFER", "Repeats", "event", "set_level", "setup"]

#: Records that may wait for a slow reader of the log: some 10 MB at worst.
BUFFER: Final = 10_000
#: Characters of one value; of a traceback.
MAX_VALUE: Final = 200
MAX_TRACE: Final = 4000
#: Bytes in one write: a pipe keeps this many together (PIPE_BUF), so that processes never tear each other's lines.
MAX_WRITE: Final = 4096
#: Seconds the thread waits for more lines after the first.
GATHER: Final = 0.02
#: Seconds that `stop` waits for a reader who has stopped reading.
LAST_WORDS: Final = 2.0

#: What may stand in a text line without quotes.
_BARE = re.compile(r"[A-Za-z0-9_.,:;@/+*()\[\]-]+\Z")
_dump = json.JSONEncoder(separators=(",", ":")).encode  # ASCII only: everything else is escaped
_ROOT: Final = "fastpresence"


def event(logger: logging.Logger, level: int, name: str, /, **fields: object) -> None:
    """Log that `name` happened. `fields` are scalars; None is left out."""
    if logger.isEnabledFor(level):
        record = logging.LogRecord(logger.name, level, "", 0, name, None, None)
        record.fields = fields
        logger.handle(record)


def setup(
    level: str, format: Literal["text", "json"] | None, stream: TextIO | None = None, worker: int | None = None
) -> Callable[[], None]:
    """Send the events of this process to `stream` (standard error); what comes back stops that, after the last line.

    `format` None: text on a terminal, json elsewhere. Other libraries' warnings come along in the same form.
    """
    out = sys.stderr if stream is None else stream
    is_text = format == "text" or (format is None and out.isatty())
    handler = _Handler(_Drain(out, _text_line if is_text else _json_line, worker))
    root = logging.getLogger()
    set_level(level)
    root.addHandler(handler)
    # None of these is ever printed; looking them up costs more than the rest of the record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler.drain.start()

    def stop() -> None:
        root.removeHandler(handler)
        handler.drain.stop()

    return stop


def set_level(level: str) -> None:
    """Change what `setup` was told, while it runs."""
    ours = logging.getLogger(_ROOT)
    ours.setLevel(level.upper())
    logging.getLogger().setLevel(max(logging.WARNING, ours.level))


class Repeats:
    """Tells an event that keeps happening once, and then with a count, at most once in `every_s` for each event.

    The caller passes `now_s` (monotonic, seconds), and calls `rest` now and then. Keys are names of events: few, and
    never a stranger's text. One for all of a process that tells events of the same name.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._events: dict[str, _Repeated] = {}

    def log(self, logger: logging.Logger, level: int, name: str, /, *, now_s: float, **fields: object) -> None:
        """It happened once more. A line has the fields of the last time, `count` says for how many it stands."""
        found = self._events.get(name)
        if found is None:
            found = self._events[name] = _Repeated()
        found.untold += 1
        found.last = (logger, level, fields)
        self._tell(name, found, now_s)

    def rest(self, now_s: float) -> None:
        """Tell what happened, was not told, and may be told now: so that a burst's end is told too."""
        for name, found in self._events.items():
            if found.untold:
                self._tell(name, found, now_s)

    def _tell(self, name: str, found: "_Repeated", now_s: float) -> None:
        if found.last is not None and now_s - found.told_s >= self._every_s:
            logger, level, fields = found.last
            event(logger, level, name, **fields, count=found.untold if found.untold > 1 else None)
            found.told_s, found.untold, found.last = now_s, 0, None


class _Repeated:
    """When an event was last told, and what happened since."""

    __slots__ = ("last", "told_s", "untold")

    def __init__(self) -> None:
        self.told_s = -math.inf
        self.untold = 0
        self.last: tuple[logging.Logger, int, dict[str, object]] | None = None


class _Drain(threading.Thread):
    """The thread between buffer and stream."""

    def __init__(self, stream: TextIO, line: Callable[[logging.LogRecord, int | None], str], worker: int | None):
        super().__init__(name="log", daemon=True)
        self._queue: SimpleQueue[logging.LogRecord | None] = SimpleQueue()
        self._put, self._line, self._worker = _writer(stream), line, worker
        self._stopping = threading.Event()
        self._dropped = 0  # by the callers; a race between two of them may lose a count, never a line
        self._reported = 0

    def put(self, record: logging.LogRecord) -> None:
        if self._queue.qsize() >= BUFFER:
            self._dropped += 1
        else:
            self._queue.put(record)

    def stop(self) -> None:
        self._stopping.set()
        self._queue.put(None)
        self.join(LAST_WORDS)

    def run(self) -> None:
        while (record := self._queue.get()) is not None:
            self._stopping.wait(GATHER)
            lines = [self._format(record)]
            size = len(lines[0])
            try:
                while (more := self._queue.get_nowait()) is not None:
                    line = self._format(more)
                    if size + len(line) > MAX_WRITE:
                        self._write(lines)
                        lines, size = [], 0
                    lines.append(line)
                    size += len(line)
            except Empty:
                more = record
            self._write(lines)
            self._report()
            if more is None:
                break

    def _format(self, record: logging.LogRecord) -> str:
        try:
            return self._line(record, self._worker)
        except Exception as error:  # a field of ours that can't be shown must not end the log
            record = logging.LogRecord(_ROOT, logging.ERROR, "", 0, "log line failed", None, None)
            record.fields = {"error": repr(error)}
            return self._line(record, self._worker)

    def _write(self, lines: list[str]) -> None:
        try:
            self._put("".join(lines))
        except (OSError, ValueError):  # nobody reads any more; there is nowhere to say so
            self._dropped += len(lines)

    def _report(self) -> None:
        dropped = self._dropped - self._reported
        if dropped:
            self._reported += dropped
            record = logging.LogRecord(_ROOT, logging.WARNING, "", 0, "log lines dropped", None, None)
            record.fields = {"count": dropped}
            self._write([self._format(record)])


def _writer(stream: TextIO) -> Callable[[str], object]:
    """How to write: around the stream's own lock, which a thread stuck in a full pipe would hold to the very end."""
    try:
        fd = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return stream.write

    def write(text: str) -> None:
        rest = text.encode("ascii")
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:  # somebody who shares the terminal or pipe made it non-blocking
                select.select([], [fd], [])

    return write


class _Handler(logging.Handler):
    def __init__(self, drain: _Drain) -> None:
        super().__init__()
        self.drain = drain

    def createLock(self) -> None:
        self.lock = None  # the buffer needs none

    def emit(self, record: logging.LogRecord) -> None:
        self.drain.put(record)


# From a record to a line. Both formats take their parts from `_parts` and let nothing but printable ASCII out.


@lru_cache(4)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


def _parts(record: logging.LogRecord) -> tuple[str, str, dict[str, object]]:
    at = f"{_second(int(record.created))}.{int(record.created % 1 * 1000):03d}Z"
    fields = getattr(record, "fields", None)
    if fields is None:  # another library's record
        fields = {"logger": record.name}
    fields = {key: _short(value, MAX_VALUE) for key, value in fields.items() if value is not None}
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = _short(repr(record.exc_info[1]), MAX_VALUE)
        fields["trace"] = _short("".join(traceback.format_exception(record.exc_info[1])), MAX_TRACE)
    return at, _short(record.getMessage(), MAX_VALUE), fields


def _short(value: object, limit: int) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return round(value, 6)
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _json_line(record: logging.LogRecord, worker: int | None) -> str:
    at, name, fields = _parts(record)
    head: dict[str, object] = {"time": at, "level": record.levelname.lower(), "event": name}
    if worker is not None:
        head["worker"] = worker
    return _dump(head | fields) + "\n"


def _text_line(record: logging.LogRecord, worker: int | None) -> str:
    at, name, fields = _parts(record)
    # The event's own name is ours and stands bare; a foreign library's message may hold anything.
    line = [at, f"{record.levelname.lower():7}", _dump(name)[1:-1]]
    if worker is not None:
        line.append(f"worker={worker}")
    for key, value in fields.items():
        shown = value if isinstance(value, str) else _dump(value)
        line.append(f"{key}={shown if _BARE.match(shown) else _dump(shown)}")
    return " ".join(line) + "\n"
