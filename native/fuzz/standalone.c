/* What drives a fuzz target where there is no libFuzzer: replays files, then mutates them for a while.
 *
 *     TARGET [-seconds=N] [-seed=N] [-keep=DIR] FILE_OR_DIRECTORY...
 *
 * Coverage comes from gcc's -fsanitize-coverage=trace-pc, which calls us at every basic block of the target (this file
 * is compiled without it). An input that reaches a new pair of blocks joins the pool; with -keep it is written down,
 * cut as short as its new coverage allows. A target aborts on a finding; the input is then in `crash-input`
 * ($FUZZ_CRASH names another file).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INPUT_MAX = 8192, POOL_MAX = 20000, MAP = 1 << 16, CALLS_TO_SHORTEN = 400 };

typedef struct {
    uint8_t *data;
    size_t size;
} input;

static input pool[POOL_MAX];
static size_t pooled;
static uint8_t seen[MAP], now_seen[MAP];
static uint32_t touched[MAP], touched_count;
static uintptr_t last_block;
static uint64_t state;
static const char *keep;
static uint64_t runs;
static uint8_t running[INPUT_MAX];
static size_t running_size;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    /* Relative to this program, so that a seed means the same in every process. */
    uintptr_t block = (uintptr_t)__builtin_return_address(0) - (uintptr_t)&LLVMFuzzerTestOneInput;
    uint32_t edge = (uint32_t)((block * 0x9E3779B1u) ^ (last_block * 0x85EBCA77u)) % MAP;
    last_block = block >> 1;
    if (!now_seen[edge]) {
        now_seen[edge] = 1;
        touched[touched_count++] = edge;
    }
}

static uint32_t below(uint32_t bound)
{
    state ^= state << 13; /* xorshift64 */
    state ^= state >> 7;
    state ^= state << 17;
    return bound ? (uint32_t)((state >> 16) % bound) : 0;
}

/* Keep the input that was running. Called from a signal handler: write(2) and little else. */
static void save_crash(void)
{
    const char *path = getenv("FUZZ_CRASH") ? getenv("FUZZ_CRASH") : "crash-input";
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    if (write(fd, running, running_size) < 0)
        perror("crash-input");
    close(fd);
}

static void on_abort(int number)
{
    save_crash();
    signal(number, SIG_DFL);
    raise(number);
}

/* Sanitizers end the process themselves: with this they say so first. */
void __asan_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void run(const uint8_t *data, size_t size)
{
    for (uint32_t i = 0; i < touched_count; i++)
        now_seen[touched[i]] = 0;
    touched_count = 0;
    last_block = 0;
    memcpy(running, data, size);
    running_size = size;
    runs++;
    LLVMFuzzerTestOneInput(running, size);
}

/* How many edges the last run met for the first time. */
static uint32_t count_new(void)
{
    uint32_t fresh = 0;
    for (uint32_t i = 0; i < touched_count; i++)
        fresh += !seen[touched[i]];
    return fresh;
}

static void add(const uint8_t *data, size_t size)
{
    for (uint32_t i = 0; i < touched_count; i++)
        seen[touched[i]] = 1;
    if (pooled == POOL_MAX)
        return;
    uint8_t *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    pool[pooled++] = (input){copy, size};
}

static size_t mutate(uint8_t *data, size_t size)
{
    static const uint8_t TELLING[] = {0, 1, 2, 8, 9, 10, 0x7D, 0x7E, 0x7F, 0x80, 0x81, 0x82, 0x88, 0x89, 0xC1, 0xED, 0xF4, 0xFD, 0xFE, 0xFF};
    for (uint32_t rounds = 1 + below(4); rounds; rounds--) {
        uint32_t at = below((uint32_t)size + 1), length = 1 + below(below(4) ? 8 : 200);
        switch (below(9)) {
        case 0:
            if (size)
                data[at % size] ^= (uint8_t)(1 << below(8));
            break;
        case 1:
            if (size)
                data[at % size] = (uint8_t)below(256);
            break;
        case 2:
            if (size)
                data[at % size] = TELLING[below(sizeof TELLING)];
            break;
        case 3:
            if (size)
                data[at % size] = (uint8_t)(data[at % size] + below(2) * 2 - 1);
            break;
        case 4: /* take out */
            if (at < size) {
                length = length < size - at ? length : (uint32_t)size - at;
                memmove(data + at, data + at + length, size - at - length);
                size -= length;
            }
            break;
        case 5: /* put in: random, telling, or the same again and again */
            length = length < INPUT_MAX - size ? length : INPUT_MAX - (uint32_t)size;
            memmove(data + at + length, data + at, size - at);
            for (uint32_t i = 0, kind = below(3), same = below(256); i < length; i++)
                data[at + i] = kind == 0 ? (uint8_t)below(256) : kind == 1 ? TELLING[below(sizeof TELLING)] : (uint8_t)same;
            size += length;
            break;
        case 6: /* say twice */
            if (at < size) {
                length = length < size - at ? length : (uint32_t)size - at;
                length = length < INPUT_MAX - size ? length : INPUT_MAX - (uint32_t)size;
                memmove(data + at + length, data + at, size - at);
                size += length;
            }
            break;
        case 7: { /* a part of another, or what it ends with */
            const input *other = &pool[below((uint32_t)pooled)];
            uint32_t from = below((uint32_t)other->size + 1);
            length = below(2) ? length : INPUT_MAX;
            length = length < other->size - from ? length : (uint32_t)(other->size - from);
            length = length < INPUT_MAX - size ? length : INPUT_MAX - (uint32_t)size;
            memmove(data + at + length, data + at, size - at);
            memcpy(data + at, other->data + from, length);
            size += length;
            break;
        }
        default: /* a part of itself somewhere else */
            if (size) {
                uint32_t from = below((uint32_t)size);
                length = length < size - from ? length : (uint32_t)size - from;
                length = at + length <= size ? length : (uint32_t)size - at;
                memmove(data + at, data + from, length);
            }
        }
    }
    return size;
}

/* Take away what the new coverage does not need, and write it down. */
static void keep_short(uint8_t *data, size_t size)
{
    static uint8_t shorter[INPUT_MAX];
    uint32_t wanted = count_new();
    uint32_t calls = CALLS_TO_SHORTEN;
    for (size_t step = size / 2; step; step /= 2) {
        for (size_t at = 0; at + step <= size && calls; calls--) {
            memcpy(shorter, data, at);
            memcpy(shorter + at, data + at + step, size - at - step);
            run(shorter, size - step);
            if (count_new() >= wanted) {
                size -= step;
                memcpy(data, shorter, size);
            } else {
                at += step;
            }
        }
    }
    run(data, size);
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ data[i]) * 0x100000001B3u;
    char path[4096];
    snprintf(path, sizeof path, "%s/found-%016llx", keep, (unsigned long long)hash);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file)) {
        perror(path);
        exit(2);
    }
    add(data, size);
}

static void load(const char *path)
{
    struct stat about;
    if (stat(path, &about)) {
        perror(path);
        exit(2);
    }
    if (S_ISDIR(about.st_mode)) {
        struct dirent **names;
        int count = scandir(path, &names, NULL, alphasort);
        for (int i = 0; i < count; i++) {
            char inside[4096];
            snprintf(inside, sizeof inside, "%s/%s", path, names[i]->d_name);
            if (names[i]->d_name[0] != '.')
                load(inside);
            free(names[i]);
        }
        free(names);
        return;
    }
    static uint8_t data[INPUT_MAX];
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(2);
    }
    size_t size = fread(data, 1, INPUT_MAX, file);
    fclose(file);
    run(data, size);
    add(data, size);
}

int main(int count, char **arguments)
{
    double seconds = 0;
    state = 1;
    signal(SIGABRT, on_abort);
    if (__asan_set_death_callback)
        __asan_set_death_callback(save_crash);
    for (int i = 1; i < count; i++) {
        if (!strncmp(arguments[i], "-seconds=", 9))
            seconds = atof(arguments[i] + 9);
        else if (!strncmp(arguments[i], "-seed=", 6))
            state = strtoull(arguments[i] + 6, NULL, 10) | 1;
        else if (!strncmp(arguments[i], "-keep=", 6))
            keep = arguments[i] + 6;
        else
            load(arguments[i]);
    }
    size_t replayed = pooled;
    if (!pooled) {
        run((const uint8_t *)"", 0);
        add((const uint8_t *)"", 0);
    }
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    static uint8_t data[INPUT_MAX];
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((double)(now.tv_sec - begun.tv_sec) + (double)(now.tv_nsec - begun.tv_nsec) / 1e9 >= seconds)
            break;
        for (int i = 0; i < 64; i++) {
            /* Every other time one of the latest: they are where new things were found. */
            uint32_t recent = pooled < 32 ? (uint32_t)pooled : 32;
            const input *from = &pool[below(2) ? below((uint32_t)pooled) : (uint32_t)pooled - 1 - below(recent)];
            memcpy(data, from->data, from->size);
            size_t size = mutate(data, from->size);
            run(data, size);
            if (!count_new())
                continue;
            if (keep)
                keep_short(data, size);
            else
                add(data, size);
        }
    }
    uint32_t edges = 0;
    for (uint32_t i = 0; i < MAP; i++)
        edges += seen[i];
    printf("%zu replayed, %llu runs, %zu kept, %u edges, no finding\n", replayed, (unsigned long long)runs, pooled - replayed,
           edges);
    for (size_t i = 0; i < pooled; i++)
        free(pool[i].data);
    return 0;
}
