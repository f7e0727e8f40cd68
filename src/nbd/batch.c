/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd/batch.h"

#include "base/checked.h"
#include "loop/loop.h"

/* Long enough for a client to send so many requests, one by one; more gain nothing (measured). */
#define HOLD_NS 40000
#define BATCH_MAX 16
/* Fewer in flight than this are answered at once. */
#define DEPTH_MIN 4
/* Batches between two that count: with a depth that is known, and without. */
#define PROBE_KNOWN 256
#define PROBE_UNKNOWN 512

void nbd_batch_init(struct nbd_batch *b)
{
    *b = (struct nbd_batch){.until_probe = PROBE_KNOWN};
}

static bool is_complete(const struct nbd_batch *b)
{
    return b->received >= (b->probing ? BATCH_MAX : b->depth);
}

bool nbd_batch_hold(struct nbd_batch *b)
{
    if (b->received == 0) {
        return false; /* nothing waits to be answered */
    }
    if (b->hold_until_ns == 0) {
        b->probing = b->until_probe == 0;
        if ((!b->probing && b->depth == 0) || is_complete(b)) {
            return false;
        }
        b->hold_until_ns = loop_now_ns() + HOLD_NS;
        return true;
    }
    return !is_complete(b) && loop_now_ns() < b->hold_until_ns;
}

void nbd_batch_end(struct nbd_batch *b)
{
    if (b->received == 0) {
        return;
    }
    if (b->probing) {
        b->depth = b->received >= DEPTH_MIN ? MIN(b->received, BATCH_MAX) : 0;
        b->until_probe = b->depth ? PROBE_KNOWN : PROBE_UNKNOWN;
    } else {
        if (b->hold_until_ns != 0 && b->received < b->depth) {
            /* Waited in vain: expect less. */
            b->depth = b->depth - 1 >= DEPTH_MIN ? b->depth - 1 : 0;
        }
        b->until_probe -= b->until_probe > 0;
    }
    b->received = 0;
    b->probing = false;
    b->hold_until_ns = 0;
}
