/* Words to callgrind, for Python to call: outside of valgrind each is a few instructions that do nothing. */
#include <valgrind/callgrind.h>

void mark_on(void)
{
    CALLGRIND_START_INSTRUMENTATION;
}

void mark_begin(void)
{
    CALLGRIND_ZERO_STATS;
}

void mark_end(const char *name)
{
    CALLGRIND_DUMP_STATS_AT(name);
}
