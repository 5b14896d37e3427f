/* Does every screen end up right, and how soon? Changes at a fixed rate, whatever the server does with them.
 *
 * Open loop: change k is due at begin + k / rate, host k mod H sends it, and its latency counts from when it was due,
 * not from when it was sent, so that a server that makes the swarm wait does not hide it.
 *
 * Each observer keeps, per host, the last rev and the last change it was shown. A new entry is matched with the oldest
 * change of that host that is later than the last one matched and has that status: latency is never taken too small,
 * and a match exists exactly when what the observer saw is a subsequence of what was sent. Statuses follow each other
 * in no fixed order, so that a match that was too old does not stay too old for good. Where several changes of one host
 * are conflated into one entry the oldest match falls behind the truth; a second histogram therefore takes the newest
 * one that had been sent by the time the entry's rev says (microseconds of the same machine's clock). The truth lies
 * between the two; with few changes conflated they are the same. Changes that were conflated away have no latency: what
 * replaced them has. An entry whose rev is lower than the last one's, or that matches nothing, is a fault.
 *
 * With --freezing F a run may be told (BYTES) that readers freeze: F more observers come, stop reading as soon as they
 * have their snapshot, and thaw when the window is over, a few each millisecond so that the loopback device's
 * queue holds what they say; they must end as right as the others. They count for no latency, and are gone when the next
 * run begins. Now and then one is late by seconds: its full buffer refused a segment that its window allowed, and the
 * server's kernel sends that again when its timer, doubled each time, says so.
 */
#include "swarm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct host {
    uint8_t *statuses;     /* by change number; 0 is the user_online */
    uint64_t *sent_us;     /* the same: wall clock, when it was sent */
    uint32_t sent, before; /* changes sent in all, and before this run */
};

struct shown {
    uint64_t rev;
    uint32_t change;
};

static struct host *hosts;
static struct shown *shown;     /* [observer][host] */
static uint32_t *frames_of, *second_frames, second_max; /* [observer]: in the run, in the current second */
static struct histogram latency, newest_latency;
static uint64_t begin_ns, window_ns, window_end_ns, next_change, last_frame_ns, last_thawed_ns, late_ns, second_ns;
static uint64_t rev_back, unmatched, repeated, snapshots, random_state = 88172645463325252ull;
enum { THAWS = 4, LATE_S = 2 }; /* a millisecond; seconds after which a reader that thawed is late */

static bool *late; /* [observer] */

static uint64_t thaw_ns;
static uint32_t next_thaw = UINT32_MAX;
static uint32_t capacity, thawing_frames; /* frames that one reader was sent after it thawed, at most */
static bool freezing, frozen;

static uint64_t wall_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t due(uint64_t change)
{
    return begin_ns + (uint64_t)((double)change / options.rate * 1e9);
}

static uint32_t observer_count(void)
{
    return link_count - options.publishers - options.freezing; /* who reads all the time; the others come after them */
}

static void renew_freezing(void)
{
    for (uint32_t i = link_count - options.freezing; i < link_count; i++) {
        if (links[i].phase != CLOSED)
            link_cut(&links[i]);
        if (freezing)
            link_connect(&links[i]);
    }
}

static void start(double amount, uint32_t bytes)
{
    uint32_t observers = link_count - options.publishers;
    if (!hosts) {
        hosts = zeroed(options.publishers, sizeof *hosts);
        shown = zeroed((size_t)observers * options.publishers, sizeof *shown);
        frames_of = zeroed(observers, sizeof *frames_of);
        second_frames = zeroed(observers, sizeof *second_frames);
        late = zeroed(observers, sizeof *late);
    }
    /* Room for this run and a warm-up of up to a minute. */
    capacity += (uint32_t)((amount + 60) * options.rate / options.publishers) + 2;
    for (uint32_t i = 0; i < options.publishers; i++) {
        hosts[i].statuses = realloc(hosts[i].statuses, capacity);
        hosts[i].sent_us = realloc(hosts[i].sent_us, capacity * sizeof *hosts[i].sent_us);
        if (!hosts[i].statuses || !hosts[i].sent_us)
            die("out of memory");
        if (!hosts[i].sent)
            hosts[i].statuses[0] = ONLINE, hosts[i].sent_us[0] = 0;
        hosts[i].before = hosts[i].sent;
    }
    next_change = 0;
    freezing = frozen = bytes;
    renew_freezing();
    begin_ns = now_ns();
}

static void window(bool begins)
{
    if (!begins) {
        window_end_ns = last_frame_ns = now_ns();
        frozen = false;
        next_thaw = freezing ? link_count - options.freezing : link_count;
        return;
    }
    window_ns = second_ns = now_ns();
    memset(&latency, 0, sizeof latency);
    memset(&newest_latency, 0, sizeof newest_latency);
    memset(frames_of, 0, (link_count - options.publishers) * sizeof *frames_of);
    memset(second_frames, 0, (link_count - options.publishers) * sizeof *second_frames);
    memset(late, 0, (link_count - options.publishers) * sizeof *late);
    rev_back = unmatched = repeated = snapshots = late_ns = second_max = thawing_frames = 0;
}

static void thaw_some(uint64_t now)
{
    if (frozen || now < thaw_ns)
        return;
    thaw_ns = now + NS_MS;
    for (uint32_t i = 0; i < THAWS && next_thaw < link_count; i++, next_thaw++) {
        if (links[next_thaw].phase != READY)
            die("reader %u was to freeze and is %s", next_thaw,
                links[next_thaw].phase == CLOSED ? "closed" : "not up yet");
        link_freeze(&links[next_thaw], false);
    }
}

static void count_second(void)
{
    for (uint32_t i = 0; i < link_count - options.publishers; i++) {
        if (second_frames[i] > second_max)
            second_max = second_frames[i];
        second_frames[i] = 0;
    }
}

static void turn(uint64_t now)
{
    for (; due(next_change) <= now; next_change++) {
        struct host *host = &hosts[next_change % options.publishers];
        random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
        uint8_t status = (uint8_t)((host->statuses[host->sent] + 1 + (random_state >> 40 & 1)) % 3);
        char extra[32];
        if (host->sent + 1 >= capacity)
            die("a run was longer than it was said to be");
        host->statuses[++host->sent] = status;
        host->sent_us[host->sent] = wall_us();
        snprintf(extra, sizeof extra, "\"status\":\"%s\",", status_names[status]);
        link_say(&links[next_change % options.publishers], "status_change", extra);
        if (now - due(next_change) > late_ns)
            late_ns = now - due(next_change);
    }
    if (second_ns && now - second_ns >= NS_S) {
        count_second();
        second_ns += NS_S;
    }
}

static uint64_t due_of(int32_t publisher, uint32_t change)
{
    return due((uint64_t)(change - hosts[publisher].before - 1) * options.publishers + (uint64_t)publisher);
}

static void show(struct shown *last, const struct entry *entry, uint64_t now, bool live)
{
    const struct host *host = &hosts[entry->publisher];
    if (entry->rev <= last->rev) {
        if (entry->rev < last->rev)
            rev_back++;
        else if (host->statuses[last->change] == entry->status)
            repeated++;
        else
            unmatched++;
        return;
    }
    uint32_t change = last->change + 1;
    while (change <= host->sent && host->statuses[change] != entry->status)
        change++;
    last->rev = entry->rev;
    if (change > host->sent) {
        if (host->statuses[last->change] == entry->status)
            repeated++; /* the same state, stamped anew */
        else
            unmatched++;
        return;
    }
    last->change = change;
    if (live && change > host->before && due_of(entry->publisher, change) >= window_ns) {
        uint32_t newest = host->sent;
        while (newest > change && (host->sent_us[newest] > entry->rev || host->statuses[newest] != entry->status))
            newest--;
        histogram_add(&latency, now - due_of(entry->publisher, change));
        histogram_add(&newest_latency, now - due_of(entry->publisher, newest));
    }
}

static void on_frame(struct link *link, const struct frame *frame)
{
    uint32_t length = frame->length;
    if (frame->kind != STATUS || !hosts || link->index < options.publishers)
        return;
    uint32_t observer = link->index - options.publishers;
    uint64_t now = now_ns();
    last_frame_ns = now;
    if (frame->full)
        snapshots++;
    bool live = observer < observer_count();
    frames_of[observer]++;
    if (live) {
        second_frames[observer]++;
        counters.frames++;
        counters.frame_bytes += length + (length < 126 ? 2 : length < 65536 ? 4 : 10);
        counters.entries += frame->entry_count;
    } else {
        last_thawed_ns = now;
        late[observer] |= !frozen && now > window_end_ns + LATE_S * NS_S;
        if (frames_of[observer] > thawing_frames)
            thawing_frames = frames_of[observer];
    }
    for (uint32_t i = 0; i < frame->entry_count; i++)
        if (frame->entries[i].publisher >= 0) {
            counters.operations += live;
            show(&shown[(size_t)observer * options.publishers + (uint32_t)frame->entries[i].publisher],
                 &frame->entries[i], now, live);
        }
}

/* Whether a reader that thawed still lacks what the others have. */
static bool is_behind(uint32_t observer)
{
    for (uint32_t j = 0; j < options.publishers; j++)
        if (shown[(size_t)observer * options.publishers + j].rev != shown[j].rev)
            return true;
    return false;
}

static bool busy(void)
{
    uint32_t observers = link_count - options.publishers;
    if (next_thaw < link_count || now_ns() - last_frame_ns < NS_S / 2)
        return true; /* half a second of quiet: nothing more will come */
    for (uint32_t i = observer_count(); i < observers && freezing; i++)
        if (is_behind(i))
            return true;
    return false;
}

static void ready(struct link *link)
{
    if (!is_freezing(link))
        return;
    /* What it was shown in its snapshot is at most one change behind what was sent: changes come a second apart. */
    for (uint32_t j = 0; j < options.publishers; j++)
        shown[(size_t)(link->index - options.publishers) * options.publishers + j] =
            (struct shown){.change = hosts[j].sent > 1 ? hosts[j].sent - 2 : 0};
    if (frozen)
        link_freeze(link, true);
}

static void report(void)
{
    uint32_t live = observer_count(), observers = live + (freezing ? options.freezing : 0), frames_max = 0, late_count = 0;
    uint64_t wrong = 0, behind = 0, rev_differs = 0, changes = 0;
    for (uint32_t i = 0; i < observers; i++) {
        late_count += late[i];
        if (i < live && frames_of[i] > frames_max)
            frames_max = frames_of[i];
        for (uint32_t j = 0; j < options.publishers; j++) {
            const struct shown *last = &shown[(size_t)i * options.publishers + j];
            const struct host *host = &hosts[j];
            wrong += host->statuses[last->change] != host->statuses[host->sent];
            behind += i < live && last->change != host->sent;
            rev_differs += last->rev != shown[j].rev;
        }
    }
    for (uint32_t j = 0; j < options.publishers; j++)
        changes += hosts[j].sent - hosts[j].before;
    printf(", \"changes\": %llu, \"observers\": %u, \"wrong\": %llu, \"matched_too_old\": %llu, \"rev_differs\": %llu, "
           "\"rev_back\": %llu, \"unmatched\": %llu, \"repeated\": %llu, \"snapshots\": %llu, \"sent_late_ms\": %.3f, "
           "\"samples\": %llu, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"p999_ms\": %.3f, \"max_ms\": %.3f, "
           "\"p99_newest_ms\": %.3f, \"frames_a_second\": %.2f, \"frames_max_in_a_second\": %u, "
           "\"thawing_frames\": %u, \"thaw_ms\": %.1f, \"thawed_late\": %u",
           (unsigned long long)changes, observers, (unsigned long long)wrong, (unsigned long long)behind,
           (unsigned long long)rev_differs, (unsigned long long)rev_back, (unsigned long long)unmatched,
           (unsigned long long)repeated, (unsigned long long)snapshots, (double)late_ns / NS_MS,
           (unsigned long long)latency.count, (double)histogram_at(&latency, 0.5) / NS_MS,
           (double)histogram_at(&latency, 0.99) / NS_MS, (double)histogram_at(&latency, 0.999) / NS_MS,
           (double)latency.max / NS_MS, (double)histogram_at(&newest_latency, 0.99) / NS_MS,
           frames_max / ((double)(window_end_ns - window_ns) / NS_S), second_max, thawing_frames,
           last_thawed_ns > window_end_ns ? (double)(last_thawed_ns - window_end_ns) / NS_MS : 0.0, late_count);
    histogram_print(&latency);
}

const struct mode sync_mode = {
    .name = "sync",
    .start = start,
    .turn = turn,
    .idle = thaw_some,
    .frame = on_frame,
    .busy = busy,
    .ready = ready,
    .window = window,
    .report = report,
};
