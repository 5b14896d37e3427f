/* What a frame of the server says. JSON by search, not by grammar: the generator must stay cheaper than the server.
 *
 * It relies on three things the protocol promises: names and values of ours hold no quotes, entries hold no objects,
 * and JSON is written without spaces. A frame that went to a thousand links is read once: the last few distinct ones
 * are kept with what they said, and found again by comparing bytes (faster than any hash, and never wrong).
 */
#define _GNU_SOURCE
#include "swarm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEPT = 16, TEXT_MAX = 1024 * 1024 };

const char *const status_names[] = {"online", "busy", "away", "offline"};

static struct frame kept[KEPT];
static uint32_t newest;

static const uint8_t *find(const uint8_t *from, const uint8_t *end, const char *what)
{
    const uint8_t *at = memmem(from, (size_t)(end - from), what, strlen(what));
    return at ? at + strlen(what) : NULL;
}

static bool is(const uint8_t *at, const uint8_t *end, const char *word)
{
    size_t length = strlen(word);
    return (size_t)(end - at) > length && !memcmp(at, word, length) && at[length] == '"';
}

static int32_t publisher_named(const uint8_t *at, const uint8_t *end)
{
    for (uint32_t i = 0; i < options.publishers; i++)
        if (is(at, end, links[i].user))
            return (int32_t)i;
    return -1;
}

static struct entry *new_entry(struct frame *frame)
{
    if (!(frame->entry_count & (frame->entry_count + 1))) { /* grows by doubling: at 0, 1, 3, 7, 15, ... */
        frame->entries = realloc(frame->entries, (2 * (size_t)frame->entry_count + 2) * sizeof *frame->entries);
        if (!frame->entries)
            die("out of memory");
    }
    return &frame->entries[frame->entry_count++];
}

static void add_entry(struct frame *frame, const uint8_t *from, const uint8_t *end)
{
    const uint8_t *user = find(from, end, "\"user_id\":\""), *status = find(from, end, "\"status\":\"");
    const uint8_t *rev = find(from, end, "\"rev\":");
    if (!user || !status || !rev)
        die("an entry without user_id, status or rev: %.*s", (int)(end - from), (const char *)from);
    struct entry *entry = new_entry(frame);
    entry->publisher = publisher_named(user, end);
    entry->rev = strtoull((const char *)rev, NULL, 10);
    for (entry->status = ONLINE; entry->status < OFFLINE && !is(status, end, status_names[entry->status]);)
        entry->status++;
}

static void read_status(struct frame *frame, const uint8_t *from, const uint8_t *end)
{
    const uint8_t *list = find(from, end, "\"user_status\":[");
    const uint8_t *close = list ? memchr(list, ']', (size_t)(end - list)) : NULL;
    if (!close)
        die("a user_online_status without its list: %.*s", (int)(end - from), (const char *)from);
    while (list < close && (list = memchr(list, '{', (size_t)(close - list)))) {
        const uint8_t *last = memchr(list, '}', (size_t)(close - list));
        if (!last)
            die("an entry without an end");
        add_entry(frame, list, last + 1);
        list = last + 1;
    }
    frame->full = find(close, end, "\"full\":true") || find(from, end, "\"full\":true");
    frame->has_cursor = find(close, end, "\"cursor\":\"") || find(from, end, "\"cursor\":\"");
}

static const uint8_t *read_number(const uint8_t *at, int digits, uint32_t *number)
{
    *number = 0;
    for (int i = 0; i < digits; i++, at++) {
        if (*at < '0' || *at > '9')
            return NULL;
        *number = *number * 10 + *at - '0';
    }
    return *at == ':' ? at + 1 : NULL;
}

/* Every broadcast, `!PPPP:CCCCCCCCCC:`, in a frame of a server that is not ours: some put several into one. Those servers
 * may send each update in a frame of its own, a million a second: nothing is copied or kept. */
static const struct frame *decode_broadcasts(const uint8_t *payload, uint32_t length)
{
    enum { NAME = 17 };
    static struct frame frame;
    const uint8_t *from = payload, *end = payload + length;
    frame.kind = OTHER;
    frame.entry_count = 0;
    frame.length = frame.text_length = length;
    frame.bytes = frame.text = (uint8_t *)payload;
    while (end - from >= NAME && (from = memchr(from, '!', (size_t)(end - from) - NAME + 1))) {
        uint32_t publisher, change;
        const uint8_t *at = read_number(from + 1, 4, &publisher);
        if (!at || !read_number(at, 10, &change) || publisher >= options.publishers)
            die("a broadcast that nobody sent");
        frame.kind = BROADCAST;
        *new_entry(&frame) = (struct entry){.publisher = (int32_t)publisher, .rev = change};
        from += NAME;
    }
    return &frame;
}

static void understand(struct frame *frame)
{
    static const struct {
        const char *name;
        enum kind kind;
    } kinds[] = {{"welcome", WELCOME},           {"ack", ACK},
                 {"error", ERROR},               {"heartbeat_ack", HEARTBEAT_ACK},
                 {"user_online_status", STATUS}, {"message", MESSAGE}};
    const uint8_t *end = frame->text + frame->text_length;
    frame->kind = OTHER;
    frame->entry_count = 0;
    frame->full = frame->has_cursor = false;
    const uint8_t *type = find(frame->text, end, "\"type\":\"");
    for (size_t i = 0; type && i < sizeof kinds / sizeof *kinds; i++)
        if (is(type, end, kinds[i].name))
            frame->kind = kinds[i].kind;
    if (frame->kind == STATUS)
        read_status(frame, frame->text, end);
}

static void read_text(struct frame *frame)
{
    static uint8_t text[TEXT_MAX];
    frame->text_length = frame->length;
    if (frame->compressed && !inflate(frame->bytes, frame->length, text, TEXT_MAX, &frame->text_length))
        die("a compressed frame of %u bytes that can't be inflated, or not by every client", frame->length);
    frame->text = realloc(frame->text, (size_t)frame->text_length + 1);
    if (!frame->text)
        die("out of memory");
    memcpy(frame->text, frame->compressed ? text : frame->bytes, frame->text_length);
    frame->text[frame->text_length] = 0; /* where strtoull stops at the latest */
}

const struct frame *decode(const uint8_t *payload, uint32_t length, bool compressed)
{
    if (!options.real)
        return decode_broadcasts(payload, length);
    for (uint32_t i = 0; i < KEPT; i++) {
        const struct frame *frame = &kept[(newest + KEPT - i) % KEPT];
        if (frame->bytes && frame->length == length && frame->compressed == compressed &&
            !memcmp(frame->bytes, payload, length))
            return frame;
    }
    newest = (newest + 1) % KEPT;
    struct frame *frame = &kept[newest];
    frame->bytes = realloc(frame->bytes, (size_t)length + 1);
    if (!frame->bytes)
        die("out of memory");
    memcpy(frame->bytes, payload, length);
    frame->length = length;
    frame->compressed = compressed;
    read_text(frame);
    understand(frame);
    return frame;
}
