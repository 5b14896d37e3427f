/* What does a WebSocket server cost that does nothing at all? The limit every load figure is a ratio to.
 *
 * Plain C on epoll: upgrade, echo, broadcast to all, nothing else. One thread, level-triggered, one read buffer shared
 * by every connection, 24 bytes of user memory for a connection at rest (and 4 in the list of the open ones).
 *
 *   any request for an upgrade      -> 101; of the subprotocols offered it takes fastpresence.v1.json
 *   a text or binary frame          -> the same back; the echoes of one read leave in one send
 *   one whose first byte is `!`     -> the whole message to every open connection, sender included: one frame, built
 *                                      once, one send(2) each, at once. Broadcasts are never joined with each other,
 *                                      but with --join all of one turn leave at its end, in one send(2) each.
 *   ping, close                     -> pong, close
 *
 * Leaves out, on purpose, what a real server owes: tokens, timeouts, UTF-8 and origin checks, limits on strangers.
 * A message longer than 64 KiB, or a reader more than 4 MiB behind, loses its connection.
 *
 *   epoll_server --port N [--join]       (0: any free one)       prints "listening PORT"
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MESSAGE_MAX = 64 * 1024,         /* bytes of one frame's payload */
    READ_SIZE = 64 * 1024,           /* bytes of one recv */
    REQUEST_MAX = 16 * 1024,         /* bytes of one HTTP request's head */
    REST_MAX = 4 * 1024 * 1024,      /* bytes one slow reader may have waiting */
    EVENTS = 256,                    /* of one epoll_wait */
    ACCEPTS = 64,                    /* of one turn, so that a storm of newcomers starves nobody */
};

enum phase { FREE, REQUEST, OPEN };

/* Bytes that wait: the front of a frame or request (in), or what the socket did not take (out). Both are rare. */
struct waiting {
    uint32_t length, capacity;
    uint8_t bytes[];
};

struct connection {          /* indexed by descriptor; pages that no descriptor reaches are never touched */
    struct waiting *in, *out;
    uint32_t place : 30;     /* in `open_list`, while OPEN */
    uint32_t phase : 2;
};

static struct connection *connections;
static uint32_t *open_list, open_count, connection_max;
static int epoll_fd, listen_fd, listening = 1;
static uint8_t in_buffer[READ_SIZE + MESSAGE_MAX + 16];
static uint8_t out_buffer[2 * READ_SIZE + MESSAGE_MAX + 64];     /* the echoes of one read */
static uint8_t frame_buffer[MESSAGE_MAX + 16];                   /* the broadcast frame; with --join those of a turn */
static size_t frame_bytes;                                       /* of it that are still to be sent */
static int joins;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* ---- SHA-1 (FIPS 180-4) and base64, for Sec-WebSocket-Accept (RFC 6455, 4.2.2) */

static uint32_t rotate(uint32_t x, int n)
{
    return x << n | x >> (32 - n);
}

static void sha1_block(uint32_t h[5], const uint8_t *p)
{
    uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 80; i++)
        w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t f, k;
        if (i < 20)
            f = (b & c) | (~b & d), k = 0x5a827999;
        else if (i < 40)
            f = b ^ c ^ d, k = 0x6ed9eba1;
        else if (i < 60)
            f = (b & c) | (b & d) | (c & d), k = 0x8f1bbcdc;
        else
            f = b ^ c ^ d, k = 0xca62c1d6;
        uint32_t t = rotate(a, 5) + f + e + k + w[i];
        e = d, d = c, c = rotate(b, 30), b = a, a = t;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

/* `key` has 24 characters; writes the 28 of the answer. */
static void accept_key(const char *key, char *answer)
{
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t text[128] = {0}, digest[21] = {0};
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    memcpy(text, key, 24);
    memcpy(text + 24, guid, 36);
    text[60] = 0x80;
    text[126] = 60 * 8 >> 8, text[127] = 60 * 8 & 255;
    sha1_block(h, text);
    sha1_block(h, text + 64);
    for (int i = 0; i < 20; i++)
        digest[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
    for (int i = 0; i < 7; i++) {
        uint32_t v = (uint32_t)digest[3 * i] << 16 | (uint32_t)digest[3 * i + 1] << 8 | digest[3 * i + 2];
        for (int j = 0; j < 4; j++)
            answer[4 * i + j] = digits[v >> (18 - 6 * j) & 63];
    }
    answer[27] = '=';
}

/* ---- connections */

static void watch(int fd, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0)
        die("epoll_ctl");
}

static void drop(int fd)
{
    struct connection *c = &connections[fd];
    if (c->phase == OPEN) {
        uint32_t last = open_list[--open_count];
        open_list[c->place] = last;
        connections[last].place = c->place;
    }
    free(c->in);
    free(c->out);
    memset(c, 0, sizeof *c);
    close(fd);
    if (!listening) {
        watch(listen_fd, EPOLL_CTL_ADD, EPOLLIN);
        listening = 1;
    }
}

static struct waiting *keep(struct waiting *old, const uint8_t *bytes, size_t length)
{
    size_t before = old ? old->length : 0, need = before + length;
    if (!old || old->capacity < need) {
        old = realloc(old, sizeof *old + need);
        if (!old)
            die("realloc");
        old->capacity = (uint32_t)need;
    }
    memcpy(old->bytes + before, bytes, length);
    old->length = (uint32_t)need;
    return old;
}

/* Sends now what the socket takes and keeps the rest. False: the connection is gone. */
static int deliver(int fd, const uint8_t *bytes, size_t length)
{
    struct connection *c = &connections[fd];
    ssize_t sent = 0;
    if (!c->out) {
        sent = send(fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent == (ssize_t)length)
            return 1;
        if (sent < 0) {
            if (errno != EAGAIN) {
                drop(fd);
                return 0;
            }
            sent = 0;
        }
        watch(fd, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    } else if (c->out->length + length > REST_MAX) {
        drop(fd);
        return 0;
    }
    c->out = keep(c->out, bytes + sent, length - (size_t)sent);
    return 1;
}

static void drain(int fd)
{
    struct waiting *out = connections[fd].out;
    if (!out)
        return;
    ssize_t sent = send(fd, out->bytes, out->length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
        if (errno != EAGAIN)
            drop(fd);
        return;
    }
    out->length -= (uint32_t)sent;
    memmove(out->bytes, out->bytes + sent, out->length);
    if (!out->length) {
        free(out);
        connections[fd].out = NULL;
        watch(fd, EPOLL_CTL_MOD, EPOLLIN);
    }
}

static void accept_some(void)
{
    for (int i = 0; i < ACCEPTS; i++) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE) {       /* until somebody leaves */
                watch(listen_fd, EPOLL_CTL_DEL, 0);
                listening = 0;
            }
            return;
        }
        connections[fd].phase = REQUEST;        /* TCP_NODELAY comes from the listener */
        watch(fd, EPOLL_CTL_ADD, EPOLLIN);
    }
}

/* ---- the upgrade */

static const char *header(const char *head, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, name, length) && line[length] == ':') {
            line += length + 1;
            return line + strspn(line, " \t");
        }
    }
    return NULL;
}

/* Bytes used up; 0: the request is not complete; -1: the connection is gone. `in_buffer` has room for a final zero. */
static ssize_t upgrade(int fd, uint8_t *bytes, size_t length)
{
    uint8_t *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (!end && length < REQUEST_MAX)
        return 0;
    if (end)
        end[2] = 0;        /* keeps the last line's end, cuts off what follows */
    const char *key = end ? header((char *)bytes, "Sec-WebSocket-Key") : NULL;
    if (!key || strcspn(key, "\r") != 24) {
        static const char no[] = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        send(fd, no, sizeof no - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        drop(fd);
        return -1;
    }
    static const char protocol[] = "fastpresence.v1.json";
    const char *offered = header((char *)bytes, "Sec-WebSocket-Protocol");
    const char *found = offered ? strstr(offered, protocol) : NULL;
    char answer[29] = {0}, text[256];
    accept_key(key, answer);
    int size = snprintf(text, sizeof text,
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Accept: %s\r\n%s%s%s\r\n",
                        answer, found ? "Sec-WebSocket-Protocol: " : "", found ? protocol : "", found ? "\r\n" : "");
    struct connection *c = &connections[fd];
    c->phase = OPEN;
    c->place = open_count;
    open_list[open_count++] = (uint32_t)fd;
    return deliver(fd, (uint8_t *)text, (size_t)size) ? end + 4 - bytes : -1;
}

/* ---- frames */

/* A server's frame head (RFC 6455, 5.2: no mask); its length. */
static size_t frame_head(uint8_t *to, uint8_t first, size_t length)
{
    to[0] = first;
    if (length < 126) {
        to[1] = (uint8_t)length;
        return 2;
    }
    if (length < 65536) {
        to[1] = 126, to[2] = (uint8_t)(length >> 8), to[3] = (uint8_t)length;
        return 4;
    }
    to[1] = 127;
    for (int i = 0; i < 8; i++)
        to[2 + i] = (uint8_t)((uint64_t)length >> (56 - 8 * i));
    return 10;
}

static void unmask(uint8_t *to, const uint8_t *from, size_t length, const uint8_t *key)
{
    uint32_t key32;
    uint64_t key64, word;
    memcpy(&key32, key, 4);
    key64 = (uint64_t)key32 << 32 | key32;
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        memcpy(&word, from + i, 8);
        word ^= key64;
        memcpy(to + i, &word, 8);
    }
    for (; i < length; i++)
        to[i] = from[i] ^ key[i & 3];
}

static void tell_all(void)
{
    for (uint32_t i = open_count; frame_bytes && i-- > 0;)        /* downwards: a removal swaps the last one in */
        deliver((int)open_list[i], frame_buffer, frame_bytes);
    frame_bytes = 0;
}

static void broadcast(uint8_t first, const uint8_t *payload, size_t length, const uint8_t *key)
{
    if (frame_bytes + 10 + length > sizeof frame_buffer)
        tell_all();
    uint8_t *frame = frame_buffer + frame_bytes;
    size_t head = frame_head(frame, first, length);
    unmask(frame + head, payload, length, key);
    frame_bytes += head + length;
    if (!joins)
        tell_all();
}

/* Carries out the complete frames of `bytes`. Bytes used up, or -1: the connection is gone. */
static ssize_t frames(int fd, const uint8_t *bytes, size_t size)
{
    size_t at = 0, out = 0;
    int closing = 0;
    while (!closing && size - at >= 2) {
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
        uint8_t opcode = p[0] & 15;
        if (length > MESSAGE_MAX || !(p[1] & 128) || p[0] & 0x70 || (opcode >= 8 && length > 125)) {
            drop(fd);
            return -1;
        }
        if (size - at < head + 4 + length)
            break;
        const uint8_t *key = p + head, *payload = key + 4;
        at += head + 4 + (size_t)length;
        if ((opcode == 1 || opcode == 2) && length && (payload[0] ^ key[0]) == '!') {
            if (out && !deliver(fd, out_buffer, out))      /* what was said first is heard first */
                return -1;
            out = 0;
            broadcast(p[0], payload, (size_t)length, key);
            if (connections[fd].phase != OPEN)
                return -1;
            continue;
        }
        if (opcode == 10)
            continue;
        closing = opcode == 8;
        out += frame_head(out_buffer + out, opcode == 9 ? 0x8a : p[0], (size_t)length);
        unmask(out_buffer + out, payload, (size_t)length, key);
        out += (size_t)length;
    }
    if (out && !deliver(fd, out_buffer, out))
        return -1;
    if (closing) {
        drop(fd);
        return -1;
    }
    return (ssize_t)at;
}

static void receive(int fd)
{
    struct connection *c = &connections[fd];
    size_t size = 0, at = 0;
    if (c->in) {
        size = c->in->length;
        memcpy(in_buffer, c->in->bytes, size);
    }
    ssize_t got = recv(fd, in_buffer + size, READ_SIZE, MSG_DONTWAIT);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            drop(fd);
        return;
    }
    size += (size_t)got;
    if (c->phase == REQUEST) {
        ssize_t used = upgrade(fd, in_buffer, size);
        if (used < 0)
            return;
        at = (size_t)used;
    }
    if (c->phase == OPEN && at < size) {
        ssize_t used = frames(fd, in_buffer + at, size - at);
        if (used < 0)
            return;
        at += (size_t)used;
    }
    free(c->in);
    c->in = at < size ? keep(NULL, in_buffer + at, size - at) : NULL;
}

int main(int argc, char **argv)
{
    joins = argc == 4 && strcmp(argv[3], "--join") == 0;
    if (argc != 3 + joins || strcmp(argv[1], "--port") != 0) {
        fprintf(stderr, "usage: epoll_server --port N [--join]\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    connection_max = files.rlim_cur > 1 << 20 ? 1 << 20 : (uint32_t)files.rlim_cur;
    connections = calloc(connection_max, sizeof *connections);
    open_list = calloc(connection_max, sizeof *open_list);
    if (!connections || !open_list)
        die("calloc");

    int yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(argv[2])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(listen_fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (bind(listen_fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(listen_fd, 4096) < 0)
        die("listen");
    getsockname(listen_fd, (struct sockaddr *)&address, &size);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(listen_fd, EPOLL_CTL_ADD, EPOLLIN);
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);

    struct epoll_event events[EVENTS];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listen_fd) {
                accept_some();
                continue;
            }
            if (connections[fd].phase != FREE && events[i].events & EPOLLOUT)
                drain(fd);
            if (connections[fd].phase != FREE && events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
                receive(fd);
        }
        tell_all();
    }
}
