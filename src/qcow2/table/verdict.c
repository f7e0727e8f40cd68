/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/table/verdict.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "qcow2/table/map.h"

/* Only one caller per verdict comes here, and none before the last one was acted on. */
static void record(struct qcow2 *q, struct qcow2_verdict *v, const char *fmt, va_list ap)
{
    vsnprintf(v->what, sizeof(v->what), fmt, ap);
    atomic_store(&v->recorded, true);
    atomic_fetch_add(&q->verdicts.open, 1);
}

int qcow2_corrupt(struct qcow2 *q, const char *fmt, ...)
{
    bool fatal = !q->read_only;
    va_list ap;

    if (atomic_exchange(fatal ? &q->corrupt : &q->harmless_recorded, true) ||
        (!fatal && atomic_load(&q->corrupt))) {
        return -EIO;
    }
    if (fatal) {
        atomic_store(&q->broken, true);
    }
    va_start(ap, fmt);
    record(q, fatal ? &q->verdicts.fatal : &q->verdicts.harmless, fmt, ap);
    va_end(ap);
    return -EIO;
}

void qcow2_corrupt_nonfatal(struct qcow2 *q, const char *fmt, ...)
{
    va_list ap;

    if (!atomic_exchange(&q->harmless_recorded, true) && !atomic_load(&q->corrupt)) {
        va_start(ap, fmt);
        record(q, &q->verdicts.harmless, fmt, ap);
        va_end(ap);
    }
}

void qcow2_give_up_header(struct qcow2 *q, int r)
{
    atomic_store(&q->broken, true);
    log_server_error("image '%s': the header could not be written (%s); it takes no more writes",
                     block_node_display_name(q->node), strerror(-r));
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

int qcow2_corrupt_entry(struct qcow2 *q, const struct cache_entry *slice, unsigned index,
                        uint64_t guest, bool writing)
{
    uint64_t entry = qcow2_load_entry(q, slice, index), host = entry & ENTRY_OFFSET_MASK;
    uint64_t table = round_down(slice->offset, q->cluster_size);
    unsigned in_table = (unsigned)((slice->offset - table) >> (3 + q->extended_l2)) + index;

    if ((entry & L2_COMPRESSED) && q->has_data_file) {
        return qcow2_corrupt(q,
                             "Compressed cluster entry found in image with external data file "
                             "(L2 offset: %#llx, L2 index: %#x)",
                             (unsigned long long)table, in_table);
    }
    if (!(entry & L2_COMPRESSED) && !is_aligned(host, q->cluster_size)) {
        if (writing) {
            return qcow2_corrupt(
                q, "%s cluster offset %#llx unaligned (guest offset: %#llx)",
                (entry & L2_ZERO) && !q->extended_l2 ? "Preallocated zero" : "Data",
                (unsigned long long)host, (unsigned long long)round_down(guest, q->cluster_size));
        }
        return qcow2_corrupt(q,
                             "Cluster allocation offset %#llx unaligned (L2 offset: %#llx, L2 "
                             "index: %#x)",
                             (unsigned long long)host, (unsigned long long)table, in_table);
    }
    if (q->version < 3 && (entry & L2_ZERO)) {
        return qcow2_corrupt(q,
                             "Zero cluster entry found in pre-v3 image (L2 offset: %#llx, L2 "
                             "index: %#x)",
                             (unsigned long long)table, in_table);
    }
    return qcow2_corrupt(q, "Invalid cluster entry found%s(L2 offset: %#llx, L2 index: %#x)",
                         writing ? " " : "  ", (unsigned long long)table, in_table);
}
