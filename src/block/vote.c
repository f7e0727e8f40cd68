/* SPDX-License-Identifier: Apache-2.0 */
#include "block/vote.h"

#include <stddef.h>

static void (*listener)(const struct block_vote *v);

void block_set_vote_fn(void (*fn)(const struct block_vote *v))
{
    listener = fn;
}

void block_report_vote(const struct block_vote *v)
{
    if (listener) {
        listener(v);
    }
}
