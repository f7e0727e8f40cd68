/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata that breaks the specification: say so once, mark the image, take no more writes. The words are QEMU's. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/log.h"
#include "block/corruption.h"
#include "qcow2/header/corrupt.h"
#include "qcow2/header/header.h"
#include "qcow2/image.h"
#include "qcow2/table/map.h"

static void co_write_mark(struct qcow2 *q)
{
    if (q->version < 3) {
        return; /* has no such bit */
    }
    if (qcow2_co_set_incompatible(q, INCOMPAT_CORRUPT) < 0) {
        log_error("image '%s' is corrupt, but that could not be marked in it",
                  block_node_display_name(q->node));
    }
}

static void tell(struct qcow2 *q, bool fatal, const char *fmt, va_list ap)
{
    char what[256];

    vsnprintf(what, sizeof(what), fmt, ap);
    fprintf(stderr,
            fatal ? "qcow2: Marking image as corrupt: %s; further corruption events will be "
                    "suppressed\n"
                  : "qcow2: Image is corrupt: %s; further non-fatal corruption events will be "
                    "suppressed\n",
            what);
    log_info("image '%s' is corrupt", block_node_display_name(q->node));
    block_report_corruption(q->node, what, fatal);
}

int qcow2_co_corrupt(struct qcow2 *q, const char *fmt, ...)
{
    bool fatal = !q->read_only;
    va_list ap;

    if (atomic_exchange(fatal ? &q->corrupt : &q->nonfatal_reported, true) ||
        (!fatal && atomic_load(&q->corrupt))) {
        return -EIO;
    }
    va_start(ap, fmt);
    tell(q, fatal, fmt, ap);
    va_end(ap);
    if (fatal) {
        atomic_store(&q->broken, true);
        co_write_mark(q);
    }
    return -EIO;
}

void qcow2_corrupt_nonfatal(struct qcow2 *q, const char *fmt, ...)
{
    va_list ap;

    if (!atomic_exchange(&q->nonfatal_reported, true) && !atomic_load(&q->corrupt)) {
        va_start(ap, fmt);
        tell(q, false, fmt, ap);
        va_end(ap);
    }
}

int qcow2_refuse_broken(const struct qcow2 *q, struct error *err)
{
    int r = qcow2_check_writable(q);

    if (r == -ENOMEDIUM) {
        return error_set(err, -r, "No medium inserted");
    }
    return r < 0 ? error_set(err, -r, "Image '%s' takes no more writes",
                             block_node_display_name(q->node))
                 : 0;
}

int qcow2_co_corrupt_entry(struct qcow2 *q, const struct cache_entry *slice, unsigned index,
                           uint64_t guest, bool writing)
{
    uint64_t entry = qcow2_load_entry(q, slice, index), host = entry & ENTRY_OFFSET_MASK;
    uint64_t table = round_down(slice->offset, q->cluster_size);
    unsigned in_table = (unsigned)((slice->offset - table) >> (3 + q->extended_l2)) + index;

    if ((entry & L2_COMPRESSED) && q->has_data_file) {
        return qcow2_co_corrupt(q,
                                "Compressed cluster entry found in image with external data file "
                                "(L2 offset: %#llx, L2 index: %#x)",
                                (unsigned long long)table, in_table);
    }
    if (!(entry & L2_COMPRESSED) && !is_aligned(host, q->cluster_size)) {
        if (writing) {
            return qcow2_co_corrupt(
                q, "%s cluster offset %#llx unaligned (guest offset: %#llx)",
                (entry & L2_ZERO) && !q->extended_l2 ? "Preallocated zero" : "Data",
                (unsigned long long)host, (unsigned long long)round_down(guest, q->cluster_size));
        }
        return qcow2_co_corrupt(q,
                                "Cluster allocation offset %#llx unaligned (L2 offset: %#llx, L2 "
                                "index: %#x)",
                                (unsigned long long)host, (unsigned long long)table, in_table);
    }
    if (q->version < 3 && (entry & L2_ZERO)) {
        return qcow2_co_corrupt(q,
                                "Zero cluster entry found in pre-v3 image (L2 offset: %#llx, L2 "
                                "index: %#x)",
                                (unsigned long long)table, in_table);
    }
    return qcow2_co_corrupt(q, "Invalid cluster entry found%s(L2 offset: %#llx, L2 index: %#x)",
                            writing ? " " : "  ", (unsigned long long)table, in_table);
}
