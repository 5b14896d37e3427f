# cython: language_level=3, auto_pickle=False, autotestdict=False, boundscheck=False, wraparound=False
"""Python's way to the engine (native/include/engine.h): batches up, decisions down."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

cimport cython

import os
import socket

cdef extern from "stdbool.h" nogil:
    ctypedef bint c_bool "bool"

cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "engine.h" nogil:
    enum:
        FP_COMPRESSED
        FP_VARIANTS
        FP_ARENA_MAX
        FP_READ
        FP_EVENTS
        FP_RUN_MS
        FP_NONE
    ctypedef enum fp_state:
        FP_HTTP
        FP_OPEN
    ctypedef uint64_t fp_handle
    ctypedef enum fp_end:
        pass
    ctypedef struct fp_limits:
        uint64_t frame_size
        uint64_t message_size
        uint32_t fragments
        bint masked
    ctypedef struct fp_conn:
        int32_t fd
        uint8_t state
        uint64_t heard_ms
        void *rest
        uint8_t missed
    ctypedef struct fp_bytes:
        const uint8_t *data
        size_t size
    ctypedef struct fp_job:
        uint32_t audience
        fp_bytes frames[4]
    ctypedef struct fp_hooks:
        void *context
        void (*request)(void *, fp_handle, const uint8_t *, size_t) noexcept
        void (*message)(void *, fp_handle, uint8_t, const uint8_t *, size_t) noexcept
        void (*ping)(void *, fp_handle, const uint8_t *, size_t) noexcept
        void (*ended)(void *, fp_handle, fp_end, uint16_t) noexcept
        void (*drained)(void *, fp_handle, c_bool, uint64_t) noexcept
        void (*carry)(void *, fp_handle, const iovec *, unsigned) noexcept
        void (*carry_hold)(void *, fp_handle, c_bool) noexcept
        void (*carry_end)(void *, fp_handle) noexcept
        void (*carry_cut)(void *, fp_handle) noexcept
    ctypedef struct fp_config:
        fp_limits limits
        uint32_t heartbeat_timeout_ms, connect_timeout_ms, lag_time_ms, send_buffer, connections, per_address, quiet_ms
    ctypedef struct fp_stats:
        uint64_t accepted, refused, crowded, frames_received, frames_sent, bytes_received, bytes_sent, sends, deliveries, skipped, answered
        uint32_t connections, open, lagging
    ctypedef struct fp_audience:
        uint32_t count
    ctypedef struct fp_engine:
        int epoll_fd
        fp_config config
        uint64_t now_ms
        uint32_t capacity
        uint32_t audience_count
        fp_audience *audiences
        bint running
        fp_stats stats
    int fp_engine_init(fp_engine *, const fp_config *, const fp_hooks *)
    int fp_engine_listen(fp_engine *, int)
    void fp_engine_stop_listening(fp_engine *)
    void fp_engine_free(fp_engine *)
    uint64_t fp_now_ms()
    int fp_engine_poll(fp_engine *)
    bint fp_engine_advance(fp_engine *)
    void fp_engine_send(fp_engine *)
    void fp_engine_upgrade(fp_engine *, fp_handle, bint, bint, uint8_t, const uint8_t *, size_t)
    bint fp_engine_write(fp_engine *, fp_handle, const uint8_t *, size_t, size_t)
    bint fp_engine_answer(fp_engine *, fp_handle, const uint8_t *, size_t, bint, size_t)
    void fp_engine_stand(fp_engine *, uint8_t, const uint8_t *, size_t, uint64_t)
    bint fp_engine_give_standing(fp_engine *, fp_handle)
    void fp_engine_learn(fp_engine *, fp_handle, const uint8_t *, size_t, size_t, size_t, bint)
    void fp_engine_pong(fp_engine *, fp_handle, const uint8_t *, size_t)
    bint fp_engine_tell(fp_engine *, fp_handle, const uint8_t *, size_t)
    void fp_engine_caught_up(fp_engine *, fp_handle)
    void fp_engine_close(fp_engine *, fp_handle, uint16_t, const uint8_t *, size_t)
    void fp_engine_finish(fp_engine *, fp_handle)
    void fp_engine_abort(fp_engine *, fp_handle)
    void fp_engine_await_request(fp_engine *, fp_handle)
    bint fp_engine_adopt(fp_engine *, const char *, fp_handle *)
    bint fp_engine_go_on(fp_engine *, fp_handle)
    void fp_engine_hold(fp_engine *, fp_handle, bint)
    size_t fp_engine_waiting(fp_engine *, fp_handle)
    void fp_engine_feed(fp_engine *, fp_handle, const uint8_t *, size_t)
    void fp_engine_full(fp_engine *, fp_handle)
    void fp_engine_drained(fp_engine *, fp_handle)
    void fp_engine_lost(fp_engine *, fp_handle)
    fp_conn *fp_engine_conn(fp_engine *, fp_handle)

cdef extern from "address.h" nogil:
    bint fp_address_parse(const char *, uint64_t *)

cdef extern from "audience.h" nogil:
    uint32_t fp_audience_new(fp_engine *)
    bint fp_audience_free(fp_engine *, uint32_t)
    bint fp_audience_join(fp_engine *, fp_handle, uint32_t)
    bint fp_audience_leave(fp_engine *, fp_handle, uint32_t)
    bint fp_flush_begin(fp_engine *, uint64_t, fp_job *, uint32_t)
    bint fp_flush_step(fp_engine *, uint32_t)

# Kinds of events, first in each tuple of a batch.
REQUEST, TEXT, BINARY, ENDED, DRAINED, DEFLATED_TEXT, DEFLATED_BINARY = 0, 1, 2, 3, 4, 5, 6
# How a connection ended: fp_end.
LOST, CLOSED, VIOLATION, SILENT, LAGGED, UNFINISHED = 0, 1, 2, 3, 4, 5

cdef object _REQUEST = REQUEST, _TEXT = TEXT, _BINARY = BINARY, _ENDED = ENDED, _DRAINED = DRAINED
cdef object _DEFLATED_TEXT = DEFLATED_TEXT, _DEFLATED_BINARY = DEFLATED_BINARY

cdef enum:
    OP_TEXT = 1


cdef void on_request(void *context, fp_handle handle, const uint8_t *data, size_t size) noexcept:
    cdef Engine engine = <Engine>context
    engine.batch.append((_REQUEST, engine.who(handle), handle, PyBytes_FromStringAndSize(<const char *>data, size)))


cdef void on_message(void *context, fp_handle handle, uint8_t opcode, const uint8_t *data, size_t size) noexcept:
    cdef Engine engine = <Engine>context
    kind = _TEXT if opcode == OP_TEXT else _BINARY
    if opcode & FP_COMPRESSED:
        kind = _DEFLATED_TEXT if opcode == OP_TEXT | FP_COMPRESSED else _DEFLATED_BINARY
    engine.batch.append((kind, engine.who(handle), handle, PyBytes_FromStringAndSize(<const char *>data, size)))


cdef void on_ping(void *context, fp_handle handle, const uint8_t *data, size_t size) noexcept:
    cdef Engine engine = <Engine>context
    engine.pings.append((PyList_GET_SIZE(engine.batch), handle, PyBytes_FromStringAndSize(<const char *>data, size)))


cdef void on_ended(void *context, fp_handle handle, fp_end how, uint16_t code) noexcept:
    cdef Engine engine = <Engine>context
    owner = engine.who(handle)
    cdef fp_conn *conn = fp_engine_conn(&engine.engine, handle)
    engine.batch.append((_ENDED, owner, <int>how, (code, conn.heard_ms)))
    engine.disown(handle)


cdef void on_drained(void *context, fp_handle handle, c_bool missed, uint64_t missed_from) noexcept:
    cdef Engine engine = <Engine>context
    engine.batch.append((_DRAINED, engine.who(handle), handle, missed_from if missed else None))


cdef void on_carry(void *context, fp_handle handle, const iovec *pieces, unsigned count) noexcept:
    cdef Engine engine = <Engine>context
    cdef unsigned i
    carrier = engine.carriers.get(handle)
    if carrier is not None:
        carrier.write(b"".join([PyBytes_FromStringAndSize(<const char *>pieces[i].iov_base, pieces[i].iov_len)
                                for i in range(count)]))


cdef void on_carry_hold(void *context, fp_handle handle, c_bool held) noexcept:
    cdef Engine engine = <Engine>context
    carrier = engine.carriers.get(handle)
    if carrier is not None:
        carrier.hold(bool(held))


cdef void on_carry_end(void *context, fp_handle handle) noexcept:
    cdef Engine engine = <Engine>context
    carrier = engine.carriers.get(handle)
    if carrier is not None:
        carrier.end()


cdef void on_carry_cut(void *context, fp_handle handle) noexcept:
    cdef Engine engine = <Engine>context
    carrier = engine.carriers.pop(handle, None)
    if carrier is not None:
        carrier.cut()


@cython.final
cdef class Engine:
    """Every plain client socket of one worker. One thread only; see the header for the life of a connection.

    `on_batch(events)` is called once a turn with what happened, in order, as tuples:

        (REQUEST, owner, handle, bytes)            of a connection that is not upgraded yet
        (TEXT or BINARY, owner, handle, bytes)     one message
        (DEFLATED_TEXT or _BINARY, ...)            one message that is to be inflated, and its text to be checked
        (ENDED, owner, how, (code, heard_ms))      over; `how` is one of the constants of this module
        (DRAINED, owner, handle, version or None)  its socket took everything; with a version: presence since then was left out

    `owner` is what `own` set for the connection, or its handle (an int) before that.
    """

    cdef fp_engine engine
    cdef object on_batch
    cdef list batch
    cdef list pings       # (place in the batch, handle, payload): to be answered when what is before that place was
    cdef PyObject **held
    cdef uint32_t held_capacity
    cdef fp_job *jobs
    cdef dict carriers  # handle -> who carries its bytes
    cdef object flushing  # keeps the frames of the running flush alive
    cdef bint born        # `engine` holds something: descriptor 0 is not ours before that

    def __cinit__(self, on_batch, *, uint32_t heartbeat_timeout_ms=60_000, uint32_t connect_timeout_ms=10_000,
                  uint32_t lag_time_ms=30_000, uint64_t frame_size=65536, uint64_t message_size=65536,
                  uint32_t fragments=1024, uint32_t send_buffer=131072, uint32_t connections=1_000_000,
                  uint32_t connections_per_address=0, uint32_t quiet_ms=0):
        cdef fp_config config
        cdef fp_hooks hooks
        memset(&config, 0, sizeof(config))
        config.limits.frame_size = frame_size
        config.limits.message_size = message_size
        config.limits.fragments = fragments
        config.limits.masked = True
        config.heartbeat_timeout_ms = heartbeat_timeout_ms
        config.connect_timeout_ms = connect_timeout_ms
        config.lag_time_ms = lag_time_ms
        config.send_buffer = send_buffer
        config.connections = connections
        config.per_address = connections_per_address
        config.quiet_ms = quiet_ms
        hooks.context = <void *>self
        hooks.request = on_request
        hooks.message = on_message
        hooks.ping = on_ping
        hooks.ended = on_ended
        hooks.drained = on_drained
        hooks.carry = on_carry
        hooks.carry_hold = on_carry_hold
        hooks.carry_end = on_carry_end
        hooks.carry_cut = on_carry_cut
        self.carriers = {}
        self.on_batch = on_batch
        self.batch = []
        self.pings = []
        self.born = True
        cdef int error = fp_engine_init(&self.engine, &config, &hooks)
        if error:
            raise OSError(-error, os.strerror(-error))

    def __dealloc__(self):
        self.forget_owners()
        if self.born:
            fp_engine_free(&self.engine)
        free(self.held)
        free(self.jobs)

    cdef void forget_owners(self) noexcept:
        cdef uint32_t slot
        for slot in range(self.held_capacity):
            if self.held[slot] != NULL:
                Py_DECREF(<object>self.held[slot])
                self.held[slot] = NULL

    cdef object who(self, fp_handle handle):
        cdef uint32_t slot = <uint32_t>handle
        if slot < self.held_capacity and self.held[slot] != NULL:
            return <object>self.held[slot]
        return handle

    cdef void disown(self, fp_handle handle) noexcept:
        cdef uint32_t slot = <uint32_t>handle
        cdef PyObject *owner
        if fp_engine_conn(&self.engine, handle) == NULL:
            return  # a stale handle: the slot may have another tenant
        if slot < self.held_capacity and self.held[slot] != NULL:
            owner = self.held[slot]
            self.held[slot] = NULL
            Py_DECREF(<object>owner)

    def close_all(self):
        """Cut every connection off, without a word to their owners; the listener stays its opener's."""
        self.forget_owners()
        fp_engine_free(&self.engine)

    def fileno(self):
        """The descriptor that is readable whenever `run` has something to do."""
        return self.engine.epoll_fd

    def listen(self, int fd):
        """Accept from this listening, non-blocking TCP socket. It stays the caller's. Raises OSError."""
        cdef int error = fp_engine_listen(&self.engine, fd)
        if error:
            raise OSError(-error, os.strerror(-error))

    def stop_listening(self):
        """Accept no more."""
        fp_engine_stop_listening(&self.engine)

    def run(self):
        """One turn: take what is ready, hand it up as one batch, send what was answered. Returns the events taken.

        Where more is ready than one batch takes it goes on, for a while: so a crowd of those who ask for much, which
        their owners may put off, does not make everybody else wait until each of the crowd had a turn of the loop.
        """
        cdef int count = FP_EVENTS, total = 0
        cdef uint64_t until_ms = 0
        while count == FP_EVENTS:
            count = fp_engine_poll(&self.engine)
            if count < 0:
                raise OSError(-count, os.strerror(-count))
            total += count
            if until_ms == 0:
                until_ms = self.engine.now_ms + FP_RUN_MS
            self.deliver()
            if count == FP_EVENTS and fp_now_ms() >= until_ms:
                break
        return total

    def advance(self):
        """Let deadlines run out; call it every 250 ms. True when there are more of them: for the next turn."""
        cdef bint more = fp_engine_advance(&self.engine)
        self.deliver()
        return more

    def send(self):
        """Send what was gathered outside of a batch."""
        fp_engine_send(&self.engine)

    cdef int deliver(self) except -1:
        cdef list batch, pings
        cdef Py_ssize_t at, place
        cdef bytes payload
        try:
            while PyList_GET_SIZE(self.batch):  # an upgrade may add to it
                batch, pings = self.batch, self.pings
                self.batch, self.pings = [], []
                at = 0
                for place, handle, payload in pings:
                    if place > at:
                        self.on_batch(batch[at:place])
                        at = place
                    fp_engine_pong(&self.engine, handle, <const uint8_t *>PyBytes_AS_STRING(payload),
                                   PyBytes_GET_SIZE(payload))
                if at == 0:
                    self.on_batch(batch)
                elif at < PyList_GET_SIZE(batch):
                    self.on_batch(batch[at:])
        finally:
            fp_engine_send(&self.engine)
        return 0

    # Decisions. A stale handle is ignored everywhere.

    def own(self, fp_handle handle, owner not None):
        """Let `owner` stand for the connection in every later event."""
        if fp_engine_conn(&self.engine, handle) == NULL:
            return
        cdef uint32_t slot = <uint32_t>handle
        cdef PyObject **owners
        if slot >= self.held_capacity:
            owners = <PyObject **>realloc(self.held, self.engine.capacity * sizeof(PyObject *))
            if owners == NULL:
                raise MemoryError
            memset(owners + self.held_capacity, 0,
                   (self.engine.capacity - self.held_capacity) * sizeof(PyObject *))
            self.held = owners
            self.held_capacity = self.engine.capacity
        self.disown(handle)
        Py_INCREF(owner)
        self.held[slot] = <PyObject *>owner

    def upgrade(self, fp_handle handle, bint text, uint8_t variant, bytes after not None=b"", *, bint deflate=False):
        """It is a WebSocket from now on; `after` came behind the request, `deflate` says what was negotiated."""
        fp_engine_upgrade(&self.engine, handle, text, deflate, variant,
                          <const uint8_t *>PyBytes_AS_STRING(after), PyBytes_GET_SIZE(after))

    def write(self, fp_handle handle, bytes data not None, size_t bound=FP_ARENA_MAX):
        """Gather bytes as they are; False when over `bound` bytes would wait for a full socket."""
        return fp_engine_write(&self.engine, handle, <const uint8_t *>PyBytes_AS_STRING(data),
                               PyBytes_GET_SIZE(data), bound)

    def answer(self, fp_handle handle, bytes payload not None, size_t bound=FP_ARENA_MAX, *, bint compressed=False):
        """Gather one message as a frame; False when over `bound` bytes would wait for a full socket."""
        return fp_engine_answer(&self.engine, handle, <const uint8_t *>PyBytes_AS_STRING(payload),
                                PyBytes_GET_SIZE(payload), compressed, bound)

    def stand(self, uint8_t variant, bytes frame not None, uint64_t until_ms):
        """This whole frame is an answer for every connection of the variant, until then (monotonic milliseconds)."""
        fp_engine_stand(&self.engine, variant, <const uint8_t *>PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), until_ms)

    def give_standing(self, fp_handle handle):
        """Gather it for this connection. True when what this said came after a silence of `quiet_ms`: worth learning."""
        return fp_engine_give_standing(&self.engine, handle)

    def learn(self, fp_handle handle, bytes message not None, size_t start, size_t end, bint digits):
        """After a silence, messages of this connection like this one are answered with what stands, and do not go up.

        Like: of its kind and length, and the same but for the bytes [start, end), which may be any, or with `digits` any
        number without a leading zero. Of over 512 bytes, or 255 that may differ, nothing is learnt.
        """
        if start <= end:
            fp_engine_learn(&self.engine, handle, <const uint8_t *>PyBytes_AS_STRING(message),
                            PyBytes_GET_SIZE(message), start, end - start, digits)

    def tell(self, fp_handle handle, bytes frame not None):
        """Gather a whole presence frame; False when it was left out, to be caught up once the socket has drained."""
        return fp_engine_tell(&self.engine, handle, <const uint8_t *>PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))

    def caught_up(self, fp_handle handle):
        """What it had missed was gathered: presence goes on."""
        fp_engine_caught_up(&self.engine, handle)

    def close(self, fp_handle handle, uint16_t code, bytes reason not None=b""):
        """Close a WebSocket; its owner hears no more of it."""
        self.disown(handle)
        fp_engine_close(&self.engine, handle, code,
                        <const uint8_t *>PyBytes_AS_STRING(reason), PyBytes_GET_SIZE(reason))

    def finish(self, fp_handle handle):
        """End an HTTP connection once its answer is written; its owner hears no more of it."""
        self.disown(handle)
        fp_engine_finish(&self.engine, handle)

    def abort(self, fp_handle handle):
        """Cut it off now; its owner hears no more of it."""
        self.disown(handle)
        fp_engine_abort(&self.engine, handle)

    def await_request(self, fp_handle handle):
        """An HTTP connection waits for its next request: the connect timeout begins anew."""
        fp_engine_await_request(&self.engine, handle)

    def hold(self, fp_handle handle, bint held):
        """Take nothing more of it, or go on. For a turn of the loop or until its socket has drained, not for longer."""
        fp_engine_hold(&self.engine, handle, held)
        if not held:
            self.go_on(handle)

    def waiting(self, fp_handle handle):
        """Bytes that were gathered for it and that no socket has taken."""
        return fp_engine_waiting(&self.engine, handle)

    # Connections whose sockets somebody else holds: TLS.

    def adopt(self, carrier not None):
        """A new connection that `carrier` carries: `write(bytes)`, `end()` (after what is written), `cut()` (now),
        `hold(held)` (read no more, or go on).

        Returns its handle, or None at a limit: of all connections (then `has_room` is False), or of those from
        `carrier.address`. The carrier says `feed`, `full`, `drained`, `lost`.
        """
        cdef fp_handle handle
        cdef bytes address = carrier.address.encode("ascii", "replace")
        if not fp_engine_adopt(&self.engine, PyBytes_AS_STRING(address), &handle):
            return None
        self.carriers[handle] = carrier
        return handle

    @property
    def has_room(self):
        """Whether it is below its limit of connections."""
        return self.engine.stats.connections < self.engine.config.connections

    def feed(self, fp_handle handle, bytes data not None):
        """Bytes came."""
        cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef size_t left = PyBytes_GET_SIZE(data), part
        while left:
            # A read's worth at a time, as from a socket: what is behind a request may be a WebSocket's by then.
            part = min(left, <size_t>FP_READ)
            fp_engine_feed(&self.engine, handle, at, part)
            self.deliver()
            at += part
            left -= part
            self.go_on(handle)

    cdef int go_on(self, fp_handle handle) except -1:
        while fp_engine_go_on(&self.engine, handle):
            self.deliver()
        return 0

    def full(self, fp_handle handle):
        """Its carrier's buffer is full: what may wait waits, presence is left out."""
        fp_engine_full(&self.engine, handle)

    def drained(self, fp_handle handle):
        """Its carrier takes more again."""
        fp_engine_drained(&self.engine, handle)
        self.deliver()
        self.go_on(handle)

    def lost(self, fp_handle handle):
        """Its carrier has lost it: what it said before is heard, when it is not held, and then its end."""
        fp_engine_lost(&self.engine, handle)
        self.deliver()
        self.go_on(handle)

    # Facts about one connection.

    def address(self, fp_handle handle):
        """The peer's address, or "" when it is gone."""
        cdef fp_conn *conn = fp_engine_conn(&self.engine, handle)
        if conn == NULL:
            return ""
        if conn.fd < 0:
            return self.carriers[handle].address
        peer = socket.socket(fileno=conn.fd)
        try:
            return peer.getpeername()[0]
        except OSError:
            return ""
        finally:
            peer.detach()

    def network(self, fp_handle handle):
        """What limits by address count by: an IPv4 address, or a /64 of IPv6, as a number; 0 when there is none."""
        cdef uint64_t key
        cdef bytes address = self.address(handle).encode("ascii", "replace")
        return key if fp_address_parse(PyBytes_AS_STRING(address), &key) else 0

    def heard_ms(self, fp_handle handle):
        """When its last complete frame came: monotonic milliseconds."""
        cdef fp_conn *conn = fp_engine_conn(&self.engine, handle)
        return conn.heard_ms if conn != NULL else 0

    def lagging(self, fp_handle handle):
        """True while its socket is full, and its owner is to hear when it has drained."""
        cdef fp_conn *conn = fp_engine_conn(&self.engine, handle)
        return conn != NULL and conn.rest != NULL and (conn.state == FP_HTTP or conn.state == FP_OPEN)

    def owner(self, uint32_t slot):
        """Whom `own` set for the connection in this slot (the lower half of its handle); None for nobody."""
        if slot < self.held_capacity and self.held[slot] != NULL:
            return <object>self.held[slot]
        return None

    def owners(self):
        """All that `own` set and that still hear of their connections."""
        cdef uint32_t slot
        return [<object>self.held[slot] for slot in range(self.held_capacity) if self.held[slot] != NULL]

    # Audiences and the flush.

    def new_audience(self):
        """The number of a new, empty audience."""
        cdef uint32_t audience = fp_audience_new(&self.engine)
        if audience == FP_NONE:
            raise MemoryError
        return audience

    def free_audience(self, uint32_t audience):
        """Give it back; False while the running flush has something for it."""
        return fp_audience_free(&self.engine, audience)

    def join(self, fp_handle handle, uint32_t audience):
        """The connection hears what is told to this audience from now on; False when the handle is stale."""
        return fp_audience_join(&self.engine, handle, audience)

    def leave(self, fp_handle handle, uint32_t audience):
        """It hears no more of this audience; False when it did not before."""
        return fp_audience_leave(&self.engine, handle, audience)

    def audience_size(self, uint32_t audience):
        """How many connections it has."""
        return self.engine.audiences[audience].count if audience < self.engine.audience_count else 0

    def flush_begin(self, uint64_t told, list jobs not None):
        """Begin to tell audiences what changed since version `told`.

        `jobs` has one `(audience, (frame or None, ...))` an audience, with a whole frame for each variant that is told
        something. Raises RuntimeError while a flush is running.
        """
        if self.engine.running:
            raise RuntimeError("a flush is running")
        cdef Py_ssize_t count = len(jobs)
        cdef fp_job *native = <fp_job *>realloc(self.jobs, <size_t>max(count, 1) * sizeof(fp_job))
        cdef Py_ssize_t i, variant
        cdef bytes frame
        if native == NULL:
            raise MemoryError
        self.jobs = native
        memset(native, 0, <size_t>max(count, 1) * sizeof(fp_job))
        for i in range(count):
            audience, frames = jobs[i]
            native[i].audience = audience
            for variant in range(min(len(frames), <Py_ssize_t>FP_VARIANTS)):
                if frames[variant] is not None:
                    frame = frames[variant]
                    native[i].frames[variant].data = <const uint8_t *>PyBytes_AS_STRING(frame)
                    native[i].frames[variant].size = PyBytes_GET_SIZE(frame)
        self.flushing = jobs
        if not fp_flush_begin(&self.engine, told, native, <uint32_t>count):
            raise ValueError("jobs: no such audience")

    def flush_step(self, uint32_t budget_us=2000):
        """Go on with the flush for about `budget_us`; True when it has ended."""
        cdef bint done = fp_flush_step(&self.engine, budget_us)
        if done:
            self.flushing = None
        return done

    @property
    def flush_running(self):
        return bool(self.engine.running)

    def stats(self):
        """Counters since the start and gauges of now, by name."""
        return self.engine.stats
