/* The swarm: thousands of WebSocket clients in one busy thread, to measure a server with. See swarm.c for its use.
 *
 *   swarm.c   flags, the loop, the commands of the driver, the report
 *   wire.c    links: connect, upgrade, frames out and in, the careful end
 *   decode.c  what a frame of the server says; each distinct frame is read once         inflate.c  compressed ones
 *   dialect.c the same four words (join, say, beat, hear) as other servers want them said
 *   modes.c   heartbeats, handshakes, idle     fanout.c  fanout     sync.c  sync     storm.c  storm
 *   life.c    churn, messages, pulse
 *
 * One thread, no locks. Every failure that would make a figure wrong ends the process with one line that says so.
 */
#ifndef SWARM_H
#define SWARM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NS_MS = 1000000 };
#define NS_S 1000000000ull

/* ---- links (wire.c) */

enum phase { CLOSED, CONNECTING, UPGRADING, GREETING, READY };
enum role { OBSERVER, PRESENT }; /* PRESENT: says user_online and waits for its ack */

struct link {
    int fd;
    uint32_t index;
    uint8_t phase, role;
    bool leaving;              /* we said goodbye: its end is no failure */
    bool has_ack, has_snapshot; /* what came of the greeting */
    bool waits;                /* a heartbeat is in flight, or the link is away */
    struct waiting *in;        /* the front of a frame; rare */
    const char *token, *user;  /* into the tokens file */
    uint64_t mark;             /* the mode's own: when sent, which round */
};

struct options {
    const char *mode, *tokens, *observer_token, *device;
    int port, server_pid;
    uint32_t connections, publishers, parallel;
    uint32_t freezing;         /* sync: links beyond `connections` that come, stop reading and go within a run */
    uint32_t snapshot;         /* storm: entries that a newcomer must be told of */
    uint32_t watches;          /* idle: users that each link watches: the same ones (common), or nobody twice */
    uint32_t active;           /* fanout: how many of the publishers publish */
    bool real, spin, present, publishers_public, deflate, eager, distinct, common;
    double period_s, rate, pace_ms;
};

struct counters {
    uint64_t operations;   /* what the mode counts: answers, deliveries, handshakes, samples */
    uint64_t sent, frames, frame_bytes, entries, compressed, errors, lost;
};

extern struct options options;
extern const struct dialect *dialect;
extern struct counters counters;
extern struct link *links;
extern uint32_t link_count, ready_count, connecting_count; /* the freezing ones are the last of `links` */

void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
uint64_t now_ns(void);              /* monotonic */
void *zeroed(size_t count, size_t size);

void wire_init(int epoll_fd);
void wire_tokens(void);
void link_connect(struct link *link);
void link_event(struct link *link, uint32_t events);
void link_send(struct link *link, const char *payload, size_t length);
void link_say(struct link *link, const char *type, const char *extra);  /* a JSON frame with the user's name in it */
void link_bytes(struct link *link, const void *payload, size_t length);         /* one binary frame */
void link_goodbye(struct link *link);                                   /* close 1000, politely */
void link_cut(struct link *link);                                       /* a reset, at once */
void link_freeze(struct link *link, bool frozen);                       /* stop reading; go on reading */
bool is_freezing(const struct link *link);
uint32_t token_count(void);
void link_name(struct link *link, uint32_t token);

/* ---- frames (decode.c) */

enum kind { OTHER, WELCOME, ACK, ERROR, HEARTBEAT_ACK, STATUS, BROADCAST, MESSAGE };
enum status { ONLINE, BUSY, AWAY, OFFLINE };

struct entry {
    uint64_t rev;      /* of a broadcast: the number of the change */
    int32_t publisher; /* index of the link, -1: none of ours */
    uint32_t status;
};

struct frame {
    enum kind kind;
    bool full, has_cursor, compressed;
    uint32_t entry_count, length, text_length;
    struct entry *entries;
    uint8_t *bytes, *text; /* as it came; what it says: the same, or inflated */
};

extern const char *const status_names[];
const struct frame *decode(const uint8_t *payload, uint32_t length, bool compressed); /* valid until the next call */
bool inflate(const uint8_t *in, uint32_t length, uint8_t *out, uint32_t max, uint32_t *written); /* inflate.c */

/* ---- dialects (dialect.c): how a server that is not ours is spoken to */

struct dialect {
    const char *name, *path, *protocol;             /* of the upgrade; no protocol: NULL */
    void (*join)(struct link *);                    /* once upgraded; NULL: upgraded is joined */
    bool (*joined)(const struct frame *);           /* the frame that says so */
    void (*publish)(struct link *, const char *text, size_t length);
    void (*beat)(struct link *);                    /* NULL: it answers nothing */
    bool (*answers)(const struct frame *);          /* the frame that answers a beat */
};

extern const struct dialect raw_dialect;
const struct dialect *dialect_named(const char *name);

/* ---- modes */

struct mode {
    const char *name;
    bool (*busy)(void);                             /* something is still in flight */
    void (*start)(double amount, uint32_t bytes);   /* of one run: amount is seconds (handshakes: how many) */
    void (*turn)(uint64_t now);                     /* once a loop turn, while driving */
    void (*frame)(struct link *, const struct frame *);                    /* of a READY link, always */
    void (*ready)(struct link *);                   /* the link is up */
    void (*window)(bool begins);                    /* the measured window begins or ends */
    void (*report)(void);                           /* more members of the result's JSON object */
    void (*idle)(uint64_t now);                     /* once a loop turn, driving or not */
    bool counts;                                    /* a run ends when nothing is in flight, not by time */
    bool passing;                                   /* links come and go within a run; none is up before it */
};

extern const struct mode heartbeats_mode, handshakes_mode, idle_mode, fanout_mode, sync_mode, storm_mode, pulse_mode, churn_mode,
    messages_mode;
extern bool driving; /* between the start of a run and the end of its window */

/* ---- an HDR-like histogram: log-linear, 64 steps to a doubling, at most 1.6 % too high, never too low */

enum { HISTOGRAM_STEPS = 64, HISTOGRAM_SIZE = 64 * 59 };
struct histogram {
    uint64_t count, max, buckets[HISTOGRAM_SIZE];
};

void histogram_print(const struct histogram *h); /* a member of the result's JSON object */

static inline void histogram_add(struct histogram *h, uint64_t value)
{
    uint32_t index = (uint32_t)value;
    if (value >= HISTOGRAM_STEPS) {
        uint32_t shift = 57u - (uint32_t)__builtin_clzll(value);
        index = (shift + 1) * HISTOGRAM_STEPS + (uint32_t)((value >> shift) - HISTOGRAM_STEPS);
    }
    h->buckets[index]++;
    h->count++;
    if (value > h->max)
        h->max = value;
}

/* The upper edge of the bucket in which the `share` (0 to 1) of all values is reached. */
static inline uint64_t histogram_at(const struct histogram *h, double share)
{
    uint64_t wanted = (uint64_t)((double)h->count * share), seen = 0;
    for (uint32_t i = 0; i < HISTOGRAM_SIZE; i++) {
        seen += h->buckets[i];
        if (seen > wanted || (seen == h->count && seen)) {
            uint32_t shift = i / HISTOGRAM_STEPS;
            uint64_t edge = i;
            if (shift)
                edge = ((uint64_t)(HISTOGRAM_STEPS + i % HISTOGRAM_STEPS + 1) << (shift - 1)) - 1;
            return edge < h->max ? edge : h->max;
        }
    }
    return h->max;
}

#endif
