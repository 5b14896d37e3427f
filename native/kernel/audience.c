#define _GNU_SOURCE
#include "audience.h"

#include <stdlib.h>
#include <time.h>

enum { FP_FIRST_AUDIENCES = 8, FP_FIRST_MEMBERS = 4, CHECK_EVERY = 16 }; /* recipients between two looks at the clock */

static uint32_t take_member(fp_engine *engine)
{
    if (engine->free_member == FP_NONE) {
        uint32_t capacity = engine->member_capacity ? engine->member_capacity * 2 : FP_FIRST;
        fp_member *members = realloc(engine->members, capacity * sizeof *members);
        if (!members)
            return FP_NONE;
        engine->members = members;
        for (uint32_t i = capacity; i-- > engine->member_capacity;) {
            members[i].next = engine->free_member;
            engine->free_member = i;
        }
        engine->member_capacity = capacity;
    }
    uint32_t member = engine->free_member;
    engine->free_member = engine->members[member].next;
    return member;
}

/* Out of its audience's list (the last one takes its place) and back to the free list. */
static void drop_member(fp_engine *engine, uint32_t member)
{
    fp_member *gone = &engine->members[member];
    fp_audience *audience = &engine->audiences[gone->audience];
    uint32_t last = audience->members[--audience->count];
    audience->members[gone->position] = last;
    engine->members[last].position = gone->position;
    gone->next = engine->free_member;
    engine->free_member = member;
}

uint32_t fp_audience_new(fp_engine *engine)
{
    uint32_t number = engine->free_audience;
    if (number != FP_NONE) {
        engine->free_audience = engine->audiences[number].next;
    } else {
        if (engine->audience_count == engine->audience_capacity) {
            uint32_t capacity = engine->audience_capacity ? engine->audience_capacity * 2 : FP_FIRST_AUDIENCES;
            fp_audience *audiences = realloc(engine->audiences, capacity * sizeof *audiences);
            if (!audiences)
                return FP_NONE;
            engine->audiences = audiences;
            engine->audience_capacity = capacity;
        }
        number = engine->audience_count++;
    }
    engine->audiences[number] = (fp_audience){.job = -1, .used = true};
    return number;
}

bool fp_audience_free(fp_engine *engine, uint32_t number)
{
    if (number >= engine->audience_count || !engine->audiences[number].used)
        return true;
    fp_audience *audience = &engine->audiences[number];
    if (audience->job >= 0)
        return false;
    while (audience->count) {
        uint32_t conn = engine->members[audience->members[audience->count - 1]].conn;
        fp_audience_leave(engine, fp_engine_handle(engine, &engine->conns[conn]), number);
    }
    free(audience->members);
    *audience = (fp_audience){.job = -1, .next = engine->free_audience};
    engine->free_audience = number;
    return true;
}

bool fp_audience_join(fp_engine *engine, fp_handle handle, uint32_t number)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn || conn->state != FP_OPEN || number >= engine->audience_count || !engine->audiences[number].used)
        return false;
    for (uint32_t member = conn->member; member != FP_NONE; member = engine->members[member].next)
        if (engine->members[member].audience == number)
            return true;
    fp_flush_settle(engine, conn); /* what the running flush has for its other audiences; this one it knows newer */
    fp_audience *audience = &engine->audiences[number];
    if (audience->count == audience->capacity) {
        uint32_t capacity = audience->capacity ? audience->capacity * 2 : FP_FIRST_MEMBERS;
        uint32_t *members = realloc(audience->members, capacity * sizeof *members);
        if (!members)
            return false;
        audience->members = members;
        audience->capacity = capacity;
    }
    uint32_t member = take_member(engine);
    if (member == FP_NONE)
        return false;
    uint32_t slot = (uint32_t)handle;
    engine->members[member] =
        (fp_member){.conn = slot, .audience = number, .position = audience->count, .next = conn->member};
    conn->member = member;
    audience->members[audience->count++] = member;
    return true;
}

bool fp_audience_leave(fp_engine *engine, fp_handle handle, uint32_t number)
{
    fp_conn *conn = fp_engine_conn(engine, handle);
    if (!conn)
        return false;
    for (uint32_t *link = &conn->member; *link != FP_NONE; link = &engine->members[*link].next) {
        uint32_t member = *link;
        if (engine->members[member].audience == number) {
            *link = engine->members[member].next;
            drop_member(engine, member);
            return true;
        }
    }
    return false;
}

void fp_audience_leave_all(fp_engine *engine, fp_conn *conn)
{
    while (conn->member != FP_NONE) {
        uint32_t member = conn->member;
        conn->member = engine->members[member].next;
        drop_member(engine, member);
    }
}

/* ---- the flush -------------------------------------------------------------------------------------------------- */

/* Everything that the running flush has for this connection. Costs what its own memberships cost. */
static void give(fp_engine *engine, fp_conn *conn)
{
    conn->run = engine->run;
    fp_bytes frames[FP_JOINED];
    unsigned count = 0;
    for (uint32_t member = conn->member; member != FP_NONE; member = engine->members[member].next) {
        int32_t job = engine->audiences[engine->members[member].audience].job;
        if (job < 0 || !engine->jobs[job].frames[conn->variant].size)
            continue;
        if (conn->rest || conn->missed) {
            if (!conn->missed) {
                conn->missed = 1;
                conn->missed_from = engine->told;
            }
            engine->stats.skipped++;
            return;
        }
        frames[count++] = engine->jobs[job].frames[conn->variant];
        engine->stats.deliveries++;
        engine->stats.frames_sent++;
        if (count == FP_JOINED) {
            fp_conn_send(engine, conn, frames, count);
            count = 0;
            if (conn->rest && engine->members[member].next != FP_NONE) {
                /* Full in the middle: what it has not been given of this flush it misses. */
                conn->missed = 1;
                conn->missed_from = engine->told;
                return;
            }
        }
    }
    if (count)
        fp_conn_send(engine, conn, frames, count);
}

bool fp_flush_begin(fp_engine *engine, uint64_t from, fp_job *jobs, uint32_t count)
{
    if (engine->running)
        return false;
    for (uint32_t job = 0; job < count; job++)
        if (jobs[job].audience >= engine->audience_count)
            return false;
    engine->told = from;
    engine->run++;
    engine->jobs = jobs;
    engine->job_count = count;
    engine->job = 0;
    engine->position = UINT32_MAX;
    engine->running = true;
    for (uint32_t job = 0; job < count; job++)
        engine->audiences[jobs[job].audience].job = (int32_t)job;
    return true;
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

bool fp_flush_step(fp_engine *engine, uint32_t budget_us)
{
    if (!engine->running)
        return true;
    uint64_t until = now_us() + budget_us;
    unsigned given = 0;
    for (; engine->job < engine->job_count; engine->job++, engine->position = UINT32_MAX) {
        fp_audience *audience = &engine->audiences[engine->jobs[engine->job].audience];
        if (engine->position > audience->count) /* the start, or members left from the end */
            engine->position = audience->count;
        while (engine->position) {
            fp_conn *conn = &engine->conns[engine->members[audience->members[--engine->position]].conn];
            if (conn->run != engine->run) {
                give(engine, conn);
                if (++given % CHECK_EVERY == 0 && now_us() >= until)
                    return false;
            }
        }
    }
    for (uint32_t job = 0; job < engine->job_count; job++)
        engine->audiences[engine->jobs[job].audience].job = -1;
    engine->running = false;
    return true;
}

void fp_flush_settle(fp_engine *engine, fp_conn *conn)
{
    if (engine->running && conn->run != engine->run)
        give(engine, conn);
}
