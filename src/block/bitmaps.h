/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Named dirty bitmaps of nodes. (node, name) identifies one. The gate marks every enabled bitmap of
 * a node after each write, zeroing or discard, also after one that failed.
 *
 * The list of a node's bitmaps and their flags change only while the node is drained; the functions
 * here drain it. Main reactor; the `co_` functions run in a coroutine and yield, the others do not.
 * Bits may be read on any thread.
 *
 * States as QMP reports them (BlockDirtyInfo): recording, busy, persistent, inconsistent. An
 * inconsistent bitmap (found "in use" in the image) can only be removed. A busy one (an export or
 * job uses it) can't be changed or removed. A read-only one lies in an image that is not writable.
 */
#ifndef TIDEMARK_BLOCK_BITMAPS_H
#define TIDEMARK_BLOCK_BITMAPS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/list.h"
#include "bitmap/bitmap.h"
#include "block/block.h"

#define BLOCK_BITMAP_NAME_MAX 1023

/* A bitmap of a node. The block layer and the drivers see it (block/driver.h). */
struct block_bitmap;

/* Its name, and the node it belongs to. Borrowed: valid as long as the bitmap. */
const char *block_bitmap_name(const struct block_bitmap *b);
struct block_node *block_bitmap_node(const struct block_bitmap *b);
/* Bytes that one bit covers; a power of two. */
uint32_t block_bitmap_granularity(const struct block_bitmap *b);
/* Whether it records writes. */
bool block_bitmap_enabled(const struct block_bitmap *b);
/* Whether it is stored in the image when that is closed. */
bool block_bitmap_persistent(const struct block_bitmap *b);
/* Whether it was found in use in the image, so that its bits are not known. */
bool block_bitmap_inconsistent(const struct block_bitmap *b);
/* Whether it lies in an image that is not writable. */
bool block_bitmap_read_only(const struct block_bitmap *b);
/* Whether an export or a job uses it. */
bool block_bitmap_busy(const struct block_bitmap *b);

/* How far a bitmap is to be trusted. */
enum block_bitmap_trust {
    BLOCK_BITMAP_EXACT,    /* dirty is what was changed, rounded to granules */
    BLOCK_BITMAP_SUPERSET, /* and something that was not, or may not have been */
    BLOCK_BITMAP_LOST,     /* inconsistent: it is of no use */
};
struct block_bitmap_state {
    enum block_bitmap_trust trust;
    /* SUPERSET: bytes that may be dirty without a change, at most. */
    uint64_t excess;
    /* SUPERSET, LOST: a sentence. Valid as long as the bitmap. */
    const char *why;
    /* LOST: when it was found, in seconds since the epoch; 0: before the image was opened. */
    int64_t since;
};
/* Does not yield. */
void block_bitmap_get_state(const struct block_bitmap *b, struct block_bitmap_state *ret_state);
/*
 * The same for users: no more is in excess than is dirty, as far as that is counted
 * (block_bitmap_is_counted()). Does not yield.
 */
void block_bitmap_get_shown_state(const struct block_bitmap *b,
                                  struct block_bitmap_state *ret_state);

/*
 * The bits that are added to `b` next come from a bitmap in the state `from`, with `granularity`:
 * what that one has in excess, `b` has, too. Does not yield.
 */
void block_bitmap_inherit_excess(struct block_bitmap *b, const struct block_bitmap_state *from,
                                 uint32_t granularity);

/* By name; NULL: there is none. Borrowed. */
struct block_bitmap *block_bitmap_find(struct block_node *node, const char *name);
/* With the errors of QMP: node not found, "Dirty bitmap 'x' not found". */
struct block_bitmap *block_bitmap_lookup(const char *node_name, const char *name,
                                         struct block_node **ret_node, struct error *err);
/* Iterate: NULL begins, NULL ends. */
struct block_bitmap *block_bitmap_next(struct block_node *node, struct block_bitmap *bitmap);
/* The same from last to first. */
struct block_bitmap *block_bitmap_previous(struct block_node *node, struct block_bitmap *bitmap);

/* States of a bitmap that a caller does not accept. */
enum block_bitmap_refuse {
    BLOCK_BITMAP_REFUSE_BUSY = 1 << 0,
    BLOCK_BITMAP_REFUSE_READ_ONLY = 1 << 1,
    BLOCK_BITMAP_REFUSE_INCONSISTENT = 1 << 2,
    BLOCK_BITMAP_REFUSE_ALL = (1 << 3) - 1,
};

/* -EBUSY, -EPERM or -EINVAL with a sentence if the bitmap is in one of the states `refuse`. */
int block_bitmap_check(const struct block_bitmap *b, unsigned refuse, struct error *err);

/*
 * Add. granularity 0: the cluster size of the node, within 4 KiB .. 64 KiB. A persistent one must
 * be storable (block_driver.co_can_store_bitmap), and there must be room for it: -EEXIST, -EINVAL
 * (name, granularity), -ENOTSUP, -ENOSPC.
 */
int block_co_bitmap_add(struct block_node *node, const char *name, uint32_t granularity,
                        bool persistent, bool disabled, struct block_bitmap **ret_bitmap,
                        struct error *err);
/* Remove, also from the image. On failure the bitmap is still there. */
int block_co_bitmap_remove(struct block_bitmap *b, struct error *err);
/*
 * Remove one that the image has and that was not loaded, since its type or flags are unknown.
 * -ENOENT
 */
int block_co_bitmap_remove_unloaded(struct block_node *node, const char *name, struct error *err);
/* Mark the stored bits of all bitmaps of the node as not current, as the first change does. */
int block_co_bitmaps_will_change(struct block_node *node, struct error *err);
/* For undo: take back block_co_bitmap_add(). The bitmap is freed. */
void block_co_bitmap_undo_add(struct block_bitmap *b);
/* Likewise: take the bitmap off its node without a change of the image; put it back; or free it. */
void block_co_bitmap_detach(struct block_bitmap *b);
void block_co_bitmap_reattach(struct block_bitmap *b);
void block_bitmap_free_detached(struct block_bitmap *b);
/*
 * Remove a detached bitmap from the image. Its bits are in memory afterwards, so that it can be
 * attached again. With an activity log the next commit does it.
 */
int block_co_bitmap_remove_detached(struct block_bitmap *b, struct error *err);

/* A change of the persistent bitmaps of several nodes, of which a crash leaves all or nothing. */
struct block_joint {
    uint8_t id[16]; /* random */
    char **names;   /* of the images; the first one decides */
    size_t count;
};

/*
 * Changes of persistent bitmaps of nodes with an activity log (block/activity.h) are stable when
 * the function that makes them returns. Between begin and end, changes that the calling coroutine
 * makes are stable only when it has called block_co_bitmap_commits_run(): all at once, of several
 * nodes, too, if their drivers can do that (struct block_joint). On failure nodes that can't may be
 * stable already: undo the changes, and run again.
 */
struct block_bitmap_commits {
    struct list link;
    struct co *owner;
    struct block_node **nodes; /* that have changed */
    size_t count;
};
/* Begin. Does not yield. */
void block_bitmap_commits_begin(struct block_bitmap_commits *c);
/* Make stable what has changed since. Errors of storing; -ENOSPC. */
int block_co_bitmap_commits_run(struct block_bitmap_commits *c, struct error *err);
/*
 * After a failure, and an undo: commit what the nodes have now, as far as that is possible. What is
 * not stored now is stored when the node is closed. Errors are logged.
 */
void block_co_bitmap_commits_retry(struct block_bitmap_commits *c);
/*
 * Nodes that the calling coroutine has changed apart from the others: a crash in between would have
 * left a part of the changes. Each is returned once; NULL begins, NULL ends. Does not yield.
 */
struct block_node *block_bitmap_next_changed_apart(struct block_node *node);
/* End. Does not yield. */
void block_bitmap_commits_end(struct block_bitmap_commits *c);
/*
 * Run and end, when the changes had the result `r`: what was changed by then is committed also
 * after a failure. Returns `r`, or the error of the commit.
 */
int block_co_bitmap_commits_finish(struct block_bitmap_commits *c, int r, struct error *err);

/* Start or stop recording. -EBUSY, -EINVAL (inconsistent). */
int block_co_bitmap_set_enabled(struct block_bitmap *b, bool enabled, struct error *err);
/* What a clear or a merge replaces. */
struct block_bitmap_backup {
    struct dirty_bitmap *bits; /* owned: for block_co_bitmap_restore() or dirty_bitmap_free() */
    uint64_t excess;           /* as in struct block_bitmap_state */
    const char *excess_why;    /* borrowed from the bitmap's node */
};
/* Clear all bits; *ret_backup (may be NULL) gets the old ones. */
int block_co_bitmap_clear(struct block_bitmap *b, struct block_bitmap_backup *ret_backup,
                          struct error *err);
/*
 * Set in `dest` the bits of each source, all of the same size; backup as above. -EBUSY, -EINVAL,
 * -ENOMEM
 */
int block_co_bitmap_merge(struct block_bitmap *dest, struct block_bitmap *const *sources,
                          size_t count, struct block_bitmap_backup *ret_backup, struct error *err);
/*
 * Set the bits of the areas that are dirty in `bits`, which may have another granularity and
 * another size; areas beyond the end of the disk are left out. -ENOMEM
 */
int block_co_bitmap_add_bits(struct block_bitmap *b, const struct dirty_bitmap *bits,
                             struct error *err);
/*
 * The bits, for a job that has taken the bitmap and changes them while guests set others. *ret_bits
 * is valid until the job returns the bits, which are stable then if the node has an activity log.
 * With one, a crash meanwhile leaves the bits as they were, and what the job has noted since, or
 * more; else it makes a persistent bitmap inconsistent. -EROFS, -EINVAL (inconsistent), -ENOMEM,
 * errors of reading or marking.
 */
int block_co_bitmap_borrow_bits(struct block_bitmap *b, struct dirty_bitmap **ret_bits,
                                struct error *err);
void block_co_bitmap_return_bits(struct block_bitmap *b);
/* The job has set bits in a range: they survive a crash when this returns 0. Errors of storing. */
int block_co_bitmap_note_set(struct block_bitmap *b, uint64_t offset, uint64_t length);
/* Likewise all that it has set or cleared since it has them. The node is drained. */
int block_co_bitmap_note_all(struct block_bitmap *b, struct error *err);
/* Replace bits and excess by `backup` (consumed), which has the same granularity and size. */
void block_co_bitmap_restore(struct block_bitmap *b, struct block_bitmap_backup *backup);

/*
 * Read the stored bits into memory if they have not been read yet (they stay in the image until
 * somebody needs them). If they are invalid (-EINVAL), the bitmap is inconsistent from then on;
 * after other errors it is as it was. Not for an inconsistent bitmap. -ENOMEM, errors of reading
 */
int block_co_bitmap_fetch(struct block_bitmap *b, struct error *err);
/*
 * Count the dirty bytes. If all bits are in the image, they are counted there, once, with little
 * memory; a bitmap that has new bits in memory too is fetched. Not for an inconsistent bitmap.
 * Errors as above; *ret_value then counts the bits in memory.
 */
int block_co_bitmap_count(struct block_bitmap *b, uint64_t *ret_value, struct error *err);
/* Whether the log is to have a warning that it can't be counted: once until it can. No yield. */
bool block_bitmap_warns(struct block_bitmap *b);
/*
 * The dirty bytes as far as they are known without reading the image: at most what
 * block_co_bitmap_count() finds, and no less if block_bitmap_is_counted(). Neither yields.
 */
bool block_bitmap_is_counted(const struct block_bitmap *b);
uint64_t block_bitmap_known_count(const struct block_bitmap *b);
/* The bits of a bitmap that was fetched, or that was not loaded from an image. Any thread. */
const struct dirty_bitmap *block_bitmap_bits(const struct block_bitmap *b);

/*
 * A job needs the bits as they are now: the bitmap is busy, and its bits stay, while a successor
 * without a name records the writes to come (if the bitmap is enabled). Ended by one of the two
 * functions below. `user` as of block_bitmap_take(). -EBUSY, -EROFS, -EINVAL, -ENOMEM, errors of
 * fetching and of marking the stored bits.
 */
int block_co_bitmap_freeze(struct block_bitmap *b, const char *user, struct error *err);
/* The bits of a frozen bitmap. Only who has frozen it may change them. */
struct dirty_bitmap *block_bitmap_frozen_bits(struct block_bitmap *b);
/* The frozen bits are of no use any more: those of the successor take their place. Can't fail. */
void block_co_bitmap_abdicate(struct block_bitmap *b);
/* The frozen bits are still needed: those of the successor are added. Can't fail. */
void block_co_bitmap_reclaim(struct block_bitmap *b);

/* An export or job ("NBD export 'x'") begins and ends to use the bitmap: it is busy meanwhile. */
void block_bitmap_take(struct block_bitmap *b, const char *user);
void block_bitmap_give(struct block_bitmap *b);

/*
 * For drivers that load bitmaps in co_open, where names are known to be unique. `bits` is consumed.
 * -ENOMEM
 */
int block_bitmap_attach_loaded(struct block_node *node, const char *name, struct dirty_bitmap *bits,
                               uint32_t granularity, struct block_bitmap **ret_bitmap,
                               struct error *err);
/*
 * The bitmaps are about to be stored while some are frozen: add the bits of their successors, so
 * that none is lost whatever comes. Does not yield.
 */
void block_bitmaps_fold_successors(struct block_node *node);
/* Free all bitmaps of a node that is being closed. */
void block_bitmaps_release(struct block_node *node);
/* Resize all bitmaps of a drained node to `size` bytes. -ENOMEM; then all have their old size. */
int block_bitmaps_resize(struct block_node *node, uint64_t size, struct error *err);
/* For the gate: set bits in all bitmaps that record. Any thread; no lock. */
void block_bitmaps_mark(struct block_node *node, uint64_t offset, uint64_t length);

/*
 * Set in `bits`, which has the size of the node, what is dirty in the bitmap `name`: that of the
 * node below filters, or that of the export to which a node of the driver nbd is connected
 * (`qemu:dirty-bitmap:NAME`, NBD protocol, "Metadata querying"). -ENOENT: there is none, also if it
 * is inconsistent, or not exported. -ENOTSUP: the format has none. Others of reading; some bits may
 * be set then.
 */
int block_co_read_bitmap(struct block_node *node, const char *name, struct dirty_bitmap *bits,
                         struct error *err);

#endif
