/* Audiences: sets of connections, and the flush that tells each of them what changed.
 *
 * Add and remove are O(1) but for a walk over the connection's own memberships (at most a few dozen). A flush has a
 * list of jobs, one an audience with its prepared frame for each variant; it walks every audience from the end
 * downwards (a removal swaps the last one in) and gives each connection all that the jobs have for it, joined with what
 * is pending for it, in one system call. It runs in slices; a connection that is answered in between is given the
 * running flush first. A connection whose socket is full is left out and marked with the version it had.
 */
#ifndef FP_AUDIENCE_H
#define FP_AUDIENCE_H

#include "engine.h"

/* A new audience's number, or FP_NONE without memory. */
uint32_t fp_audience_new(fp_engine *engine);
/* Give an audience back; its members leave it. Not while it has a job: then false. */
bool fp_audience_free(fp_engine *engine, uint32_t audience);
bool fp_audience_join(fp_engine *engine, fp_handle handle, uint32_t audience);
bool fp_audience_leave(fp_engine *engine, fp_handle handle, uint32_t audience);
void fp_audience_leave_all(fp_engine *engine, fp_conn *conn);

/* Begin a flush that takes caught-up connections from `from` to what the jobs tell. The jobs and their bytes stay the
 * caller's until the flush has ended. False while one is running. */
bool fp_flush_begin(fp_engine *engine, uint64_t from, fp_job *jobs, uint32_t count);
/* Go on for about `budget_us`; true when the flush has ended. */
bool fp_flush_step(fp_engine *engine, uint32_t budget_us);
/* Give a connection the running flush now, if it has yet to come to it. */
void fp_flush_settle(fp_engine *engine, fp_conn *conn);

#endif
