/* The frame kernel against a plain reading of RFC 6455, and against itself: however the bytes are cut, the same comes out.
 *
 * Input: 6 bytes of settings (masked and deflate; limits; seed of the cuts), then what the peer sends. Each piece lies
 * at the end of a heap block of exactly its size, so that a read beyond it is seen by AddressSanitizer.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "frame.h"
#include "mask.h"

enum { SETTINGS = 6 };

/* Everything that came out of a stream, one after the other. */
typedef struct {
    uint8_t *data;
    size_t size, capacity;
} story;

static void tell(story *story, uint8_t kind, uint8_t opcode, bool compressed, const uint8_t *data, size_t size)
{
    size_t needs = story->size + 3 + sizeof size + size;
    if (needs > story->capacity) {
        story->capacity = 2 * needs;
        story->data = realloc(story->data, story->capacity);
        CHECK(story->data, "out of memory");
    }
    uint8_t *at = story->data + story->size;
    at[0] = kind;
    at[1] = opcode;
    at[2] = compressed;
    memcpy(at + 3, &size, sizeof size);
    if (size)
        memcpy(at + 3 + sizeof size, data, size);
    story->size = needs;
}

static void tell_error(story *story, uint16_t code)
{
    uint8_t both[2] = {(uint8_t)(code >> 8), (uint8_t)code};
    tell(story, FP_ERROR, 0, false, both, 2);
}

/* ---- the plain reading ------------------------------------------------------------------------------------------ */

/* Bytes of the character that begins here: its length, 0 for what no text has, -1 when it may still become one. */
static int character(const uint8_t *data, size_t size)
{
    static const uint32_t FIRST[5] = {0, 0, 0x80, 0x800, 0x10000};
    uint8_t lead = data[0];
    if (lead < 0x80)
        return 1;
    int length = lead >= 0xC0 && lead < 0xE0 ? 2 : lead >= 0xE0 && lead < 0xF0 ? 3 : lead >= 0xF0 && lead < 0xF8 ? 4 : 0;
    if (!length)
        return 0;
    /* The lowest and the highest number that the bytes so far can become. */
    uint32_t low = lead & (0x7F >> length), high = low;
    for (int i = 1; i < length; i++) {
        bool there = (size_t)i < size;
        if (there && (data[i] & 0xC0) != 0x80)
            return 0;
        low = low << 6 | (there ? data[i] & 0x3F : 0);
        high = high << 6 | (there ? data[i] & 0x3F : 0x3F);
    }
    if (low < FIRST[length])
        low = FIRST[length];
    if (high > 0x10FFFF)
        high = 0x10FFFF;
    if (low > high || (low >= 0xD800 && high <= 0xDFFF))
        return 0;
    return size < (size_t)length ? -1 : length;
}

/* 1: text; 0: none; -1: the beginning of one. */
static int is_text(const uint8_t *data, size_t size)
{
    for (size_t at = 0; at < size;) {
        int length = character(data + at, size - at);
        if (length <= 0)
            return length;
        at += (size_t)length;
    }
    return 1;
}

/* Compression can make a message longer: what is inflated is measured by its owner. */
static uint64_t at_most(uint64_t limit, bool compressed)
{
    return compressed && limit < UINT64_MAX / 2 ? limit + limit / 8 + 64 : limit;
}

/* What RFC 6455 says to all of these bytes at once. */
static void read_plainly(story *story, const fp_limits *limits, bool deflate, const uint8_t *data, size_t size)
{
    uint8_t *message = malloc(size + 1);
    CHECK(message, "out of memory");
    size_t have = 0, frames = 0;
    uint8_t under_way = 0;
    bool compressed = false;
    uint16_t error = 0;
    for (size_t at = 0; !error && size - at >= 2;) {
        uint8_t opcode = data[at] & 15, reserved = data[at] >> 4 & 7;
        bool fin = data[at] & 128, masked = data[at + 1] & 128, is_control = opcode & 8;
        uint64_t length = data[at + 1] & 127;
        bool may_compress = deflate && (opcode == 1 || opcode == 2);
        if ((reserved & ~(may_compress ? 4 : 0)) || (opcode & 7) > 2 || masked != limits->masked ||
            (is_control && (!fin || length > 125)) || (opcode == 0 && !under_way) || ((opcode == 1 || opcode == 2) && under_way)) {
            error = 1002;
            break;
        }
        at += 2;
        int more = length == 126 ? 2 : length == 127 ? 8 : 0;
        size_t needs = (size_t)more + (masked ? 4 : 0);
        if (size - at < needs)
            break;
        if (more) {
            length = 0;
            for (int i = 0; i < more; i++)
                length = length << 8 | data[at++];
            if (length < (more == 2 ? 126u : 65536u) || length > INT64_MAX) {
                error = 1002;
                break;
            }
        }
        const uint8_t *key = data + at;
        at += masked ? 4 : 0;
        bool squeezed = opcode ? reserved : compressed;
        if (!is_control && (length > at_most(limits->frame_size, squeezed) || length > at_most(limits->message_size, squeezed) ||
                            have + length > at_most(limits->message_size, squeezed))) {
            error = 1009;
            break;
        }
        size_t here = size - at < length ? size - at : (size_t)length;
        if (is_control) {
            uint8_t payload[125];
            for (size_t i = 0; i < here; i++)
                payload[i] = data[at + i] ^ (masked ? key[i % 4] : 0);
            if (here == length)
                tell(story, FP_CONTROL, opcode, false, payload, here);
            at += here;
            if (here < length)
                break;
            continue;
        }
        if (opcode) {
            under_way = opcode;
            compressed = reserved;
            frames = 0;
        }
        if (++frames > limits->fragments) {
            error = 1009;
            break;
        }
        for (size_t i = 0; i < here; i++)
            message[have++] = data[at + i] ^ (masked ? key[i % 4] : 0);
        at += here;
        bool ends = fin && here == length;
        if (under_way == 1 && !compressed && (is_text(message, have) == 0 || (ends && is_text(message, have) != 1))) {
            error = 1007;
            break;
        }
        if (here < length)
            break;
        if (ends) {
            tell(story, FP_MESSAGE, under_way, compressed, message, have);
            under_way = 0;
            have = 0;
        }
    }
    if (error)
        tell_error(story, error);
    free(message);
}

/* ---- the kernel ------------------------------------------------------------------------------------------------- */

/* A frame of ours is read back as what went into it, by the other side. */
static void build_again(const fp_event *event, bool masked, uint8_t first)
{
    static const uint8_t KEY[4] = {0xA5, 0x00, 0x5A, 0xFF};
    size_t size = event->size;
    uint8_t head[FP_HEADER_MAX];
    size_t used = masked ? fp_frame_header_masked(head, first, true, size, KEY) : fp_frame_header(head, first, size);
    CHECK(used <= (masked ? FP_HEADER_MAX : FP_SERVER_HEADER_MAX), "a header of %zu", used);
    uint8_t *frame = malloc(used + size);
    CHECK(frame, "out of memory");
    memcpy(frame, head, used);
    if (size)
        memcpy(frame + used, event->data, size);
    if (masked)
        fp_mask(frame + used, size, KEY, 0);
    fp_limits limits = {.frame_size = UINT64_MAX >> 1, .message_size = UINT64_MAX >> 1, .fragments = 1, .masked = masked};
    fp_stream stream = {.deflate = 1};
    fp_event back;
    uint8_t *at = frame;
    size_t left = used + size;
    fp_result result = fp_stream_next(&stream, &limits, &at, &left, &back);
    CHECK(result == FP_MESSAGE || result == FP_CONTROL, "our own frame: %d", result);
    CHECK(left == 0 && back.size == size && (!size || !memcmp(back.data, event->data, size)), "our own frame has changed");
    CHECK((back.opcode | (result == FP_MESSAGE && back.compressed ? FP_COMPRESSED : 0)) == first, "our own opcode");
    CHECK(fp_stream_idle(&stream), "between messages");
    free(frame);
}

static void check_close(const uint8_t *data, size_t size)
{
    uint16_t code, wrong = fp_close_check(data, size, &code);
    uint16_t given = size > 1 ? (uint16_t)(data[0] << 8 | data[1]) : 1005;
    bool may = (given >= 3000 && given < 5000) || (given >= 1000 && given < 1015 && (given < 1004 || given > 1006));
    uint16_t expected = size == 0 ? 0 : size == 1 || !may ? 1002 : is_text(data + 2, size - 2) == 1 ? 0 : 1007;
    CHECK(wrong == expected, "close of %zu bytes with %u: %u, not %u", size, given, wrong, expected);
    CHECK(code == (wrong ? 1005 : given), "the code is %u", code);
}

/* How to cut: 0 whole, 1 byte by byte, else by the random numbers that follow from it. */
static void feed(story *story, const fp_limits *limits, bool deflate, const uint8_t *data, size_t size, uint32_t cuts)
{
    fp_stream stream = {.deflate = deflate};
    fp_event event;
    size_t fed = 0;
    bool dead = false;
    while (fed < size && !dead) {
        cuts = cuts > 1 ? cuts * 1664525u + 1013904223u : cuts;
        size_t piece = cuts == 0 ? size : cuts == 1 ? 1 : 1 + (cuts >> 16) % ((cuts & 0x8000) ? 7 : 300);
        piece = piece < size - fed ? piece : size - fed;
        uint8_t *block = malloc(piece), *at = block;
        CHECK(block, "out of memory");
        memcpy(block, data + fed, piece);
        fed += piece;
        size_t left = piece;
        for (fp_result result = FP_ROOM; result != FP_MORE && !dead;) {
            result = fp_stream_next(&stream, limits, &at, &left, &event);
            CHECK(at + left == block + piece, "lost its place");
            if (result == FP_MORE) {
                CHECK(left == 0, "%zu bytes left lying", left);
            } else if (result == FP_ROOM) {
                CHECK(event.size > stream.capacity && event.size <= at_most(limits->message_size, deflate) && event.size <= fed,
                      "asks for %zu bytes of room after %zu", event.size, fed);
                stream.buffer = realloc(stream.buffer, event.size); /* not a byte more */
                CHECK(stream.buffer, "out of memory");
                stream.capacity = event.size;
            } else if (result == FP_ERROR) {
                CHECK(event.reason && strlen(event.reason) <= FP_CONTROL_MAX - 2, "an error without a reason");
                tell_error(story, event.close_code);
                fp_event again;
                CHECK(fp_stream_next(&stream, limits, &at, &left, &again) == FP_ERROR, "alive after an error");
                CHECK(!fp_stream_idle(&stream), "idle after an error");
                dead = true;
            } else {
                tell(story, (uint8_t)result, event.opcode, result == FP_MESSAGE && event.compressed, event.data, event.size);
                uint8_t first = event.opcode | (result == FP_MESSAGE && event.compressed ? FP_COMPRESSED : 0);
                build_again(&event, cuts & 4, first);
                if (event.opcode == FP_OP_CLOSE)
                    check_close(event.data, event.size);
            }
        }
        free(block); /* whatever the stream still knows, it knows for itself */
    }
    free(stream.buffer);
}

static void same(const story *a, const story *b, const char *what)
{
    CHECK(a->size == b->size && (!a->size || !memcmp(a->data, b->data, a->size)), "%s tells another story", what);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint64_t SIZES[8] = {0, 1, 125, 126, 300, 65535, 65536, UINT64_MAX >> 1};
    if (size < SETTINGS)
        return 0;
    fp_limits limits = {
        .masked = data[0] & 1,
        .frame_size = SIZES[data[1] & 7],
        .message_size = SIZES[data[1] >> 3 & 7],
        .fragments = data[2] ? data[2] : UINT32_MAX,
    };
    bool deflate = data[0] & 2;
    uint32_t seed = (uint32_t)data[3] << 16 | (uint32_t)data[4] << 8 | data[5];
    data += SETTINGS;
    size -= SETTINGS;
    story plainly = {0}, whole = {0}, single = {0}, cut = {0};
    read_plainly(&plainly, &limits, deflate, data, size);
    feed(&whole, &limits, deflate, data, size, 0);
    feed(&single, &limits, deflate, data, size, 1);
    feed(&cut, &limits, deflate, data, size, seed + 2);
    same(&plainly, &whole, "whole");
    same(&plainly, &single, "byte by byte");
    same(&plainly, &cut, "cut");
    free(plainly.data);
    free(whole.data);
    free(single.data);
    free(cut.data);
    return 0;
}
