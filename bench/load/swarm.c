/* The swarm's own life: flags, bring the links up, runs on command, one line of JSON for each.
 *
 *   swarm MODE --port P --connections N [--real] [--present] [--tokens FILE] [--observer-token T] [--publishers P]
 *              [--publishers-public] [--parallel 64] [--period S] [--rate C] [--spin] [--deflate] [--eager]
 *              [--freezing F] [--snapshot ENTRIES] [--watches K [--common]] [--device NAME] [--server-pid PID]
 *              [--dialect NAME] [--distinct]
 *
 * MODE: heartbeats, fanout, sync, handshakes, idle, storm, pulse, churn, messages. --real: the server speaks the protocol (else it echoes and
 * broadcasts). --present: links say user_online first (publishers always do), as --device when given. --deflate: links
 * offer compression and insist on it. --distinct: every link is a present user of its own and hears the public, with
 * --publishers too. --dialect: how a server that is not --real is spoken to. --server-pid: whose CPU time a run is charged with. The rest is of one mode each
 * and told there.
 *
 *   it prints                          it reads
 *   {"ready": N, "seconds": S}
 *                                      run AMOUNT WARMUP BYTES PACE
 *   {"mode": ..., "operations": ...}
 *                                      use MODE ACTIVE      (the same links in another mode; fanout: so many publish)
 *                                      quit      (or the end of the input)
 *
 * AMOUNT and WARMUP are seconds (handshakes: how many; storm: nothing; neither warms up), BYTES the payload of a
 * broadcast (sync: how many readers freeze), PACE the milliseconds between two changes of one publisher, two beats of
 * one link or two newcomers (0: none; the next comes when the last one is answered). A run drives, lets WARMUP pass, measures for AMOUNT,
 * then waits for what is in flight. CPU time of the server is the sum of the nanoseconds its threads were on a CPU
 * (schedstat), read in the same turn as the counters. On quit present links close with 1000 and the rest are reset. The
 * swarm's own share: `swarm_busy` is the part of the time in which it had work, turns in which it looked in vain left out. `slices` are the operations of each
 * `slice_s` of the window.
 */
#define _GNU_SOURCE
#include "swarm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* A swarm that spins looks again after REST_NS when it found only FEW links ready: asking for each of them alone would
 * take more of its time than reading them, and what it measures is milliseconds. */
enum { EVENTS = 512, DRAIN_S = 30, SLICES = 256, FEW = 16, REST_NS = 30000 };

struct options options = {.parallel = 64, .period_s = 30, .observer_token = "none"};
struct counters counters;
const struct dialect *dialect = &raw_dialect;
struct link *links;
uint32_t link_count, ready_count, connecting_count;
bool driving;
const struct mode *mode;

static const struct mode *const modes[] = {&heartbeats_mode, &handshakes_mode, &idle_mode,  &fanout_mode,
                                             &sync_mode,       &storm_mode,      &pulse_mode, &churn_mode,
                                             &messages_mode};
static int epoll_fd;
static uint64_t idle_ns;
static uint64_t slice_ns, slice_begin_ns, slices[SLICES], slice_before; /* of the window; slice_ns 0: there is none */
static uint32_t slice_count;
static bool quitting;
static char commands[256]; /* what has come of the next command line */
static size_t command_length;

void die(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "swarm: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    exit(1);
}

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_S + (uint64_t)t.tv_nsec;
}

void *zeroed(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (!memory)
        die("out of memory");
    return memory;
}

/* Nanoseconds the server's threads have been on a CPU. Good to a scheduler tick (4 ms) for a thread that is running. */
static uint64_t server_cpu_ns(void)
{
    char path[64];
    uint64_t sum = 0;
    if (!options.server_pid)
        return 0;
    snprintf(path, sizeof path, "/proc/%d/task", options.server_pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        die("the server (process %d) is gone", options.server_pid);
    for (struct dirent *task; (task = readdir(tasks));) {
        char file[400];
        unsigned long long on_cpu = 0;
        if (task->d_name[0] == '.')
            continue;
        snprintf(file, sizeof file, "%s/%s/schedstat", path, task->d_name);
        FILE *stat = fopen(file, "r");
        if (stat && fscanf(stat, "%llu", &on_cpu) == 1)
            sum += on_cpu;
        if (stat)
            fclose(stat);
    }
    closedir(tasks);
    return sum;
}

static uint64_t own_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * NS_S + (uint64_t)t.tv_nsec;
}

/* The buckets that are not empty, as [index, count]. */
void histogram_print(const struct histogram *h)
{
    const char *comma = "";
    printf(", \"histogram\": {\"max_ns\": %llu, \"buckets\": [", (unsigned long long)h->max);
    for (uint32_t i = 0; i < HISTOGRAM_SIZE; i++) {
        if (h->buckets[i])
            printf("%s[%u,%llu]", comma, i, (unsigned long long)h->buckets[i]), comma = ",";
    }
    printf("]}");
}

static void slice(uint64_t now)
{
    while (slice_ns && slice_count < SLICES && now - slice_begin_ns >= slice_ns) {
        slices[slice_count++] = counters.operations - slice_before;
        slice_before = counters.operations;
        slice_begin_ns += slice_ns;
    }
}

static void begin_slices(double seconds)
{
    slice_ns = (uint64_t)((seconds > 10 ? seconds / 100 : 0.1) * NS_S);
    slice_begin_ns = now_ns();
    slice_before = counters.operations;
    slice_count = 0;
}

static void read_commands(void)
{
    ssize_t got = read(0, commands + command_length, sizeof commands - 1 - command_length);
    if (got > 0)
        command_length += (size_t)got;
    else if (got == 0 || errno != EAGAIN)
        quitting = true;
}

/* One turn of the loop. */
static void turn(int timeout_ms)
{
    struct epoll_event events[EVENTS];
    static uint64_t begin;
    static int last_count;
    if (options.spin && begin && last_count < FEW) {
        uint64_t until = begin + REST_NS, now;
        while ((now = now_ns()) < until)
            ;
        idle_ns += now - begin;
        begin = now;
    }
    uint64_t sent = counters.sent;
    uint32_t connecting = connecting_count;
    int count = epoll_wait(epoll_fd, events, EVENTS, timeout_ms);
    if (count < 0 && errno != EINTR)
        die("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr)
            link_event(events[i].data.ptr, events[i].events);
        else
            read_commands();
    }
    uint64_t now = now_ns();
    if (driving && mode->turn)
        mode->turn(now);
    if (mode->idle)
        mode->idle(now);
    slice(now);
    uint64_t end = now_ns();
    if (count <= 0 && counters.sent == sent && connecting_count == connecting)
        idle_ns += end - begin;
    begin = end;
    last_count = count;
}

static void bring_up(void)
{
    uint64_t begin = now_ns();
    uint32_t started = 0, wanted = link_count - options.freezing;
    while (ready_count < wanted && !quitting) {
        /* Publishers first, so that every observer's snapshot holds them all. */
        uint32_t limit = ready_count < options.publishers ? options.publishers : wanted;
        while (started < limit && started - ready_count < options.parallel)
            link_connect(&links[started++]);
        turn(options.spin ? 0 : 10);
        if (now_ns() - begin > 120 * NS_S)
            die("only %u of %u links came up in 120 s", ready_count, wanted);
    }
    printf("{\"ready\": %u, \"seconds\": %.3f}\n", ready_count, (double)(now_ns() - begin) / NS_S);
    fflush(stdout);
}

/* Drives until `end` (0: until nothing is in flight). */
static void drive(uint64_t end)
{
    while (!quitting && (end ? now_ns() < end : mode->busy()))
        turn(options.spin ? 0 : 1);
}

static void run(double amount, double warmup_s, uint32_t bytes)
{
    driving = true;
    mode->start(amount, bytes);
    if (!mode->counts)
        drive(now_ns() + (uint64_t)(warmup_s * NS_S));

    if (mode->window)
        mode->window(true);
    struct counters before = counters;
    uint64_t server = server_cpu_ns(), own = own_cpu_ns(), idle = idle_ns, begin = now_ns();
    begin_slices(mode->counts ? 0 : amount);
    drive(mode->counts ? 0 : begin + (uint64_t)(amount * NS_S));
    uint64_t end = now_ns();
    struct counters after = counters;
    server = server_cpu_ns() - server, own = own_cpu_ns() - own, idle = idle_ns - idle;
    double slice_s = (double)slice_ns / NS_S;
    slice_ns = 0;
    if (mode->window)
        mode->window(false);

    driving = false;
    uint64_t patience = end + DRAIN_S * NS_S;
    while (mode->busy() && now_ns() < patience && !quitting && !counters.lost) /* who is lost sees nothing any more */
        turn(1);
    double seconds = (double)(end - begin) / NS_S;
    printf("{\"mode\": \"%s\", \"seconds\": %.4f, \"operations\": %llu, \"server_cpu_ns\": %llu, \"sent\": %llu, "
           "\"frames\": %llu, \"frame_bytes\": %llu, \"entries\": %llu, \"compressed\": %llu, \"errors\": %llu, \"lost\": %llu, "
           "\"unfinished\": %s, \"swarm_cpu\": %.3f, \"swarm_busy\": %.3f, "
           "\"spin\": %s",
           mode->name, seconds, (unsigned long long)(after.operations - before.operations), (unsigned long long)server,
           (unsigned long long)(after.sent - before.sent), (unsigned long long)(after.frames - before.frames),
           (unsigned long long)(after.frame_bytes - before.frame_bytes),
           (unsigned long long)(after.entries - before.entries),
           (unsigned long long)(after.compressed - before.compressed), (unsigned long long)counters.errors,
           (unsigned long long)counters.lost, mode->busy() ? "true" : "false", (double)own / (double)(end - begin),
           1 - (double)idle / (double)(end - begin), options.spin ? "true" : "false");
    printf(", \"slice_s\": %.3f, \"slices\": [", slice_s);
    for (uint32_t i = 0; i < slice_count; i++)
        printf("%s%llu", i ? "," : "", (unsigned long long)slices[i]);
    printf("]");
    if (mode->report)
        mode->report();
    printf("}\n");
    fflush(stdout);
}

/* Takes another mode, or another number of publishers: nothing is in flight between two runs. */
static void use(const char *name, uint32_t active)
{
    const struct mode *found = NULL;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(name, modes[i]->name))
            found = modes[i];
    if (!found || found->passing || active > options.publishers)
        die("cannot use %s with %u publishers", name, active);
    mode = found;
    options.active = active;
}

static void obey(void)
{
    double amount, warmup_s, pace_ms;
    unsigned bytes, active;
    char *newline, name[32];
    while (!quitting && (newline = memchr(commands, '\n', command_length))) {
        *newline = 0;
        if (!strcmp(commands, "quit"))
            quitting = true;
        else if (sscanf(commands, "use %31s %u", name, &active) == 2)
            use(name, active);
        else if (sscanf(commands, "run %lf %lf %u %lf", &amount, &warmup_s, &bytes, &pace_ms) != 4)
            die("not a command: %s", commands);
        size_t used = (size_t)(newline + 1 - commands);
        bool is_run = !strncmp(commands, "run", 3);
        command_length -= used;
        memmove(commands, newline + 1, command_length);
        options.pace_ms = is_run ? pace_ms : 0;
        if (is_run)
            run(amount, warmup_s, bytes);
    }
}

static void leave(void)
{
    uint64_t end = now_ns() + 3 * NS_S;
    bool waiting = true;
    driving = false;
    for (uint32_t i = 0; i < link_count; i++) {
        if (links[i].phase == READY && links[i].role == PRESENT)
            link_goodbye(&links[i]);
        else if (links[i].phase != CLOSED)
            link_cut(&links[i]);
    }
    while (waiting && now_ns() < end) {
        turn(10);
        waiting = false;
        for (uint32_t i = 0; i < link_count && !waiting; i++)
            waiting = links[i].phase != CLOSED;
    }
    for (uint32_t i = 0; i < link_count; i++)
        if (links[i].phase != CLOSED)
            link_cut(&links[i]);
}

static void parse(int argc, char **argv)
{
    if (argc < 2)
        die("which mode?");
    options.mode = argv[1];
    for (int i = 2; i < argc; i++) {
        const char *flag = argv[i];
        static const struct {
            const char *name;
            bool *on;
        } switches[] = {{"--real", &options.real},       {"--spin", &options.spin},
                        {"--present", &options.present}, {"--publishers-public", &options.publishers_public},
                        {"--deflate", &options.deflate}, {"--eager", &options.eager},
                        {"--distinct", &options.distinct}, {"--common", &options.common}};
        bool found = false;
        for (size_t j = 0; j < sizeof switches / sizeof *switches; j++)
            if (!strcmp(flag, switches[j].name))
                *switches[j].on = found = true;
        if (found)
            continue;
        const char *value = ++i < argc ? argv[i] : NULL;
        if (!value)
            die("%s needs a value", flag);
        if (!strcmp(flag, "--port"))
            options.port = atoi(value);
        else if (!strcmp(flag, "--server-pid"))
            options.server_pid = atoi(value);
        else if (!strcmp(flag, "--connections"))
            options.connections = (uint32_t)atoi(value);
        else if (!strcmp(flag, "--publishers"))
            options.publishers = (uint32_t)atoi(value);
        else if (!strcmp(flag, "--parallel"))
            options.parallel = (uint32_t)atoi(value);
        else if (!strcmp(flag, "--freezing"))
            options.freezing = (uint32_t)atoi(value);
        else if (!strcmp(flag, "--snapshot"))
            options.snapshot = (uint32_t)atoi(value);
        else if (!strcmp(flag, "--watches"))
            options.watches = (uint32_t)atoi(value);
        else if (!strcmp(flag, "--dialect"))
            dialect = dialect_named(value);
        else if (!strcmp(flag, "--device"))
            options.device = value;
        else if (!strcmp(flag, "--period"))
            options.period_s = atof(value);
        else if (!strcmp(flag, "--rate"))
            options.rate = atof(value);
        else if (!strcmp(flag, "--tokens"))
            options.tokens = value;
        else if (!strcmp(flag, "--observer-token"))
            options.observer_token = value;
        else
            die("no such flag: %s", flag);
    }
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(options.mode, modes[i]->name))
            mode = modes[i];
    if (!mode)
        die("no such mode: %s", options.mode);
    if (!options.port || !options.connections || !options.parallel)
        die("--port, --connections and --parallel must be more than 0");
    if ((mode == &fanout_mode || mode == &sync_mode) && !options.publishers)
        die("this mode needs --publishers");
    if (mode == &sync_mode && (!options.real || options.rate <= 0))
        die("this mode needs --real and --rate");
    if ((mode == &churn_mode || mode == &messages_mode || mode == &pulse_mode) && options.rate <= 0)
        die("this mode needs --rate");
    options.active = options.publishers;
    options.publishers_public |= options.distinct;
    if (options.freezing && mode != &sync_mode)
        die("only observers of the mode sync freeze");
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &event) < 0)
        die("the commands must come through a pipe or a terminal");
    wire_init(epoll_fd);
    wire_tokens();

    link_count = options.publishers + options.freezing + (mode->passing ? options.parallel : options.connections);
    links = zeroed(link_count, sizeof *links);
    for (uint32_t i = 0; i < link_count; i++) {
        bool shared = options.publishers && i >= options.publishers && !options.distinct;
        links[i] = (struct link){.fd = -1, .index = i};
        links[i].role = !shared && (options.present || options.publishers) ? PRESENT : OBSERVER;
        if (shared)
            links[i].user = "observer", links[i].token = options.observer_token;
        else if (!mode->passing)
            link_name(&links[i], i);
    }
    if (mode->passing)
        printf("{\"ready\": 0, \"seconds\": 0}\n"), fflush(stdout);
    else
        bring_up();
    while (!quitting) {
        obey();
        if (!quitting)
            turn(mode->idle ? 1 : 1000);
    }
    leave();
    return 0;
}
