#include "wheel.h"

/* Ticks are 32 bits: 34 years of 250 ms. */
static uint32_t ticks(uint64_t ms, uint32_t tick_ms)
{
    uint64_t tick = ms / tick_ms;
    return tick < FP_WHEEL_NEVER - 1 ? (uint32_t)tick : FP_WHEEL_NEVER - 1;
}

static void unlink_timer(fp_wheel *wheel, uint32_t timer)
{
    fp_timer *t = &wheel->timers[timer];
    if (t->prev & FP_WHEEL_HEAD)
        wheel->heads[t->prev & ~FP_WHEEL_HEAD] = t->next;
    else
        wheel->timers[t->prev].next = t->next;
    if (!(t->next & FP_WHEEL_HEAD))
        wheel->timers[t->next].prev = t->prev;
    t->next = FP_WHEEL_OUT;
}

static void link_timer(fp_wheel *wheel, uint32_t timer)
{
    fp_timer *t = &wheel->timers[timer];
    uint32_t slot = t->due % wheel->slots;
    uint32_t first = wheel->heads[slot];
    t->next = first;
    t->prev = FP_WHEEL_HEAD | slot;
    if (!(first & FP_WHEEL_HEAD))
        wheel->timers[first].prev = timer;
    wheel->heads[slot] = timer;
    /* The next time after `now` at which this slot comes by: at most one turn of the wheel away. */
    t->at = wheel->now + 1 + (t->due - (wheel->now + 1)) % wheel->slots;
}

void fp_wheel_init(fp_wheel *wheel, uint32_t *heads, uint32_t slots, uint32_t tick_ms, uint64_t now_ms)
{
    wheel->timers = NULL;
    wheel->heads = heads;
    wheel->slots = slots;
    wheel->tick_ms = tick_ms;
    wheel->now = ticks(now_ms, tick_ms);
    wheel->armed = 0;
    for (uint32_t slot = 0; slot <= slots; slot++)
        heads[slot] = FP_WHEEL_HEAD | slot;
}

void fp_wheel_use(fp_wheel *wheel, fp_timer *timers, uint32_t from, uint32_t capacity)
{
    wheel->timers = timers;
    for (uint32_t timer = from; timer < capacity; timer++) {
        timers[timer].next = FP_WHEEL_OUT;
        timers[timer].due = FP_WHEEL_NEVER;
    }
}

void fp_wheel_arm(fp_wheel *wheel, uint32_t timer, uint64_t deadline_ms)
{
    fp_timer *t = &wheel->timers[timer];
    uint64_t up = deadline_ms > UINT64_MAX - wheel->tick_ms ? deadline_ms : deadline_ms + wheel->tick_ms - 1;
    uint32_t due = ticks(up, wheel->tick_ms);
    if (due <= wheel->now)
        due = wheel->now + 1; /* its own tick has gone by: the next one */
    if (t->due == FP_WHEEL_NEVER)
        wheel->armed++;
    t->due = due;
    if (t->next != FP_WHEEL_OUT) {
        if (due >= t->at)
            return; /* the old slot comes by first and links it anew */
        unlink_timer(wheel, timer);
    }
    link_timer(wheel, timer);
}

void fp_wheel_cancel(fp_wheel *wheel, uint32_t timer)
{
    fp_timer *t = &wheel->timers[timer];
    if (t->due == FP_WHEEL_NEVER)
        return;
    t->due = FP_WHEEL_NEVER; /* unlinked when its slot comes by */
    wheel->armed--;
}

/* Empty the overflow list into `due`; what has a later deadline is linked anew. True when the list is empty. */
static int drain(fp_wheel *wheel, uint32_t *due, size_t limit, size_t *count)
{
    uint32_t *head = &wheel->heads[wheel->slots];
    while (!(*head & FP_WHEEL_HEAD)) {
        uint32_t timer = *head;
        fp_timer *t = &wheel->timers[timer];
        if (t->due <= wheel->now && *count == limit)
            return 0;
        unlink_timer(wheel, timer);
        if (t->due == FP_WHEEL_NEVER)
            continue;
        if (t->due > wheel->now) {
            link_timer(wheel, timer);
            continue;
        }
        t->due = FP_WHEEL_NEVER;
        wheel->armed--;
        due[(*count)++] = timer;
    }
    return 1;
}

size_t fp_wheel_advance(fp_wheel *wheel, uint64_t now_ms, uint32_t *due, size_t limit)
{
    uint32_t target = ticks(now_ms, wheel->tick_ms);
    size_t count = 0;
    if (!drain(wheel, due, limit, &count))
        return count;
    /* After a long pause one turn sees every slot; whatever is due then is late anyway. */
    if (target > wheel->now && target - wheel->now > wheel->slots)
        wheel->now = target - wheel->slots;
    while (wheel->now < target) {
        wheel->now++;
        uint32_t slot = wheel->now % wheel->slots;
        uint32_t first = wheel->heads[slot];
        if (first & FP_WHEEL_HEAD)
            continue;
        /* The whole list becomes the overflow list (which is empty here), so that timers linked anew are not met. */
        wheel->heads[wheel->slots] = first;
        wheel->timers[first].prev = FP_WHEEL_HEAD | wheel->slots;
        wheel->heads[slot] = FP_WHEEL_HEAD | slot;
        if (!drain(wheel, due, limit, &count))
            break;
    }
    return count;
}
