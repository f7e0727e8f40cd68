/* SPDX-License-Identifier: Apache-2.0 */
/* The map of the activity log in the image: read, named by the header, and given back. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/bitmap/stored.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/header/header.h"
#include "qcow2/table/alloc.h"
#include "trace/events.h"

/* Why the map can't be used; NULL: it can. */
static const char *fault_of_map(const struct qcow2 *q)
{
    const struct qcow2_activity *a = &q->activity;

    if (a->region_bits < BLOCK_ACTIVITY_REGION_BITS_MIN ||
        a->region_bits > BLOCK_ACTIVITY_REGION_BITS_MAX) {
        return "its regions have an invalid size";
    }
    if (a->size != block_activity_map_bytes(block_node_size(q->node), a->region_bits)) {
        return "its size does not match that of the disk";
    }
    if (!is_aligned(a->offset, q->cluster_size) ||
        !range_fits(a->offset, a->size, block_edge_size(q->node->file))) {
        return "it is not within the file";
    }
    return NULL;
}

int qcow2_co_read_activity(struct qcow2 *q, uint8_t **ret_map, struct error *err)
{
    struct qcow2_activity *a = &q->activity;
    const char *fault = a->offset > 0 ? fault_of_map(q) : NULL;
    AUTO_FREE uint8_t *map = NULL;
    int r;

    *ret_map = NULL;
    if (a->offset > 0 && !fault) {
        map = malloc(MAX(a->size, 1));
        if (!map) {
            return error_out_of_memory(err);
        }
        r = block_co_pread(q->node->file, a->offset, map, a->size);
        fault = r < 0 ? strerror(-r) : NULL;
    }
    if (fault) {
        log_warning("image '%s': the activity log can't be used: %s; bitmaps that were in use are "
                    "inconsistent",
                    block_node_display_name(q->node), fault);
        a->offset = a->size = 0;
        return 0;
    }
    *ret_map = TAKE_PTR(map);
    return 0;
}

void qcow2_set_activity_map(struct qcow2 *q, uint64_t offset, uint64_t size)
{
    q->activity.offset = offset;
    q->activity.size = size;
    q->header.autoclear &= ~AUTOCLEAR_ACTIVITY;
    q->header.autoclear |= offset > 0 ? AUTOCLEAR_ACTIVITY : 0;
}

/* The clusters of a map that the header does not name any more. */
static void co_free_map(struct qcow2 *q, uint64_t offset, uint64_t size)
{
    co_mutex_lock(&q->lock);
    for (uint64_t at = 0; at < size; at += q->cluster_size) {
        (void)qcow2_free_later_locked(q, offset + at, q->cluster_size, false, QCOW2_FREED_BY_OTHER);
    }
    co_mutex_unlock(&q->lock);
}

void qcow2_co_activity_ended(struct qcow2 *q)
{
    uint64_t offset = q->activity.offset, size = q->activity.size;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    qcow2_set_activity_map(q, 0, 0);
    if (offset > 0) {
        co_free_map(q, offset, size);
    }
    if (q->activity.log) {
        block_activity_ended(q->activity.log);
    }
    trace_qcow2_activity(q->node->name, false, 0, 0);
}

int qcow2_co_drop_activity_locked(struct qcow2 *q, struct error *err)
{
    uint64_t offset = q->activity.offset, size = q->activity.size;
    int r;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (offset == 0) {
        return 0;
    }
    qcow2_set_activity_map(q, 0, 0);
    r = qcow2_co_write_header(q, err);
    qcow2_set_activity_map(q, offset, size);
    if (r == 0) {
        qcow2_co_activity_ended(q);
    }
    return r;
}
