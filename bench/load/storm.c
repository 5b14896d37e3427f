/* Everybody is cut at once and comes back at once; and a pulse beside it: is somebody else still answered?
 *
 * storm: a run cuts each link with a reset and connects it again, one after the other as fast as the loopback device
 * takes it (its queue holds 1,000 packets, and a packet lost there is one that no real network would have lost), and is
 * over when each is READY again: upgraded, token checked, welcome, a snapshot of --snapshot entries, user_online and its
 * ack. Nothing waits for the server: no --parallel, no jitter. Moments are told by the machine's monotonic clock, so
 * that several swarms can be one storm.
 *
 * pulse: every link has one heartbeat in flight, and sends the next one --period after the last, or when its answer has
 * come, whichever is later.
 */
#include "swarm.h"

#include <stdio.h>

static struct histogram times;

static void on_frame(struct link *link, const struct frame *frame)
{
    (void)link, (void)frame;
}

/* ---- storm */

enum { BURST = 64, BURST_MS = 10 };

static uint64_t begin_ns, begun_ns, back_ns, burst_ns;
static uint32_t begun;

static void storm_start(double amount, uint32_t bytes)
{
    (void)amount, (void)bytes;
    begin_ns = now_ns();
    times = (struct histogram){0};
    burst_ns = 0;
    begun = 0;
}

/* A burst goes out when the kernel has answered most of the last one, or has had its time to. */
static void storm_turn(uint64_t now)
{
    if (connecting_count > BURST / 4 && now - burst_ns < BURST_MS * (uint64_t)NS_MS)
        return;
    burst_ns = now;
    for (uint32_t i = 0; i < BURST && begun < link_count; i++, begun++) {
        if (links[begun].phase != CLOSED)
            link_cut(&links[begun]);
        link_connect(&links[begun]);
        begun_ns = now_ns();
    }
}

static void storm_ready(struct link *link)
{
    (void)link;
    if (!driving)
        return;
    counters.operations++;
    back_ns = now_ns();
    histogram_add(&times, back_ns - begin_ns);
}

static bool storm_busy(void)
{
    return begun < link_count || ready_count < link_count;
}

static void storm_report(void)
{
    printf(", \"connections\": %u, \"begin_ns\": %llu, \"begun_ns\": %llu, \"back_ns\": %llu, \"p50_ms\": %.3f, \"p99_ms\": %.3f", ready_count,
           (unsigned long long)begin_ns, (unsigned long long)begun_ns, (unsigned long long)back_ns, (double)histogram_at(&times, 0.5) / NS_MS,
           (double)histogram_at(&times, 0.99) / NS_MS);
    histogram_print(&times);
}

const struct mode storm_mode = {
    .name = "storm",
    .start = storm_start,
    .turn = storm_turn,
    .frame = on_frame,
    .busy = storm_busy,
    .ready = storm_ready,
    .report = storm_report,
    .counts = true,
};

/* ---- pulse */

static uint32_t in_flight;

static void pulse_start(double amount, uint32_t bytes)
{
    (void)amount, (void)bytes;
    in_flight = 0;
    for (uint32_t i = 0; i < link_count; i++)
        links[i].mark = 0;
}

static void pulse_window(bool begins)
{
    if (begins)
        times = (struct histogram){0};
}

static void pulse_turn(uint64_t now)
{
    for (uint32_t i = 0; i < link_count; i++) {
        struct link *link = &links[i];
        if (link->mark > now) /* not yet */
            continue;
        if (link->phase != READY || link->waits)
            continue;
        link->mark = now_ns();
        link->waits = true;
        in_flight++;
        link_say(link, "heartbeat", "");
    }
}

static void pulse_frame(struct link *link, const struct frame *frame)
{
    if (!link->waits || (frame->kind != HEARTBEAT_ACK && options.real))
        return;
    uint64_t now = now_ns(), next = link->mark + (uint64_t)(options.period_s * NS_S);
    histogram_add(&times, now - link->mark);
    counters.operations++;
    counters.frames++;
    link->waits = false;
    link->mark = next;
    in_flight--;
}

static bool pulse_busy(void)
{
    return in_flight > 0;
}

static void pulse_ready(struct link *link)
{
    (void)link;
}

static void pulse_report(void)
{
    printf(", \"samples\": %llu, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f", (unsigned long long)times.count,
           (double)histogram_at(&times, 0.5) / NS_MS, (double)histogram_at(&times, 0.99) / NS_MS,
           (double)times.max / NS_MS);
    histogram_print(&times);
}

const struct mode pulse_mode = {
    .name = "pulse",
    .start = pulse_start,
    .turn = pulse_turn,
    .frame = pulse_frame,
    .busy = pulse_busy,
    .ready = pulse_ready,
    .window = pulse_window,
    .report = pulse_report,
};
