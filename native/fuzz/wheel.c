/* The timer wheel against a list of deadlines that is looked through from end to end.
 *
 * Input: 3 bytes of settings (slots, tick, limit of the output), then operations of one byte each with their arguments.
 * Arrays have exactly the size that the wheel was told, so that a step beyond them is seen by AddressSanitizer.
 */
#include <stdint.h>
#include <stdlib.h>

#include "check.h"
#include "wheel.h"

enum { TIMERS_MAX = 64, NEVER = -1 };

typedef struct {
    const uint8_t *at, *end;
} bytes;

static uint32_t next(bytes *from)
{
    return from->at < from->end ? *from->at++ : 0;
}

/* A duration: mostly near, sometimes far. */
static uint64_t span(bytes *from)
{
    uint32_t size = next(from);
    uint64_t value = next(from);
    if (size > 250)
        return UINT64_MAX - value; /* beyond all clocks */
    if (size > 200)
        return value << (size - 200);
    return value * (1 + size / 16);
}

static uint64_t plus(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bytes from = {data, data + size};
    uint32_t slots = 1 + next(&from) % 40, tick_ms = 1 + next(&from) % 20;
    size_t limit = 1 + next(&from) % 8;
    uint32_t *heads = malloc((slots + 1) * sizeof *heads), *due = malloc(limit * sizeof *due);
    uint32_t capacity = 4;
    fp_timer *timers = malloc(capacity * sizeof *timers);
    CHECK(heads && due && timers, "out of memory");
    int64_t deadlines[TIMERS_MAX]; /* ticks */
    for (int i = 0; i < TIMERS_MAX; i++)
        deadlines[i] = NEVER;
    uint64_t now_ms = (uint64_t)next(&from) * 3;
    fp_wheel wheel;
    fp_wheel_init(&wheel, heads, slots, tick_ms, now_ms);
    fp_wheel_use(&wheel, timers, 0, capacity);
    uint32_t armed = 0;
    while (from.at < from.end) {
        uint32_t what = next(&from), timer = next(&from) % capacity;
        if (what < 110) {
            uint64_t deadline_ms = plus(now_ms, span(&from));
            if (what < 10)
                deadline_ms = now_ms > deadline_ms - now_ms ? now_ms - (deadline_ms - now_ms) : 0; /* in the past */
            fp_wheel_arm(&wheel, timer, deadline_ms);
            uint64_t tick = deadline_ms / tick_ms + (deadline_ms % tick_ms != 0);
            if (tick > FP_WHEEL_NEVER - 1)
                tick = FP_WHEEL_NEVER - 1;
            armed += deadlines[timer] == NEVER;
            deadlines[timer] = tick > wheel.now ? (int64_t)tick : (int64_t)wheel.now + 1;
            CHECK(timers[timer].due == deadlines[timer], "due at %u, not at %lld", timers[timer].due, (long long)deadlines[timer]);
        } else if (what < 140) {
            fp_wheel_cancel(&wheel, timer);
            armed -= deadlines[timer] != NEVER;
            deadlines[timer] = NEVER;
        } else if (what < 150) {
            uint32_t more = capacity < TIMERS_MAX ? capacity + 1 + timer : capacity;
            more = more < TIMERS_MAX ? more : TIMERS_MAX;
            fp_timer *moved = malloc(more * sizeof *moved); /* elsewhere: the wheel holds no pointers into it */
            CHECK(moved, "out of memory");
            for (uint32_t i = 0; i < capacity; i++)
                moved[i] = timers[i];
            free(timers);
            timers = moved;
            fp_wheel_use(&wheel, timers, capacity, more);
            capacity = more;
        } else {
            uint64_t step = span(&from);
            if (plus(now_ms, step) / tick_ms < FP_WHEEL_NEVER - 2) /* no clock of ours goes on for longer */
                now_ms += step;
            uint64_t tick = now_ms / tick_ms;
            uint32_t target = tick < FP_WHEEL_NEVER - 1 ? (uint32_t)tick : FP_WHEEL_NEVER - 1;
            size_t count;
            do {
                count = fp_wheel_advance(&wheel, now_ms, due, limit);
                CHECK(count <= limit, "%zu of %zu", count, limit);
                for (size_t i = 0; i < count; i++) {
                    CHECK(due[i] < capacity && deadlines[due[i]] != NEVER, "%u ran out, and was not armed", due[i]);
                    CHECK(deadlines[due[i]] <= target, "%u ran out at %u, too early", due[i], target);
                    deadlines[due[i]] = NEVER;
                    armed--;
                }
                /* Whoever hears of the first may move the others. */
            } while (count == limit && what < 230);
            if (count < limit)
                for (uint32_t i = 0; i < capacity; i++)
                    CHECK(deadlines[i] == NEVER || deadlines[i] > target, "%u did not run out at %u", i, target);
        }
        CHECK(wheel.armed == armed, "%u armed, not %u", wheel.armed, armed);
    }
    free(timers);
    free(heads);
    free(due);
    return 0;
}
