/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/table/l1.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"

int qcow2_check_snapshot_l1(const struct qcow2 *q, const struct qcow2_snapshot *s,
                            struct error *err)
{
    if ((uint64_t)s->l1_size * 8 > L1_BYTES_MAX) {
        return error_set(err, EFBIG, "Snapshot L1 table too large");
    }
    return is_aligned(s->l1_offset, q->cluster_size) && s->l1_offset <= INT64_MAX - L1_BYTES_MAX
               ? 0
               : error_set(err, EINVAL, "Snapshot L1 table offset invalid");
}

int qcow2_co_read_l1(struct qcow2 *q, uint64_t offset, uint32_t entries, uint64_t **ret_l1)
{
    size_t bytes = (size_t)entries * 8;
    AUTO_FREE uint64_t *l1 = NULL;
    int r;

    if (bytes > L1_BYTES_MAX) {
        return -EFBIG;
    }
    if (!is_aligned(offset, q->cluster_size) ||
        !range_fits(offset, bytes, block_edge_size(q->node->file))) {
        return -EINVAL;
    }
    l1 = calloc(entries + 1u, 8);
    if (!l1) {
        return -ENOMEM;
    }
    r = block_co_pread(q->node->file, offset, l1, bytes);
    if (r < 0) {
        return r;
    }
    for (uint32_t i = 0; i < entries; i++) {
        l1[i] = be64toh(l1[i]);
    }
    *ret_l1 = TAKE_PTR(l1);
    return 0;
}
