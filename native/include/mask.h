/* Unmasking of RFC 6455 payloads, in place (section 5.3). Pure: no memory of its own, cannot fail. */
#ifndef FP_MASK_H
#define FP_MASK_H

#include <stddef.h>
#include <stdint.h>

/* XOR `size` bytes at `data` with the 4-byte `key`, starting at key byte `phase & 3`. */
void fp_mask(uint8_t *data, size_t size, const uint8_t key[4], unsigned phase);

#endif
