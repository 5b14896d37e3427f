/* A hashed timer wheel for very many timers that are nearly always moved before they run out.
 *
 * Timers are numbers below `capacity`; the caller brings the memory (16 bytes a timer, 4 bytes a slot) and may move the
 * timers' array (it holds indices, no pointers). Arm, rearm and cancel are O(1) and lazy: moving a deadline later writes
 * one field, the timer is linked anew when its old slot comes by. A timer never runs out early, and late by less than
 * one tick when `advance` is called every tick. One thread; no allocation; nothing can fail.
 */
#ifndef FP_WHEEL_H
#define FP_WHEEL_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t next, prev; /* indices of timers; FP_WHEEL_HEAD | slot for the ends; next == FP_WHEEL_OUT: not linked */
    uint32_t due;        /* tick at which it runs out; FP_WHEEL_NEVER: cancelled */
    uint32_t at;         /* tick at which its slot comes by */
} fp_timer;

#define FP_WHEEL_HEAD UINT32_C(0x80000000)
#define FP_WHEEL_OUT UINT32_MAX
#define FP_WHEEL_NEVER UINT32_MAX

typedef struct {
    fp_timer *timers;
    uint32_t *heads;  /* slots + 1 of them: the last holds what a full output left over */
    uint32_t slots;
    uint32_t tick_ms;
    uint32_t now;     /* the tick up to which everything has run out */
    uint32_t armed;   /* timers with a deadline */
} fp_wheel;

void fp_wheel_init(fp_wheel *wheel, uint32_t *heads, uint32_t slots, uint32_t tick_ms, uint64_t now_ms);

/* Give the wheel its timers, or a longer array of them; timers [from, capacity) become unarmed. */
void fp_wheel_use(fp_wheel *wheel, fp_timer *timers, uint32_t from, uint32_t capacity);

/* Arm or rearm: run out at the first tick that is not before `deadline_ms`. */
void fp_wheel_arm(fp_wheel *wheel, uint32_t timer, uint64_t deadline_ms);

void fp_wheel_cancel(fp_wheel *wheel, uint32_t timer);

/* Move to `now_ms`; at most `limit` timers that ran out are written to `due` and are then unarmed. Returns how many;
 * when that is `limit` there may be more: call again with the same `now_ms` or a later one. */
size_t fp_wheel_advance(fp_wheel *wheel, uint64_t now_ms, uint32_t *due, size_t limit);

#endif
