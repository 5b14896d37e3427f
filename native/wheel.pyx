# cython: language_level=3, auto_pickle=False, autotestdict=False, boundscheck=False, wraparound=False
"""Python's way to the timer wheel (native/include/wheel.h)."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

cimport cython

cdef extern from "wheel.h" nogil:
    ctypedef struct fp_timer:
        pass
    ctypedef struct fp_wheel:
        uint32_t armed
    void fp_wheel_init(fp_wheel *, uint32_t *, uint32_t, uint32_t, uint64_t)
    void fp_wheel_use(fp_wheel *, fp_timer *, uint32_t, uint32_t)
    void fp_wheel_arm(fp_wheel *, uint32_t, uint64_t)
    void fp_wheel_cancel(fp_wheel *, uint32_t)
    size_t fp_wheel_advance(fp_wheel *, uint64_t, uint32_t *, size_t)

cdef enum:
    TIMERS_MAX = 1 << 26  # a gigabyte of timers: beyond it a number is a mistake
    LIMIT_MAX = 1 << 20


@cython.final
cdef class Wheel:
    """Deadlines for timers that are small dense numbers; 16 bytes a timer. One thread only."""

    cdef fp_wheel wheel
    cdef fp_timer *timers
    cdef uint32_t *heads
    cdef uint32_t capacity

    def __cinit__(self, uint32_t tick_ms=250, uint32_t slots=512, uint64_t now_ms=0):
        if not 0 < tick_ms <= 1_000_000:
            raise ValueError("tick_ms: 1 to 1000000")
        if not 0 < slots <= 1 << 20:
            raise ValueError("slots: 1 to 1048576")
        self.heads = <uint32_t *>malloc((slots + 1) * sizeof(uint32_t))
        if self.heads == NULL:
            raise MemoryError
        fp_wheel_init(&self.wheel, self.heads, slots, tick_ms, now_ms)

    def __dealloc__(self):
        free(self.timers)
        free(self.heads)

    cdef int grow(self, uint32_t timer) except -1:
        cdef uint64_t capacity = max(64, self.capacity)
        if timer >= TIMERS_MAX:
            raise ValueError("timer: too large a number")
        while capacity <= timer:
            capacity *= 2
        cdef fp_timer *timers = <fp_timer *>realloc(self.timers, capacity * sizeof(fp_timer))
        if timers == NULL:
            raise MemoryError
        self.timers = timers
        fp_wheel_use(&self.wheel, timers, self.capacity, <uint32_t>capacity)
        self.capacity = <uint32_t>capacity
        return 0

    def arm(self, uint32_t timer, uint64_t deadline_ms):
        """Let `timer` run out at `deadline_ms`, late by less than a tick; moves the deadline where it has one."""
        if timer >= self.capacity:
            self.grow(timer)
        fp_wheel_arm(&self.wheel, timer, deadline_ms)

    def cancel(self, uint32_t timer):
        """Take `timer`'s deadline away, where it has one."""
        if timer < self.capacity:
            fp_wheel_cancel(&self.wheel, timer)

    def advance(self, uint64_t now_ms, uint32_t limit=1024):
        """The timers that have run out by `now_ms`, at most `limit`: as many as that, and there may be more."""
        if not 0 < limit <= LIMIT_MAX:
            raise ValueError("limit: 1 to 1048576")
        cdef uint32_t few[1024]
        cdef uint32_t *due = few
        cdef size_t count, i
        if limit > 1024:
            due = <uint32_t *>malloc(limit * sizeof(uint32_t))
            if due == NULL:
                raise MemoryError
        try:
            count = fp_wheel_advance(&self.wheel, now_ms, due, limit)
            return [due[i] for i in range(count)]
        finally:
            if due != few:
                free(due)

    def __len__(self):
        return self.wheel.armed
