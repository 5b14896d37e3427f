/* What is due at its moment: a crowd comes and goes (churn), its users write to each other (messages), and somebody
 * beats beside what others do: is he still answered? (pulse)
 *
 * All are open loops: operation k is due at begin + k / rate whatever the server does, and its latency counts from
 * when it was due, not from when it was begun.
 *
 * churn: a tenth of the links is away at any time. Operation k takes the next link of the crowd away, by a goodbye and
 * by a reset in turns, and brings back the one that has been away longest: connected, upgraded, token checked, welcome,
 * snapshot, user_online, ack. When the window is over all are brought back, and everybody must be online.
 *
 * messages: operation k sends a message that holds its moment and its number, with an `id`, from link k to another one;
 * it has arrived when that link reads it, and must be acknowledged as delivered to one session.
 *
 * pulse: operation k is a heartbeat of link k % links, however many of its beats wait for their answers, which come in
 * order. Only a link with OUTSTANDING of them sends no more; what is due is late then, and counts as late.
 */
#define _GNU_SOURCE
#include "swarm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct histogram latency;
static uint64_t begin_ns, next, late_ns, window_ns;

static uint64_t due(uint64_t number)
{
    return begin_ns + (uint64_t)((double)number / options.rate * 1e9);
}

static void begin(void)
{
    next = 0;
    begin_ns = now_ns();
    window_ns = UINT64_MAX;
}

static void window(bool begins)
{
    if (!begins)
        return;
    window_ns = now_ns();
    latency = (struct histogram){0};
    late_ns = 0;
}

static void note_late(uint64_t moment)
{
    uint64_t now = now_ns();
    if (now > moment && now - moment > late_ns)
        late_ns = now - moment;
}

static void arrived(uint64_t moment)
{
    if (moment >= window_ns)
        histogram_add(&latency, now_ns() - moment);
}

static void report_latency(void)
{
    printf(", \"connections\": %u, \"samples\": %llu, \"sent_late_ms\": %.3f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, "
           "\"p999_ms\": %.3f, \"max_ms\": %.3f",
           ready_count, (unsigned long long)latency.count, (double)late_ns / NS_MS,
           (double)histogram_at(&latency, 0.5) / NS_MS, (double)histogram_at(&latency, 0.99) / NS_MS,
           (double)histogram_at(&latency, 0.999) / NS_MS, (double)latency.max / NS_MS);
    histogram_print(&latency);
}

/* ---- churn */

static uint32_t first_away, away; /* the links that are away: so many from that one on */

static void churn_start(double amount, uint32_t bytes)
{
    (void)amount, (void)bytes;
    begin();
}

static void come_back(uint64_t moment)
{
    struct link *link = &links[first_away];
    first_away = (first_away + 1) % link_count;
    away--;
    if (link->phase != CLOSED)
        link_cut(link); /* its goodbye was not answered in all that time */
    link->mark = moment;
    link_connect(link);
}

static void churn_turn(uint64_t now)
{
    for (; due(next) <= now; next++) {
        struct link *link = &links[(first_away + away) % link_count];
        if (link->phase != READY)
            return; /* it is still on its way back: the next ones are late, and count as late */
        note_late(due(next));
        if ((uint32_t)next * 2654435761u >> 31) /* half of them, in no order that the crowd's size could share */
            link_cut(link);
        else
            link_goodbye(link);
        away++;
        if (away > link_count / 10)
            come_back(due(next));
    }
}

static void churn_idle(uint64_t now)
{
    (void)now;
    for (; !driving && away && connecting_count < options.parallel;)
        come_back(0);
}

static void churn_ready(struct link *link)
{
    if (!link->mark)
        return;
    counters.operations++;
    arrived(link->mark);
    link->mark = 0;
}

static void churn_frame(struct link *link, const struct frame *frame)
{
    (void)link;
    if (frame->kind != STATUS)
        return;
    counters.frames++;
    counters.entries += frame->entry_count;
}

static bool churn_busy(void)
{
    return away || ready_count < link_count;
}

const struct mode churn_mode = {
    .name = "churn",
    .start = churn_start,
    .turn = churn_turn,
    .idle = churn_idle,
    .frame = churn_frame,
    .busy = churn_busy,
    .ready = churn_ready,
    .window = window,
    .report = report_latency,
};

/* ---- messages */

static uint64_t sent, read_count, acked, misdelivered;
static char *arrivals; /* by number: read, so that none counts twice */
static uint64_t arrivals_size;

static void messages_start(double amount, uint32_t bytes)
{
    (void)bytes;
    begin();
    arrivals_size = (uint64_t)((amount + 60) * options.rate) + 2;
    free(arrivals);
    arrivals = zeroed(arrivals_size, 1);
    sent = read_count = acked = misdelivered = 0;
}

static uint32_t receiver_of(uint64_t number)
{
    return (uint32_t)((number * 7919 + number / link_count + 1) % link_count); /* a prime stride: no neighbours */
}

static void messages_turn(uint64_t now)
{
    for (; due(next) <= now; next++) {
        char extra[256];
        if (next >= arrivals_size)
            die("a run was longer than it was said to be");
        note_late(due(next));
        snprintf(extra, sizeof extra, "\"id\":%llu,\"to_user_id\":\"%s\",\"message\":\"m:%llu:%llu\",",
                 (unsigned long long)next, links[receiver_of(next)].user, (unsigned long long)due(next),
                 (unsigned long long)next);
        link_say(&links[next % link_count], "message", extra);
        sent++;
    }
}

static void messages_frame(struct link *link, const struct frame *frame)
{
    if (frame->kind == ACK) {
        acked++;
        misdelivered += !memmem(frame->text, frame->text_length, "\"delivered\":1", 13);
        return;
    }
    if (frame->kind != MESSAGE)
        return;
    const char *found = memmem(frame->text, frame->text_length, "\"message\":\"m:", 13);
    char *end;
    if (!found)
        die("a message that nobody sent");
    uint64_t moment = strtoull(found + 13, &end, 10), number = strtoull(end + 1, NULL, 10);
    if (number >= next || &links[receiver_of(number)] != link || arrivals[number]++) {
        misdelivered++;
        return;
    }
    read_count++;
    counters.operations++;
    counters.frames++;
    counters.frame_bytes += frame->length + (frame->length < 126 ? 2 : 4);
    arrived(moment);
}

static bool messages_busy(void)
{
    return read_count < sent || acked < sent;
}

static void nothing_ready(struct link *link)
{
    (void)link;
}

static void messages_report(void)
{
    report_latency();
    printf(", \"wrong\": %llu", (unsigned long long)misdelivered);
}

const struct mode messages_mode = {
    .name = "messages",
    .start = messages_start,
    .turn = messages_turn,
    .frame = messages_frame,
    .busy = messages_busy,
    .ready = nothing_ready,
    .window = window,
    .report = messages_report,
};

/* ---- pulse */

enum { OUTSTANDING = 256 }; /* beats of one link: they fit into its socket, so that none is refused */

static void pulse_start(double amount, uint32_t bytes)
{
    (void)amount, (void)bytes;
    begin();
    for (uint32_t i = 0; i < link_count; i++)
        links[i].mark = 0; /* answers */
}

static void pulse_turn(uint64_t now)
{
    for (; due(next) <= now; next++) {
        struct link *link = &links[next % link_count];
        if (link->phase != READY || next / link_count - link->mark >= OUTSTANDING)
            return;
        note_late(due(next));
        link_say(link, "heartbeat", "");
    }
}

static void pulse_frame(struct link *link, const struct frame *frame)
{
    if (frame->kind != HEARTBEAT_ACK)
        return;
    arrived(due(link->mark++ * link_count + link->index));
    counters.operations++;
    counters.frames++;
}

static bool pulse_busy(void)
{
    uint64_t answers = 0;
    for (uint32_t i = 0; i < link_count; i++)
        answers += links[i].mark;
    return answers < next;
}

const struct mode pulse_mode = {
    .name = "pulse",
    .start = pulse_start,
    .turn = pulse_turn,
    .frame = pulse_frame,
    .busy = pulse_busy,
    .ready = nothing_ready,
    .window = window,
    .report = report_latency,
};
