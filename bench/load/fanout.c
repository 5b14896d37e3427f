/* What one delivery costs: publishers with one change in flight each, and the next when everybody has seen it.
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

struct publisher {
    uint32_t change, seen_by;
    bool in_flight;
    enum status status;
    uint64_t sent_at;
};

static struct publisher *publishers;
static uint32_t *seen; /* [link][publisher]: the last change this link saw */
static uint32_t receivers, message_bytes, length_min, length_max;
static uint64_t rounds, round_ns;

static bool receives(const struct link *link)
{
    return link->index >= options.publishers || options.publishers_public || !options.real;
}

static void next_change(uint32_t index)
{
    static char text[66 * 1024];
    struct publisher *p = &publishers[index];
    p->change++;
    p->seen_by = 0;
    p->in_flight = true;
    p->status = p->status == BUSY ? ONLINE : BUSY;
    p->sent_at = now_ns();
    if (options.real) {
        link_say(&links[index], "status_change", p->status == BUSY ? "\"status\":\"busy\"," : "\"status\":\"online\",");
        return;
    }
    if (message_bytes >= sizeof text)
        die("a broadcast of %u bytes is too long", message_bytes);
    memset(text, '.', sizeof text);
    int size = snprintf(text, sizeof text, "!%04u:%010u:", index, p->change);
    text[size] = '.';
    link_send(&links[index], text, message_bytes > (uint32_t)size ? message_bytes : (uint32_t)size);
}

static void start(double amount, uint32_t bytes)
{
    (void)amount;
    if (!publishers) {
        publishers = zeroed(options.publishers, sizeof *publishers);
        seen = zeroed((size_t)link_count * options.publishers, sizeof *seen);
        for (uint32_t i = 0; i < link_count; i++)
            receivers += receives(&links[i]);
    }
    message_bytes = bytes;
    for (uint32_t i = 0; i < options.publishers; i++)
        if (!publishers[i].in_flight)
            next_change(i);
}

static void saw(struct link *link, uint32_t index)
{
    struct publisher *p = &publishers[index];
    uint32_t *last = &seen[(size_t)link->index * options.publishers + index];
    if (*last == p->change)
        return; /* an entry may come twice */
    *last = p->change;
    if (++p->seen_by < receivers)
        return;
    rounds++;
    round_ns += now_ns() - p->sent_at;
    p->in_flight = false;
    if (driving && !options.pace_ms)
        next_change(index);
}

static void turn(uint64_t now)
{
    for (uint32_t i = 0; options.pace_ms && i < options.publishers; i++)
        if (!publishers[i].in_flight && now >= publishers[i].sent_at + (uint64_t)(options.pace_ms * NS_MS))
            next_change(i);
}

static void on_frame(struct link *link, const uint8_t *payload, uint32_t length)
{
    const struct frame *frame = decode(payload, length);
    if (frame->kind == ERROR && counters.errors++ < 3)
        fprintf(stderr, "swarm: %.*s\n", (int)length, (const char *)payload);
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
        const struct publisher *p = &publishers[entry->publisher];
        if (frame->kind == BROADCAST ? entry->rev == p->change : entry->status == p->status)
            saw(link, (uint32_t)entry->publisher);
    }
}

static bool busy(void)
{
    for (uint32_t i = 0; i < options.publishers; i++)
        if (publishers[i].in_flight)
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
    }
}

static void report(void)
{
    printf(", \"receivers\": %u, \"rounds\": %llu, \"round_ms\": %.3f, \"payload_min\": %u, \"payload_max\": %u",
           receivers, (unsigned long long)rounds, rounds ? (double)round_ns / (double)rounds / NS_MS : 0.0,
           length_max ? length_min : 0, length_max);
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
