#include "utf8.h"

#include <string.h>

bool fp_utf8_feed(fp_utf8 *state, const uint8_t *data, size_t size)
{
    uint8_t need = state->need, low = state->low, high = state->high;
    size_t i = 0;
    while (i < size) {
        if (need == 0) {
            /* Most of what we read is ASCII: eight bytes a step. */
            while (i + 8 <= size) {
                uint64_t word;
                memcpy(&word, data + i, 8);
                if (word & UINT64_C(0x8080808080808080))
                    break;
                i += 8;
            }
            if (i == size)
                break;
            uint8_t lead = data[i++];
            if (lead < 0x80)
                continue;
            low = 0x80;
            high = 0xBF;
            if (lead >= 0xC2 && lead <= 0xDF) { /* C0, C1: overlong */
                need = 1;
            } else if ((lead & 0xF0) == 0xE0) {
                need = 2;
                if (lead == 0xE0)
                    low = 0xA0; /* overlong below */
                else if (lead == 0xED)
                    high = 0x9F; /* surrogates above */
            } else if (lead >= 0xF0 && lead <= 0xF4) {
                need = 3;
                if (lead == 0xF0)
                    low = 0x90; /* overlong below */
                else if (lead == 0xF4)
                    high = 0x8F; /* beyond U+10FFFF above */
            } else {
                return false;
            }
        } else {
            uint8_t byte = data[i++];
            if (byte < low || byte > high)
                return false;
            low = 0x80;
            high = 0xBF;
            need--;
        }
    }
    state->need = need;
    state->low = low;
    state->high = high;
    return true;
}
