/* SPDX-License-Identifier: Apache-2.0 */
/* Repairing an image: leaks only, or all; and what can be read and checked then. */
#include "qcow2_image.h"

void fuzz_co_image(unsigned how)
{
    struct block_root *root;
    struct block_node *node;

    fuzz_co_check(how & 1 ? BLOCK_CHECK_FIX_LEAKS : BLOCK_CHECK_FIX_LEAKS | BLOCK_CHECK_FIX_ERRORS);
    fuzz_co_check(0);
    node = how & 2 ? fuzz_co_open(0) : NULL;
    root = node ? fuzz_co_root(node, false) : NULL;
    if (root) {
        fuzz_co_read_disk(block_root_edge(root));
        block_co_root_release(root);
    }
    if (node) {
        block_co_unref(node);
    }
}
