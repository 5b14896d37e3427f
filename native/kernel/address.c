#define _GNU_SOURCE
#include "address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum { FP_FIRST_ADDRESSES = 64 };

/* No network has this prefix (RFC 4291, section 2.4: ::/8 is not for hosts), so that it stands for IPv4. */
#define IPV4 UINT64_C(0x0000ffff00000000)

static uint64_t of_ipv4(const void *bytes)
{
    uint32_t address;
    memcpy(&address, bytes, sizeof address);
    return IPV4 | ntohl(address);
}

static uint64_t of_ipv6(const struct in6_addr *address)
{
    if (IN6_IS_ADDR_V4MAPPED(address)) /* what a socket for both families shows */
        return of_ipv4(address->s6_addr + 12);
    uint64_t prefix = 0;
    for (int i = 0; i < 8; i++)
        prefix = prefix << 8 | address->s6_addr[i];
    return prefix;
}

bool fp_address_key(const struct sockaddr *address, uint64_t *key)
{
    if (address->sa_family == AF_INET)
        *key = of_ipv4(&((const struct sockaddr_in *)address)->sin_addr);
    else if (address->sa_family == AF_INET6)
        *key = of_ipv6(&((const struct sockaddr_in6 *)address)->sin6_addr);
    else
        return false;
    return true;
}

bool fp_address_parse(const char *text, uint64_t *key)
{
    char bare[INET6_ADDRSTRLEN];
    size_t size = strcspn(text, "%");
    if (size >= sizeof bare)
        return false;
    memcpy(bare, text, size);
    bare[size] = 0;
    struct in_addr ipv4;
    struct in6_addr ipv6;
    if (inet_pton(AF_INET, bare, &ipv4) == 1)
        *key = of_ipv4(&ipv4);
    else if (inet_pton(AF_INET6, bare, &ipv6) == 1)
        *key = of_ipv6(&ipv6);
    else
        return false;
    return true;
}

/* Finalizer of splitmix64 over the key and a secret. */
static uint32_t head_of(const fp_addresses *table, uint64_t key)
{
    uint64_t mixed = key ^ table->seed;
    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = ((mixed ^ mixed >> 27) + table->seed) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(mixed ^ mixed >> 31) & (table->capacity - 1);
}

static bool grow(fp_addresses *table)
{
    uint32_t capacity = table->capacity ? table->capacity * 2 : FP_FIRST_ADDRESSES;
    fp_address *entries = realloc(table->entries, capacity * sizeof *entries);
    if (!entries)
        return false;
    table->entries = entries;
    uint32_t *heads = realloc(table->heads, capacity * sizeof *heads);
    if (!heads)
        return false;
    table->heads = heads;
    if (!table->capacity && getrandom(&table->seed, sizeof table->seed, GRND_NONBLOCK) != sizeof table->seed)
        table->seed = (uint64_t)time(NULL) * UINT64_C(0x9e3779b97f4a7c15) ^ (uintptr_t)heads;
    uint32_t had = table->capacity;
    table->capacity = capacity;
    table->free = FP_NO_PLACE; /* it is full: nothing was free */
    for (uint32_t head = 0; head < capacity; head++)
        heads[head] = FP_NO_PLACE;
    for (uint32_t place = 0; place < had; place++) {
        uint32_t head = head_of(table, entries[place].key);
        entries[place].next = heads[head];
        heads[head] = place;
    }
    for (uint32_t place = capacity; place-- > had;) {
        entries[place] = (fp_address){.next = table->free};
        table->free = place;
    }
    return true;
}

bool fp_addresses_enter(fp_addresses *table, uint64_t key, uint32_t limit, uint32_t *place)
{
    if (table->capacity) {
        for (uint32_t at = table->heads[head_of(table, key)]; at != FP_NO_PLACE; at = table->entries[at].next) {
            if (table->entries[at].key != key)
                continue;
            if (table->entries[at].count >= limit)
                return false;
            table->entries[at].count++;
            *place = at;
            return true;
        }
    }
    if (!limit || (table->used == table->capacity && !grow(table)))
        return false;
    uint32_t head = head_of(table, key);
    uint32_t at = table->free;
    table->free = table->entries[at].next;
    table->entries[at] = (fp_address){.key = key, .count = 1, .next = table->heads[head]};
    table->heads[head] = at;
    table->used++;
    *place = at;
    return true;
}

void fp_addresses_leave(fp_addresses *table, uint32_t place)
{
    fp_address *gone = &table->entries[place];
    if (--gone->count)
        return;
    uint32_t *link = &table->heads[head_of(table, gone->key)];
    while (*link != place)
        link = &table->entries[*link].next;
    *link = gone->next;
    gone->next = table->free;
    table->free = place;
    table->used--;
}

void fp_addresses_free(fp_addresses *table)
{
    free(table->entries);
    free(table->heads);
    memset(table, 0, sizeof *table);
}
