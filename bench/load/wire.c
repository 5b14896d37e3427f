/* Links: connect, upgrade, frames out (masked, one send each) and in (by their heads, however the reads fall).
 *
 *   CLOSED -> CONNECTING -> UPGRADING -> GREETING -> READY        (GREETING is skipped at the C server)
 *
 * GREETING at the real server: a PRESENT link has said user_online and waits for its ack; an OBSERVER waits for the
 * last frame of its snapshot, the one with the cursor; in a storm a PRESENT link waits for both. What comes before is
 * read and passed over.
 */
#define _GNU_SOURCE
#include "swarm.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    READ_SIZE = 256 * 1024,
    COMPRESSED = 0x40, /* RSV1, RFC 7692, 7.2.3.1 */
    FRAME_MAX = 1024 * 1024, /* bytes: no server of ours sends more in one frame */
    SEND_MAX = 66 * 1024,
    FROZEN_BUFFER = 16 * 1024, /* bytes, of a reader that will stop: what it does not take waits at the server */
};

#define DEFLATE "permessage-deflate"

struct waiting {
    uint32_t length;
    uint8_t bytes[];
};

static int epoll_fd;
static uint8_t buffer[READ_SIZE + FRAME_MAX + 16];
static char **names; /* token, user, token, user, ... */
static uint32_t name_count;

extern const struct mode *mode;

void wire_init(int fd)
{
    epoll_fd = fd;
}

/* Reads `token user_id` lines. Without a file everybody is `user_N` with a token that nobody checks. */
void wire_tokens(void)
{
    if (!options.tokens)
        return;
    FILE *file = fopen(options.tokens, "r");
    if (!file)
        die("%s: %s", options.tokens, strerror(errno));
    char *line = NULL;
    size_t size = 0, capacity = 0;
    while (getline(&line, &size, file) > 0) {
        char *space = strchr(line, ' ');
        if (!space)
            die("%s: a line is `token user_id`", options.tokens);
        *space = 0;
        space[1 + strcspn(space + 1, "\r\n")] = 0;
        if (name_count == capacity) {
            capacity = capacity ? 2 * capacity : 1024;
            names = realloc(names, capacity * 2 * sizeof *names);
            if (!names)
                die("out of memory");
        }
        names[2 * name_count] = strdup(line);
        names[2 * name_count++ + 1] = strdup(space + 1);
    }
    free(line);
    fclose(file);
}

uint32_t token_count(void)
{
    return name_count;
}

void link_name(struct link *link, uint32_t token)
{
    if (name_count) {
        if (token >= name_count)
            die("%u tokens are not enough", name_count);
        link->token = names[2 * token];
        link->user = names[2 * token + 1];
        return;
    }
    char text[32];
    snprintf(text, sizeof text, "user_%u", token);
    free((char *)link->user);
    link->user = strdup(text);
    link->token = "none";
}

static void arm(struct link *link, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = link};
    if (epoll_ctl(epoll_fd, operation, link->fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

void link_connect(struct link *link)
{
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1;
    link->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (link->fd < 0)
        die("socket: %s", strerror(errno));
    setsockopt(link->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (is_freezing(link)) {
        int size = FROZEN_BUFFER;
        setsockopt(link->fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    }
    if (connect(link->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
        die("connect: %s", strerror(errno));
    link->phase = CONNECTING;
    connecting_count++;
    link->leaving = link->has_ack = link->has_snapshot = false;
    arm(link, EPOLL_CTL_ADD, EPOLLOUT);
}

static void forget(struct link *link)
{
    close(link->fd);
    link->fd = -1;
    free(link->in);
    link->in = NULL;
    if (link->phase == READY)
        ready_count--;
    connecting_count -= link->phase == CONNECTING;
    link->phase = CLOSED;
}

void link_cut(struct link *link)
{
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    setsockopt(link->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    forget(link);
}

bool is_freezing(const struct link *link)
{
    return link->index >= link_count - options.freezing;
}

void link_freeze(struct link *link, bool frozen)
{
    if (frozen) {
        if (epoll_ctl(epoll_fd, EPOLL_CTL_DEL, link->fd, NULL) < 0)
            die("epoll_ctl: %s", strerror(errno));
    } else {
        arm(link, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void lost(struct link *link, const char *why)
{
    if (!link->leaving) {
        if (counters.lost++ < 3)
            fprintf(stderr, "swarm: link %u lost in phase %d: %s\n", link->index, link->phase, why);
        if (link->phase != READY)
            die("a link could not be brought up");
    }
    link_cut(link);
}

static void send_frame(struct link *link, uint8_t opcode, const char *payload, size_t length)
{
    static uint8_t out[SEND_MAX];
    static uint32_t key = 0x9e3779b9;
    size_t head = 2;
    if (length + 16 > SEND_MAX)
        die("a frame of %zu bytes is more than the swarm sends", length);
    out[0] = 0x80 | opcode;
    if (length < 126) {
        out[1] = (uint8_t)(0x80 | length);
    } else {
        out[1] = 0x80 | 126, out[2] = (uint8_t)(length >> 8), out[3] = (uint8_t)length;
        head = 4;
    }
    key = key * 1664525 + 1013904223;
    memcpy(out + head, &key, 4);
    head += 4;
    uint64_t key64 = (uint64_t)key << 32 | key, word;
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        memcpy(&word, payload + i, 8);
        word ^= key64;
        memcpy(out + head + i, &word, 8);
    }
    for (; i < length; i++)
        out[head + i] = (uint8_t)payload[i] ^ ((uint8_t *)&key)[i & 3];
    ssize_t sent = send(link->fd, out, head + length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent == (ssize_t)(head + length)) {
        counters.sent++;
        return;
    }
    if (sent >= 0 || errno == EAGAIN)
        die("the server does not read: link %u", link->index);
    /* A reset: the next read of this link says so. */
}

void link_send(struct link *link, const char *payload, size_t length)
{
    send_frame(link, 1, payload, length);
}

void link_bytes(struct link *link, const void *payload, size_t length)
{
    send_frame(link, 2, payload, length);
}

void link_say(struct link *link, const char *type, const char *extra)
{
    char text[512];
    int size = snprintf(text, sizeof text,
                        "{\"type\":\"%s\",\"user_id\":\"%s\",\"user_type\":\"%s\",%s\"timestamp\":%lld}", type,
                        link->user, strncmp(link->user, "kol", 3) ? "user" : "kol", extra, (long long)time(NULL));
    if (size < 0 || (size_t)size >= sizeof text)
        die("a user's name is too long");
    send_frame(link, 1, text, (size_t)size);
}

void link_goodbye(struct link *link)
{
    if (link->phase == CLOSED)
        return;
    link->leaving = true;
    send_frame(link, 8, "\x03\xe8", 2);
}

static void request_upgrade(struct link *link)
{
    char text[4096];
    char path[2048], protocol[128] = "";
    bool everyone = link->role == OBSERVER || options.distinct ||
                    (options.publishers_public && link->index < options.publishers);
    snprintf(path, sizeof path, "%s", dialect->path);
    if (options.real)
        snprintf(path, sizeof path, "/ws?token=%s&public=%d", link->token, everyone || !options.publishers);
    if (options.real || dialect->protocol)
        snprintf(protocol, sizeof protocol, "Sec-WebSocket-Protocol: %s\r\n",
                 options.real ? "fastpresence.v1.json" : dialect->protocol);
    int size = snprintf(text, sizeof text,
                        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                        "Sec-WebSocket-Version: 13\r\n%s%s\r\n",
                        path, options.port, protocol,
                        options.deflate ? "Sec-WebSocket-Extensions: " DEFLATE "; client_no_context_takeover\r\n" : "");
    if (size < 0 || (size_t)size >= sizeof text)
        die("a token is too long");
    if (send(link->fd, text, (size_t)size, MSG_NOSIGNAL) != size)
        die("send: %s", strerror(errno));
    link->phase = UPGRADING;
    connecting_count--;
    arm(link, EPOLL_CTL_MOD, EPOLLIN);
}

static void become_ready(struct link *link)
{
    link->phase = READY;
    ready_count++;
    mode->ready(link);
}

static void say_online(struct link *link)
{
    char extra[64];
    snprintf(extra, sizeof extra, options.device ? "\"id\":1,\"device\":\"%s\"," : "\"id\":1,", options.device);
    link_say(link, "user_online", extra);
}

static void upgraded(struct link *link)
{
    link->phase = GREETING;
    if (!options.real && !dialect->join)
        become_ready(link);
    else if (!options.real)
        dialect->join(link);
    else if (link->role == PRESENT)
        say_online(link);
}

static void greeting(struct link *link, const struct frame *frame)
{
    if (!options.real) {
        if (dialect->joined(frame))
            become_ready(link);
        return;
    }
    if (frame->kind == ERROR)
        die("the server refused: %.*s", (int)frame->text_length, (const char *)frame->text);
    if (frame->kind == STATUS && frame->full && frame->entry_count < options.snapshot)
        die("a snapshot of %u entries, not %u", frame->entry_count, options.snapshot);
    link->has_ack |= frame->kind == ACK;
    link->has_snapshot |= frame->kind == STATUS && frame->has_cursor;
    if ((link->has_ack || link->role != PRESENT) && (link->has_snapshot || (link->role == PRESENT && !options.snapshot)))
        become_ready(link);
}

/* One complete frame of the server. */
static void take(struct link *link, uint8_t first, const uint8_t *payload, uint32_t length)
{
    if ((first & 15) == 8) {
        char why[64];
        snprintf(why, sizeof why, "closed with %d", length < 2 ? 1005 : payload[0] << 8 | payload[1]);
        lost(link, why);
        return;
    }
    if ((first & 15) >= 8)
        return; /* the server of the protocol sends no pings */
    if (!(first & 0x80) || !(first & 15))
        die("a fragmented frame: none of the servers sends one");
    const struct frame *frame = decode(payload, length, first & COMPRESSED);
    counters.compressed += frame->compressed;
    if (link->phase == GREETING) {
        greeting(link, frame);
    } else {
        if (frame->kind == ERROR && counters.errors++ < 3)
            fprintf(stderr, "swarm: %.*s\n", (int)frame->text_length, (const char *)frame->text);
        mode->frame(link, frame);
    }
}

/* Takes the complete frames of `bytes`; how many bytes that was. The link may be closed afterwards. */
static size_t take_frames(struct link *link, const uint8_t *bytes, size_t size)
{
    size_t at = 0;
    while (link->phase >= GREETING && size - at >= 2) {
        const uint8_t *p = bytes + at;
        size_t head = 2;
        uint64_t length = p[1] & 127;
        if (length == 126) {
            if (size - at < 4)
                break;
            length = (uint64_t)p[2] << 8 | p[3], head = 4;
        } else if (length == 127) {
            if (size - at < 10)
                break;
            length = 0, head = 10;
            for (int i = 0; i < 8; i++)
                length = length << 8 | p[2 + i];
        }
        if (p[1] & 0x80 || p[0] & 0x70 & ~(options.deflate ? COMPRESSED : 0) || length > FRAME_MAX)
            die("not a frame that was agreed on: %02x %02x", p[0], p[1]);
        if (size - at < head + length)
            break;
        at += head + (size_t)length;
        take(link, p[0], p + head, (uint32_t)length);
    }
    return at;
}

static void readable(struct link *link)
{
    size_t size = 0, at = 0;
    if (link->in) {
        size = link->in->length;
        memcpy(buffer, link->in->bytes, size);
    }
    ssize_t got = recv(link->fd, buffer + size, READ_SIZE, MSG_DONTWAIT);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            lost(link, got == 0 ? "end of stream" : strerror(errno));
        return;
    }
    /* An ACK for each small read would be a quarter of the swarm's time: it waits for company (tcp(7)), as a client's
     * that talks does. The server's CPU time is the same either way. */
    setsockopt(link->fd, IPPROTO_TCP, TCP_QUICKACK, &(int){0}, sizeof(int));
    size += (size_t)got;
    if (link->phase == UPGRADING) {
        const uint8_t *end = memmem(buffer, size, "\r\n\r\n", 4);
        if (end) {
            if (memcmp(buffer, "HTTP/1.1 101", 12) != 0)
                die("the upgrade was refused: %.*s", (int)(size < 400 ? size : 400), (const char *)buffer);
            if (options.deflate && !memmem(buffer, size, DEFLATE, sizeof DEFLATE - 1))
                die("the server did not take up " DEFLATE);
            at = (size_t)(end + 4 - buffer);
            upgraded(link);
        }
    }
    if (link->phase >= GREETING)
        at += take_frames(link, buffer + at, size - at);
    free(link->in);
    link->in = NULL;
    if (link->phase != CLOSED && at < size) {
        link->in = malloc(sizeof *link->in + size - at);
        if (!link->in)
            die("out of memory");
        link->in->length = (uint32_t)(size - at);
        memcpy(link->in->bytes, buffer + at, size - at);
    }
}

void link_event(struct link *link, uint32_t events)
{
    if (link->phase == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(link->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error)
            die("connect: %s", strerror(error));
        if (events & EPOLLOUT)
            request_upgrade(link);
    } else if (link->phase != CLOSED) {
        readable(link);
    }
}
