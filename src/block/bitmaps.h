/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Named dirty bitmaps of nodes. (node, name) identifies one. The gate marks every enabled bitmap of
 * a node after each write, zeroing or discard, also after one that failed.
 *
 * The set of a node's bitmaps and their flags change only while the node is drained; the functions
 * here drain by themselves. Main reactor, in a coroutine; all may yield. Reading bits needs none of
 * that.
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

struct block_bitmap {
    struct list link;        /* in its node's list */
    struct block_node *node; /* owner */
    char *name;
    struct dirty_bitmap
        *bits; /* NULL only for an inconsistent bitmap; readers use block_bitmap_bits() */
    uint32_t granularity;
    bool unread;  /* `bits` has only what was set since the image was opened, which has the rest */
    bool counted; /* stored_count is known */
    uint64_t stored_count; /* dirty bytes of what is stored, as long as `unread` */
    bool enabled;          /* recording */
    bool persistent;       /* stored in the image when it is closed */
    bool inconsistent;
    bool read_only;
    bool unstored;      /* what is stored is not current, although it could not be marked as such */
    unsigned busy;      /* users: exports, jobs */
    char *busy_user;    /* the first of them, for messages */
    void *driver_state; /* of the format driver that stores it; owned by the driver */
    unsigned driver_flags; /* likewise */
};

/* NULL if there is none. Borrowed. */
struct block_bitmap *block_bitmap_find(struct block_node *node, const char *name);
/* With the errors of QMP: node not found, "Dirty bitmap 'x' not found". */
struct block_bitmap *block_bitmap_lookup(const char *node_name, const char *name,
                                         struct block_node **ret_node, struct error *err);
/* Iterate: NULL begins, NULL ends. */
struct block_bitmap *block_bitmap_next(struct block_node *node, struct block_bitmap *bitmap);
/* The same from last to first. */
struct block_bitmap *block_bitmap_previous(struct block_node *node, struct block_bitmap *bitmap);

/* What a caller needs of a bitmap; block_bitmap_check() refuses when one of these states holds. */
#define BLOCK_BITMAP_REFUSE_BUSY 1u
#define BLOCK_BITMAP_REFUSE_READ_ONLY 2u
#define BLOCK_BITMAP_REFUSE_INCONSISTENT 4u
#define BLOCK_BITMAP_REFUSE_ALL 7u
int block_bitmap_check(const struct block_bitmap *b, unsigned refuse, struct error *err);

/*
 * Add. granularity 0: the cluster size of the node, within 4 KiB .. 64 KiB. A persistent one must
 * be storable (block_driver.co_can_store_bitmap), and there must be room for it: -EEXIST, -EINVAL
 * (name, granularity), -ENOTSUP, -ENOSPC.
 */
int block_co_bitmap_add(struct block_node *node, const char *name, uint32_t granularity,
                        bool persistent, bool disabled, struct block_bitmap **ret,
                        struct error *err);
/* Remove, also from the image. On failure the bitmap is still there. */
int block_co_bitmap_remove(struct block_bitmap *b, struct error *err);
/*
 * Remove one that the image has and that was not loaded, since its type or flags are unknown.
 * -ENOENT
 */
int block_co_bitmap_remove_unloaded(struct block_node *node, const char *name, struct error *err);
/*
 * Mark the stored form of all bitmaps of the node as not current, as their first change does.
 * Yields.
 */
int block_co_bitmaps_will_change(struct block_node *node, struct error *err);
/* For undoing: take it off the node without touching the image, and put it back / free it. */
void block_co_bitmap_detach(struct block_bitmap *b);
void block_co_bitmap_reattach(struct block_bitmap *b);
void block_bitmap_free_detached(struct block_bitmap *b);

int block_co_bitmap_set_enabled(struct block_bitmap *b, bool enabled, struct error *err);
/*
 * Clear; *ret_backup (may be NULL) gets the old bits, for block_co_bitmap_restore() or
 * dirty_bitmap_free().
 */
int block_co_bitmap_clear(struct block_bitmap *b, struct dirty_bitmap **ret_backup,
                          struct error *err);
/* dest |= each source; as above for the backup. */
int block_co_bitmap_merge(struct block_bitmap *dest, struct block_bitmap *const *sources,
                          size_t count, struct dirty_bitmap **ret_backup, struct error *err);
/*
 * Mark dirty what is dirty in `bits`, which may have another granularity and another size: what
 * lies beyond the end of the disk is left out.
 */
int block_co_bitmap_add_bits(struct block_bitmap *b, const struct dirty_bitmap *bits,
                             struct error *err);
/* Put bits (consumed) of the same geometry in place of those it has. */
void block_co_bitmap_restore(struct block_bitmap *b, struct dirty_bitmap *backup);

/*
 * The bits of a stored bitmap stay in the image until they are asked for. Have all of them in
 * memory. If they can't be read, the bitmap is inconsistent from then on. Not for an inconsistent
 * bitmap. -ENOMEM, -EIO.
 */
int block_co_bitmap_fetch(struct block_bitmap *b, struct error *err);
/*
 * Dirty bytes. Of a bitmap whose bits are all in the image they are counted there once, in little
 * memory; one that guests have marked since it was opened is fetched. Not for an inconsistent
 * bitmap. Errors as above; *ret is what is in memory then.
 */
int block_co_bitmap_count(struct block_bitmap *b, uint64_t *ret, struct error *err);
/* The bits of a bitmap that was fetched, or that was made here. Any thread; does not yield. */
const struct dirty_bitmap *block_bitmap_bits(const struct block_bitmap *b);

/* Mark in use by an export or job ("NBD export 'x'"), and give back. */
void block_bitmap_take(struct block_bitmap *b, const char *user);
void block_bitmap_give(struct block_bitmap *b);

/*
 * For drivers that load bitmaps at open: the node is not visible to others yet, and the driver has
 * seen to it that names are unique. `bits` is consumed. -ENOMEM
 */
int block_bitmap_attach_loaded(struct block_node *node, const char *name, struct dirty_bitmap *bits,
                               uint32_t granularity, struct block_bitmap **ret, struct error *err);
/* When a node is closed: free all. */
void block_bitmaps_release(struct block_node *node);
/* When it is resized (drained by the caller): all bitmaps get the size. */
int block_bitmaps_resize(struct block_node *node, uint64_t size, struct error *err);
/* For the gate. Any thread; no lock; does not yield. */
void block_bitmaps_mark(struct block_node *node, uint64_t offset, uint64_t length);

#endif
