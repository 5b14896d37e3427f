/* SipHash-2-4 (Aumasson and Bernstein, 2012): 64 bits of a keyed hash. Pure: nobody without the key can make two alike. */
#ifndef FP_SIPHASH_H
#define FP_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t fp_siphash(const uint64_t key[2], const uint8_t *data, size_t size);

#endif
