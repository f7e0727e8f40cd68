/* SPDX-License-Identifier: Apache-2.0 */
/* Opening, showing and reading an image; its backing file and others that it names stay closed. */
#include <json-c/json.h>

#include "qcow2_image.h"

void fuzz_co_image(unsigned how)
{
    struct block_node *node = fuzz_co_open(how & 1 ? BLOCK_OPEN_NO_IO : 0);
    struct block_info info;
    struct block_root *root;

    if (!node) {
        return;
    }
    if (node->driver->co_get_info(node, &info) == 0) {
        json_object_put(node->driver->co_specific_info(node));
    }
    root = how & 1 ? NULL : fuzz_co_root(node, false);
    if (root) {
        fuzz_co_read_disk(block_root_edge(root));
        block_co_root_release(root);
    }
    block_co_unref(node);
}
