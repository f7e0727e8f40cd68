/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/header/mark_corrupt.h"

#include "base/log.h"
#include "block/corruption.h"
#include "qcow2/header/header.h"
#include "trace/events.h"

static void co_mark(struct qcow2 *q)
{
    if (q->version < 3) {
        return; /* the corrupt bit does not exist */
    }
    if (qcow2_co_set_incompatible(q, INCOMPAT_CORRUPT) < 0) {
        log_error("image '%s' is corrupt, but that could not be marked in it",
                  block_node_display_name(q->node));
    }
}

/* The words are QEMU's. */
static void report_verdict(struct qcow2 *q, bool fatal, const char *what)
{
    log_report(LOG_LEVEL_ERROR,
               fatal ? "qcow2: Marking image as corrupt: %s; further corruption events will be "
                       "suppressed"
                     : "qcow2: Image is corrupt: %s; further non-fatal corruption events will be "
                       "suppressed",
               what);
    trace_qcow2_corrupt(q->node->name, what, fatal);
    /* The words above do not say which. */
    log_server_error("image '%s' is corrupt", block_node_display_name(q->node));
    block_report_corruption(q->node, what, fatal);
}

/* Whoever comes second waits until the first has written the mark. */
void qcow2_co_act_on_verdicts(struct qcow2 *q)
{
    struct qcow2_verdict *harmless = &q->verdicts.harmless, *fatal = &q->verdicts.fatal;

    co_mutex_lock(&q->verdicts.mutex);
    if (atomic_load(&harmless->recorded)) {
        report_verdict(q, false, harmless->what);
        atomic_store(&harmless->recorded, false);
        atomic_fetch_sub(&q->verdicts.open, 1);
    }
    if (atomic_load(&fatal->recorded)) {
        report_verdict(q, true, fatal->what);
        co_mark(q);
        atomic_store(&fatal->recorded, false);
        atomic_fetch_sub(&q->verdicts.open, 1);
    }
    co_mutex_unlock(&q->verdicts.mutex);
}
