/* SPDX-License-Identifier: Apache-2.0 */
/* Acting on the verdict that an image is corrupt (table/verdict.h). */
#ifndef TIDEMARK_QCOW2_HEADER_MARK_CORRUPT_H
#define TIDEMARK_QCOW2_HEADER_MARK_CORRUPT_H

#include "qcow2/image.h"

/*
 * Report verdicts that were recorded and not reported yet, on standard error, in the log and as an
 * event. After a fatal one the image is marked corrupt in its header, stably. Any reactor, without
 * q->lock; yields. When it returns, all verdicts recorded before the call have been acted on.
 */
void qcow2_co_act_on_verdicts(struct qcow2 *q);

/*
 * At the end of an operation with result `r`, which is returned: act on verdicts, if there are
 * any.
 */
static inline int qcow2_co_conclude(struct qcow2 *q, int r)
{
    if (__builtin_expect(atomic_load_explicit(&q->verdicts.open, memory_order_acquire) != 0,
                         false)) {
        qcow2_co_act_on_verdicts(q);
    }
    return r;
}

#endif
