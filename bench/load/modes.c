/* What one connection costs: heartbeats, handshakes, and holding it idle. */
#include "swarm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void beat(struct link *link)
{
    if (options.real)
        link_say(link, "heartbeat", "");
    else
        dialect->beat(link);
}

static bool is_answer(const struct frame *frame)
{
    return options.real ? frame->kind == HEARTBEAT_ACK : dialect->answers(frame);
}

static void no_ready(struct link *link)
{
    (void)link;
}

/* ---- heartbeats: every link has one beat in flight, and sends the next when its answer comes; with a pace all of them
 * at once, every so often, but for those whose last one has no answer yet */

static uint32_t in_flight;
static uint64_t wave_ns;

static void heartbeats_wave(void)
{
    for (uint32_t i = 0; i < link_count; i++) {
        if (links[i].waits)
            continue;
        links[i].waits = true;
        in_flight++;
        beat(&links[i]);
    }
}

static void heartbeats_start(double amount, uint32_t bytes)
{
    (void)amount, (void)bytes;
    wave_ns = now_ns();
    heartbeats_wave();
}

static void heartbeats_turn(uint64_t now)
{
    uint64_t pace_ns = (uint64_t)(options.pace_ms * NS_MS);
    if (!pace_ns || now - wave_ns < pace_ns)
        return;
    wave_ns += (now - wave_ns) / pace_ns * pace_ns;
    heartbeats_wave();
}

static void heartbeats_frame(struct link *link, const struct frame *frame)
{
    if (!link->waits || !is_answer(frame))
        return;
    counters.operations++;
    counters.frames++;
    counters.frame_bytes += frame->length + (frame->length < 126 ? 2 : 4);
    if (driving && !options.pace_ms) {
        beat(link);
        return;
    }
    link->waits = false;
    in_flight--;
}

static bool heartbeats_busy(void)
{
    return in_flight > 0;
}

const struct mode heartbeats_mode = {
    .name = "heartbeats",
    .start = heartbeats_start,
    .turn = heartbeats_turn,
    .frame = heartbeats_frame,
    .busy = heartbeats_busy,
    .ready = no_ready,
};

/* ---- handshakes: connect, upgrade, user_online, its ack, then a reset (SO_LINGER 0); each with the next token.
 *
 * A reset and not a close: it leaves no TIME_WAIT behind, so that ports do not run out; the server loses the connection
 * the way it loses a phone. At the C server the handshake is done with the 101.
 */

static uint32_t wanted, begun, next_token;
static uint64_t begin_ns;

static void handshakes_start(double amount, uint32_t bytes)
{
    (void)bytes;
    wanted = (uint32_t)amount;
    begun = 0;
    begin_ns = now_ns();
    counters.operations = 0;
    if (token_count() && next_token + wanted > token_count())
        die("%u tokens are not enough for another %u handshakes", token_count(), wanted);
}

static void handshakes_turn(uint64_t now)
{
    for (uint32_t i = 0; i < link_count && begun < wanted; i++) {
        if (links[i].phase != CLOSED || (double)(now - begin_ns) < begun * options.pace_ms * NS_MS)
            continue;
        link_name(&links[i], next_token++);
        begun++;
        link_connect(&links[i]);
    }
}

static void handshakes_ready(struct link *link)
{
    counters.operations++;
    link_cut(link);
}

static void handshakes_frame(struct link *link, const struct frame *frame)
{
    (void)link, (void)frame;
}

static bool handshakes_busy(void)
{
    return counters.operations < wanted;
}

const struct mode handshakes_mode = {
    .name = "handshakes",
    .start = handshakes_start,
    .turn = handshakes_turn,
    .frame = handshakes_frame,
    .busy = handshakes_busy,
    .ready = handshakes_ready,
    .counts = true,
    .passing = true,
};

/* ---- idle: every link beats once a period, each at its own moment, in no order that a cache could learn.
 *
 * Time stands still between runs, so that two servers can be measured by turns; the first run goes on where the last
 * one ended.
 */

static uint64_t *moments, cycle_begin, paused_at; /* offsets within the period, rising */
static uint32_t *order, next_beat;
static int64_t unanswered;

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void draw_moments(void)
{
    moments = zeroed(link_count, sizeof *moments);
    order = zeroed(link_count, sizeof *order);
    srandom(1); /* the same moments at both servers */
    for (uint32_t i = 0; i < link_count; i++) {
        moments[i] = (uint64_t)((double)random() / RAND_MAX * options.period_s * NS_S);
        uint32_t j = (uint32_t)random() % (i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    qsort(moments, link_count, sizeof *moments, by_value);
    cycle_begin = now_ns();
}

static void idle_turn(uint64_t now)
{
    paused_at = now;
    while (options.period_s > 0 && cycle_begin + moments[next_beat] <= now) {
        struct link *link = &links[order[next_beat]];
        if (link->phase == READY) {
            beat(link);
            unanswered++;
        }
        if (++next_beat == link_count) {
            next_beat = 0;
            cycle_begin += (uint64_t)(options.period_s * NS_S);
        }
    }
}

static void idle_start(double amount, uint32_t bytes)
{
    (void)amount, (void)bytes;
    if (!moments)
        draw_moments();
    else
        cycle_begin += now_ns() - paused_at;
}

static void idle_frame(struct link *link, const struct frame *frame)
{
    (void)link;
    if (!is_answer(frame))
        return;
    counters.operations++;
    counters.frames++;
    unanswered--;
}

static bool idle_busy(void)
{
    return unanswered > 0;
}

static void idle_report(void)
{
    printf(", \"connections\": %u, \"unanswered\": %lld", ready_count, (long long)unanswered);
}

/* Link i watches the users `other_N` from N = i * watches on: nobody is watched twice. With --common all of them watch
 * the same: `user_000000` and on. */
static void idle_ready(struct link *link)
{
    static char text[64 * 1024];
    size_t size = 0;
    if (!options.watches)
        return;
    size += (size_t)sprintf(text, "{\"type\":\"subscribe\",\"user_ids\":[");
    for (uint32_t i = 0; i < options.watches; i++) {
        if (size + 64 > sizeof text)
            die("%u watches are too many for one frame", options.watches);
        if (options.common)
            size += (size_t)sprintf(text + size, "%s\"user_%06u\"", i ? "," : "", i);
        else
            size += (size_t)sprintf(text + size, "%s\"other_%u\"", i ? "," : "", link->index * options.watches + i);
    }
    size += (size_t)sprintf(text + size, "]}");
    link_send(link, text, size);
}

const struct mode idle_mode = {
    .name = "idle",
    .start = idle_start,
    .turn = idle_turn,
    .frame = idle_frame,
    .busy = idle_busy,
    .ready = idle_ready,
    .report = idle_report,
};
