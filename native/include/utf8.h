/* Incremental UTF-8 validation (RFC 3629). Pure; state is three bytes owned by the caller, zero at the start of a text. */
#ifndef FP_UTF8_H
#define FP_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t need;     /* continuation bytes still to come */
    uint8_t low, high; /* bounds of the next continuation byte */
} fp_utf8;

/* Take in `size` more bytes; false on the first byte that no valid text can have there. */
bool fp_utf8_feed(fp_utf8 *state, const uint8_t *data, size_t size);

/* True where a text may end. */
static inline bool fp_utf8_complete(const fp_utf8 *state)
{
    return state->need == 0;
}

#endif
