/* SPDX-License-Identifier: Apache-2.0 */
#include "base/pacer.h"

#include "base/checked.h"
#include "base/time_units.h"

/* The longest time that one piece takes: no sum of the clock and this overflows. */
#define PIECE_NS_MAX (INT64_MAX / 4)

int64_t pacer_take(struct pacer *p, uint64_t bytes, int64_t now_ns)
{
    int64_t start = MAX(now_ns, p->next_ns);
    double takes_ns;

    if (p->rate == 0) {
        return 0;
    }
    takes_ns = (double)bytes * (double)NS_PER_SECOND / (double)p->rate;
    p->next_ns = MIN(start, PIECE_NS_MAX) + (int64_t)MIN(takes_ns, (double)PIECE_NS_MAX);
    return start - now_ns;
}
