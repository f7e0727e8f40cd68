/* SPDX-License-Identifier: Apache-2.0 */
/* Guessing a format from the first bytes of an image. */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/internal.h"

#define PROBE_SIZE 4096

int block_co_probe(struct block_node *node, const struct block_driver **ret_driver,
                   struct error *err)
{
    AUTO_FREE uint8_t *head = malloc(PROBE_SIZE);
    size_t size = MIN(block_node_size(node), PROBE_SIZE);
    const struct block_driver *best = block_find_driver("raw");
    struct block_root *root;
    int best_score = 0, r;

    if (!head) {
        return error_out_of_memory(err);
    }
    r = block_co_root_new_exempt(node, "format probing", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL,
                                 &root, err);
    if (r < 0) {
        return r;
    }
    r = block_co_pread(block_root_edge(root), 0, head, size);
    block_co_root_release(root);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not read '%s' for determining its format",
                               block_node_display_name(node));
    }
    for (const struct block_driver *d = block_next_driver(NULL); d; d = block_next_driver(d)) {
        int score = d->probe ? d->probe(head, size) : 0;

        if (score > best_score) {
            best_score = score;
            best = d;
        }
    }
    *ret_driver = best;
    return 0;
}
