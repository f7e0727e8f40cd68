/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/cbw_job.h"

#include <errno.h>

#include "filter/copy_before_write.h"

int cbw_set_job(struct cbw_state *s, const struct cbw_job *job, struct error *err)
{
    struct block_copy_params params = {
        .cluster_size = s->cluster_size,
        .max_memory = job->max_memory,
        .write_flags = job->compress ? BLOCK_REQ_COMPRESSED : 0,
        .zero_flags = BLOCK_REQ_MAY_UNMAP,
        .use_copy_range = job->use_copy_range,
    };
    struct block_copy *copy;
    /* Compressed clusters are written as a whole; the disk has, and frees, whole clusters. */
    bool whole = job->compress || job->skip_unallocated || job->discard_source;
    int r = cbw_state_set_unit(s, whole ? s->cluster_size : s->unit);

    if (r == 0 && !whole && !job->use_copy_range && job->hold_bytes > 0) {
        r = held_allow(&s->held, s->cluster_size, s->unit, job->hold_bytes);
    }
    if (r < 0) {
        return error_out_of_memory(err);
    }
    r = block_copy_new(s->file, s->target, &params, &copy, err);
    if (r < 0) {
        return r;
    }
    block_copy_free(s->copy);
    s->copy = copy;
    s->job = *job;
    s->has_job = true;
    return 0;
}

void cbw_set_entrance(struct cbw_state *s, struct block_edge *entrance)
{
    s->entrance = entrance;
}

int cbw_restrict(struct cbw_state *s, const struct dirty_bitmap *bits, struct error *err)
{
    struct dirty_bitmap *access;

    if (dirty_bitmap_size(bits) != s->size) {
        return error_set(err, EINVAL, "A bitmap covers %llu bytes, node '%s' has %llu",
                         (unsigned long long)dirty_bitmap_size(bits), s->name,
                         (unsigned long long)s->size);
    }
    access = dirty_bitmap_new(s->size, s->cluster_size);
    if (!access || dirty_bitmap_merge(access, bits) < 0) {
        dirty_bitmap_free(access);
        return error_set(err, ENOMEM, "Out of memory for the bitmaps of node '%s'", s->name);
    }
    cbw_state_set_access(s, access);
    return 0;
}

uint32_t cbw_cluster_size(const struct cbw_state *s)
{
    return s->cluster_size;
}

uint64_t cbw_uncopied_bytes(struct cbw_state *s)
{
    uint64_t bytes;

    /* `done` is a part of `access`. */
    pthread_mutex_lock(&s->lock);
    bytes = dirty_bitmap_count(s->access) - dirty_bitmap_count(s->done);
    pthread_mutex_unlock(&s->lock);
    return bytes;
}

uint64_t cbw_copied_bytes(struct cbw_state *s)
{
    uint64_t bytes;

    pthread_mutex_lock(&s->lock);
    bytes = s->copied_bytes;
    pthread_mutex_unlock(&s->lock);
    return bytes;
}

void cbw_merge_uncopied(struct cbw_state *s, struct dirty_bitmap *dest)
{
    uint64_t offset = 0, length;

    while (cbw_next_uncopied(s, offset, s->size, &offset, &length)) {
        dirty_bitmap_set(dest, offset, length);
        offset += length;
    }
    (void)cbw_merge_held(s, dest);
}

bool cbw_merge_held(struct cbw_state *s, struct dirty_bitmap *dest)
{
    bool any;

    pthread_mutex_lock(&s->lock);
    any = !held_is_empty(&s->held);
    held_mark(&s->held, dest);
    pthread_mutex_unlock(&s->lock);
    return any;
}

int cbw_error(struct cbw_state *s, bool *ret_reading)
{
    int r;

    pthread_mutex_lock(&s->lock);
    r = s->broken ? s->broken_by : 0;
    if (r < 0) {
        *ret_reading = s->broken_at.reading;
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}
