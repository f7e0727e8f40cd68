/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal snapshots: list, show and read, create, apply, delete, in orders that the input chooses.
 */
#include <stdlib.h>

#include "qcow2_image.h"

/* Of many, the first ones. */
#define SNAPSHOTS_USED 4

static void co_show_each(void)
{
    for (unsigned i = 0; i < SNAPSHOTS_USED; i++) {
        struct block_node *node = fuzz_co_open(0);
        struct block_snapshot_info *infos = NULL;
        struct block_root *root;
        size_t count = 0;

        if (!node) {
            return;
        }
        if (node->driver->co_snapshot_list(node, &infos, &count, NULL) == 0 && i < count &&
            node->driver->co_snapshot_show(node, infos[i].id, NULL, NULL) == 0 &&
            (root = fuzz_co_root(node, false)) != NULL) {
            fuzz_co_read_disk(block_root_edge(root));
            block_co_root_release(root);
        }
        free(infos);
        block_co_unref(node);
    }
}

static void co_one_step(struct block_node *node, unsigned what)
{
    struct block_snapshot_info *infos = NULL;
    size_t count = 0;

    if (what == 0) {
        (void)node->driver->co_snapshot_create(node, "fuzz", NULL);
        return;
    }
    if (node->driver->co_snapshot_list(node, &infos, &count, NULL) == 0 && count > 0) {
        const char *id = infos[what == 2 ? 0 : count - 1].id;

        if (what == 1) {
            (void)node->driver->co_snapshot_apply(node, id, NULL);
        } else {
            (void)node->driver->co_snapshot_delete(node, id, NULL);
        }
    }
    free(infos);
}

/*
 * Three steps of two bits each: 0 create, 1 apply the last, 2 delete the first, 3 delete the last.
 */
static void co_change(unsigned how)
{
    struct block_node *node = fuzz_co_open(BLOCK_OPEN_RDWR);
    struct block_root *root;

    if (!node) {
        return;
    }
    for (unsigned i = 0; i < 3; i++) {
        co_one_step(node, how >> (2 * i) & 3);
    }
    root = how & 64 ? fuzz_co_root(node, true) : NULL;
    if (root) {
        fuzz_co_write_disk(block_root_edge(root));
        block_co_root_release(root);
    }
    block_co_unref(node);
}

void fuzz_co_image(unsigned how)
{
    if (how & 128) {
        co_show_each();
    } else {
        co_change(how);
    }
}
