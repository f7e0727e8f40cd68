/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "preallocate", between a format and its file: a write past the end of the file makes
 * room for later ones, too, so that the file grows rarely, and in large steps.
 *
 *     0            size of this node        size of the child
 *     +------------------+--------------------------+
 *     | what the parents |  space that was          |
 *     | have written     |  allocated, all zeroes   |
 *     +------------------+--------------------------+
 *
 * Parents see the file end where their data end. The space past that is given back when the node is
 * closed, becomes read-only, is resized, or loses its last writer.
 *
 * Options: prealloc-size, how much space is added past the write (bytes); prealloc-align, to what
 * the end of the file is rounded up; file.
 */
#include <errno.h>
#include <stdatomic.h>

#include "base/checked.h"
#include "base/log.h"
#include "filter/filter.h"
#include "schema/define.h"

#define ALIGN_DEFAULT (1 * MiB)
#define SIZE_DEFAULT (128 * MiB)
#define SECTOR 512u

struct room {
    uint64_t align, size; /* bytes; `align` is at least 1 */
};

struct preallocate {
    struct room room;
    struct room old_room;    /* while the node is reopened: what was */
    struct co_mutex growing; /* held while space is added */
    /* Space could not be added, so no more is until the file has been cut to its data. */
    atomic_bool refused;
};

/* --- options ---------------------------------------------------------------------------------- */

OBJECT(preallocate_options, "BlockdevOptionsPreallocate", REQ("file", block_ref_type),
       OPT("prealloc-align", schema_bytes, .dflt = "1 MiB", .unit = "bytes",
           .help = "the file ends at a multiple of it"),
       OPT("prealloc-size", schema_bytes, .dflt = "128 MiB", .unit = "bytes",
           .help = "how much space is added past a write at the end"));

static int take_room(struct options *opts, struct room *ret_room, struct error *err)
{
    uint64_t align, size;
    int r = options_take_size(opts, "prealloc-align", ALIGN_DEFAULT, &align, err);

    UNLESS_FAILED(r, options_take_size(opts, "prealloc-size", SIZE_DEFAULT, &size, err));
    if (r < 0) {
        return r;
    }
    if (align % SECTOR != 0) {
        return error_set(err, EINVAL,
                         "prealloc-align parameter of preallocate filter is not aligned to %u",
                         SECTOR);
    }
    if (size % SECTOR != 0) {
        return error_set(err, EINVAL,
                         "prealloc-size parameter of preallocate filter is not aligned to %u",
                         SECTOR);
    }
    *ret_room = (struct room){MAX(align, 1), size};
    return 0;
}

static int preallocate_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct preallocate *p = node->opaque;
    int r = take_room(opts, &p->room, err);

    UNLESS_FAILED(r, block_co_open_filtered(node, opts, "file", err));
    if (r < 0) {
        return r;
    }
    co_mutex_init(&p->growing);
    return 0;
}

static void preallocate_co_close(struct block_node *node)
{
    struct preallocate *p = node->opaque;

    co_mutex_destroy(&p->growing);
}

static int preallocate_co_reopen_prepare(struct block_node *node, struct options *opts,
                                         struct error *err)
{
    struct preallocate *p = node->opaque;

    p->old_room = p->room;
    return opts ? take_room(opts, &p->room, err) : 0;
}

static void preallocate_co_reopen_abort(struct block_node *node)
{
    struct preallocate *p = node->opaque;

    p->room = p->old_room;
}

/* --- the space past the end ------------------------------------------------------------------- */

static bool has_file_room(const struct block_node *node)
{
    return block_edge_size(node->filtered) > block_node_size(node);
}

/* Cut the file to its data. The node is drained. */
static int co_give_room_back(struct block_node *node, struct error *err)
{
    struct preallocate *p = node->opaque;
    int r = 0;

    if (has_file_room(node)) {
        r = block_co_truncate(node->filtered, block_node_size(node), BLOCK_PREALLOC_OFF, err);
    }
    if (r == 0) {
        atomic_store(&p->refused, false);
    }
    return r;
}

/* Where the file will end if a write that ends at `end` extends it; 0: beyond what a file can be */
static uint64_t new_end_of(const struct preallocate *p, uint64_t end)
{
    uint64_t target, rest;

    if (__builtin_add_overflow(end, p->room.size, &target)) {
        return 0;
    }
    rest = target % p->room.align;
    if (rest > 0 && __builtin_add_overflow(target, p->room.align - rest, &target)) {
        return 0;
    }
    return target <= INT64_MAX ? target : 0;
}

/*
 * A write will end at `end`. Whether space can be added has no influence on the result of the
 * write, which then extends the file by itself, if at all.
 */
static void co_make_room_for(struct block_node *node, uint64_t end)
{
    struct preallocate *p = node->opaque;
    uint64_t from, to;

    if (__builtin_expect(end <= block_edge_size(node->filtered), true) ||
        atomic_load(&p->refused)) {
        return;
    }
    co_mutex_lock(&p->growing);
    from = block_edge_size(node->filtered);
    if (end > from && !atomic_load(&p->refused)) {
        /* What is left of a block stays a hole. */
        from = round_up(from, MAX(node->filtered->node->limits.request_alignment, SECTOR));
        to = new_end_of(p, end);
        if (to <= from ||
            block_co_write_zeroes(node->filtered, from, to - from, BLOCK_REQ_NO_FALLBACK) < 0) {
            atomic_store(&p->refused, true);
        }
    }
    co_mutex_unlock(&p->growing);
}

/* --- permissions ------------------------------------------------------------------------------ */

/* The file is resized here, and nobody else may do that as long as there is space to give back. */
static void preallocate_child_perm(struct block_node *node, struct block_edge *edge,
                                   unsigned parents_perm, unsigned parents_shared,
                                   unsigned *ret_perm, unsigned *ret_shared)
{
    const unsigned change = BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;

    block_default_child_perm(node, edge, parents_perm, parents_shared, ret_perm, ret_shared);
    if ((*ret_perm & change) || (!node->read_only && has_file_room(node))) {
        *ret_perm |= change;
        *ret_shared &= ~change;
    }
}

/* The last writer has gone: nobody will need the space soon. */
static int preallocate_co_set_perm(struct block_node *node, unsigned perm, unsigned shared,
                                   struct error *err)
{
    ERROR_AUTO(own);

    if (!(perm & (BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE)) && has_file_room(node)) {
        if (co_give_room_back(node, &own) < 0) {
            log_warning("node '%s' keeps the space that it has preallocated: %s", node->name,
                        error_message(&own));
        }
        block_perm_touch(node); /* it needs less of the file at the next change */
    }
    return 0;
}

/* --- size ------------------------------------------------------------------------------------- */

static int preallocate_co_inactivate(struct block_node *node, struct error *err)
{
    return co_give_room_back(node, err);
}

static int preallocate_co_truncate(struct block_node *node, uint64_t size,
                                   enum block_prealloc prealloc, struct error *err)
{
    int r = co_give_room_back(node, err);

    UNLESS_FAILED(r, block_co_truncate(node->filtered, size, prealloc, err));
    if (r == 0) {
        block_node_set_size(node, block_edge_size(node->filtered));
    }
    return r;
}

/* --- requests --------------------------------------------------------------------------------- */

static int preallocate_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                                  unsigned flags)
{
    co_make_room_for(node, offset + iov.size);
    return block_co_pwritev(node->filtered, offset, iov, flags);
}

static int preallocate_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                       unsigned flags)
{
    co_make_room_for(node, offset + length);
    return block_co_write_zeroes(node->filtered, offset, length, flags);
}

static int preallocate_co_copy_from(struct block_node *node, uint64_t offset,
                                    struct block_node *source, uint64_t source_offset,
                                    uint64_t length)
{
    co_make_room_for(node, offset + length);
    return block_co_copy_from(node->filtered, offset, source, source_offset, length, 0);
}

const struct block_driver preallocate_driver = {
    .name = "preallocate",
    .help = "filter: a file grows in large steps",
    .options = &preallocate_options,
    .instance_size = sizeof(struct preallocate),
    .is_filter = true,
    .reopen_options = (const char *const[]){"prealloc-align", "prealloc-size", NULL},
    .co_open = preallocate_co_open,
    .co_close = preallocate_co_close,
    .co_inactivate = preallocate_co_inactivate,
    .co_reopen_prepare = preallocate_co_reopen_prepare,
    .co_reopen_abort = preallocate_co_reopen_abort,
    .child_perm = preallocate_child_perm,
    .co_set_perm = preallocate_co_set_perm,
    .co_truncate = preallocate_co_truncate,
    .co_pwritev = preallocate_co_pwritev,
    .co_write_zeroes = preallocate_co_write_zeroes,
    .co_copy_from = preallocate_co_copy_from,
};
