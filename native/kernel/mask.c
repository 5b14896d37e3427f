/* Eight bytes at a time, no alignment step: presence payloads are 10 to 200 bytes, where aligning first costs more than
 * it gains. The compiler makes a vector loop of it; two CPU levels from the one source. */
#include "mask.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target_clones("avx2", "default")))
#endif
void fp_mask(uint8_t *data, size_t size, const uint8_t key[4], unsigned phase)
{
    uint8_t turned[8];
    for (unsigned i = 0; i < 8; i++)
        turned[i] = key[(phase + i) & 3];
    uint64_t word;
    memcpy(&word, turned, 8);
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t chunk;
        memcpy(&chunk, data + i, 8);
        chunk ^= word;
        memcpy(data + i, &chunk, 8);
    }
    for (; i < size; i++)
        data[i] ^= turned[i & 7];
}
