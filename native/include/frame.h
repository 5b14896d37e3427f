/* RFC 6455 frames: parsed resumably at any byte, and built. Knows no system call and owns no memory.
 *
 *     bytes -> fp_stream_next() -> FP_MORE | FP_MESSAGE | FP_CONTROL | FP_ROOM | FP_ERROR
 *
 * An `fp_stream` is one direction of one connection. All zero is its idle state, so that a connection between frames
 * needs none at all. A message that lies whole in the caller's bytes is unmasked and handed out in place; one that does
 * not is gathered in `buffer`, which the caller provides and enlarges when asked (FP_ROOM). Every rule of the RFC is
 * checked at the byte that breaks it.
 */
#ifndef FP_FRAME_H
#define FP_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "utf8.h"

enum { FP_OP_CONTINUATION = 0, FP_OP_TEXT = 1, FP_OP_BINARY = 2, FP_OP_CLOSE = 8, FP_OP_PING = 9, FP_OP_PONG = 10 };

enum { FP_CONTROL_MAX = 125, FP_HEADER_MAX = 14, FP_SERVER_HEADER_MAX = 10 };

typedef struct {
    uint64_t frame_size;   /* payload bytes of one frame, at most */
    uint64_t message_size; /* payload bytes of one message, at most */
    uint32_t fragments;    /* frames of one message, at most */
    bool masked;           /* true on a server: every frame must be masked; false on a client: none may be */
} fp_limits;

typedef enum {
    FP_MORE,    /* all bytes are taken in */
    FP_MESSAGE, /* a whole message: opcode, data, size */
    FP_CONTROL, /* a whole control frame: opcode, data, size */
    FP_ROOM,    /* enlarge stream->buffer to at least `size` bytes and call again */
    FP_ERROR,   /* the peer broke the protocol: close with `close_code`; the stream is dead */
} fp_result;

typedef struct {
    uint8_t opcode;
    bool compressed; /* RSV1: the message is to be inflated (RFC 7692), and its text to be checked then */
    uint8_t *data;   /* valid until the next call */
    size_t size;
    uint16_t close_code;
    const char *reason;
} fp_event;

typedef struct {
    uint8_t *buffer; /* owned by the caller: what came of a message so far */
    size_t size, capacity;
    uint64_t left; /* payload bytes of this frame still to come */
    uint32_t fragments;
    uint8_t phase; /* of the mask key */
    uint8_t head_size;
    uint8_t control_size;
    uint8_t in_payload : 1, fin : 1, is_control : 1, dead : 1;
    uint8_t deflate : 1;    /* set by the owner: permessage-deflate was negotiated */
    uint8_t compressed : 1; /* the message under way */
    uint8_t opcode;  /* of this frame */
    uint8_t message; /* opcode of the message under way, 0: none */
    uint8_t key[4];
    uint8_t head[FP_HEADER_MAX];
    fp_utf8 utf8;
    uint8_t control[FP_CONTROL_MAX];
} fp_stream;

/* Take the next event out of `*data`, moving `*data` and `*size` past what was used. Changes the bytes (unmasking). */
fp_result fp_stream_next(fp_stream *stream, const fp_limits *limits, uint8_t **data, size_t *size, fp_event *event);

/* True between messages: the stream can be thrown away and begun again from zero. */
bool fp_stream_idle(const fp_stream *stream);

/* Check a close frame's payload (section 5.5.1, 7.4). Writes the code (1005 where there is none); returns 0, or the
 * close code to answer with. */
uint16_t fp_close_check(const uint8_t *data, size_t size, uint16_t *code);

enum { FP_COMPRESSED = 0x40 }; /* RSV1, beside an opcode */

/* Write an unmasked header (a server's) for a whole message; returns its size, at most FP_SERVER_HEADER_MAX. The opcode
 * may have FP_COMPRESSED set. */
size_t fp_frame_header(uint8_t *out, uint8_t opcode, uint64_t size);

/* Write a masked header (a client's); returns its size, at most FP_HEADER_MAX. */
size_t fp_frame_header_masked(uint8_t *out, uint8_t opcode, bool fin, uint64_t size, const uint8_t key[4]);

#endif
