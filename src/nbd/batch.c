/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd/batch.h"

#include "base/checked.h"
#include "loop/loop.h"

/* Enough for a client to send BATCH_MAX requests, one by one. */
#define HOLD_NS 40000

enum {
    /* More requests in a batch gain nothing (measured). */
    BATCH_MAX = 16,
    /* A smaller depth is not worth a wait. */
    DEPTH_MIN = 4,
    /* Re-measure the depth after this many batches: if it is known, if it is not. */
    PROBE_KNOWN = 256,
    PROBE_UNKNOWN = 512,
};

void nbd_batch_init(struct nbd_batch *b)
{
    *b = (struct nbd_batch){.until_probe = PROBE_KNOWN};
}

/* Whether as many requests have come as this batch waits for. */
static bool batch_is_complete(const struct nbd_batch *b)
{
    return b->received >= (b->probing ? BATCH_MAX : b->depth);
}

bool nbd_batch_hold(struct nbd_batch *b)
{
    if (b->received == 0) {
        /* No request waits for a reply. */
        return false;
    }
    if (b->hold_until_ns == 0) {
        b->probing = b->until_probe == 0;
        if ((!b->probing && b->depth == 0) || batch_is_complete(b)) {
            return false;
        }
        b->hold_until_ns = loop_now_ns() + HOLD_NS;
        return true;
    }
    return !batch_is_complete(b) && loop_now_ns() < b->hold_until_ns;
}

void nbd_batch_end(struct nbd_batch *b)
{
    if (b->received == 0) {
        return;
    }
    if (b->probing) {
        b->depth = b->received >= DEPTH_MIN ? MIN(b->received, (unsigned)BATCH_MAX) : 0;
        b->until_probe = b->depth ? PROBE_KNOWN : PROBE_UNKNOWN;
    } else {
        if (b->hold_until_ns != 0 && b->received < b->depth) {
            /* The wait was in vain: expect fewer. */
            b->depth = b->depth - 1 >= DEPTH_MIN ? b->depth - 1 : 0;
        }
        b->until_probe -= b->until_probe > 0;
    }
    b->received = 0;
    b->probing = false;
    b->hold_until_ns = 0;
}
