/* How many connections each remote address has: a hash table of those that have any. No system call but one for a seed.
 *
 * An IPv4 address counts by itself, written as IPv6 or not; an IPv6 address counts with its /64, which is what one
 * customer is given. The hash is keyed, so that nobody can choose addresses that collide. Every entry has a place that
 * does not move while it lasts; 16 bytes for an address and 4 for its head, bounded by the connections that there are.
 */
#ifndef FP_ADDRESS_H
#define FP_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define FP_NO_PLACE UINT32_MAX

typedef struct {
    uint64_t key;
    uint32_t count; /* connections; 0: not used */
    uint32_t next;  /* in the same chain, or of the free list */
} fp_address;

/* All zero is an empty table. */
typedef struct {
    fp_address *entries;
    uint32_t *heads;
    uint32_t capacity; /* of both; a power of two */
    uint32_t used, free;
    uint64_t seed;
} fp_addresses;

/* What the peer's address counts as. False where that is nothing that can be counted (no IP address). */
bool fp_address_key(const struct sockaddr *address, uint64_t *key);
/* The same of an address in text; a scope ("%eth0") does not count. */
bool fp_address_parse(const char *text, uint64_t *key);

/* One connection more. False when the address has `limit` already, or without memory. */
bool fp_addresses_enter(fp_addresses *table, uint64_t key, uint32_t limit, uint32_t *place);
/* One connection less, of this place. */
void fp_addresses_leave(fp_addresses *table, uint32_t place);
void fp_addresses_free(fp_addresses *table);

#endif
