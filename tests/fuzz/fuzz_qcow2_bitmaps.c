/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bitmap directory: list, add, merge, clear, remove; resize, record and store, also in a file
 * that does not grow. By bits of the input's last byte.
 */
#include "block/bitmaps.h"
#include "base/checked.h"
#include "qcow2_image.h"

static void co_look_at_all(struct block_node *node)
{
    struct block_bitmap *b;
    uint64_t offset, length;

    for (b = block_bitmap_next(node, NULL); b; b = block_bitmap_next(node, b)) {
        if (!b->inconsistent && block_co_bitmap_fetch(b, NULL) == 0) {
            dirty_bitmap_next_dirty(block_bitmap_bits(b), 0, block_node_size(node), &offset,
                                    &length);
        }
    }
}

static void co_change_bitmaps(struct block_node *node, unsigned how)
{
    struct block_bitmap *first = block_bitmap_next(node, NULL), *added = NULL;

    if (how & 1) {
        (void)block_co_bitmap_add(node, "fuzz", how & 2 ? 512 : 0, true, how & 2, &added, NULL);
    }
    if ((how & 4) && added && first) {
        (void)block_co_bitmap_merge(added, &first, 1, NULL, NULL);
        (void)block_co_bitmap_merge(first, &added, 1, NULL, NULL);
    }
    if ((how & 8) && first) {
        (void)block_co_bitmap_set_enabled(first, !first->enabled, NULL);
        (void)block_co_bitmap_clear(first, NULL, NULL);
    }
    if ((how & 16) && first) {
        (void)block_co_bitmap_remove(first, NULL);
    }
}

static void co_change_disk(struct block_node *node, unsigned how)
{
    struct block_root *root = fuzz_co_root(node, true);
    struct block_edge *edge;

    if (!root) {
        return;
    }
    edge = block_root_edge(root);
    if (how & 32) {
        (void)block_co_truncate(edge, MIN(block_edge_size(edge), INT64_MAX / 4) / 2 * 3,
                                BLOCK_PREALLOC_OFF, NULL);
    }
    if (how & 64) {
        fuzz_co_write_disk(edge);
    }
    block_co_root_release(root);
}

void fuzz_co_image(unsigned how)
{
    bool full = (how & 192) == 192, read_only = (how & 128) && !full;
    struct block_node *node;

    if (full) {
        fuzz_fill_file();
    }
    node = fuzz_co_open(read_only ? 0 : BLOCK_OPEN_RDWR);
    if (!node) {
        return;
    }
    co_look_at_all(node);
    co_change_bitmaps(node, how);
    if ((how & 96) && !read_only) {
        co_change_disk(node, how);
    }
    block_co_unref(node);
    /* What was stored has to be read again. */
    node = fuzz_co_open(0);
    if (node) {
        co_look_at_all(node);
        block_co_unref(node);
    }
}
