/* How servers that are not ours are spoken to: what a client says once it is upgraded, to tell everybody, and to beat.
 *
 *   raw    text frames; one whose first byte is `!` goes to everybody, any other comes back (C loop, picows, ...)
 *   nchan  text frames; each goes to everybody, nothing comes back
 *   nats   NATS client protocol in binary frames: CONNECT, SUB, PUB, PING
 *   mqtt   MQTT 3.1.1 in binary frames: CONNECT, SUBSCRIBE, PUBLISH at QoS 0, PINGREQ
 */
#define _GNU_SOURCE
#include "swarm.h"

#include <stdio.h>
#include <string.h>

enum { PACKET_MAX = 66 * 1024 };

static bool any(const struct frame *frame)
{
    (void)frame;
    return true;
}

static bool holds(const struct frame *frame, const char *word)
{
    return memmem(frame->text, frame->text_length, word, strlen(word)) != NULL;
}

/* ---- raw, nchan */

static void raw_beat(struct link *link)
{
    link_say(link, "heartbeat", "");
}

const struct dialect raw_dialect = {
    .name = "raw",
    .path = "/ws",
    .publish = link_send,
    .beat = raw_beat,
    .answers = any,
};

static const struct dialect nchan_dialect = {
    .name = "nchan",
    .path = "/ws",
    .publish = link_send,
};

/* ---- nats */

static void nats_join(struct link *link)
{
    static const char words[] = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB updates 1\r\nPING\r\n";
    link_bytes(link, words, sizeof words - 1);
}

static bool nats_pong(const struct frame *frame)
{
    return holds(frame, "PONG\r\n");
}

static void nats_publish(struct link *link, const char *text, size_t length)
{
    static char packet[PACKET_MAX + 64];
    if (length > PACKET_MAX)
        die("a message of %zu bytes is too long", length);
    size_t size = (size_t)sprintf(packet, "PUB updates %zu\r\n", length);
    memcpy(packet + size, text, length);
    memcpy(packet + size + length, "\r\n", 2);
    link_bytes(link, packet, size + length + 2);
}

static void nats_beat(struct link *link)
{
    link_bytes(link, "PING\r\n", 6);
}

static const struct dialect nats_dialect = {
    .name = "nats",
    .path = "/",
    .join = nats_join,
    .joined = nats_pong,
    .publish = nats_publish,
    .beat = nats_beat,
    .answers = nats_pong,
};

/* ---- mqtt: the control packets of MQTT 3.1.1, section 3 */

static void mqtt_join(struct link *link)
{
    /* Clean session, no keep-alive, an empty client id; then topic `u`, QoS 0, before the CONNACK as 3.1.4 allows. */
    static const uint8_t connect[] = {0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 0};
    static const uint8_t subscribe[] = {0x82, 6, 0, 1, 0, 1, 'u', 0};
    link_bytes(link, connect, sizeof connect);
    link_bytes(link, subscribe, sizeof subscribe);
}

static bool mqtt_suback(const struct frame *frame)
{
    return frame->text_length && frame->text[0] == 0x90;
}

static void mqtt_publish(struct link *link, const char *text, size_t length)
{
    static uint8_t packet[PACKET_MAX + 16];
    size_t rest = 3 + length, at = 0;
    if (length > PACKET_MAX)
        die("a message of %zu bytes is too long", length);
    packet[at++] = 0x30;
    for (; rest > 127; rest >>= 7)
        packet[at++] = (uint8_t)(rest & 127) | 128;
    packet[at++] = (uint8_t)rest;
    memcpy(packet + at, "\0\1u", 3);
    memcpy(packet + at + 3, text, length);
    link_bytes(link, packet, at + 3 + length);
}

static void mqtt_beat(struct link *link)
{
    static const uint8_t pingreq[] = {0xc0, 0};
    link_bytes(link, pingreq, sizeof pingreq);
}

static bool mqtt_pingresp(const struct frame *frame)
{
    return frame->text_length && frame->text[0] == 0xd0;
}

static const struct dialect mqtt_dialect = {
    .name = "mqtt",
    .path = "/",
    .protocol = "mqtt",
    .join = mqtt_join,
    .joined = mqtt_suback,
    .publish = mqtt_publish,
    .beat = mqtt_beat,
    .answers = mqtt_pingresp,
};

const struct dialect *dialect_named(const char *name)
{
    static const struct dialect *const all[] = {&raw_dialect, &nchan_dialect, &nats_dialect, &mqtt_dialect};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(name, all[i]->name))
            return all[i];
    die("no such dialect: %s", name);
}
