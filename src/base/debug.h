/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks of the program by itself that a debug build makes (meson's option `debug`, as in `make
 * debug` and `make tsan`) and a release build leaves out. assert() is active in both.
 */
#ifndef TIDEMARK_BASE_DEBUG_H
#define TIDEMARK_BASE_DEBUG_H

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>

/* assert() in a debug build. In a release build `condition` is compiled, but not evaluated. */
#ifdef TIDEMARK_DEBUG
#define DEBUG_ASSERT(condition) assert(condition)
#else
#define DEBUG_ASSERT(condition) ((void)sizeof(condition))
#endif

/* Whether this thread or another one holds `mutex`; POSIX has no closer question. */
static inline bool mutex_is_held(pthread_mutex_t *mutex)
{
    if (pthread_mutex_trylock(mutex) != 0) {
        return true;
    }
    pthread_mutex_unlock(mutex);
    return false;
}

/* The first statement of a function whose name ends in `_locked`, where the lock is a thread's. */
#define MUTEX_ASSERT_HELD(mutex) DEBUG_ASSERT(mutex_is_held(mutex))

#endif
