/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading without a copy: pages of clusters are lent to a reader, for no known time.
 *
 * A cluster that is freed meanwhile must not show through them what is written to it later. So once
 * pages were lent, clusters get other pages when they are freed (table/commit.c).
 */
#include <errno.h>

#include "co/co.h"
#include "qcow2/data/crypt.h"
#include "qcow2/data/data.h"
#include "qcow2/table/map.h"

/* log2 of the smallest clusters that are lent: those of whole pages. */
#define LENT_CLUSTER_BITS_MIN 12

/* A node that is read-only may show what is written to one below it: a filter, a part of a disk. */
static bool nobody_writes(const struct block_node *node)
{
    bool read_only = block_node_is_read_only(node);

    while (read_only && (node->filtered || node->file)) {
        node = (node->filtered ? node->filtered : node->file)->node;
        read_only = block_node_is_read_only(node);
    }
    return read_only;
}

/*
 * Contents of the backing file can be a point in time: what guests write to it is copied to this
 * image before. So its pages are lent only where nobody writes it.
 */
static int co_lend_backing(struct qcow2 *q, uint64_t offset, uint64_t length,
                           struct block_page_sink *sink)
{
    struct block_edge *backing = q->node->backing;

    if (!backing || !nobody_writes(backing->node) || co_stack_is_low()) {
        return -ENOTSUP;
    }
    return block_co_read_pages(backing, offset, length, sink);
}

/* Lend what is in one run. A shared cluster could be moved, and a compressed one is not plain. */
static int co_lend_run(struct qcow2 *q, const struct qcow2_run *run, uint64_t offset,
                       struct block_page_sink *sink)
{
    switch (run->type) {
    case CLUSTER_NORMAL:
        return run->copied || q->read_only
                   ? block_co_read_pages(q->data, run->host, run->length, sink)
                   : -ENOTSUP;
    case CLUSTER_UNALLOCATED:
    case CLUSTER_UNALLOCATED_HAS_HOST:
        return co_lend_backing(q, offset, run->length, sink);
    default:
        return -ENOTSUP;
    }
}

int qcow2_co_read_pages(struct block_node *node, uint64_t offset, uint64_t length,
                        struct block_page_sink *sink)
{
    struct qcow2 *q = qcow2_state(node);
    uint64_t done = 0;
    int r = 0;

    if (q->crypt_method != CRYPT_NONE || q->cluster_bits < LENT_CLUSTER_BITS_MIN) {
        return -ENOTSUP;
    }
    /* Before the clusters are looked up: who frees one later sees it. */
    atomic_store(&q->pages_lent, true);
    while (r == 0 && done < length) {
        struct qcow2_run run;

        r = qcow2_co_map(q, offset + done, length - done, &run);
        if (r < 0) {
            /* The read that follows says what is wrong. */
            return -ENOTSUP;
        }
        r = co_lend_run(q, &run, offset + done, sink);
        done += run.length;
    }
    return r;
}
