#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "audience.h"
#include "siphash.h"

#define LISTENER UINT64_MAX

static const char FULL[] = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
                           "Content-Type: application/json\r\nContent-Length: 69\r\n\r\n"
                           "{\"error\":{\"code\":\"unavailable\",\"message\":\"too many connections now\"}}";
static const char CROWDED[] = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 5\r\nConnection: close\r\n"
                              "Content-Type: application/json\r\nContent-Length: 78\r\n\r\n"
                              "{\"error\":{\"code\":\"too_many\",\"message\":\"too many connections of this address\"}}";

uint64_t fp_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static uint32_t slot_of(const fp_engine *engine, const fp_conn *conn)
{
    return (uint32_t)(conn - engine->conns);
}

static void watch(fp_engine *engine, fp_conn *conn, int operation, uint32_t events)
{
    if (conn->carried)
        return; /* its holder knows */
    /* A reset is told whatever we ask for: edge-triggered, of one that is held, so that it is told once. */
    struct epoll_event event = {.events = events ? events | EPOLLRDHUP : EPOLLET,
                                .data.u64 = fp_engine_handle(engine, conn)};
    epoll_ctl(engine->epoll_fd, operation, conn->fd, &event);
}

/* What is to be heard of a connection that nothing waits for: of a held one nothing at all, since a crowd of those that
 * are ready and not taken would keep the others from being seen. */
static uint32_t interest(const fp_conn *conn)
{
    return conn->held ? 0 : conn->kept ? EPOLLOUT : EPOLLIN;
}

static void arm(fp_engine *engine, fp_conn *conn, uint64_t deadline_ms)
{
    fp_wheel_arm(&engine->wheel, slot_of(engine, conn), deadline_ms);
}

/* An open connection is looked at when it has been silent for too long, or full. */
static void arm_open(fp_engine *engine, fp_conn *conn)
{
    uint64_t silent_ms = conn->heard_ms + engine->config.heartbeat_timeout_ms;
    uint64_t lagged_ms = conn->rest ? conn->rest->since_ms + engine->config.lag_time_ms : silent_ms;
    arm(engine, conn, lagged_ms < silent_ms ? lagged_ms : silent_ms);
}

static void drop_stream(fp_conn *conn)
{
    if (conn->stream) {
        free(conn->stream->buffer);
        free(conn->stream);
        conn->stream = NULL;
    }
}

static void hold(fp_engine *engine, fp_conn *conn, bool held)
{
    if (conn->held == held)
        return;
    conn->held = held;
    if (conn->carried)
        engine->hooks.carry_hold(engine->hooks.context, fp_engine_handle(engine, conn), held);
    else if (!conn->rest)
        watch(engine, conn, EPOLL_CTL_MOD, interest(conn));
}

static void drop_kept(fp_engine *engine, fp_conn *conn)
{
    if (!conn->kept)
        return;
    free(conn->kept);
    conn->kept = NULL;
    if (!conn->rest)
        watch(engine, conn, EPOLL_CTL_MOD, interest(conn));
}

static void watch_listener(fp_engine *engine, bool on)
{
    if (engine->listener < 0 || engine->listening == on)
        return;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = LISTENER};
    epoll_ctl(engine->epoll_fd, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, engine->listener, &event);
    engine->listening = on;
}

/* We write no more. */
static void shut(fp_engine *engine, fp_conn *conn)
{
    if (conn->carried)
        engine->hooks.carry_end(engine->hooks.context, fp_engine_handle(engine, conn));
    else
        shutdown(conn->fd, SHUT_WR);
}

/* The record goes back to the slab. Pieces that are still pending for it are skipped when their turn comes. */
static void release(fp_engine *engine, fp_conn *conn)
{
    uint32_t slot = slot_of(engine, conn);
    fp_audience_leave_all(engine, conn);
    fp_wheel_cancel(&engine->wheel, slot);
    drop_stream(conn);
    free(conn->kept);
    conn->kept = NULL;
    if (conn->address != FP_NO_PLACE) {
        fp_addresses_leave(&engine->addresses, conn->address);
        conn->address = FP_NO_PLACE;
    }
    if (conn->rest) {
        free(conn->rest);
        conn->rest = NULL;
        engine->stats.lagging--;
    }
    if (conn->state == FP_OPEN)
        engine->stats.open--;
    if (conn->carried)
        engine->hooks.carry_cut(engine->hooks.context, fp_engine_handle(engine, conn));
    else
        close(conn->fd);
    conn->fd = -1;
    conn->state = FP_FREE;
    conn->generation++;
    conn->pending = FP_NONE;
    conn->touched = 0;
    engine->free_slots[engine->free_count++] = slot;
    engine->stats.connections--;
    watch_listener(engine, true);
}

/* An owner that waits for news hears that it is over; then the record goes. */
static void end(fp_engine *engine, fp_conn *conn, fp_end how, uint16_t code)
{
    if ((conn->state == FP_HTTP || conn->state == FP_OPEN) && !conn->leaving)
        engine->hooks.ended(engine->hooks.context, fp_engine_handle(engine, conn), how, code);
    release(engine, conn);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static bool reserve(void **array, uint32_t *capacity, uint32_t need, size_t each)
{
    if (need <= *capacity)
        return true;
    uint32_t more = *capacity ? *capacity * 2 : FP_FIRST;
    void *moved = realloc(*array, (size_t)more * each);
    if (!moved)
        return false;
    *array = moved;
    *capacity = more;
    return true;
}

static uint8_t *arena_room(fp_engine *engine, size_t size)
{
    if (engine->arena_size + size > engine->arena_capacity) {
        size_t more = engine->arena_capacity * 2 > engine->arena_size + size ? engine->arena_capacity * 2
                                                                             : engine->arena_size + size;
        uint8_t *moved = realloc(engine->arena, more);
        if (!moved)
            return NULL;
        engine->arena = moved;
        engine->arena_capacity = more;
    }
    return engine->arena + engine->arena_size;
}

/* Bytes for this connection, to be sent with everything else that this turn has for it. */
static bool gather(fp_engine *engine, fp_conn *conn, const struct iovec *parts, unsigned count)
{
    size_t size = 0;
    for (unsigned i = 0; i < count; i++)
        size += parts[i].iov_len;
    uint8_t *at = arena_room(engine, size);
    if (!at || !reserve((void **)&engine->pieces, &engine->piece_capacity, engine->piece_count + 1, sizeof(fp_piece)) ||
        !reserve((void **)&engine->touched, &engine->touched_capacity, engine->touched_count + 1, sizeof(uint32_t)))
        return false;
    for (unsigned i = 0; i < count; i++) {
        if (parts[i].iov_len)
            memcpy(at, parts[i].iov_base, parts[i].iov_len);
        at += parts[i].iov_len;
    }
    uint32_t slot = slot_of(engine, conn);
    fp_piece *last = conn->pending == FP_NONE ? NULL : &engine->pieces[conn->pending_last];
    if (last && last->offset + last->size == engine->arena_size) {
        last->size += size; /* one behind the other: one piece */
    } else {
        uint32_t piece = engine->piece_count++;
        engine->pieces[piece] = (fp_piece){.conn = slot, .next = FP_NONE, .offset = engine->arena_size, .size = size};
        if (last)
            last->next = piece;
        else
            conn->pending = piece;
        conn->pending_last = piece;
    }
    engine->arena_size += size;
    conn->pending_size += (uint32_t)size;
    if (!conn->touched) {
        conn->touched = 1;
        engine->touched[engine->touched_count++] = slot;
    }
    return true;
}

static bool append_rest(fp_conn *conn, const struct iovec *parts, unsigned count)
{
    fp_rest *rest = conn->rest;
    size_t size = 0;
    for (unsigned i = 0; i < count; i++)
        size += parts[i].iov_len;
    if (rest->size + size > rest->capacity && rest->done >= rest->size / 2) {
        /* What was sent makes room: a reader that is never quite done costs what waits, not what went through. */
        memmove(rest->data, rest->data + rest->done, rest->size - rest->done);
        rest->size -= rest->done;
        rest->done = 0;
    }
    if (rest->size + size > rest->capacity) {
        size_t capacity = 2 * (rest->size + size);
        rest = realloc(rest, sizeof *rest + capacity);
        if (!rest)
            return false;
        rest->capacity = capacity;
        conn->rest = rest;
    }
    for (unsigned i = 0; i < count; i++) {
        if (parts[i].iov_len)
            memcpy(rest->data + rest->size, parts[i].iov_base, parts[i].iov_len);
        rest->size += parts[i].iov_len;
    }
    return true;
}

/* The socket took `done` of these pieces: keep what is left, wait until it takes more, and read no more meanwhile. */
static void keep_rest(fp_engine *engine, fp_conn *conn, const struct iovec *pieces, unsigned count, size_t done, size_t size)
{
    fp_rest *rest = malloc(sizeof *rest + (size - done));
    if (!rest) {
        shutdown(conn->fd, SHUT_RDWR); /* half a frame was sent: nothing can follow it */
        return;
    }
    *rest = (fp_rest){.capacity = size - done, .since_ms = engine->now_ms};
    for (unsigned i = 0; i < count; i++) {
        size_t skip = done < pieces[i].iov_len ? done : pieces[i].iov_len;
        memcpy(rest->data + rest->size, (uint8_t *)pieces[i].iov_base + skip, pieces[i].iov_len - skip);
        rest->size += pieces[i].iov_len - skip;
        done -= skip;
    }
    conn->rest = rest;
    conn->writing = 1;
    engine->stats.lagging++;
    watch(engine, conn, EPOLL_CTL_MOD, EPOLLOUT);
    if (conn->state == FP_OPEN)
        arm_open(engine, conn);
}

void fp_conn_send(fp_engine *engine, fp_conn *conn, const fp_bytes *frames, unsigned count)
{
    conn->pending_size = 0;
    if (conn->gone) {
        conn->pending = FP_NONE;
        return;
    }
    while (conn->pending != FP_NONE || count) {
        struct iovec pieces[FP_JOINED];
        unsigned used = 0;
        size_t size = 0;
        for (; conn->pending != FP_NONE && used < FP_JOINED; used++) {
            const fp_piece *piece = &engine->pieces[conn->pending];
            pieces[used] = (struct iovec){engine->arena + piece->offset, piece->size};
            size += piece->size;
            conn->pending = piece->next;
        }
        for (; count && used < FP_JOINED; used++, count--, frames++) {
            pieces[used] = (struct iovec){(void *)frames->data, frames->size};
            size += frames->size;
        }
        if (conn->rest) {
            append_rest(conn, pieces, used);
            continue;
        }
        if (conn->carried) {
            engine->stats.bytes_sent += size;
            engine->hooks.carry(engine->hooks.context, fp_engine_handle(engine, conn), pieces, used);
            continue;
        }
        ssize_t sent;
        do {
            if (used == 1) {
                sent = send(conn->fd, pieces[0].iov_base, size, MSG_NOSIGNAL | MSG_DONTWAIT);
            } else {
                struct msghdr message = {.msg_iov = pieces, .msg_iovlen = used};
                sent = sendmsg(conn->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
            }
        } while (sent < 0 && errno == EINTR);
        engine->stats.sends++;
        if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
            conn->pending = FP_NONE; /* broken: epoll tells of it */
            return;
        }
        size_t done = sent < 0 ? 0 : (size_t)sent;
        engine->stats.bytes_sent += done;
        if (done < size)
            keep_rest(engine, conn, pieces, used, done, size);
    }
    if (conn->ending && !conn->rest)
        shut(engine, conn);
}

static void send_gathered(fp_engine *engine)
{
    for (uint32_t i = 0; i < engine->touched_count; i++) {
        fp_conn *conn = &engine->conns[engine->touched[i]];
        conn->touched = 0;
        if (conn->state != FP_FREE && conn->pending != FP_NONE)
            fp_conn_send(engine, conn, NULL, 0);
    }
    engine->touched_count = 0;
    engine->piece_count = 0;
    engine->arena_size = 0;
}

static bool put(fp_engine *engine, fp_conn *conn, const struct iovec *parts, unsigned count, size_t bound)
{
    size_t size = 0;
    for (unsigned i = 0; i < count; i++)
        size += parts[i].iov_len;
    if (engine->arena_size + size > FP_ARENA_MAX)
        send_gathered(engine); /* may leave a rest, which these bytes must not overtake */
    if (!conn->rest && conn->pending_size && conn->pending_size + size > bound)
        fp_conn_send(engine, conn, NULL, 0); /* the same; what one turn gathers is bounded, too */
    if (!conn->rest && size > FP_ARENA_MAX) { /* the arena does not grow for it: sent from where it is */
        fp_bytes frames[2] = {{parts[0].iov_base, parts[0].iov_len}};
        if (count > 1)
            frames[1] = (fp_bytes){parts[1].iov_base, parts[1].iov_len};
        fp_conn_send(engine, conn, frames, count);
        return true;
    }
    if (!conn->rest)
        return gather(engine, conn, parts, count);
    return conn->rest->size - conn->rest->done + size <= bound && append_rest(conn, parts, count);
}

static bool put_frame(fp_engine *engine, fp_conn *conn, uint8_t opcode, const uint8_t *data, size_t size, size_t bound)
{
    uint8_t head[FP_SERVER_HEADER_MAX];
    struct iovec parts[2] = {{head, fp_frame_header(head, opcode, size)}, {(void *)data, size}};
    engine->stats.frames_sent++;
    return put(engine, conn, parts, 2, bound);
}

/* A close frame, then our half of the stream ends; what still comes is discarded for a while, so that the frame is not
 * lost to a reset. */
static void put_close(fp_engine *engine, fp_conn *conn, uint16_t code, const void *reason, size_t size, fp_state state)
{
    uint8_t payload[FP_CONTROL_MAX];
    size_t used = 0;
    if (conn->leaving)
        state = FP_LINGER; /* the peer's half is done: nobody's answer is waited for */
    conn->leaving = 0;
    hold(engine, conn, false);
    if (code != 1005) {
        payload[0] = (uint8_t)(code >> 8);
        payload[1] = (uint8_t)code;
        size = size < FP_CONTROL_MAX - 2 ? size : FP_CONTROL_MAX - 2;
        if (size)
            memcpy(payload + 2, reason, size);
        used = 2 + size;
    }
    if (conn->state == FP_OPEN)
        engine->stats.open--;
    fp_audience_leave_all(engine, conn);
    conn->missed = 0;
    conn->state = (uint8_t)state;
    put_frame(engine, conn, FP_OP_CLOSE, payload, used, SIZE_MAX);
    if (state == FP_LINGER) {
        conn->ending = 1;
        drop_stream(conn);
        drop_kept(engine, conn);
    }
    arm(engine, conn, engine->now_ms + (state == FP_LINGER && !conn->rest ? FP_LINGER_MS : FP_CLOSE_MS));
}

/* Our half of the stream ends once everything is written; for a while we wait for the other. */
static void linger(fp_engine *engine, fp_conn *conn)
{
    conn->state = FP_LINGER;
    conn->ending = 1;
    hold(engine, conn, false);
    drop_stream(conn);
    drop_kept(engine, conn);
    if (!conn->rest && conn->pending == FP_NONE)
        shut(engine, conn);
    arm(engine, conn, engine->now_ms + (conn->rest ? FP_CLOSE_MS : FP_LINGER_MS));
}

void fp_engine_send(fp_engine *engine)
{
    for (uint32_t i = 0; i < engine->leaver_count; i++) {
        const fp_leaver *leaver = &engine->leavers[i];
        fp_conn *conn = fp_engine_conn(engine, leaver->handle);
        if (conn && conn->leaving)
            put_close(engine, conn, leaver->code, leaver->reason, strlen(leaver->reason), FP_LINGER);
    }
    engine->leaver_count = 0;
    engine->turn++;
    send_gathered(engine);
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

/* Nothing more is taken from an open connection. Its owner may still answer what came before: the close frame is put
 * behind that, at the end of the turn. */
static void leave(fp_engine *engine, fp_conn *conn, fp_end how, uint16_t code, const char *reason)
{
    conn->leaving = 1;
    fp_audience_leave_all(engine, conn);
    drop_stream(conn);
    engine->hooks.ended(engine->hooks.context, fp_engine_handle(engine, conn), how, code);
    if (reserve((void **)&engine->leavers, &engine->leaver_capacity, engine->leaver_count + 1, sizeof(fp_leaver)))
        engine->leavers[engine->leaver_count++] =
            (fp_leaver){.handle = fp_engine_handle(engine, conn), .reason = reason, .code = code};
    else
        put_close(engine, conn, code, reason, strlen(reason), FP_LINGER);
}

static void violate(fp_engine *engine, fp_conn *conn, uint16_t code, const char *reason)
{
    if (conn->state == FP_OPEN)
        leave(engine, conn, FP_VIOLATION, code, reason);
    else
        linger(engine, conn); /* section 5.5.1: nothing follows the close frame that we sent */
}

/* False when the connection no longer takes frames. */
static bool take_control(fp_engine *engine, fp_conn *conn, const fp_event *event)
{
    if (event->opcode == FP_OP_PING && conn->state == FP_OPEN) {
        fp_handle handle = fp_engine_handle(engine, conn);
        if (conn->spoke == engine->turn && engine->hooks.ping) /* its pong comes behind the answers to what it said before */
            engine->hooks.ping(engine->hooks.context, handle, event->data, event->size);
        else
            fp_engine_pong(engine, handle, event->data, event->size);
    }
    if (event->opcode != FP_OP_CLOSE)
        return true;
    uint16_t code;
    uint16_t wrong = fp_close_check(event->data, event->size, &code);
    if (conn->state == FP_CLOSING) { /* the answer to our own */
        linger(engine, conn);
    } else if (wrong) {
        violate(engine, conn, wrong, "bad close frame");
    } else {
        leave(engine, conn, FP_CLOSED, code, ""); /* section 5.5.1: echo the code */
    }
    return false;
}

/* ---- messages that are answered here ---- */

static uint64_t hash_around(const fp_engine *engine, const uint8_t *data, size_t size, size_t from, size_t span)
{
    uint8_t copy[FP_LEARNT_MAX];
    memcpy(copy, data, size);
    memset(copy + from, 0, span);
    return fp_siphash(engine->key, copy, size);
}

static bool is_number(const uint8_t *data, size_t size)
{
    if (size && data[0] == '0')
        return false;
    for (size_t i = 0; i < size; i++)
        if (data[i] < '0' || data[i] > '9')
            return false;
    return true;
}

/* Whether this message of an open connection was answered with what stands. `quiet`: it came after a silence. */
static bool answered(fp_engine *engine, fp_conn *conn, const fp_event *event, bool quiet)
{
    const fp_learnt *learnt = &conn->learnt;
    const fp_standing *standing = &engine->standing[conn->variant];
    if (!quiet || !learnt->size || learnt->size != event->size || event->compressed || conn->rest ||
        event->opcode != (conn->text ? FP_OP_TEXT : FP_OP_BINARY) || engine->now_ms >= standing->until_ms ||
        (learnt->digits && !is_number(event->data + learnt->from, learnt->span)) ||
        hash_around(engine, event->data, event->size, learnt->from, learnt->span) != learnt->hash)
        return false;
    if (!fp_engine_write(engine, fp_engine_handle(engine, conn), standing->data, standing->size, FP_ARENA_MAX))
        return false;
    engine->stats.answered++;
    return true;
}

/* Bytes of an open connection: in place where whole frames came, else through the connection's own stream. Returns how
 * many are left for the next visit. */
static size_t feed(fp_engine *engine, fp_conn *conn, uint8_t *data, size_t size)
{
    if (conn->leaving)
        return 0;
    fp_stream local;
    fp_stream *stream = conn->stream;
    if (!stream) {
        memset(&local, 0, offsetof(fp_stream, control));
        local.deflate = conn->deflate;
        stream = &local;
    }
    fp_handle handle = fp_engine_handle(engine, conn);
    bool heard = false;
    unsigned messages = 0;
    size_t bytes = 0;
    fp_event event;
    for (;;) {
        fp_result result = fp_stream_next(stream, &engine->config.limits, &data, &size, &event);
        if (result == FP_MESSAGE) {
            bool quiet = engine->config.quiet_ms && engine->now_ms - conn->heard_ms >= engine->config.quiet_ms;
            heard = true;
            conn->heard_ms = engine->now_ms; /* now: the end that this read may bring is told with it */
            conn->quiet = quiet;
            engine->stats.frames_received++;
            if (conn->state == FP_OPEN && !answered(engine, conn, &event, quiet)) {
                conn->spoke = engine->turn;
                engine->hooks.message(engine->hooks.context, handle,
                                      event.compressed ? event.opcode | FP_COMPRESSED : event.opcode, event.data,
                                      event.size);
            }
            bytes += event.size;
            if (conn->state == FP_OPEN && size && (++messages == FP_VISIT_MESSAGES || bytes >= FP_VISIT_BYTES))
                break;
        } else if (result == FP_CONTROL) {
            heard = true;
            conn->heard_ms = engine->now_ms;
            if (!take_control(engine, conn, &event))
                break;
        } else if (result == FP_ROOM) {
            /* In step with the bytes that came, never with a length that was announced. */
            size_t room = event.size > 2 * stream->capacity ? event.size : 2 * stream->capacity;
            uint8_t *moved = realloc(stream->buffer, room);
            if (!moved) {
                violate(engine, conn, 1011, "out of memory");
                break;
            }
            stream->buffer = moved;
            stream->capacity = room;
        } else {
            if (result == FP_ERROR)
                violate(engine, conn, event.close_code, event.reason);
            break;
        }
    }
    if (conn->state == FP_LINGER || conn->leaving) { /* conn->stream is dropped already */
        if (stream == &local)
            free(local.buffer);
        return 0;
    }
    if (heard && conn->state == FP_OPEN && !conn->rest)
        arm(engine, conn, engine->now_ms + engine->config.heartbeat_timeout_ms);
    if (fp_stream_idle(stream)) {
        if (stream == &local)
            free(local.buffer);
        else
            drop_stream(conn);
    } else if (stream == &local) {
        conn->stream = malloc(sizeof *stream);
        if (conn->stream)
            *conn->stream = local;
        else
            free(local.buffer), violate(engine, conn, 1011, "out of memory");
    }
    return size;
}

/* These bytes are taken up in a later turn: when the socket takes answers, or when the carrier says so. */
static void keep(fp_engine *engine, fp_conn *conn, const uint8_t *data, size_t size)
{
    fp_kept *before = conn->kept;
    size_t had = before ? before->size - before->done : 0;
    fp_kept *kept = malloc(sizeof *kept + had + size);
    if (!kept) {
        end(engine, conn, FP_LOST, 1006);
        return;
    }
    kept->done = 0;
    kept->size = had + size;
    if (had)
        memcpy(kept->data, before->data + before->done, had);
    memcpy(kept->data + had, data, size);
    free(before);
    conn->kept = kept;
    if (!before && !conn->rest)
        watch(engine, conn, EPOLL_CTL_MOD, EPOLLOUT);
}

/* Take up what the last visit left. */
static void go_on(fp_engine *engine, fp_conn *conn)
{
    fp_kept *kept = conn->kept;
    uint8_t *data = kept->data + kept->done;
    size_t size = kept->size - kept->done, left = 0;
    conn->kept = NULL;
    if (conn->state == FP_HTTP)
        engine->hooks.request(engine->hooks.context, fp_engine_handle(engine, conn), data, size);
    else
        left = feed(engine, conn, data, size);
    if (left) {
        kept->done = kept->size - left;
        conn->kept = kept;
        return;
    }
    free(kept);
    if (!conn->rest)
        watch(engine, conn, EPOLL_CTL_MOD, interest(conn));
}

/* `size` bytes came into the read buffer. */
static void take(fp_engine *engine, fp_conn *conn, size_t size)
{
    engine->stats.bytes_received += size;
    if (conn->state != FP_LINGER && (conn->kept || conn->held)) { /* only of a carrier: a socket is not read from then */
        keep(engine, conn, engine->read_buffer, size);
    } else if (conn->state == FP_HTTP) {
        engine->hooks.request(engine->hooks.context, fp_engine_handle(engine, conn), engine->read_buffer, size);
    } else if (conn->state == FP_LINGER) {
        conn->discarded += (uint32_t)size;
        if (conn->discarded > FP_LINGER_READ)
            release(engine, conn);
    } else {
        size_t left = feed(engine, conn, engine->read_buffer, size);
        if (left)
            keep(engine, conn, engine->read_buffer + size - left, left);
    }
}

static void read_ready(fp_engine *engine, fp_conn *conn)
{
    size_t room = conn->state == FP_HTTP ? FP_READ_HTTP : conn->stream || conn->state == FP_LINGER ? FP_READ : FP_READ_FIRST;
    ssize_t size = recv(conn->fd, engine->read_buffer, room, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return;
    if (size <= 0)
        end(engine, conn, FP_LOST, 1006);
    else
        take(engine, conn, (size_t)size);
}

/* Nothing waits any more: reading and presence go on. */
static void drained(fp_engine *engine, fp_conn *conn)
{
    free(conn->rest);
    conn->rest = NULL;
    conn->writing = 0;
    engine->stats.lagging--;
    watch(engine, conn, EPOLL_CTL_MOD, interest(conn));
    if (conn->ending) {
        shut(engine, conn);
        arm(engine, conn, engine->now_ms + FP_LINGER_MS);
    } else if (conn->state == FP_OPEN) {
        uint64_t silent_ms = conn->heard_ms + engine->config.heartbeat_timeout_ms, soon_ms = engine->now_ms + FP_TICK_MS;
        arm(engine, conn, silent_ms > soon_ms ? silent_ms : soon_ms); /* what it sent meanwhile is read first */
    }
    if (conn->state == FP_OPEN || conn->state == FP_HTTP)
        engine->hooks.drained(engine->hooks.context, fp_engine_handle(engine, conn), conn->missed, conn->missed_from);
}

/* Nobody takes what there is for it. What it said before is heard as ever, and read before its end is. */
static void hang_up(fp_engine *engine, fp_conn *conn)
{
    if (conn->state != FP_HTTP && conn->state != FP_OPEN) {
        release(engine, conn);
        return;
    }
    conn->gone = 1;
    conn->missed = 0;
    if (conn->rest)
        drained(engine, conn);
}

static void write_ready(fp_engine *engine, fp_conn *conn)
{
    fp_rest *rest = conn->rest;
    ssize_t sent = send(conn->fd, rest->data + rest->done, rest->size - rest->done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
            hang_up(engine, conn);
        return;
    }
    engine->stats.sends++;
    engine->stats.bytes_sent += (uint64_t)sent;
    rest->done += (size_t)sent;
    if (rest->done < rest->size)
        return;
    drained(engine, conn);
}

/* ---- accepting -------------------------------------------------------------------------------------------------- */

static bool grow(fp_engine *engine)
{
    uint32_t capacity = engine->capacity ? engine->capacity * 2 : FP_FIRST;
    fp_conn *conns = realloc(engine->conns, capacity * sizeof *conns);
    if (!conns)
        return false;
    engine->conns = conns;
    fp_timer *timers = realloc(engine->timers, capacity * sizeof *timers);
    if (!timers)
        return false;
    engine->timers = engine->wheel.timers = timers; /* the old ones are gone, whatever comes next */
    uint32_t *slots = realloc(engine->free_slots, capacity * sizeof *slots);
    if (!slots)
        return false;
    engine->free_slots = slots;
    memset(conns + engine->capacity, 0, (capacity - engine->capacity) * sizeof *conns);
    fp_wheel_use(&engine->wheel, timers, engine->capacity, capacity);
    for (uint32_t slot = capacity; slot-- > engine->capacity;)
        slots[engine->free_count++] = slot;
    engine->capacity = capacity;
    return true;
}

/* One connection that we have no room for: say so, where it costs nothing. */
static void refuse(fp_engine *engine, int fd, const char *answer, size_t size)
{
    if (send(fd, answer, size, MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
        shutdown(fd, SHUT_WR);
    recv(fd, engine->read_buffer, FP_READ, MSG_DONTWAIT); /* what is unread at the close would turn the answer into a reset */
    close(fd);
}

static void refuse_full(fp_engine *engine, int fd)
{
    engine->stats.refused++;
    refuse(engine, fd, FULL, sizeof FULL - 1);
}

/* Out of descriptors: the spare one answers those in the queue, then the listener leaves the set until one is free. */
static void refuse_with_spare(fp_engine *engine)
{
    watch_listener(engine, false);
    if (engine->spare_fd < 0)
        return; /* taken from us by somebody else: nobody can be told */
    close(engine->spare_fd);
    for (int i = 0; i < FP_ACCEPTS; i++) {
        int fd = accept4(engine->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            break;
        refuse_full(engine, fd);
    }
    engine->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* The record of a new connection; `fd` -1 for one that is carried. There is a free slot. */
static fp_conn *open_conn(fp_engine *engine, int fd, uint32_t address)
{
    fp_conn *conn = &engine->conns[engine->free_slots[--engine->free_count]];
    uint32_t generation = conn->generation;
    *conn = (fp_conn){
        .fd = fd, .generation = generation, .state = FP_HTTP, .carried = fd < 0, .member = FP_NONE, .pending = FP_NONE,
        .heard_ms = engine->now_ms, .address = address,
    };
    engine->stats.accepted++;
    engine->stats.connections++;
    arm(engine, conn, engine->now_ms + engine->config.connect_timeout_ms);
    return conn;
}

/* False at the limit of connections, or of memory. */
static bool has_room(fp_engine *engine)
{
    return engine->stats.connections < engine->config.connections && (engine->free_count || grow(engine));
}

/* False when this address has all the connections that it may have. */
static bool enter(fp_engine *engine, uint64_t key, uint32_t *place)
{
    bool entered = fp_addresses_enter(&engine->addresses, key, engine->config.per_address, place);
    engine->stats.crowded += !entered;
    return entered;
}

static void accept_ready(fp_engine *engine)
{
    for (int i = 0; i < FP_ACCEPTS; i++) {
        struct sockaddr_storage from;
        socklen_t size = sizeof from;
        bool counts = engine->config.per_address > 0;
        int fd = accept4(engine->listener, counts ? (struct sockaddr *)&from : NULL, counts ? &size : NULL,
                         SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
                refuse_with_spare(engine);
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            return;
        }
        if (!has_room(engine)) {
            refuse_full(engine, fd);
            continue;
        }
        uint64_t key;
        uint32_t place = FP_NO_PLACE;
        if (counts && fp_address_key((struct sockaddr *)&from, &key) && !enter(engine, key, &place)) {
            refuse(engine, fd, CROWDED, sizeof CROWDED - 1);
            continue;
        }
        watch(engine, open_conn(engine, fd, place), EPOLL_CTL_ADD, EPOLLIN);
    }
}

/* ---- the turn --------------------------------------------------------------------------------------------------- */

int fp_engine_poll(fp_engine *engine)
{
    struct epoll_event events[FP_EVENTS];
    int count = epoll_wait(engine->epoll_fd, events, FP_EVENTS, 0);
    if (count < 0)
        return errno == EINTR ? 0 : -errno;
    engine->now_ms = fp_now_ms();
    for (int i = 0; i < count; i++) {
        if (events[i].data.u64 == LISTENER) {
            accept_ready(engine);
            continue;
        }
        fp_conn *conn = fp_engine_conn(engine, events[i].data.u64);
        if (!conn)
            continue; /* went earlier in this batch */
        if (conn->writing) {
            if (events[i].events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP))
                hang_up(engine, conn);
            else if (events[i].events & EPOLLOUT)
                write_ready(engine, conn);
        }
        /* What it said is taken up at once when nothing waits for it any more: it may be full again in the next turn, and
         * so for ever. That it may be gone is read behind that; of one that is held, when it is let go. */
        if (conn->state == FP_FREE || conn->writing || conn->held)
            continue;
        if (conn->kept)
            go_on(engine, conn);
        else
            read_ready(engine, conn);
    }
    return count;
}

/* Whether something of it was not read yet, by us or by its owner: a frame, perhaps. */
static bool is_unheard(const fp_conn *conn)
{
    uint8_t first;
    if (conn->held || conn->kept)
        return true;
    if (conn->carried)
        return conn->rest; /* its holder does not read then */
    return recv(conn->fd, &first, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
}

static void run_out(fp_engine *engine, fp_conn *conn)
{
    fp_handle handle = fp_engine_handle(engine, conn);
    if (conn->state != FP_OPEN) {
        end(engine, conn, FP_UNFINISHED, 1006);
    } else if (conn->rest && engine->now_ms >= conn->rest->since_ms + engine->config.lag_time_ms) {
        engine->hooks.ended(engine->hooks.context, handle, FP_LAGGED, 4009);
        put_close(engine, conn, 4009, "too slow for too long", 21, FP_CLOSING);
    } else if (engine->now_ms < conn->heard_ms + engine->config.heartbeat_timeout_ms) {
        arm_open(engine, conn);
    } else if (is_unheard(conn)) {
        bool waits = conn->rest && !conn->held; /* what it said is read no sooner than when it has drained */
        arm(engine, conn, waits ? conn->rest->since_ms + engine->config.lag_time_ms : engine->now_ms + FP_TICK_MS);
    } else {
        engine->hooks.ended(engine->hooks.context, handle, FP_SILENT, 4008);
        put_close(engine, conn, 4008, "heartbeat timeout", 17, FP_CLOSING);
    }
}

bool fp_engine_advance(fp_engine *engine)
{
    uint32_t due[FP_RUN_OUTS];
    if (engine->epoll_fd < 0)
        return false; /* given back already: there is no wheel any more */
    engine->now_ms = fp_now_ms();
    size_t count = fp_wheel_advance(&engine->wheel, engine->now_ms, due, FP_RUN_OUTS);
    for (size_t i = 0; i < count; i++)
        if (engine->conns[due[i]].state != FP_FREE)
            run_out(engine, &engine->conns[due[i]]);
    /* Descriptors may have come free elsewhere. */
    if (engine->spare_fd < 0)
        engine->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    watch_listener(engine, true);
    return count == FP_RUN_OUTS;
}

/* ---- decisions -------------------------------------------------------------------------------------------------- */

void fp_engine_upgrade(fp_engine *engine, fp_handle handle, bool text, bool deflate, uint8_t variant, const uint8_t *after,
                       size_t size)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || conn->state != FP_HTTP)
        return;
    conn->state = FP_OPEN;
    conn->text = text;
    conn->deflate = deflate;
    conn->variant = variant < FP_VARIANTS ? variant : 0;
    conn->heard_ms = engine->now_ms;
    engine->stats.open++;
    arm_open(engine, conn);
    if (size && size <= FP_READ) {
        memcpy(engine->read_buffer, after, size); /* unmasking needs bytes of our own */
        size_t left = feed(engine, conn, engine->read_buffer, size);
        if (left)
            keep(engine, conn, engine->read_buffer + size - left, left);
    }
}

bool fp_engine_write(fp_engine *engine, fp_handle handle, const uint8_t *data, size_t size, size_t bound)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || (conn->state != FP_HTTP && conn->state != FP_OPEN))
        return false;
    fp_flush_settle(engine, conn);
    struct iovec part = {(void *)data, size};
    return put(engine, conn, &part, 1, bound);
}

bool fp_engine_answer(fp_engine *engine, fp_handle handle, const uint8_t *data, size_t size, bool compressed, size_t bound)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || conn->state != FP_OPEN)
        return false;
    fp_flush_settle(engine, conn);
    uint8_t opcode = conn->text ? FP_OP_TEXT : FP_OP_BINARY;
    return put_frame(engine, conn, compressed ? opcode | FP_COMPRESSED : opcode, data, size, bound);
}

void fp_engine_stand(fp_engine *engine, uint8_t variant, const uint8_t *frames, size_t size, uint64_t until_ms)
{
    if (variant >= FP_VARIANTS)
        return;
    fp_standing *standing = &engine->standing[variant];
    bool fits = size <= FP_STANDING_MAX;
    standing->size = fits ? (uint32_t)size : 0;
    standing->until_ms = fits ? until_ms : 0;
    if (fits && size)
        memcpy(standing->data, frames, size);
}

bool fp_engine_give_standing(fp_engine *engine, fp_handle handle)
{
    const fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || conn->state != FP_OPEN)
        return false;
    const fp_standing *standing = &engine->standing[conn->variant];
    fp_engine_write(engine, handle, standing->data, standing->size, FP_ARENA_MAX);
    return conn->quiet;
}

void fp_engine_learn(fp_engine *engine, fp_handle handle, const uint8_t *message, size_t size, size_t from, size_t span,
                     bool digits)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || !size || size > FP_LEARNT_MAX || from > size || span > size - from || span > UINT8_MAX)
        return;
    conn->learnt = (fp_learnt){
        .hash = hash_around(engine, message, size, from, span),
        .size = (uint16_t)size, .from = (uint16_t)from, .span = (uint8_t)span, .digits = digits,
    };
}

void fp_engine_pong(fp_engine *engine, fp_handle handle, const uint8_t *data, size_t size)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (conn && conn->state == FP_OPEN)
        put_frame(engine, conn, FP_OP_PONG, data, size, FP_ARENA_MAX);
}

bool fp_engine_tell(fp_engine *engine, fp_handle handle, const uint8_t *frame, size_t size)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || conn->state != FP_OPEN)
        return false;
    if (conn->rest || conn->missed) {
        if (!conn->missed) {
            conn->missed = 1;
            conn->missed_from = engine->told;
        }
        engine->stats.skipped++;
        return false;
    }
    fp_flush_settle(engine, conn);
    struct iovec part = {(void *)frame, size};
    engine->stats.frames_sent++;
    engine->stats.deliveries++;
    return put(engine, conn, &part, 1, SIZE_MAX);
}

void fp_engine_caught_up(fp_engine *engine, fp_handle handle)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn)
        return;
    conn->missed = 0;
    conn->run = engine->run; /* what it was just told is newer than a flush that runs now */
}

void fp_engine_close(fp_engine *engine, fp_handle handle, uint16_t code, const uint8_t *reason, size_t size)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || conn->state != FP_OPEN)
        return;
    if (conn->gone)
        release(engine, conn);
    else
        put_close(engine, conn, code, reason, size, FP_CLOSING);
}

void fp_engine_finish(fp_engine *engine, fp_handle handle)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || conn->state != FP_HTTP)
        return;
    if (conn->gone)
        release(engine, conn);
    else
        linger(engine, conn);
}

void fp_engine_hold(fp_engine *engine, fp_handle handle, bool held)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (conn)
        hold(engine, conn, held);
}

size_t fp_engine_waiting(fp_engine *engine, fp_handle handle)
{
    const fp_conn *conn = fp_engine_conn(engine, handle);
    return conn ? conn->pending_size + (conn->rest ? conn->rest->size - conn->rest->done : 0) : 0;
}

void fp_engine_abort(fp_engine *engine, fp_handle handle)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (conn)
        release(engine, conn);
}

void fp_engine_await_request(fp_engine *engine, fp_handle handle)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (conn && conn->state == FP_HTTP)
        arm(engine, conn, engine->now_ms + engine->config.connect_timeout_ms);
}

/* ---- connections that are carried ------------------------------------------------------------------------------- */

bool fp_engine_adopt(fp_engine *engine, const char *address, fp_handle *handle)
{
    engine->now_ms = fp_now_ms();
    if (!has_room(engine)) {
        engine->stats.refused++;
        return false;
    }
    uint64_t key;
    uint32_t place = FP_NO_PLACE;
    if (engine->config.per_address && fp_address_parse(address, &key) && !enter(engine, key, &place))
        return false;
    *handle = fp_engine_handle(engine, open_conn(engine, -1, place));
    return true;
}

void fp_engine_feed(fp_engine *engine, fp_handle handle, const uint8_t *data, size_t size)
{
    engine->now_ms = fp_now_ms();
    while (size) {
        fp_conn *conn = fp_engine_conn(engine, handle);
        if (!conn || !conn->carried)
            return;
        size_t part = size < FP_READ ? size : FP_READ;
        memcpy(engine->read_buffer, data, part); /* unmasking needs bytes of our own */
        take(engine, conn, part);
        data += part;
        size -= part;
    }
}

bool fp_engine_go_on(fp_engine *engine, fp_handle handle)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || !conn->carried || conn->rest || conn->held || (!conn->kept && !conn->gone))
        return false;
    if (conn->kept)
        go_on(engine, conn);
    else
        end(engine, conn, FP_LOST, 1006);
    return true;
}

void fp_engine_full(fp_engine *engine, fp_handle handle)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || !conn->carried || conn->rest || conn->gone)
        return;
    /* An empty rest stands for a full buffer: from here on everything waits as it does for a full socket. */
    conn->rest = calloc(1, sizeof *conn->rest);
    if (!conn->rest)
        return;
    conn->rest->since_ms = engine->now_ms;
    engine->stats.lagging++;
    if (conn->state == FP_OPEN)
        arm_open(engine, conn);
}

void fp_engine_drained(fp_engine *engine, fp_handle handle)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || !conn->carried || !conn->rest)
        return;
    fp_rest *rest = conn->rest;
    if (rest->size > rest->done) {
        struct iovec piece = {rest->data + rest->done, rest->size - rest->done};
        engine->stats.bytes_sent += piece.iov_len;
        rest->done = rest->size;
        engine->hooks.carry(engine->hooks.context, handle, &piece, 1);
    }
    drained(engine, conn);
}

void fp_engine_lost(fp_engine *engine, fp_handle handle)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (conn && conn->carried)
        hang_up(engine, conn);
}

/* ---- birth and end ---------------------------------------------------------------------------------------------- */

int fp_engine_init(fp_engine *engine, const fp_config *config, const fp_hooks *hooks)
{
    memset(engine, 0, sizeof *engine);
    engine->config = *config;
    engine->hooks = *hooks;
    engine->listener = engine->spare_fd = -1;
    engine->free_member = engine->free_audience = FP_NONE;
    engine->turn = 1; /* a new connection has spoken in turn 0 */
    engine->now_ms = fp_now_ms();
    engine->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (engine->epoll_fd < 0)
        return -errno;
    engine->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    engine->read_buffer = malloc(FP_READ);
    if (!engine->read_buffer)
        return -ENOMEM;
    if (getrandom(engine->key, sizeof engine->key, GRND_NONBLOCK) != sizeof engine->key)
        engine->config.quiet_ms = 0; /* without a key nothing is learnt */
    fp_wheel_init(&engine->wheel, engine->heads, FP_WHEEL_SLOTS, FP_TICK_MS, engine->now_ms);
    return 0;
}

int fp_engine_listen(fp_engine *engine, int fd)
{
    int one = 1, size = (int)(engine->config.send_buffer / 2); /* socket(7): the kernel doubles it for its own records */
    /* Accepted sockets inherit both: two system calls less for each. */
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) < 0)
        return -errno;
    engine->listener = fd;
    watch_listener(engine, true);
    return 0;
}

void fp_engine_stop_listening(fp_engine *engine)
{
    watch_listener(engine, false);
    engine->listener = -1;
}

void fp_engine_free(fp_engine *engine)
{
    fp_engine_stop_listening(engine);
    for (uint32_t slot = 0; slot < engine->capacity; slot++)
        if (engine->conns[slot].state != FP_FREE)
            release(engine, &engine->conns[slot]);
    for (uint32_t audience = 0; audience < engine->audience_count; audience++)
        free(engine->audiences[audience].members);
    if (engine->epoll_fd >= 0)
        close(engine->epoll_fd);
    if (engine->spare_fd >= 0)
        close(engine->spare_fd);
    free(engine->conns);
    free(engine->timers);
    free(engine->free_slots);
    free(engine->read_buffer);
    free(engine->arena);
    free(engine->pieces);
    free(engine->touched);
    free(engine->leavers);
    free(engine->audiences);
    free(engine->members);
    fp_addresses_free(&engine->addresses);
    memset(engine, 0, sizeof *engine);
    engine->epoll_fd = engine->listener = engine->spare_fd = -1;
    engine->free_member = engine->free_audience = FP_NONE;
}
