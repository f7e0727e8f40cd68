/* SPDX-License-Identifier: Apache-2.0 */
/* The extents that a node remembers, so that a walk through a disk takes few requests. */
#include "base/checked.h"
#include "loop/loop.h"
#include "nbd/client_extents.h"

/* How long the extents that a server reported are trusted: others may write to the export. */
#define STATUS_NS 200000000LL
/*
 * A user that walks through the disk gets the status of this much at once, or of more where only
 * others write to the export, and lengths may have 64 bits. Bytes.
 */
#define STATUS_AHEAD (1 * GiB)
#define STATUS_AHEAD_READ_ONLY (64 * GiB)

/* Whether the extents can still be trusted; lock held. */
static bool extents_are_current(const struct nbd_status_cache *s, uint64_t generation)
{
    return s->extents.count > 0 && s->write_generation == generation && loop_now_ns() < s->until_ns;
}

/* The extent at `offset`, from there on. False if it is not known. */
static bool look_up_extent_locked(struct nbd_status_cache *s, uint64_t generation, uint64_t offset,
                                  struct nbd_extent *ret_extent)
{
    if (offset < s->start || offset >= s->end || !extents_are_current(s, generation)) {
        return false;
    }
    if (offset < s->next_start) {
        s->next = 0;
        s->next_start = s->start;
    }
    while (offset - s->next_start >= s->extents.list[s->next].length) {
        s->next_start += s->extents.list[s->next++].length;
    }
    *ret_extent = s->extents.list[s->next];
    ret_extent->length -= offset - s->next_start;
    return true;
}

/* Keep the answer to a request for `offset`; empties `extents`. */
static void keep_extents_locked(struct nbd_status_cache *s, uint64_t offset, uint64_t generation,
                                struct nbd_extents *extents)
{
    nbd_extents_clear(&s->extents);
    s->extents = *extents;
    s->start = s->end = s->next_start = offset;
    s->next = 0;
    for (size_t i = 0; i < extents->count; i++) {
        s->end += extents->list[i].length;
    }
    s->write_generation = generation;
    s->until_ns = loop_now_ns() + STATUS_NS;
    *extents = (struct nbd_extents){0};
}

int nbd_status_cache_co_get(struct nbd_status_cache *s, struct nbd_client *c, uint64_t generation,
                            bool read_only, uint64_t offset, uint64_t length,
                            struct nbd_extent *ret_extent)
{
    struct nbd_extents extents = {0};
    bool known, goes_on;
    int r;

    pthread_mutex_lock(&s->lock);
    known = look_up_extent_locked(s, generation, offset, ret_extent);
    goes_on = s->extents.count > 0 && offset == s->end;
    pthread_mutex_unlock(&s->lock);
    if (known) {
        return 0;
    }
    if (goes_on) {
        length = MAX(length, read_only ? STATUS_AHEAD_READ_ONLY : STATUS_AHEAD);
        length = MIN(length, nbd_client_size(c) - offset);
    }
    r = nbd_client_co_block_status(c, offset, length, false, &extents);
    if (r < 0) {
        return r;
    }
    *ret_extent = extents.list[0];
    pthread_mutex_lock(&s->lock);
    keep_extents_locked(s, offset, generation, &extents);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

void nbd_status_cache_init(struct nbd_status_cache *s)
{
    pthread_mutex_init(&s->lock, NULL);
}

void nbd_status_cache_destroy(struct nbd_status_cache *s)
{
    nbd_extents_clear(&s->extents);
    pthread_mutex_destroy(&s->lock);
}
