/* SPDX-License-Identifier: Apache-2.0 */
/* What happened in a test, a letter each, in the order in which it did. */
#ifndef TIDEMARK_TESTS_EVENTS_H
#define TIDEMARK_TESTS_EVENTS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static char events[256];

static inline void forget_events(void)
{
    events[0] = '\0';
}

static inline void note(char event)
{
    size_t length = strlen(events);

    assert_true(length + 1 < sizeof(events));
    events[length] = event;
    events[length + 1] = '\0';
}

#endif
