#include "frame.h"

#include <string.h>

#include "mask.h"

static fp_result fail(fp_stream *stream, fp_event *event, uint16_t code, const char *reason)
{
    stream->dead = 1;
    event->close_code = code;
    event->reason = reason;
    return FP_ERROR;
}

/* Bytes that the header needs, as far as can be told from what has come: 2, then with length and key. */
static size_t header_needs(const uint8_t *head, size_t have)
{
    if (have < 2)
        return 2;
    size_t needs = 2 + ((head[1] & 0x80) ? 4 : 0);
    unsigned length = head[1] & 0x7F;
    return needs + (length == 126 ? 2 : length == 127 ? 8 : 0);
}

/* What the first two bytes alone decide (section 5.2, 5.4, 5.5). */
static fp_result check_start(fp_stream *stream, const fp_limits *limits, fp_event *event, const uint8_t *head)
{
    uint8_t opcode = head[0] & 0x0F;
    bool fin = head[0] & 0x80;
    /* RFC 7692, section 6: RSV1 marks the first frame of a compressed message, and nothing else. */
    bool may_compress = stream->deflate && (opcode == FP_OP_TEXT || opcode == FP_OP_BINARY);
    if (head[0] & (may_compress ? 0x30 : 0x70))
        return fail(stream, event, 1002, "reserved bit set");
    if ((opcode > FP_OP_BINARY && opcode < FP_OP_CLOSE) || opcode > FP_OP_PONG)
        return fail(stream, event, 1002, "reserved opcode");
    if (((head[1] & 0x80) != 0) != limits->masked)
        return fail(stream, event, 1002, limits->masked ? "frame without mask" : "frame with mask");
    if (opcode >= FP_OP_CLOSE) {
        if (!fin)
            return fail(stream, event, 1002, "fragmented control frame");
        if ((head[1] & 0x7F) > FP_CONTROL_MAX)
            return fail(stream, event, 1002, "control frame too long");
    } else if (opcode == FP_OP_CONTINUATION) {
        if (!stream->message)
            return fail(stream, event, 1002, "continuation of nothing");
    } else if (stream->message) {
        return fail(stream, event, 1002, "new message inside a message");
    }
    return FP_MORE;
}

/* What may come of so many bytes on the wire. Compression can make a message longer, with 9 bits a byte at the worst; what
 * is inflated is measured by its owner. */
static uint64_t at_most(uint64_t limit, bool compressed)
{
    return compressed && limit < UINT64_MAX / 2 ? limit + limit / 8 + 64 : limit;
}

/* The whole header is there: read it into the stream. Lengths are compared unsigned, before anything narrows them. */
static fp_result read_header(fp_stream *stream, const fp_limits *limits, fp_event *event, const uint8_t *head)
{
    uint64_t length = head[1] & 0x7F;
    const uint8_t *at = head + 2;
    if (length == 126) {
        length = (uint64_t)at[0] << 8 | at[1];
        at += 2;
        if (length < 126)
            return fail(stream, event, 1002, "length not minimal");
    } else if (length == 127) {
        length = 0;
        for (int i = 0; i < 8; i++)
            length = length << 8 | at[i];
        at += 8;
        if (length >> 63)
            return fail(stream, event, 1002, "length with top bit set");
        if (length < 65536)
            return fail(stream, event, 1002, "length not minimal");
    }
    stream->opcode = head[0] & 0x0F;
    stream->fin = (head[0] & 0x80) != 0;
    stream->is_control = stream->opcode >= FP_OP_CLOSE;
    if (!stream->is_control) {
        bool compressed = stream->opcode == FP_OP_CONTINUATION ? stream->compressed : (head[0] & FP_COMPRESSED) != 0;
        if (length > at_most(limits->frame_size, compressed))
            return fail(stream, event, 1009, "frame too big");
        /* stream->size is never more than that of the same message, so this cannot wrap. */
        if (length > at_most(limits->message_size, compressed) - stream->size)
            return fail(stream, event, 1009, "message too big");
        if (stream->opcode != FP_OP_CONTINUATION) {
            stream->message = stream->opcode;
            stream->compressed = (head[0] & FP_COMPRESSED) != 0;
            stream->fragments = 0;
            stream->utf8 = (fp_utf8){0};
        }
        if (++stream->fragments > limits->fragments)
            return fail(stream, event, 1009, "too many fragments");
    } else {
        stream->control_size = 0;
    }
    if (limits->masked)
        memcpy(stream->key, at, 4);
    stream->phase = 0;
    stream->left = length;
    stream->in_payload = 1;
    return FP_MORE;
}

static fp_result take_header(fp_stream *stream, const fp_limits *limits, uint8_t **data, size_t *size, fp_event *event)
{
    const uint8_t *head = *data;
    bool whole = stream->head_size == 0 && *size >= 2 && *size >= header_needs(head, 2);
    if (whole) {
        size_t needs = header_needs(head, 2);
        fp_result result = check_start(stream, limits, event, head);
        if (result == FP_MORE)
            result = read_header(stream, limits, event, head);
        *data += needs;
        *size -= needs;
        return result;
    }
    while (*size) {
        stream->head[stream->head_size++] = **data;
        ++*data;
        --*size;
        if (stream->head_size == 2) {
            fp_result result = check_start(stream, limits, event, stream->head);
            if (result != FP_MORE)
                return result;
        }
        if (stream->head_size >= 2 && stream->head_size == header_needs(stream->head, stream->head_size)) {
            stream->head_size = 0;
            return read_header(stream, limits, event, stream->head);
        }
    }
    return FP_MORE;
}

static void unmask(fp_stream *stream, const fp_limits *limits, uint8_t *data, size_t size)
{
    if (limits->masked) {
        fp_mask(data, size, stream->key, stream->phase);
        stream->phase = (uint8_t)((stream->phase + size) & 3);
    }
}

/* The frame's payload is complete and it was the message's last frame. */
static fp_result end_message(fp_stream *stream, fp_event *event, uint8_t *data, size_t size)
{
    if (stream->message == FP_OP_TEXT && !stream->compressed && !fp_utf8_complete(&stream->utf8))
        return fail(stream, event, 1007, "text ends inside a character");
    event->opcode = stream->message;
    event->compressed = stream->compressed;
    event->data = data;
    event->size = size;
    stream->message = 0;
    stream->size = 0;
    return FP_MESSAGE;
}

fp_result fp_stream_next(fp_stream *stream, const fp_limits *limits, uint8_t **data, size_t *size, fp_event *event)
{
    if (stream->dead)
        return fail(stream, event, 1002, "after an error");
    for (;;) {
        if (!stream->in_payload) {
            if (*size == 0)
                return FP_MORE;
            fp_result result = take_header(stream, limits, data, size, event);
            if (result != FP_MORE || !stream->in_payload)
                return result;
        }
        size_t have = *size < stream->left ? *size : (size_t)stream->left;
        bool ends = have == stream->left;
        uint8_t *payload = *data;
        if (stream->is_control) {
            unmask(stream, limits, payload, have);
            memcpy(stream->control + stream->control_size, payload, have);
            stream->control_size = (uint8_t)(stream->control_size + have);
        } else {
            bool in_place = ends && stream->fin && stream->size == 0;
            if (!in_place && stream->size + have > stream->capacity) {
                event->size = stream->size + have;
                return FP_ROOM;
            }
            unmask(stream, limits, payload, have);
            if (stream->message == FP_OP_TEXT && !stream->compressed && !fp_utf8_feed(&stream->utf8, payload, have))
                return fail(stream, event, 1007, "text is not UTF-8");
            if (!in_place && have) {
                memcpy(stream->buffer + stream->size, payload, have);
                stream->size += have;
            }
            if (in_place) {
                *data += have;
                *size -= have;
                stream->in_payload = 0;
                return end_message(stream, event, payload, have);
            }
        }
        *data += have;
        *size -= have;
        stream->left -= have;
        if (!ends)
            return FP_MORE;
        stream->in_payload = 0;
        if (stream->is_control) {
            event->opcode = stream->opcode;
            event->data = stream->control;
            event->size = stream->control_size;
            return FP_CONTROL;
        }
        if (stream->fin)
            return end_message(stream, event, stream->buffer, stream->size);
    }
}

bool fp_stream_idle(const fp_stream *stream)
{
    return !stream->in_payload && stream->head_size == 0 && stream->message == 0 && !stream->dead;
}

uint16_t fp_close_check(const uint8_t *data, size_t size, uint16_t *code)
{
    *code = 1005; /* section 7.1.5: no code given */
    if (size == 0)
        return 0;
    if (size == 1)
        return 1002;
    uint16_t given = (uint16_t)(data[0] << 8 | data[1]);
    bool known = (given >= 1000 && given <= 1003) || (given >= 1007 && given <= 1014) || (given >= 3000 && given <= 4999);
    if (!known)
        return 1002;
    fp_utf8 utf8 = {0};
    if (!fp_utf8_feed(&utf8, data + 2, size - 2) || !fp_utf8_complete(&utf8))
        return 1007;
    *code = given;
    return 0;
}

static size_t put_header(uint8_t *out, uint8_t first, uint8_t mask_bit, uint64_t size)
{
    out[0] = first;
    if (size < 126) {
        out[1] = (uint8_t)(mask_bit | size);
        return 2;
    }
    if (size < 65536) {
        out[1] = mask_bit | 126;
        out[2] = (uint8_t)(size >> 8);
        out[3] = (uint8_t)size;
        return 4;
    }
    out[1] = mask_bit | 127;
    for (int i = 0; i < 8; i++)
        out[2 + i] = (uint8_t)(size >> (56 - 8 * i));
    return 10;
}

size_t fp_frame_header(uint8_t *out, uint8_t opcode, uint64_t size)
{
    return put_header(out, 0x80 | opcode, 0, size);
}

size_t fp_frame_header_masked(uint8_t *out, uint8_t opcode, bool fin, uint64_t size, const uint8_t key[4])
{
    size_t used = put_header(out, (uint8_t)((fin ? 0x80 : 0) | opcode), 0x80, size);
    memcpy(out + used, key, 4);
    return used + 4;
}
