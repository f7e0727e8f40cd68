/* SPDX-License-Identifier: Apache-2.0 */
#include "block/corruption.h"

#include <stddef.h>

static void (*listener)(const struct block_corruption *c);

void block_set_corruption_fn(void (*fn)(const struct block_corruption *c))
{
    listener = fn;
}

void block_report_corruption(const struct block_node *node, const char *what, bool fatal)
{
    const struct block_corruption c = {block_node_name(node), what, fatal};

    if (listener) {
        listener(&c);
    }
}
