/* The whole engine over sockets of our own making: every order of events, every short write, every failed allocation.
 *
 * engine.c and audience.c are compiled into this file with the system calls, the clock and the heap replaced, so that a
 * run needs no kernel, costs microseconds and is repeated exactly by its input. Beyond crashes and leaks it checks:
 *
 *     what a client receives is HTTP as written, then whole frames, in order, none behind a close frame
 *     answers come once and in order; no change of an audience is left out, no older one follows a newer one
 *     who is lost was heard to the end; a loop that has nothing to do is not kept busy by those who are held
 *     counters, free list, audiences and memberships say the same; a descriptor is closed once
 *     no deadline runs out early, none is more than a tick late; when all is over, nothing is left
 *
 * Some limits are made small, so that few bytes reach them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

/* The header's own values go by other names; the kernel is compiled with ours. */
#define FP_FIRST FP_FIRST_
#define FP_EVENTS FP_EVENTS_
#define FP_ACCEPTS FP_ACCEPTS_
#define FP_RUN_OUTS FP_RUN_OUTS_
#define FP_READ FP_READ_
#define FP_READ_FIRST FP_READ_FIRST_
#define FP_READ_HTTP FP_READ_HTTP_
#define FP_VISIT_MESSAGES FP_VISIT_MESSAGES_
#define FP_VISIT_BYTES FP_VISIT_BYTES_
#define FP_JOINED FP_JOINED_
#define FP_ARENA_MAX FP_ARENA_MAX_
#define FP_LINGER_READ FP_LINGER_READ_
#include "engine.h"
#include "mask.h"
#include "siphash.h"
#undef FP_FIRST
#undef FP_EVENTS
#undef FP_ACCEPTS
#undef FP_RUN_OUTS
#undef FP_READ
#undef FP_READ_FIRST
#undef FP_READ_HTTP
#undef FP_VISIT_MESSAGES
#undef FP_VISIT_BYTES
#undef FP_JOINED
#undef FP_ARENA_MAX
#undef FP_LINGER_READ
enum {
    FP_FIRST = 2,
    FP_EVENTS = 5,
    FP_ACCEPTS = 3,
    FP_RUN_OUTS = 3,
    FP_READ = 400,
    FP_READ_FIRST = 200,
    FP_READ_HTTP = 100,
    FP_VISIT_MESSAGES = 3,
    FP_VISIT_BYTES = 150,
    FP_JOINED = 3,
    FP_ARENA_MAX = 3000,
    FP_LINGER_READ = 900,
};

enum {
    PEERS = 40,
    AUDIENCES = 6,
    VERSIONS = 256,
    STORY_MAX = 1500, /* bytes of input: some 500 steps */
    BATCH = 1024,
    INBOX = 1500,
    EPOLL_FD = 900,
    LISTENER_FD = 901,
    SPARE_FD = 902,
    FIRST_FD = 1000, /* of the peers: one each */
    HEARTBEAT_MS = 6000,
    CONNECT_MS = 3000,
    LAG_MS = 4000,
    QUIET_MS = 300,
    UNLIMITED = 1 << 30,
};

/* One peer: its end of the connection, and what it may believe. */
typedef struct {
    bool used, carried, accepted, open, fin, reset, shut; /* open: the engine has not let go of it */
    uint8_t inbox[INBOX];
    size_t in_size, in_done, chunk;
    int64_t room; /* bytes that the network takes from the engine */
    bool full;    /* of a carried one: told so */
    bool held, paused; /* by its owner; of a carried one: told so */
    uint32_t mask;
    uint64_t data;
    bool watched, edge; /* edge: something is to be told, though it was told of before */
    /* The engine's view, as its owner knows it. */
    fp_handle handle, stale;
    bool has_handle, upgraded, text;
    bool closed, told_end; /* its owner hears no more; the end is in the batch */
    uint8_t variant;
    uint64_t unread_ms; /* when something that it had said was last known to wait: it may not be called silent soon after */
    bool member[AUDIENCES];
    /* What came. */
    size_t http_wanted, http_came;
    bool refused;
    fp_stream stream;
    bool got_close;
    uint32_t next_answer, last_answer;
    bool taught, given; /* of what stands it may be sent something */
    int knows[AUDIENCES]; /* version; -1: nothing */
} peer;

typedef struct {
    enum { REQUEST, MESSAGE, PING, ENDED, DRAINED } kind;
    fp_handle handle;
    fp_end how;
    bool missed;
    uint64_t missed_from;
    uint8_t data[FP_CONTROL_MAX];
    size_t size;
} happening;

static peer peers[PEERS];
static happening batch[BATCH];
static size_t batched;
static fp_engine engine;
static uint64_t clock_ms;
static const uint8_t *input, *input_end;
static int queue[PEERS], queued;
static int fail_in, live, accept_fails;
static bool spare_open, is_lossy; /* lossy: an allocation failed, so that something may have been lost */
static uint32_t turn;
static uint32_t numbers[AUDIENCES]; /* the engine's, FP_NONE: there is none */
static bool changes[AUDIENCES][VERSIONS + 1];
static int version, told, flush_from, flush_to;
static uint8_t flush_bytes[AUDIENCES][FP_VARIANTS][64];
static fp_job jobs[AUDIENCES];

static uint32_t next(void)
{
    return input < input_end ? *input++ : 0;
}

/* ---- the kernel that we are ------------------------------------------------------------------------------------- */

static void receive(peer *peer, const uint8_t *data, size_t size);

static bool no_memory(void)
{
    if (!fail_in || --fail_in)
        return false;
    is_lossy = true;
    return true;
}

static void *sim_malloc(size_t size)
{
    if (no_memory())
        return NULL;
    void *made = malloc(size);
    live += made != NULL;
    return made;
}

static void *sim_calloc(size_t count, size_t size)
{
    if (no_memory())
        return NULL;
    void *made = calloc(count, size);
    live += made != NULL;
    return made;
}

static void *sim_realloc(void *old, size_t size)
{
    if (no_memory())
        return NULL;
    void *made = malloc(size); /* always elsewhere */
    CHECK(made, "out of memory");
    if (old) {
        made = (free(made), realloc(old, size));
        live--;
    }
    live += made != NULL;
    return made;
}

static void sim_free(void *old)
{
    live -= old != NULL;
    free(old);
}

static int sim_clock(struct timespec *now)
{
    now->tv_sec = (time_t)(clock_ms / 1000);
    now->tv_nsec = (long)(clock_ms % 1000) * 1000000;
    return 0;
}

static peer *of_fd(int fd)
{
    CHECK(fd >= FIRST_FD && fd < FIRST_FD + PEERS && peers[fd - FIRST_FD].open && !peers[fd - FIRST_FD].carried,
          "descriptor %d is not open", fd);
    return &peers[fd - FIRST_FD];
}

static int sim_open(void)
{
    if (accept_fails) {
        errno = EMFILE;
        return -1;
    }
    CHECK(!spare_open, "two spare descriptors");
    spare_open = true;
    return SPARE_FD;
}

static int sim_close(int fd)
{
    if (fd == EPOLL_FD)
        return 0;
    if (fd == SPARE_FD) {
        CHECK(spare_open, "the spare descriptor is not open");
        spare_open = false;
        return 0;
    }
    peer *peer = of_fd(fd);
    peer->open = peer->watched = false;
    return 0;
}

static int sim_epoll_ctl(int operation, int fd, const struct epoll_event *event)
{
    static bool listener_watched;
    if (fd == LISTENER_FD) {
        CHECK(listener_watched == (operation == EPOLL_CTL_DEL) || operation == EPOLL_CTL_ADD, "the listener twice");
        listener_watched = operation == EPOLL_CTL_ADD;
        return 0;
    }
    peer *peer = of_fd(fd);
    CHECK(peer->watched == (operation == EPOLL_CTL_MOD), "descriptor %d: wrong operation %d", fd, operation);
    peer->watched = peer->edge = true;
    peer->mask = event->events;
    peer->data = event->data.u64;
    return 0;
}

static int sim_epoll_wait(struct epoll_event *events, int limit)
{
    int count = 0;
    turn++;
    if (engine.listening && queued)
        events[count++] = (struct epoll_event){.events = EPOLLIN, .data.u64 = UINT64_MAX};
    for (uint32_t i = 0; i < PEERS && count < limit; i++) {
        peer *peer = &peers[(i + turn) % PEERS];
        if (!peer->open || !peer->watched)
            continue;
        uint32_t ready = 0;
        if (peer->in_done < peer->in_size || peer->fin || peer->reset)
            ready |= EPOLLIN;
        if (peer->room > 0 || peer->shut || peer->reset)
            ready |= EPOLLOUT;
        if (peer->fin || peer->reset)
            ready |= EPOLLRDHUP;
        ready &= peer->mask;
        if (peer->reset)
            ready |= EPOLLERR;
        if (peer->reset || (peer->fin && peer->shut))
            ready |= EPOLLHUP;
        const fp_conn *conn = fp_engine_conn(&engine, peer->data);
        CHECK(!ready || !conn->held || conn->writing || peer->mask & EPOLLET, "the loop is kept busy by one that is held");
        if (ready && (peer->edge || !(peer->mask & EPOLLET)))
            events[count++] = (struct epoll_event){.events = ready, .data.u64 = peer->data};
        peer->edge = peer->edge && !ready;
    }
    return count;
}

static int sim_accept(struct sockaddr *address, socklen_t *size)
{
    if (!queued) {
        errno = EAGAIN;
        return -1;
    }
    if (accept_fails && spare_open) { /* the one descriptor there is, is the spare one */
        accept_fails--;
        errno = EMFILE;
        return -1;
    }
    int who = queue[0];
    memmove(queue, queue + 1, sizeof *queue * (size_t)--queued);
    peers[who].open = peers[who].accepted = true;
    if (address) {
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x0A000001 + (uint32_t)who % 3)};
        CHECK(*size >= sizeof from, "no room for an address");
        memcpy(address, &from, sizeof from);
        *size = sizeof from;
    }
    return FIRST_FD + who;
}

static ssize_t sim_recv(int fd, void *buffer, size_t size, int flags)
{
    peer *peer = of_fd(fd);
    size_t have = peer->in_size - peer->in_done;
    if (!have) {
        if (peer->fin && !peer->reset)
            return 0;
        errno = peer->reset ? ECONNRESET : EAGAIN; /* behind what came before: tcp_recvmsg */
        return -1;
    }
    have = have < size ? have : size;
    have = have < peer->chunk ? have : peer->chunk;
    memcpy(buffer, peer->inbox + peer->in_done, have);
    if (!(flags & MSG_PEEK))
        peer->in_done += have;
    return (ssize_t)have;
}

static ssize_t sim_sendv(int fd, const struct iovec *pieces, size_t count)
{
    peer *peer = of_fd(fd);
    if (peer->shut || peer->reset) {
        errno = EPIPE;
        return -1;
    }
    ssize_t sent = 0;
    for (size_t i = 0; i < count && peer->room > 0; i++) {
        size_t part = pieces[i].iov_len < (size_t)peer->room ? pieces[i].iov_len : (size_t)peer->room;
        receive(peer, pieces[i].iov_base, part);
        peer->room -= (int64_t)part;
        sent += (ssize_t)part;
    }
    if (sent)
        return sent;
    errno = EAGAIN;
    return -1;
}

static ssize_t sim_send(int fd, const void *data, size_t size)
{
    struct iovec piece = {(void *)data, size};
    return sim_sendv(fd, &piece, 1);
}

static int sim_shutdown(int fd, int how)
{
    peer *peer = of_fd(fd);
    peer->shut = true;
    if (how == SHUT_RDWR)
        peer->fin = true;
    return 0;
}

#define malloc(size) sim_malloc(size)
#define calloc(count, size) sim_calloc(count, size)
#define realloc(old, size) sim_realloc(old, size)
#define free(old) sim_free(old)
#define clock_gettime(which, now) sim_clock(now)
#define open(path, flags) sim_open()
#define close(fd) sim_close(fd)
#define epoll_create1(flags) EPOLL_FD
#define epoll_ctl(set, operation, fd, event) sim_epoll_ctl(operation, fd, event)
#define epoll_wait(set, events, limit, wait) sim_epoll_wait(events, limit)
#define accept4(listener, address, size, flags) sim_accept(address, size)
#define recv(fd, buffer, size, flags) sim_recv(fd, buffer, size, flags)
#define send(fd, data, size, flags) sim_send(fd, data, size)
#define sendmsg(fd, message, flags) sim_sendv(fd, (message)->msg_iov, (message)->msg_iovlen)
#define shutdown(fd, how) sim_shutdown(fd, how)
#define setsockopt(fd, level, name, value, size) 0
#define getrandom(out, size, flags) ((ssize_t)(memset(out, 7, size), (size)))
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-variable"
#include "../kernel/engine.c"
#pragma GCC diagnostic pop
#undef LISTENER
#include "../kernel/audience.c"
#define grow grow_addresses
#include "../kernel/address.c"
#undef grow
#undef malloc
#undef realloc
#undef free
#undef open
#undef close

/* ---- what a peer receives --------------------------------------------------------------------------------------- */

/* Ours: what it is, of which audience, from which version, up to which: all of it ASCII. */
enum { ANSWER = 'A', FLUSH = 'F', STATE = 'S', STANDING = 'T' };

static size_t make(uint8_t *out, uint8_t kind, uint8_t audience, uint32_t from, uint32_t to, uint8_t variant)
{
    uint8_t payload[] = {kind, audience, from >> 7 & 127, from & 127, to >> 7 & 127, to & 127, variant};
    memcpy(out, payload, sizeof payload);
    return sizeof payload;
}

static bool has_gap(int audience, int from, int to)
{
    for (int each = from + 1; each <= to; each++)
        if (changes[audience][each])
            return true;
    return false;
}

static void receive_ours(peer *peer, const uint8_t *data, size_t size)
{
    CHECK(size >= 7, "%zu bytes from us", size);
    int audience = data[1], from = data[2] << 7 | data[3], to = data[4] << 7 | data[5];
    if (data[0] == ANSWER) {
        CHECK(is_lossy ? (uint32_t)to > peer->last_answer : (uint32_t)to == peer->last_answer + 1, "answer %d after %u", to,
              peer->last_answer);
        peer->last_answer = (uint32_t)to;
        return;
    }
    if (data[0] == STANDING) {
        CHECK(peer->given || peer->taught, "an answer that was never given");
        CHECK(data[6] == peer->variant, "what stands for variant %d, for one of variant %d", data[6], peer->variant);
        return;
    }
    CHECK(data[0] == FLUSH || data[0] == STATE, "what is %d?", data[0]);
    CHECK(data[6] == peer->variant, "variant %d for one of variant %d", data[6], peer->variant);
    int knows = peer->knows[audience];
    if (!is_lossy) {
        CHECK(data[0] == STATE || knows >= 0, "a change of %d before its state", audience);
        CHECK(to >= knows, "%d after %d in audience %d", to, knows, audience);
        CHECK(from == 0 || !has_gap(audience, knows, from), "knows %d of audience %d, is told from %d on", knows, audience, from);
    }
    peer->knows[audience] = to;
}

static void receive(peer *peer, const uint8_t *data, size_t size)
{
    if (!peer->has_handle && !peer->carried) { /* refused: whatever was said */
        peer->refused = true;
        return;
    }
    while (size && peer->http_came < peer->http_wanted) {
        CHECK(*data == 'h', "%d in HTTP", *data);
        peer->http_came++;
        data++;
        size--;
    }
    if (!size)
        return;
    CHECK(!peer->got_close, "%zu bytes behind a close frame", size);
    fp_limits limits = {.frame_size = 1 << 20, .message_size = 1 << 20, .fragments = 1};
    uint8_t *own = malloc(size), *at = own;
    memcpy(own, data, size);
    fp_event event;
    for (;;) {
        fp_result result = fp_stream_next(&peer->stream, &limits, &at, &size, &event);
        if (result == FP_MORE)
            break;
        CHECK(result != FP_ERROR, "no frame of ours: %s", event.reason);
        if (result == FP_ROOM) {
            peer->stream.buffer = realloc(peer->stream.buffer, event.size);
            peer->stream.capacity = event.size;
            continue;
        }
        CHECK(!peer->got_close, "a frame behind a close frame");
        if (result == FP_CONTROL) {
            CHECK(event.opcode != FP_OP_PING, "a ping");
            peer->got_close = event.opcode == FP_OP_CLOSE;
            uint16_t code;
            CHECK(!peer->got_close || !fp_close_check(event.data, event.size, &code), "a bad close frame");
        } else {
            CHECK(event.opcode == (peer->text ? FP_OP_TEXT : FP_OP_BINARY), "opcode %d", event.opcode);
            receive_ours(peer, event.data, event.size);
        }
    }
    free(own);
}

/* ---- what its owner hears --------------------------------------------------------------------------------------- */

static void happen(happening what)
{
    CHECK(batched < BATCH, "so much");
    batch[batched++] = what;
}

static peer *of_handle(fp_handle handle)
{
    for (int i = 0; i < PEERS; i++)
        if (peers[i].used && peers[i].has_handle && peers[i].handle == handle)
            return &peers[i];
    return NULL;
}

static void on_request(void *context, fp_handle handle, const uint8_t *data, size_t size)
{
    (void)context;
    fp_conn *conn = fp_engine_conn(&engine, handle);
    CHECK(conn && conn->state == FP_HTTP, "a request of nobody");
    CHECK(size && data && (conn->carried || size <= FP_READ), "a request of %zu", size);
    if (!conn->carried) {
        peer *peer = &peers[conn->fd - FIRST_FD];
        CHECK(!peer->has_handle || peer->handle == handle, "another handle");
        peer->handle = handle;
        peer->has_handle = true;
    }
    happen((happening){.kind = REQUEST, .handle = handle});
}

static void on_message(void *context, fp_handle handle, uint8_t opcode, const uint8_t *data, size_t size)
{
    (void)context;
    CHECK((opcode & ~FP_COMPRESSED) == FP_OP_TEXT || opcode == FP_OP_BINARY || opcode == (FP_OP_BINARY | FP_COMPRESSED),
          "opcode %d", opcode);
    uint8_t sum = 0;
    for (size_t i = 0; i < size; i++)
        sum ^= data[i]; /* read it all */
    (void)sum;
    happen((happening){.kind = MESSAGE, .handle = handle});
}

static void on_ping(void *context, fp_handle handle, const uint8_t *data, size_t size)
{
    (void)context;
    happening ping = {.kind = PING, .handle = handle, .size = size};
    CHECK(size <= sizeof ping.data, "a ping of %zu", size);
    memcpy(ping.data, data, size);
    happen(ping);
}

static void on_ended(void *context, fp_handle handle, fp_end how, uint16_t code)
{
    (void)context;
    fp_conn *conn = fp_engine_conn(&engine, handle);
    CHECK(conn, "the end of nobody");
    const peer *socket = conn->carried ? NULL : &peers[conn->fd - FIRST_FD];
    bool unread = conn->kept || conn->held || (socket && socket->in_done < socket->in_size);
    if (how == FP_SILENT)
        CHECK(code == 4008 && conn->heard_ms + HEARTBEAT_MS <= clock_ms && !unread, "silent too soon");
    if (how == FP_LOST)
        CHECK(!unread || is_lossy, "lost, and not heard to the end");
    if (how == FP_LAGGED)
        CHECK(code == 4009 && conn->rest && conn->rest->since_ms + LAG_MS <= clock_ms, "lagged too soon");
    peer *peer = of_handle(handle);
    CHECK(!peer || (!peer->closed && !peer->told_end), "the end of one whose owner hears no more");
    if (peer)
        peer->told_end = true;
    happen((happening){.kind = ENDED, .handle = handle, .how = how});
}

static void on_drained(void *context, fp_handle handle, bool missed, uint64_t missed_from)
{
    (void)context;
    fp_conn *conn = fp_engine_conn(&engine, handle);
    CHECK(conn && !conn->rest, "drained, and it is not");
    peer *peer = of_handle(handle);
    if (peer)
        peer->unread_ms = clock_ms;
    happen((happening){.kind = DRAINED, .handle = handle, .missed = missed, .missed_from = missed_from});
}

static void on_carry(void *context, fp_handle handle, const struct iovec *pieces, unsigned count)
{
    (void)context;
    peer *peer = of_handle(handle);
    CHECK(peer && peer->carried && peer->open, "bytes for nobody");
    CHECK(!peer->shut && !peer->fin, "bytes behind the end");
    for (unsigned i = 0; i < count; i++) {
        receive(peer, pieces[i].iov_base, pieces[i].iov_len);
        peer->room -= (int64_t)pieces[i].iov_len;
    }
    if (peer->room <= 0 && !peer->full) {
        peer->full = true;
        fp_engine_full(&engine, handle);
    }
}

static void on_carry_hold(void *context, fp_handle handle, bool held)
{
    (void)context;
    peer *peer = of_handle(handle);
    CHECK(peer && peer->carried && peer->open, "nobody is held");
    CHECK(peer->paused != held, "held twice, or let go twice");
    peer->paused = held;
}

static void on_carry_end(void *context, fp_handle handle)
{
    (void)context;
    peer *peer = of_handle(handle);
    CHECK(peer && peer->carried && peer->open, "the end of nobody");
    peer->shut = true;
}

static void on_carry_cut(void *context, fp_handle handle)
{
    (void)context;
    peer *peer = of_handle(handle);
    CHECK(peer && peer->carried && peer->open, "a cut for nobody");
    peer->open = false;
}

static bool is_peer(const peer *peer)
{
    return peer->used && peer->has_handle && peer->upgraded && !peer->closed && fp_engine_conn(&engine, peer->handle);
}

static void say_state(peer *peer, int audience, uint32_t from)
{
    uint8_t out[16];
    size_t size = make(out, STATE, (uint8_t)audience, from, (uint32_t)version, peer->variant);
    fp_engine_answer(&engine, peer->handle, out, size, false, SIZE_MAX);
}

static void join(peer *peer, int audience)
{
    if (!is_peer(peer) || numbers[audience] == FP_NONE || !fp_audience_join(&engine, peer->handle, numbers[audience]))
        return;
    if (!peer->member[audience])
        say_state(peer, audience, 0);
    peer->member[audience] = true;
}

static void say(peer *peer, size_t padding, size_t bound)
{
    uint8_t out[1024] = {0};
    make(out, ANSWER, 0, 0, peer->next_answer + 1, 0);
    if (fp_engine_answer(&engine, peer->handle, out, 7 + padding % 1000, false, bound))
        peer->next_answer++;
}

/* Frames that stand for every variant, or for none: too long. */
static void stand(uint32_t how)
{
    for (uint8_t variant = 0; variant < FP_VARIANTS; variant++) {
        uint8_t payload[FP_STANDING_MAX] = {0}, frame[FP_STANDING_MAX + FP_SERVER_HEADER_MAX];
        make(payload, STANDING, 0, 0, 0, variant);
        size_t size = how % 8 ? 7 + how % 64 : FP_STANDING_MAX;
        size_t used = fp_frame_header(frame, variant & 1 ? FP_OP_BINARY : FP_OP_TEXT, size);
        memcpy(frame + used, payload, size);
        fp_engine_stand(&engine, variant, frame, used + size, clock_ms + how * 16);
    }
}

static void teach(peer *peer, uint32_t size, uint32_t how)
{
    uint8_t message[1100];
    memset(message, how & 1 ? 'x' : '7', sizeof message);
    peer->taught = true;
    fp_engine_learn(&engine, peer->handle, message, size < 128 ? size : size * 4, how % 16, how / 8 % 16, how & 2);
}

static void upgrade(peer *peer, uint32_t how)
{
    if (!peer->used || !peer->has_handle || peer->upgraded || peer->closed || !fp_engine_conn(&engine, peer->handle))
        return;
    if (fp_engine_write(&engine, peer->handle, (const uint8_t *)"hhhhh", 5, FP_ARENA_MAX))
        peer->http_wanted += 5;
    peer->upgraded = true;
    peer->variant = how & 3;
    peer->text = !(how & 1); /* as with flush.VARIANTS: JSON, MessagePack, each also deflated */
    uint8_t after[16];
    size_t size = how & 128 ? how >> 3 & 15 : 0;
    for (size_t i = 0; i < size; i++)
        after[i] = (uint8_t)next();
    fp_engine_upgrade(&engine, peer->handle, peer->text, how & 64, peer->variant, after, size);
}

static void act_on(const happening *what)
{
    peer *peer = of_handle(what->handle);
    if (!peer)
        return;
    uint32_t how = next();
    if (what->kind == REQUEST && !peer->closed && !peer->upgraded) {
        if (how < 200) {
            upgrade(peer, how);
        } else if (how < 225) {
            if (fp_engine_write(&engine, peer->handle, (const uint8_t *)"hhh", 3, FP_ARENA_MAX))
                peer->http_wanted += 3;
            peer->closed = true;
            fp_engine_finish(&engine, peer->handle);
        } else if (how < 235) {
            peer->closed = true;
            fp_engine_abort(&engine, peer->handle);
        } else {
            fp_engine_await_request(&engine, peer->handle);
        }
    } else if (what->kind == MESSAGE && is_peer(peer)) {
        if (how < 150)
            say(peer, how, FP_ARENA_MAX);
        else if (how < 200)
            join(peer, (int)how % AUDIENCES);
    } else if (what->kind == PING) {
        fp_engine_pong(&engine, peer->handle, what->data, what->size);
    } else if (what->kind == ENDED) {
        peer->closed = true;
    } else if (what->kind == DRAINED && what->missed && is_peer(peer)) {
        CHECK(what->missed_from <= (uint64_t)version, "missed the future");
        for (int audience = 0; audience < AUDIENCES; audience++)
            if (peer->member[audience] && has_gap(audience, (int)what->missed_from, version))
                say_state(peer, audience, (uint32_t)what->missed_from);
        fp_engine_caught_up(&engine, peer->handle);
    }
}

static void look(void);

static void deliver(void)
{
    while (batched) {
        static happening now[BATCH];
        size_t count = batched;
        memcpy(now, batch, count * sizeof *now);
        batched = 0;
        for (size_t i = 0; i < count; i++)
            act_on(&now[i]);
    }
    fp_engine_send(&engine);
    CHECK(!engine.arena_size && !engine.piece_count && !engine.touched_count, "something was not sent");
    for (uint32_t slot = 0; slot < engine.capacity; slot++)
        CHECK(engine.conns[slot].pending == FP_NONE || !engine.conns[slot].state, "something is pending for %u", slot);
}

/* As the face does: a carried connection is visited again until nothing is left of what came. */
static void go_on_with(peer *peer)
{
    for (int visits = 0; fp_engine_go_on(&engine, peer->handle); visits++) {
        CHECK(visits < 10000, "it never ends");
        deliver();
    }
}

static int take_turn(void)
{
    int count = fp_engine_poll(&engine);
    CHECK(count >= 0, "poll: %d", count);
    deliver();
    for (int i = 0; i < PEERS; i++) { /* nobody is held for longer than a turn */
        if (!peers[i].held)
            continue;
        peers[i].held = false;
        fp_engine_hold(&engine, peers[i].handle, false);
        go_on_with(&peers[i]);
        count++;
    }
    return count;
}

/* Whether something of it waits to be read, so that it can't be called silent yet. */
static bool is_unread(const peer *peer, const fp_conn *conn)
{
    if (conn->kept || conn->held)
        return true;
    return conn->carried ? conn->rest != NULL : peer->in_done < peer->in_size || peer->fin || peer->reset;
}

static void judge_deadlines(bool ran_out)
{
    for (int i = 0; i < PEERS; i++) {
        peer *peer = &peers[i];
        const fp_conn *conn = peer->used && peer->has_handle ? fp_engine_conn(&engine, peer->handle) : NULL;
        if (!conn || conn->state != FP_OPEN)
            continue;
        if (is_unread(peer, conn))
            peer->unread_ms = clock_ms;
        if (!ran_out)
            continue;
        CHECK(!conn->rest || conn->rest->since_ms + LAG_MS + FP_TICK_MS >= clock_ms, "lags for too long");
        /* A tick more: one may become full, and be looked at anew, while its slice has not come yet. */
        uint64_t since_ms = conn->heard_ms + HEARTBEAT_MS > peer->unread_ms ? conn->heard_ms + HEARTBEAT_MS : peer->unread_ms;
        CHECK(since_ms + 2 * FP_TICK_MS >= clock_ms,
              "silent for too long: heard at %lu, unread at %lu", conn->heard_ms, peer->unread_ms);
    }
}

static void let_time_pass(uint32_t ms)
{
    clock_ms += ms;
    judge_deadlines(false);
    for (int calls = 0; fp_engine_advance(&engine); calls++) {
        CHECK(calls < 1000, "it never ends");
        deliver();
        if (next() & 1)
            take_turn();
        judge_deadlines(false);
    }
    judge_deadlines(true);
    deliver();
}

/* ---- everything agrees ------------------------------------------------------------------------------------------ */

static void look(void)
{
    uint32_t connections = 0, open = 0, lagging = 0, memberships = 0, listed = 0, descriptors = 0;
    for (uint32_t slot = 0; slot < engine.capacity; slot++) {
        const fp_conn *conn = &engine.conns[slot];
        if (conn->state == FP_FREE) {
            CHECK(!conn->rest && !conn->stream && !conn->kept, "a free record holds memory");
            continue;
        }
        CHECK(!conn->gone || !conn->rest, "something waits for nobody");
        connections++;
        open += conn->state == FP_OPEN;
        lagging += conn->rest != NULL;
        descriptors += !conn->carried;
        CHECK(conn->pending == FP_NONE || conn->touched, "pending, and nobody knows");
        CHECK(conn->state == FP_OPEN || conn->member == FP_NONE, "no peer, but a member");
        for (uint32_t member = conn->member; member != FP_NONE; member = engine.members[member].next) {
            CHECK(++memberships <= PEERS * AUDIENCES, "memberships in a circle");
            const fp_member *each = &engine.members[member];
            CHECK(each->conn == slot && engine.audiences[each->audience].members[each->position] == member, "a lost membership");
        }
    }
    for (uint32_t i = 0; i < engine.audience_count; i++) {
        CHECK(engine.audiences[i].used || !engine.audiences[i].count, "members of nothing");
        CHECK(engine.running || engine.audiences[i].job == -1, "a job of no flush");
        listed += engine.audiences[i].count;
    }
    CHECK(listed == memberships, "%u members, %u memberships", listed, memberships);
    CHECK(connections == engine.stats.connections && open == engine.stats.open && lagging == engine.stats.lagging,
          "counted %u %u %u, found %u %u %u", engine.stats.connections, engine.stats.open, engine.stats.lagging, connections,
          open, lagging);
    CHECK(connections + engine.free_count == engine.capacity, "a record is lost");
    uint32_t held = 0;
    for (int i = 0; i < PEERS; i++)
        held += peers[i].used && peers[i].open && !peers[i].carried;
    CHECK(held == descriptors, "%u descriptors for %u connections", held, descriptors);
}

/* ---- the story -------------------------------------------------------------------------------------------------- */

static void forget(peer *peer)
{
    free(peer->stream.buffer);
    fp_handle stale = peer->handle;
    memset(peer, 0, sizeof *peer);
    peer->stale = stale;
}

static peer *newcomer(bool carried)
{
    for (int i = 0; i < PEERS; i++) {
        peer *peer = &peers[i];
        if (peer->used && (peer->open || (!peer->accepted && !peer->carried)))
            continue;
        forget(peer);
        peer->used = true;
        peer->carried = carried;
        peer->room = UNLIMITED;
        peer->chunk = UNLIMITED;
        for (int audience = 0; audience < AUDIENCES; audience++)
            peer->knows[audience] = -1;
        return peer;
    }
    return NULL;
}

static void send_to_engine(peer *peer, const uint8_t *data, size_t size)
{
    if (!peer->used || peer->fin || peer->reset)
        return;
    if (peer->carried) {
        if (peer->open && !peer->full && size) {
            for (size_t part; size; data += part, size -= part) {
                part = size < FP_READ ? size : FP_READ;
                fp_engine_feed(&engine, peer->handle, data, part);
                deliver();
                go_on_with(peer);
            }
        }
        return;
    }
    if (peer->in_done) {
        memmove(peer->inbox, peer->inbox + peer->in_done, peer->in_size - peer->in_done);
        peer->in_size -= peer->in_done;
        peer->in_done = 0;
    }
    size = size < INBOX - peer->in_size ? size : INBOX - peer->in_size;
    memcpy(peer->inbox + peer->in_size, data, size);
    peer->in_size += size;
}

static void send_frame(peer *peer, uint32_t kind, uint32_t length)
{
    static const uint8_t OPCODES[8] = {FP_OP_TEXT, FP_OP_TEXT, FP_OP_BINARY, FP_OP_PING, FP_OP_CLOSE, FP_OP_CONTINUATION, FP_OP_PONG, FP_OP_TEXT};
    static const uint8_t KEY[4] = {1, 2, 3, 4};
    uint8_t frame[1100], opcode = OPCODES[kind & 7];
    size_t size = length < 128 ? length : length * 4;
    if (opcode >= FP_OP_CLOSE)
        size %= 126;
    size_t used = fp_frame_header_masked(frame, opcode | (kind & 64 ? FP_COMPRESSED : 0), !(kind & 8), size, KEY);
    memset(frame + used, kind & 32 ? '7' : 'x', size);
    if (opcode == FP_OP_CLOSE && size > 1)
        memcpy(frame + used, kind & 16 ? "\x03\xe8" : "\x0f\xa1", 2);
    fp_mask(frame + used, size, KEY, 0);
    send_to_engine(peer, frame, used + size);
}

static void begin_flush(void)
{
    if (engine.running)
        return;
    uint32_t count = 0;
    flush_from = told;
    flush_to = version;
    for (int audience = 0; audience < AUDIENCES; audience++) {
        if (numbers[audience] == FP_NONE || !has_gap(audience, flush_from, flush_to))
            continue;
        fp_job *job = &jobs[count++];
        memset(job, 0, sizeof *job);
        job->audience = numbers[audience];
        for (uint8_t variant = 0; variant < FP_VARIANTS; variant++) {
            uint8_t payload[16], *frame = flush_bytes[audience][variant];
            size_t size = make(payload, FLUSH, (uint8_t)audience, (uint32_t)flush_from, (uint32_t)flush_to, variant);
            size_t used = fp_frame_header(frame, variant & 1 ? FP_OP_BINARY : FP_OP_TEXT, size);
            memcpy(frame + used, payload, size);
            job->frames[variant] = (fp_bytes){frame, used + size};
        }
    }
    CHECK(fp_flush_begin(&engine, (uint64_t)flush_from, jobs, count), "no flush");
    told = flush_to;
}

/* All that one may do with a handle, whatever it stands for. */
static void misuse(fp_handle handle, uint32_t what)
{
    static const uint8_t BYTES[8] = {0x81, 0x82, 1, 2, 3, 4, 5, 6};
    if (fp_engine_conn(&engine, handle))
        return; /* it has come round again */
    uint32_t connections = engine.stats.connections;
    switch (what % 19) {
    case 0: fp_engine_upgrade(&engine, handle, true, true, 0, BYTES, 8); break;
    case 1: CHECK(!fp_engine_write(&engine, handle, BYTES, 8, 100), "written to nobody"); break;
    case 2: CHECK(!fp_engine_answer(&engine, handle, BYTES, 8, true, 100), "answered nobody"); break;
    case 3: CHECK(!fp_engine_tell(&engine, handle, BYTES, 8), "told nobody"); break;
    case 4: fp_engine_caught_up(&engine, handle); break;
    case 5: fp_engine_close(&engine, handle, 1000, BYTES, 8); break;
    case 6: fp_engine_finish(&engine, handle); break;
    case 7: fp_engine_abort(&engine, handle); break;
    case 8: fp_engine_await_request(&engine, handle); break;
    case 9: fp_engine_feed(&engine, handle, BYTES, 8); break;
    case 10: fp_engine_full(&engine, handle); break;
    case 11: fp_engine_drained(&engine, handle); break;
    case 12: fp_engine_lost(&engine, handle); break;
    case 13: fp_engine_hold(&engine, handle, true); break;
    case 14: fp_engine_pong(&engine, handle, BYTES, 8); break;
    case 15: CHECK(!fp_engine_waiting(&engine, handle) && !fp_engine_go_on(&engine, handle), "nobody goes on"); break;
    case 16: CHECK(!fp_engine_give_standing(&engine, handle), "given to nobody"); break;
    case 17: fp_engine_learn(&engine, handle, BYTES, 8, 2, 3, false); break;
    default: CHECK(!fp_audience_join(&engine, handle, 0) && !fp_audience_leave(&engine, handle, 0), "nobody joined"); break;
    }
    CHECK(connections == engine.stats.connections, "a stale handle did something");
}

static void act(void)
{
    uint32_t what = next() % 36, who = next();
    peer *peer = &peers[who % PEERS];
    bool known = peer->used && peer->has_handle;
    switch (what) {
    case 0:
    case 1:
        if ((peer = newcomer(what == 1)) == NULL)
            break;
        if (what == 0) {
            queue[queued++] = (int)(peer - peers);
            send_to_engine(peer, (const uint8_t *)"GET", 1 + who % 3);
        } else if (fp_engine_adopt(&engine, who & 1 ? "10.0.0.1" : "2001:db8::1%eth0", &peer->handle)) {
            peer->has_handle = peer->open = true;
        } else {
            forget(peer);
        }
        break;
    case 2:
    case 3:
    case 4: {
        uint32_t kind = next();
        send_frame(peer, kind, next());
        break;
    }
    case 5: {
        uint8_t raw[32];
        size_t size = next() % sizeof raw;
        for (size_t i = 0; i < size; i++)
            raw[i] = (uint8_t)next();
        send_to_engine(peer, raw, size);
        break;
    }
    case 6: {
        static const int64_t ROOMS[8] = {0, 0, 1, 7, 100, 300, 700, UNLIMITED};
        peer->room = ROOMS[next() % 8];
        if (peer->carried && peer->open && peer->full && peer->room > 0) {
            peer->full = false;
            fp_engine_drained(&engine, peer->handle);
            deliver();
            go_on_with(peer);
            if (peer->full && peer->open) /* what had waited filled it again */
                fp_engine_full(&engine, peer->handle);
        }
        break;
    }
    case 7:
        peer->chunk = 1 + next() % 50 * 8;
        break;
    case 8:
        peer->fin = true;
        if (peer->carried && peer->open) {
            fp_engine_lost(&engine, peer->handle);
            deliver();
            go_on_with(peer);
        }
        break;
    case 9:
        if (!peer->carried)
            peer->reset = peer->edge = true;
        break;
    case 10:
    case 11:
        take_turn();
        break;
    case 12:
        let_time_pass(next() * 4);
        break;
    case 13:
        let_time_pass(next() * 64);
        break;
    case 14:
    case 15:
        if (version < VERSIONS && numbers[who % AUDIENCES] != FP_NONE)
            changes[who % AUDIENCES][++version] = true;
        break;
    case 16:
        begin_flush();
        break;
    case 17:
        fp_flush_step(&engine, who < 200 ? 0 : 1000);
        break;
    case 18:
        join(peer, (int)next() % AUDIENCES);
        break;
    case 19: {
        uint32_t audience = next() % AUDIENCES;
        if (is_peer(peer) && numbers[audience] != FP_NONE) {
            bool was = fp_audience_leave(&engine, peer->handle, numbers[audience]);
            CHECK(was == peer->member[audience], "was a member: %d", was);
            peer->member[audience] = false;
        }
        break;
    }
    case 20: {
        uint32_t audience = who % AUDIENCES;
        if (numbers[audience] == FP_NONE) {
            numbers[audience] = fp_audience_new(&engine);
        } else if (who < 60 && fp_audience_free(&engine, numbers[audience])) {
            numbers[audience] = FP_NONE;
            for (int i = 0; i < PEERS; i++)
                peers[i].member[audience] = false;
        }
        break;
    }
    case 21: {
        uint32_t padding = next();
        if (is_peer(peer))
            say(peer, padding * 4, padding & 1 ? 300 : FP_ARENA_MAX);
        break;
    }
    case 22: {
        uint32_t audience = next() % AUDIENCES;
        if (is_peer(peer) && peer->member[audience]) {
            uint8_t payload[16], frame[32];
            size_t size = make(payload, STATE, (uint8_t)audience, 0, (uint32_t)version, peer->variant);
            size_t used = fp_frame_header(frame, peer->text ? FP_OP_TEXT : FP_OP_BINARY, size);
            memcpy(frame + used, payload, size);
            fp_engine_tell(&engine, peer->handle, frame, used + size);
        }
        break;
    }
    case 23:
        if (is_peer(peer) && who < 128) {
            peer->closed = true;
            fp_engine_close(&engine, peer->handle, (uint16_t)(4000 + who), (const uint8_t *)"because", who % 8);
        }
        break;
    case 24:
        if (known && who < 80) {
            peer->closed = true;
            fp_engine_abort(&engine, peer->handle);
        }
        break;
    case 25:
        misuse(who & 1 || !peer->used ? peer->stale : peer->handle + ((fp_handle)1 << 32), next());
        break;
    case 26:
        if (who < 40)
            fail_in = 1 + (int)who / 4;
        break;
    case 27:
        accept_fails = (int)who % 3;
        break;
    case 28: /* a crowd that hears of everything */
        for (uint32_t i = 0; i < who % PEERS && (peer = newcomer(true)) != NULL; i++) {
            if (!fp_engine_adopt(&engine, "10.0.0.9", &peer->handle)) {
                forget(peer);
                break;
            }
            peer->has_handle = peer->open = true;
            upgrade(peer, i & 3);
            for (int audience = 0; audience < AUDIENCES; audience++)
                join(peer, audience);
        }
        break;
    case 29:
        for (int audience = 0; audience < AUDIENCES; audience++)
            join(peer, audience);
        break;
    case 30: /* something changes for everybody */
        for (int audience = 0; audience < AUDIENCES && version < VERSIONS; audience++) {
            if (numbers[audience] == FP_NONE)
                numbers[audience] = fp_audience_new(&engine);
            if (numbers[audience] != FP_NONE)
                changes[audience][++version] = true;
        }
        begin_flush();
        break;
    case 32:
        if (is_peer(peer)) {
            peer->held = true;
            fp_engine_hold(&engine, peer->handle, true);
            CHECK(fp_engine_waiting(&engine, peer->handle) < 1 << 20, "so much waits");
        }
        break;
    case 33:
        stand(who);
        break;
    case 34:
        if (is_peer(peer)) {
            peer->given = true;
            fp_engine_give_standing(&engine, peer->handle);
        }
        break;
    case 35:
        if (is_peer(peer)) {
            uint32_t size = next();
            teach(peer, size, next());
        }
        break;
    case 31: /* and a crowd that comes by TCP */
        for (uint32_t i = 0; i < who % PEERS && (peer = newcomer(false)) != NULL; i++) {
            queue[queued++] = (int)(peer - peers);
            send_to_engine(peer, (const uint8_t *)"GET", 3);
        }
        break;
    }
}

/* Everybody reads, nobody speaks: what is known is the same everywhere, and all end in time. */
static void end_story(void)
{
    fail_in = accept_fails = 0;
    while (!fp_flush_step(&engine, 1000))
        ;
    for (int i = 0; i < PEERS; i++) {
        peers[i].room = UNLIMITED;
        if (peers[i].carried && peers[i].open && peers[i].full) {
            peers[i].full = false;
            fp_engine_drained(&engine, peers[i].handle);
            deliver();
            go_on_with(&peers[i]);
        }
    }
    deliver();
    input = input_end; /* from here on `next` is 0 */
    for (int turns = 0; take_turn() > 0; turns++)
        CHECK(turns < 10000, "it never ends");
    for (int rounds = 0; rounds < 2; rounds++) { /* those that drained in the last flush hear of the next */
        begin_flush();
        while (!fp_flush_step(&engine, 1000))
            ;
        deliver();
        while (take_turn() > 0)
            ;
    }
    look();
    for (int i = 0; i < PEERS && !is_lossy; i++) {
        peer *peer = &peers[i];
        if (!is_peer(peer) || peer->reset || peer->fin)
            continue;
        CHECK(peer->last_answer == peer->next_answer, "an answer is lost: %u of %u", peer->last_answer, peer->next_answer);
        for (int audience = 0; audience < AUDIENCES; audience++)
            CHECK(!peer->member[audience] || !has_gap(audience, peer->knows[audience], version), "%d knows %d of audience %d at %d",
                  i, peer->knows[audience], audience, version);
    }
    for (int rounds = 0; rounds < 6; rounds++) {
        let_time_pass(HEARTBEAT_MS + 2 * FP_TICK_MS);
        while (take_turn() > 0)
            ;
    }
    CHECK(engine.stats.connections == 0, "%u connections are left", engine.stats.connections);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const fp_hooks HOOKS = {
        .request = on_request, .message = on_message, .ping = on_ping, .ended = on_ended, .drained = on_drained,
        .carry = on_carry, .carry_hold = on_carry_hold, .carry_end = on_carry_end, .carry_cut = on_carry_cut,
    };
    size = size < STORY_MAX ? size : STORY_MAX;
    input = data;
    input_end = data + size;
    fp_config config = {
        .limits = {.frame_size = 600, .message_size = 900, .fragments = 4, .masked = true},
        .heartbeat_timeout_ms = HEARTBEAT_MS, .connect_timeout_ms = CONNECT_MS, .lag_time_ms = LAG_MS,
        .send_buffer = 65536, .connections = 1 + next() % PEERS, .per_address = next() % 16, .quiet_ms = QUIET_MS,
    };
    static const uint64_t KEY[2] = {UINT64_C(0x0706050403020100), UINT64_C(0x0f0e0d0c0b0a0908)};
    static const uint8_t MESSAGE[15] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
    CHECK(fp_siphash(KEY, MESSAGE, 15) == UINT64_C(0xa129ca6149be45e5), "SipHash is another: appendix A of its paper");
    batched = 0;
    queued = fail_in = live = accept_fails = version = told = flush_from = flush_to = 0;
    is_lossy = spare_open = false;
    clock_ms = 1000000;
    turn = 0;
    memset(peers, 0, sizeof peers);
    memset(changes, 0, sizeof changes);
    CHECK(fp_engine_init(&engine, &config, &HOOKS) == 0, "init");
    CHECK(fp_engine_listen(&engine, LISTENER_FD) == 0, "listen");
    for (int audience = 0; audience < AUDIENCES; audience++)
        numbers[audience] = audience < 3 ? fp_audience_new(&engine) : FP_NONE;
    while (input < input_end) {
        act();
        look();
    }
    uint32_t ends_early = size ? data[size - 1] & 1 : 0;
    if (!ends_early)
        end_story();
    fp_engine_free(&engine);
    CHECK(live == 0, "%d blocks of memory are left", live);
    CHECK(!spare_open, "the spare descriptor is left");
    for (int i = 0; i < PEERS; i++) {
        CHECK(!peers[i].open, "descriptor %d is left", i);
        forget(&peers[i]);
    }
    return 0;
}
