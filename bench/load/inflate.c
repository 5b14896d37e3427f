/* Inflates one message of permessage-deflate (RFC 1951; RFC 7692, 7.2.2). Plain and slow: each distinct frame is
 * inflated once. Written here so that a fresh machine needs no zlib, and that not the same code checks what it made.
 */
#include "swarm.h"

#include <string.h>

enum { BITS_MAX = 15, SYMBOLS_MAX = 288, TAIL = 4 };

struct bits {
    const uint8_t *in;
    uint32_t length, at; /* bytes of `in`, and bits read; the tail that the wire leaves out follows `in` */
    bool bad;
};

struct code {
    uint16_t count[BITS_MAX + 1], symbol[SYMBOLS_MAX]; /* canonical: how many of each length, symbols in order */
};

static uint32_t take(struct bits *b, uint32_t count)
{
    static const uint8_t tail[TAIL] = {0, 0, 0xff, 0xff};
    uint32_t value = 0;
    for (uint32_t i = 0; i < count; i++, b->at++) {
        uint32_t byte = b->at / 8;
        if (byte >= b->length + TAIL) {
            b->bad = true;
            return 0;
        }
        uint8_t from = byte < b->length ? b->in[byte] : tail[byte - b->length];
        value |= (uint32_t)(from >> b->at % 8 & 1) << i;
    }
    return value;
}

static bool build(struct code *code, const uint8_t *lengths, uint32_t symbols)
{
    uint16_t next[BITS_MAX + 2] = {0};
    int32_t left = 1;
    memset(code->count, 0, sizeof code->count);
    for (uint32_t i = 0; i < symbols; i++)
        code->count[lengths[i]]++;
    code->count[0] = 0;
    for (uint32_t length = 1; length <= BITS_MAX; length++) {
        left = 2 * left - code->count[length];
        if (left < 0)
            return false; /* more codes than there are */
        next[length + 1] = (uint16_t)(next[length] + code->count[length]);
    }
    for (uint32_t i = 0; i < symbols; i++)
        if (lengths[i])
            code->symbol[next[lengths[i]]++] = (uint16_t)i;
    return true;
}

static uint32_t symbol(struct bits *b, const struct code *code)
{
    int32_t value = 0, first = 0, index = 0;
    for (uint32_t length = 1; length <= BITS_MAX; length++) {
        value |= (int32_t)take(b, 1);
        int32_t count = code->count[length];
        if (value - first < count)
            return code->symbol[index + value - first];
        index += count;
        first = (first + count) << 1;
        value <<= 1;
    }
    b->bad = true;
    return 0;
}

static void fixed_codes(struct code *literals, struct code *distances)
{
    uint8_t lengths[SYMBOLS_MAX];
    for (uint32_t i = 0; i < SYMBOLS_MAX; i++)
        lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    build(literals, lengths, SYMBOLS_MAX);
    memset(lengths, 5, 30);
    build(distances, lengths, 30);
}

static bool dynamic_codes(struct bits *b, struct code *literals, struct code *distances)
{
    static const uint8_t order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[320] = {0};
    struct code meta;
    uint32_t literal_count = 257 + take(b, 5), distance_count = 1 + take(b, 5), meta_count = 4 + take(b, 4), at = 0;
    if (literal_count > 286 || distance_count > 30)
        return false;
    for (uint32_t i = 0; i < meta_count; i++)
        lengths[order[i]] = (uint8_t)take(b, 3);
    if (!build(&meta, lengths, sizeof order))
        return false;
    memset(lengths, 0, sizeof lengths);
    while (at < literal_count + distance_count && !b->bad) {
        uint32_t what = symbol(b, &meta), times = 1;
        uint8_t length = (uint8_t)what;
        if (what >= 16) {
            if (what == 16 && !at)
                return false;
            length = what == 16 ? lengths[at - 1] : 0;
            times = what == 16 ? 3 + take(b, 2) : what == 17 ? 3 + take(b, 3) : 11 + take(b, 7);
        }
        if (at + times > literal_count + distance_count)
            return false;
        memset(lengths + at, length, times);
        at += times;
    }
    return !b->bad && build(literals, lengths, literal_count) &&
           build(distances, lengths + literal_count, distance_count);
}

static const uint16_t length_base[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                       31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
static const uint8_t length_bits[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
static const uint16_t distance_base[] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
                                         193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};

static uint32_t block(struct bits *b, uint32_t type, uint8_t *out, uint32_t size, uint32_t max)
{
    struct code literals, distances;
    if (type == 1)
        fixed_codes(&literals, &distances);
    else if (!dynamic_codes(b, &literals, &distances))
        b->bad = true;
    while (!b->bad) {
        uint32_t what = symbol(b, &literals);
        if (what == 256)
            return size;
        if (what < 256) {
            b->bad |= size == max;
            if (!b->bad)
                out[size++] = (uint8_t)what;
            continue;
        }
        what -= 257;
        if (what >= sizeof length_bits)
            break;
        uint32_t length = length_base[what] + take(b, length_bits[what]), far = symbol(b, &distances);
        if (far >= sizeof distance_base / sizeof *distance_base)
            break;
        uint32_t distance = distance_base[far] + take(b, far < 4 ? 0 : far / 2 - 1);
        if (b->bad || distance > size || length > max - size)
            break;
        for (; length; length--, size++)
            out[size] = out[size - distance];
    }
    b->bad = true;
    return size;
}

/* Writes at most `max` bytes; false: not what a server may send, a final block (BFINAL) included. */
bool inflate(const uint8_t *in, uint32_t length, uint8_t *out, uint32_t max, uint32_t *written)
{
    struct bits b = {.in = in, .length = length};
    uint32_t size = 0;
    while (!b.bad && b.at < 8 * (length + TAIL)) {
        uint32_t final = take(&b, 1), type = take(&b, 2);
        if (final || type == 3)
            return false;
        if (type) {
            size = block(&b, type, out, size, max);
            continue;
        }
        b.at = (b.at + 7) & ~7u;
        uint32_t count = take(&b, 16);
        if (b.bad || (take(&b, 16) ^ count) != 0xffff || count > max - size)
            return false;
        for (; count; count--)
            out[size++] = (uint8_t)take(&b, 8);
    }
    *written = size;
    return !b.bad;
}
