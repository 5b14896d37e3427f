# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Python's way to the frame kernel (native/include/frame.h): for tests, TLS and tools. The engine calls it directly."""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

cimport cython

from collections import namedtuple

cdef extern from "mask.h" nogil:
    void fp_mask(uint8_t *data, size_t size, const uint8_t *key, unsigned phase)

cdef extern from "frame.h" nogil:
    enum:
        FP_HEADER_MAX
        FP_SERVER_HEADER_MAX
    ctypedef struct fp_limits:
        uint64_t frame_size
        uint64_t message_size
        uint32_t fragments
        bint masked
    ctypedef enum fp_result:
        FP_MORE
        FP_MESSAGE
        FP_CONTROL
        FP_ROOM
        FP_ERROR
    ctypedef struct fp_event:
        uint8_t opcode
        bint compressed
        uint8_t *data
        size_t size
        uint16_t close_code
        const char *reason
    ctypedef struct fp_stream:
        uint8_t *buffer
        size_t capacity
        uint8_t deflate
    fp_result fp_stream_next(fp_stream *, const fp_limits *, uint8_t **, size_t *, fp_event *)
    bint fp_stream_idle(const fp_stream *)
    uint16_t fp_close_check(const uint8_t *, size_t, uint16_t *)
    size_t fp_frame_header(uint8_t *, uint8_t, uint64_t)
    size_t fp_frame_header_masked(uint8_t *, uint8_t, bint, uint64_t, const uint8_t *)

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
#: RSV1, set beside the opcode of a message that is (to be) deflated: RFC 7692, section 6.
COMPRESSED = 0x40

Frame = namedtuple("Frame", "opcode payload")


class FrameError(Exception):
    """The peer broke RFC 6455; `close_code` is what to close with."""

    def __init__(self, close_code, reason):
        super().__init__(f"{close_code}: {reason}")
        self.close_code = close_code
        self.reason = reason


@cython.final
cdef class Stream:
    """One direction of one connection: bytes in, whole messages and control frames out.

    `masked` True reads what a client sends; `deflate` True lets messages be compressed. After a `FrameError` every further call raises.
    """

    cdef fp_stream stream
    cdef fp_limits limits

    def __cinit__(self, *, bint masked=True, uint64_t frame_size=65536, uint64_t message_size=65536,
                  uint32_t fragments=1024, bint deflate=False):
        self.stream.deflate = deflate
        self.limits.frame_size = frame_size
        self.limits.message_size = message_size
        self.limits.fragments = fragments
        self.limits.masked = masked

    def __dealloc__(self):
        free(self.stream.buffer)

    def feed(self, data):
        """Take in bytes; returns the list of `Frame`s that they complete. Raises `FrameError`.

        What was complete before the error is lost with it: ask for less at a time to keep it.
        """
        cdef bytearray own = bytearray(data)
        cdef uint8_t *at = <uint8_t *>PyByteArray_AS_STRING(own)
        cdef size_t size = PyByteArray_GET_SIZE(own)
        cdef fp_event event
        cdef fp_result result
        cdef uint8_t *room
        frames = []
        while True:
            result = fp_stream_next(&self.stream, &self.limits, &at, &size, &event)
            if result == FP_MORE:
                return frames
            if result == FP_ERROR:
                raise FrameError(event.close_code, (<bytes>event.reason).decode())
            if result == FP_ROOM:
                # In step with the bytes that came, never with a length that was announced.
                room = <uint8_t *>realloc(self.stream.buffer, max(event.size, 2 * self.stream.capacity, <size_t>256))
                if room == NULL:
                    raise MemoryError
                self.stream.capacity = max(event.size, 2 * self.stream.capacity, <size_t>256)
                self.stream.buffer = room
                continue
            opcode = event.opcode | (COMPRESSED if result == FP_MESSAGE and event.compressed else 0)
            frames.append(Frame(opcode, PyBytes_FromStringAndSize(<char *>event.data, event.size)))

    @property
    def idle(self):
        """True between messages."""
        return bool(fp_stream_idle(&self.stream))

    @property
    def buffered(self):
        """Bytes of memory held for a message that is under way."""
        return self.stream.capacity


def build(uint8_t opcode, bytes payload not None):
    """One whole unmasked frame: what a server sends."""
    cdef uint8_t head[FP_SERVER_HEADER_MAX]
    cdef size_t used = fp_frame_header(head, opcode, len(payload))
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, used + len(payload))
    cdef char *out = PyBytes_AS_STRING(frame)
    memcpy(out, head, used)
    memcpy(out + used, PyBytes_AS_STRING(payload), len(payload))
    return frame


def build_masked(uint8_t opcode, bytes payload not None, bytes key not None, *, bint fin=True):
    """One masked frame: what a client sends. `key` is four unpredictable bytes (RFC 6455, section 5.3)."""
    if len(key) != 4:
        raise ValueError("key: four bytes")
    cdef uint8_t head[FP_HEADER_MAX]
    cdef size_t used = fp_frame_header_masked(head, opcode, fin, len(payload), <uint8_t *>PyBytes_AS_STRING(key))
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, used + len(payload))
    cdef char *out = PyBytes_AS_STRING(frame)
    memcpy(out, head, used)
    memcpy(out + used, PyBytes_AS_STRING(payload), len(payload))
    fp_mask(<uint8_t *>out + used, len(payload), <uint8_t *>PyBytes_AS_STRING(key), 0)
    return frame


def check_close(bytes payload not None):
    """The code of a close frame's payload, 1005 where it has none. Raises `FrameError`."""
    cdef uint16_t code
    cdef uint16_t wrong = fp_close_check(<uint8_t *>PyBytes_AS_STRING(payload), len(payload), &code)
    if wrong:
        raise FrameError(wrong, "bad close frame")
    return code
