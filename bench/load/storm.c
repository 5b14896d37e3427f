/* Everybody is cut at once and comes back at once.
 *
 * A run cuts each link with a reset and connects it again, one after the other as fast as the loopback device
 * takes it (its queue holds 1,000 packets, and a packet lost there is one that no real network would have lost), and is
 * over when each is READY again: upgraded, token checked, welcome, a snapshot of --snapshot entries, user_online and its
 * ack. Nothing waits for the server: no --parallel, no jitter. Moments are told by the machine's monotonic clock, so
 * that several swarms can be one storm.
 */
#include "swarm.h"

#include <stdio.h>

static struct histogram times;

static void on_frame(struct link *link, const struct frame *frame)
{
    (void)link, (void)frame;
}

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
