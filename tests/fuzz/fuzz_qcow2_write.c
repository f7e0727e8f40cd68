/* SPDX-License-Identifier: Apache-2.0 */
/* A guest on an image: writes, zeroes, discards; also resizing, and making it empty. */
#include "base/checked.h"
#include "qcow2_image.h"

static void co_resize(struct block_edge *edge, unsigned how)
{
    uint64_t size = block_edge_size(edge);

    if (how & 2) {
        (void)block_co_truncate(edge, size / 2, BLOCK_PREALLOC_OFF, NULL);
    }
    if (how & 4) {
        (void)block_co_truncate(edge, MIN(size, INT64_MAX / 4) + 100 * KiB, BLOCK_PREALLOC_OFF,
                                NULL);
    }
}

void fuzz_co_image(unsigned how)
{
    struct block_node *node = fuzz_co_open(BLOCK_OPEN_RDWR);
    struct block_root *root = node ? fuzz_co_root(node, true) : NULL;

    if (root) {
        if (how & 1) {
            fuzz_co_write_disk(block_root_edge(root));
        }
        co_resize(block_root_edge(root), how);
        if (how & 8) {
            (void)node->driver->co_make_empty(node, NULL);
        }
        fuzz_co_write_disk(block_root_edge(root));
        block_co_root_release(root);
    }
    if (node) {
        block_co_unref(node);
    }
}
