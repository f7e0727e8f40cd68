/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the coroutine layer: waking what was taken off a lock's queue. */
#ifndef TIDEMARK_CO_WAKE_LIST_H
#define TIDEMARK_CO_WAKE_LIST_H

#include "base/list.h"
#include "co/co.h"

/* Wake all coroutines of a list of co_link()s, in order; the list is empty afterwards. */
static inline void co_wake_list(struct list *links)
{
    while (!list_is_empty(links)) {
        struct list *link = links->next;

        list_remove(link);
        co_wake(co_from_link(link));
    }
}

#endif
