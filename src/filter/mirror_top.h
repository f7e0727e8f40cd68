/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The filter "mirror_top", which a mirror job puts above its source. All writes to the source pass
 * it. What they change is set in its bitmap `todo`, or is written to the target as well. The job
 * copies what is in the bitmap, by mirror_top_co_copy().
 *
 *      guest write, background:   write source -> set bits
 *      guest write, blocking:     lock range -> write source -> write target -> unlock
 *      copy, part by part:        (the caller clears bits ->) lock part -> read source -> write
 *                                 target -> unlock
 *
 * 1. Bits are set after the write to the source, and cleared before the source is read: so a write
 *    that a copy has missed is copied again.
 * 2. A copy reads and writes under the lock: the later one of two copies of a part has the newer
 *    contents. A part is one request to the target, mostly: a guest's write waits for that one.
 * 3. A blocking write leaves the target alone where all of its range is dirty already: the copy
 *    that is due reads the source after the write has unlocked. So random writes that are smaller
 *    than a granule make no granule dirty, and copy none twice.
 * 4. A blocking write that the target refuses sets bits, and succeeds.
 * 5. Background writes take no lock, so both modes may be mixed, and the mode may change at any
 *    time.
 *
 * A request of a parent, and a copy, are the only users of the lock. A request of a parent waits
 * for nothing but the others and the nodes below. A copy that has read concerns the target only: a
 * drain of the source does not wait for it, since the target may hang. It holds the lock, but waits
 * for no drain while it does.
 *
 * The driver cannot be opened by users.
 */
#ifndef TIDEMARK_FILTER_MIRROR_TOP_H
#define TIDEMARK_FILTER_MIRROR_TOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "bitmap/bitmap.h"
#include "block/gate.h"

struct mirror_top;

enum mirror_top_mode {
    /* writes go to the source alone, unrecorded */
    MIRROR_TOP_OFF,
    MIRROR_TOP_BACKGROUND,
    MIRROR_TOP_BLOCKING
};

struct mirror_top_params {
    struct block_node *source, *target;
    /* NULL: generated */
    const char *node_name;
    /* of the bitmap, in bytes */
    uint32_t granularity;
    /* the target is in the backing chain of the source, and the job commits into it */
    bool commit;
    /* the target may be resized: while the job commits into a smaller base */
    bool resizes;
    /* zeroes may be holes in the target */
    bool unmap;
    /* the target reads as zeroes where nothing has been written to it yet */
    bool target_is_zero;
    /* the target has, or may get, a backing file that is not open: its own zeroes count */
    bool backing_unknown;
    /* the target's own layer has to have all that is copied, since its backing node comes later */
    bool own_layer;
    /* mirror_top_followed() is kept */
    bool notes_followed;
};

/*
 * Open a filter, hidden (block_co_open_hidden()); its mode is OFF, and it is stopped. The caller
 * gets a reference to the node; *ret_top is valid as long as the node is. Main reactor.
 */
int mirror_top_co_open(const struct mirror_top_params *params, struct block_node **ret_node,
                       struct mirror_top **ret_top, struct error *err);
/*
 * Within a graph change, and from its settle on: a filter that is stopped claims no permissions,
 * and has no users; one that is not excludes other users of the target, and other writers of the
 * source. Main reactor; does not yield.
 */
void mirror_top_set_stopped(struct mirror_top *top, bool stopped);

/* Any thread. A write that has begun keeps the mode that it began with. */
void mirror_top_set_mode(struct mirror_top *top, enum mirror_top_mode mode);
/* Whether blocking writes are in flight, which may wait for the target. Any thread. */
bool mirror_top_is_following(const struct mirror_top *top);
/*
 * Begin a turn of these writes, and whether some of the turn before are in flight: those that have
 * begun before, roughly. A turn lasts until that is false. Any thread; one caller begins turns.
 */
void mirror_top_begin_turn(struct mirror_top *top);
bool mirror_top_is_following_older(const struct mirror_top *top);
/*
 * From `end` on (in bytes; UINT64_MAX at first) guests' writes go to the source alone, and set
 * bits, whatever the mode. Lowered only before guests write; may rise at any time. Any thread.
 */
void mirror_top_set_follow_end(struct mirror_top *top, uint64_t end);
/* What the target lacks. The caller may set and clear bits. */
struct dirty_bitmap *mirror_top_todo(struct mirror_top *top);
/*
 * What guests have written on both sides, set when the target has it; NULL: not kept. A flush of
 * the target that begins after the caller has cleared bits covers what they stood for. The caller
 * clears bits.
 */
struct dirty_bitmap *mirror_top_followed(struct mirror_top *top);
/*
 * What has been written to the target since the filter was opened, set when the target has it.
 * After a flush that failed, the target may have lost any of that.
 */
struct dirty_bitmap *mirror_top_sent(struct mirror_top *top);
/* The filter's edge to the target, for control operations. */
struct block_edge *mirror_top_target(struct mirror_top *top);

struct mirror_top_copy {
    /* bytes, within the size of the source */
    uint64_t offset, length;
    /* `buffer_size` bytes, a multiple of the granularity */
    void *buffer;
    size_t buffer_size;
    /*
     * The edge of a root above the filter: no reading begins while that is drained. NULL: the
     * caller has drained the nodes; it may set the edge when it ends that.
     */
    struct block_edge *entrance;
    /* Asked between two parts, with `arg`: true ends the copy with -ECANCELED. NULL: none is. */
    bool (*is_cancelled)(const void *arg);
    const void *arg;
    /* after an error: the source failed */
    bool reading;
};

/* Copy from the source to the target. 0 or -errno. Yields. */
int mirror_top_co_copy(struct mirror_top *top, struct mirror_top_copy *copy);
/* Flush the target; `entrance` as above: likewise for the flush. 0 or -errno. Yields. */
int mirror_top_co_flush_target(struct mirror_top *top, struct block_edge *entrance);

#endif
