/* All plain client sockets of one worker: accepted, read, cut into messages, written, timed, closed.
 *
 * Owns its descriptors, its slab of connection records and every buffer below. One thread. Knows RFC 6455 and sockets;
 * nothing of HTTP, JSON or presence. What happened goes up through `fp_hooks`, called from inside fp_engine_poll,
 * fp_engine_advance and fp_engine_upgrade; decisions come down through the other calls. A hook may call any of them.
 *
 *     accept -> HTTP --upgrade--> OPEN --close()--> CLOSING --peer's close--> LINGER -> free
 *                  \--finish()---------------------------------------------^
 *
 * A connection between frames is one `fp_conn`, 16 bytes of timer and 8 bytes of its owner's: no buffer. A handle names a slot and
 * its generation, so that a stale one is told from the slot's next tenant; every call ignores a stale handle.
 *
 * Bounded work: at most FP_EVENTS ready sockets a call, one read of at most FP_READ bytes each, of which FP_VISIT_MESSAGES
 * messages go up; level-triggered, so that what is left comes again. A connection whose answers do not drain is not read
 * from. The kernel keeps what does not fit into that, and slows its sender down.
 *
 * Most messages say what the last one said, and are answered as everybody's are. So an owner may have an answer stand for
 * each variant, and have the engine learn what a connection's message looks like that is answered with it: the next one
 * like it does not go up. Only one that comes after `quiet_ms` of silence, so that no flood gets round its owner's limits.
 */
#ifndef FP_ENGINE_H
#define FP_ENGINE_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "address.h"
#include "frame.h"
#include "wheel.h"

enum {
    FP_EVENTS = 64,               /* ready sockets a call */
    FP_RUN_MS = 20,               /* after which no further call is made in the same turn, though more are ready */
    FP_ACCEPTS = 64,              /* new connections a call */
    FP_RUN_OUTS = 128,            /* deadlines that run out in one call */
    FP_READ = 65536,              /* bytes of one read in the middle of a message */
    FP_READ_FIRST = 16384,        /* between messages */
    FP_READ_HTTP = 2048,          /* before there are any: a request or two */
    FP_VISIT_MESSAGES = 64,       /* messages that go up of one connection in one turn */
    FP_VISIT_BYTES = 4096,        /* and when they have so many bytes, none follows; what is left waits its turn */
    FP_FIRST = 256,               /* connections, memberships and pieces that there is room for at first */
    FP_VARIANTS = 4,              /* kinds of recipient: JSON, MessagePack, each also deflated */
    FP_JOINED = 16,               /* pieces that one system call joins at the most */
    FP_ARENA_MAX = 4 << 20,       /* bytes of answers gathered in one turn before they are sent early; never held more */
    FP_LEARNT_MAX = 512,          /* bytes of a message that may be learnt */
    FP_STANDING_MAX = 256,        /* bytes of an answer that stands */
    FP_LINGER_READ = 1 << 20,     /* bytes discarded while waiting for the end of a connection */
    FP_LINGER_MS = 1000,
    FP_CLOSE_MS = 5000,           /* for the peer's half of the closing handshake */
    FP_TICK_MS = 250,
    FP_WHEEL_SLOTS = 512,
};

#define FP_NONE UINT32_MAX

typedef uint64_t fp_handle; /* generation << 32 | slot */

typedef enum { FP_FREE, FP_HTTP, FP_OPEN, FP_CLOSING, FP_LINGER } fp_state;

typedef enum {
    FP_LOST = 0,        /* the peer is gone without a word */
    FP_CLOSED = 1,      /* the peer closed; the code is its own */
    FP_VIOLATION = 2,   /* the peer broke the protocol; the code is ours */
    FP_SILENT = 3,      /* no complete frame for too long; closed with the code */
    FP_LAGGED = 4,      /* too slow for too long; closed with the code */
    FP_UNFINISHED = 5,  /* a request was not complete in time */
} fp_end;

typedef struct {
    size_t size, done, capacity;
    uint64_t since_ms; /* when it began to wait */
    uint8_t data[];
} fp_rest;

typedef struct {
    size_t size, done;
    uint8_t data[];
} fp_kept;

/* What a message looks like: how long it is, and every byte of it but those from `from` on, `span` of them. */
typedef struct {
    uint64_t hash;   /* keyed, of all but these */
    uint16_t size;   /* 0: nothing is learnt */
    uint16_t from;
    uint8_t span;
    bool digits;     /* they are a decimal number without a leading zero; else they may be anything */
} fp_learnt;

typedef struct {
    uint64_t until_ms; /* it holds no more from then on */
    uint32_t size;
    uint8_t data[FP_STANDING_MAX]; /* whole frames */
} fp_standing;

typedef struct {
    int32_t fd;
    uint32_t generation;
    uint8_t state;   /* fp_state */
    uint8_t variant; /* which prepared buffer it takes */
    uint8_t missed : 1;      /* presence frames were left out since `missed_from` */
    uint8_t writing : 1;     /* EPOLLOUT set, EPOLLIN not */
    uint8_t ending : 1;      /* shut down once everything is written */
    uint8_t text : 1;        /* takes text frames; else binary */
    uint8_t deflate : 1;     /* permessage-deflate was negotiated */
    uint8_t carried : 1;     /* has no socket here: its bytes go through the hooks */
    uint8_t touched : 1;     /* on the list of connections with something pending */
    uint8_t leaving : 1;     /* its end was told; what it said before is being answered, then comes the close frame */
    uint8_t held : 1;        /* its owner has enough to do with what came already */
    uint8_t quiet : 1;       /* its last message came after a silence */
    uint8_t gone : 1;        /* the peer takes no more: what there is for it is dropped, what it said is still heard */
    uint32_t spoke;          /* the last turn in which a message of its was handed up */
    uint32_t run;            /* the last flush run that it was given, or needs not be given */
    uint32_t member;         /* its first membership */
    uint32_t pending, pending_last; /* pieces of this turn */
    uint32_t discarded;      /* bytes read while lingering */
    uint32_t address;        /* its place among the addresses; FP_NO_PLACE: not counted */
    uint32_t pending_size;   /* bytes of this turn */
    uint64_t heard_ms;       /* when its last complete frame came */
    uint64_t missed_from;    /* the version up to which it was told everything, where `missed` */
    fp_stream *stream;       /* only inside a frame or a message */
    fp_rest *rest;           /* only while its socket is full */
    fp_kept *kept;           /* only while it has more to say than one visit takes */
    fp_learnt learnt;
} fp_conn;

typedef struct {
    uint32_t conn, audience;
    uint32_t position; /* in the audience's list */
    uint32_t next;     /* next membership of the same connection, or of the free list */
} fp_member;

typedef struct {
    uint32_t *members; /* indices of memberships, dense */
    uint32_t count, capacity;
    uint32_t next;     /* of the free list, while it is not used */
    int32_t job;       /* in the running flush, -1: none */
    bool used;
} fp_audience;

typedef struct {
    const uint8_t *data;
    size_t size;
} fp_bytes;

typedef struct {
    uint32_t audience;
    fp_bytes frames[FP_VARIANTS]; /* whole frames; size 0: this variant is told nothing */
} fp_job;

typedef struct {
    uint32_t conn, next;
    size_t offset, size; /* in the arena */
} fp_piece;

typedef struct {
    fp_handle handle;
    const char *reason; /* static */
    uint16_t code;
} fp_leaver;

typedef struct {
    void *context;
    void (*request)(void *context, fp_handle handle, const uint8_t *data, size_t size);
    void (*message)(void *context, fp_handle handle, uint8_t opcode, const uint8_t *data, size_t size);
    /* A ping behind a message of the same turn: fp_engine_pong, once that is answered. May be NULL: answered at once. */
    void (*ping)(void *context, fp_handle handle, const uint8_t *data, size_t size);
    /* The connection is no longer of use; its handle is still good for fp_engine_address during the call. */
    void (*ended)(void *context, fp_handle handle, fp_end how, uint16_t code);
    /* Its socket took everything; where `missed`, presence since `missed_from` was left out: see fp_engine_caught_up. */
    void (*drained)(void *context, fp_handle handle, bool missed, uint64_t missed_from);
    /* Of a carried connection: write these pieces; read no more, or go on; write no more; let go of it at once. */
    void (*carry)(void *context, fp_handle handle, const struct iovec *pieces, unsigned count);
    void (*carry_hold)(void *context, fp_handle handle, bool held);
    void (*carry_end)(void *context, fp_handle handle);
    void (*carry_cut)(void *context, fp_handle handle);
} fp_hooks;

typedef struct {
    fp_limits limits;
    uint32_t heartbeat_timeout_ms;
    uint32_t connect_timeout_ms;
    uint32_t lag_time_ms;
    uint32_t send_buffer;      /* bytes that a socket's send buffer may hold, the kernel's own records included */
    uint32_t connections;      /* at most */
    uint32_t per_address;      /* of them from one address; 0: no limit of its own */
    uint32_t quiet_ms;         /* silence before a message that the engine may answer by itself; 0: it answers none */
} fp_config;

typedef struct {
    uint64_t accepted, refused, crowded, frames_received, frames_sent, bytes_received, bytes_sent, sends, deliveries, skipped;
    uint64_t answered; /* messages that did not go up */
    uint32_t connections, open, lagging;
} fp_stats;

typedef struct {
    int epoll_fd, listener, spare_fd;
    bool listening;    /* the listener is in the epoll set */
    fp_config config;
    fp_hooks hooks;
    fp_conn *conns;
    fp_timer *timers;
    uint32_t capacity, free_count;
    uint32_t *free_slots;
    uint32_t heads[FP_WHEEL_SLOTS + 1];
    fp_wheel wheel;
    uint64_t now_ms;
    uint32_t turn;
    fp_addresses addresses;
    uint8_t *read_buffer;
    uint64_t key[2];   /* of the hashes */
    fp_standing standing[FP_VARIANTS];
    /* What this turn's answers are gathered in. */
    uint8_t *arena;
    size_t arena_size, arena_capacity;
    fp_piece *pieces;
    uint32_t piece_count, piece_capacity;
    uint32_t *touched;
    uint32_t touched_count, touched_capacity;
    /* Who is to get a close frame at the end of this turn, behind the answers to what came before its own. */
    fp_leaver *leavers;
    uint32_t leaver_count, leaver_capacity;
    /* Audiences and the running flush (audience.c). */
    fp_audience *audiences;
    uint32_t audience_count, audience_capacity, free_audience;
    fp_member *members;
    uint32_t member_capacity, free_member;
    fp_job *jobs;
    uint32_t job_count, job, position, run;
    uint64_t told;      /* version that every caught-up connection has, before the running flush */
    bool running;
    fp_stats stats;
} fp_engine;

/* All of these return 0 or a negative errno. */
int fp_engine_init(fp_engine *engine, const fp_config *config, const fp_hooks *hooks);
int fp_engine_listen(fp_engine *engine, int fd); /* a listening, non-blocking TCP socket; stays the caller's */
void fp_engine_stop_listening(fp_engine *engine);
void fp_engine_free(fp_engine *engine); /* closes every connection, calls no hook */

/* Take what is ready, without waiting. Returns the number of events taken, or a negative errno. */
int fp_engine_poll(fp_engine *engine);
/* Let deadlines run out. True when there are more of them: to be called again in the next turn, not only at the next tick. */
bool fp_engine_advance(fp_engine *engine);
/* The end of a turn, when all that happened was answered: close who is leaving, and send what was gathered for each
 * connection, one system call each. */
void fp_engine_send(fp_engine *engine);

/* Of an HTTP connection: it is a WebSocket from now on. `after` are bytes that came behind the request. */
void fp_engine_upgrade(fp_engine *engine, fp_handle handle, bool text, bool deflate, uint8_t variant, const uint8_t *after,
                       size_t size);
/* Gather bytes as they are. False when the handle is stale, or the bytes would outgrow `bound` bytes waiting. */
bool fp_engine_write(fp_engine *engine, fp_handle handle, const uint8_t *data, size_t size, size_t bound);
/* Gather one message as a frame of the connection's own kind; `compressed` when its data are deflated. */
bool fp_engine_answer(fp_engine *engine, fp_handle handle, const uint8_t *data, size_t size, bool compressed, size_t bound);
/* These whole frames stand as an answer to connections of this variant, until then. Too many bytes: none does. */
void fp_engine_stand(fp_engine *engine, uint8_t variant, const uint8_t *frames, size_t size, uint64_t until_ms);
/* Gather them for this connection, whether they still hold or not. True when what it said is worth learning: it came after
 * a silence, as the next one will. */
bool fp_engine_give_standing(fp_engine *engine, fp_handle handle);
/* Messages of this connection like this one are answered with what stands: of the same kind and length and with the same
 * bytes, but for `span` of them from `from` on, which may be any or, where `digits`, any number without a leading zero. */
void fp_engine_learn(fp_engine *engine, fp_handle handle, const uint8_t *message, size_t size, size_t from, size_t span,
                     bool digits);
/* The answer to a ping that the hook told of. */
void fp_engine_pong(fp_engine *engine, fp_handle handle, const uint8_t *data, size_t size);
/* A presence frame for one connection: left out, to be caught up later, when its socket is full. */
bool fp_engine_tell(fp_engine *engine, fp_handle handle, const uint8_t *frame, size_t size);
/* The frames since `missed_from` were gathered: presence goes on. */
void fp_engine_caught_up(fp_engine *engine, fp_handle handle);
/* Close an open connection with a code; its owner hears no more of it. */
void fp_engine_close(fp_engine *engine, fp_handle handle, uint16_t code, const uint8_t *reason, size_t size);
/* End an HTTP connection once its answer is written. */
void fp_engine_finish(fp_engine *engine, fp_handle handle);
/* Take nothing more of it, or go on: for an owner who has enough to do with what came. Not for long: that it has gone is
 * noticed behind what it said. */
void fp_engine_hold(fp_engine *engine, fp_handle handle, bool held);
/* Bytes that were gathered for it and that no socket has taken. */
size_t fp_engine_waiting(fp_engine *engine, fp_handle handle);
/* Cut it off now. */
void fp_engine_abort(fp_engine *engine, fp_handle handle);
/* An HTTP connection waits for its next request. */
void fp_engine_await_request(fp_engine *engine, fp_handle handle);

/* A connection whose socket somebody else holds (TLS): the same life, only the two ends differ. Returns false at the limit.
 * Its holder says what came, when its buffer is full and when it takes more again, and when it is gone. */
bool fp_engine_adopt(fp_engine *engine, const char *address, fp_handle *handle);
void fp_engine_feed(fp_engine *engine, fp_handle handle, const uint8_t *data, size_t size);
/* Of a carried connection: take up what the last visit left, then its end where it is lost. False when there is nothing,
 * or it may not be taken now. */
bool fp_engine_go_on(fp_engine *engine, fp_handle handle);
void fp_engine_full(fp_engine *engine, fp_handle handle);
void fp_engine_drained(fp_engine *engine, fp_handle handle);
/* fp_engine_go_on comes next: what it said before may not have been heard yet. */
void fp_engine_lost(fp_engine *engine, fp_handle handle);

static inline fp_conn *fp_engine_conn(fp_engine *engine, fp_handle handle)
{
    uint32_t slot = (uint32_t)handle;
    if (slot >= engine->capacity)
        return NULL;
    fp_conn *conn = &engine->conns[slot];
    return conn->state != FP_FREE && conn->generation == (uint32_t)(handle >> 32) ? conn : NULL;
}

static inline fp_handle fp_engine_handle(const fp_engine *engine, const fp_conn *conn)
{
    return (fp_handle)conn->generation << 32 | (uint32_t)(conn - engine->conns);
}

/* Between engine.c and audience.c: everything pending for this connection and these frames, in one system call. */
void fp_conn_send(fp_engine *engine, fp_conn *conn, const fp_bytes *frames, unsigned count);
uint64_t fp_now_ms(void);

#endif
