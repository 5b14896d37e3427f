/* What one delivery costs: publishers with one change in flight each, and the next when everybody has seen it.
 *
 * With --eager and several publishers the next comes once a quarter of the receivers have seen the last one, and all of them the one before:
 * then it is at the server before the next flush is due, however late this process reads. Without, a swarm that is held
 * up for a few milliseconds lets the server come to rest, which tells the first change after a rest without waiting for
 * the others; how many travel together would then say more about the swarm than about the server.
 *
 * At the real server a change is a status_change, to busy and to online by turns, and everybody has seen it when every
 * receiver got an entry of that publisher with that status. At the C server it is a `!` message that names publisher
 * and change, padded to the length asked for. With a pace the next change waits until that long after the last one, as
 * a server that joins changes makes it wait: what a send costs depends on what went before it. A delivery is one frame
 * at one receiver, whatever number of entries it has.
 */
#include "swarm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLE_MAX = 64 * 1024 };

struct publisher {
    uint32_t change, seen_by[2]; /* by the last bit of the change: the present one and the one before */
    enum status status;
    uint64_t sent_at[2];
};

static struct publisher *publishers;
static uint32_t *seen; /* [link][publisher]: the last change this link saw */
static uint32_t receivers, message_bytes, length_min, length_max, sample_length;
static uint8_t sample[SAMPLE_MAX]; /* the longest compressed frame of the window, for another eye than ours */
static uint64_t rounds, round_ns;

static bool receives(const struct link *link)
{
    return link->index >= options.publishers || options.publishers_public || !options.real;
}

static bool in_flight(const struct publisher *p)
{
    return p->seen_by[p->change & 1] < receivers;
}

static bool may_change(const struct publisher *p)
{
    if (!options.eager || options.active == 1)
        return !in_flight(p);
    return p->seen_by[~p->change & 1] == receivers && 4 * p->seen_by[p->change & 1] >= receivers;
}

static void next_change(uint32_t index)
{
    static char text[66 * 1024];
    struct publisher *p = &publishers[index];
    p->change++;
    p->seen_by[p->change & 1] = 0;
    p->status = p->status == BUSY ? ONLINE : BUSY;
    p->sent_at[p->change & 1] = now_ns();
    if (options.real) {
        link_say(&links[index], "status_change", p->status == BUSY ? "\"status\":\"busy\"," : "\"status\":\"online\",");
        return;
    }
    if (message_bytes >= sizeof text)
        die("a broadcast of %u bytes is too long", message_bytes);
    memset(text, '.', sizeof text);
    int size = snprintf(text, sizeof text, "!%04u:%010u:", index, p->change);
    text[size] = '.';
    dialect->publish(&links[index], text, message_bytes > (uint32_t)size ? message_bytes : (uint32_t)size);
}

static void start(double amount, uint32_t bytes)
{
    (void)amount;
    if (!publishers) {
        publishers = zeroed(options.publishers, sizeof *publishers);
        seen = zeroed((size_t)link_count * options.publishers, sizeof *seen);
        for (uint32_t i = 0; i < link_count; i++)
            receivers += receives(&links[i]);
        for (uint32_t i = 0; i < options.publishers; i++)
            publishers[i].seen_by[0] = publishers[i].seen_by[1] = receivers;
    }
    message_bytes = bytes;
    for (uint32_t i = 0; i < options.active; i++)
        if (may_change(&publishers[i]))
            next_change(i);
}

static void saw(struct link *link, uint32_t index, uint32_t change)
{
    struct publisher *p = &publishers[index];
    uint32_t *last = &seen[(size_t)link->index * options.publishers + index];
    while (*last < change) { /* an entry may come twice */
        uint32_t side = ++*last & 1;
        if (++p->seen_by[side] < receivers)
            continue;
        rounds++;
        round_ns += now_ns() - p->sent_at[side];
    }
    if (driving && !options.pace_ms && index < options.active && may_change(p))
        next_change(index);
}

static void turn(uint64_t now)
{
    for (uint32_t i = 0; options.pace_ms && i < options.active; i++)
        if (may_change(&publishers[i]) &&
            now >= publishers[i].sent_at[publishers[i].change & 1] + (uint64_t)(options.pace_ms * NS_MS))
            next_change(i);
}

static void on_frame(struct link *link, const struct frame *frame)
{
    uint32_t length = frame->length;
    if (!publishers || !receives(link) || (frame->kind != BROADCAST && (frame->kind != STATUS || frame->full)))
        return;
    counters.operations++;
    counters.frames++;
    counters.frame_bytes += length + (length < 126 ? 2 : length < 65536 ? 4 : 10);
    length_min = length < length_min ? length : length_min;
    length_max = length > length_max ? length : length_max;
    counters.entries += frame->entry_count;
    for (uint32_t i = 0; i < frame->entry_count; i++) {
        const struct entry *entry = &frame->entries[i];
        if (entry->publisher < 0)
            continue;
        /* Of a status only two can be meant: the change in flight, or the one before that not all have seen yet. */
        uint32_t change = publishers[entry->publisher].change;
        if (frame->kind == BROADCAST)
            change = (uint32_t)entry->rev;
        else if (entry->status != publishers[entry->publisher].status)
            change = change ? change - 1 : 0;
        saw(link, (uint32_t)entry->publisher, change);
    }
    if (frame->compressed && length > sample_length && length <= SAMPLE_MAX) {
        memcpy(sample, frame->bytes, length);
        sample_length = length;
    }
}

static bool busy(void)
{
    for (uint32_t i = 0; i < options.publishers; i++)
        if (in_flight(&publishers[i]))
            return true;
    return false;
}

static void ready(struct link *link)
{
    (void)link;
}

static void window(bool begins)
{
    if (begins) {
        length_min = UINT32_MAX;
        length_max = 0;
        rounds = round_ns = 0;
        sample_length = 0;
    }
}

static void report(void)
{
    printf(", \"receivers\": %u, \"rounds\": %llu, \"round_ms\": %.3f, \"payload_min\": %u, \"payload_max\": %u",
           receivers, (unsigned long long)rounds, rounds ? (double)round_ns / (double)rounds / NS_MS : 0.0,
           length_max ? length_min : 0, length_max);
    printf(", \"sample\": \"");
    for (uint32_t i = 0; i < sample_length; i++)
        printf("%02x", sample[i]);
    printf("\"");
}

const struct mode fanout_mode = {
    .name = "fanout",
    .start = start,
    .turn = turn,
    .frame = on_frame,
    .busy = busy,
    .ready = ready,
    .window = window,
    .report = report,
};
