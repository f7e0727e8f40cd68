/* SPDX-License-Identifier: Apache-2.0 */
/* Internal to the coroutine layer. Does not yield. */
#ifndef TIDEMARK_CO_WAKE_LIST_H
#define TIDEMARK_CO_WAKE_LIST_H

#include "base/list.h"
#include "co/co.h"

/* Wake all coroutines of a list of co_link()s, in order. The list is empty afterwards. */
static inline void co_wake_list(struct list *links)
{
    while (!list_is_empty(links)) {
        struct list *link = links->next;

        list_remove(link);
        co_wake(co_from_link(link));
    }
}

#endif
