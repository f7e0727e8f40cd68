/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a driver implements, and what it sees of its node. Only drivers and the block layer include this.
 */
#ifndef TIDEMARK_BLOCK_DRIVER_H
#define TIDEMARK_BLOCK_DRIVER_H

#include <stdatomic.h>

#include "base/counters.h"
#include "base/list.h"
#include "block/bitmaps.h"
#include "block/block.h"
#include "block/control.h"
#include "block/event.h"
#include "block/gate.h"
#include "co/sync.h"

/* What an edge means to its parent; decides how permissions and block status pass through. */
#define BLOCK_ROLE_DATA 1u     /* holds guest data */
#define BLOCK_ROLE_METADATA 2u /* holds the format's metadata: the parent must be its only writer */
#define BLOCK_ROLE_BACKING 4u  /* read where this layer has nothing */
#define BLOCK_ROLE_FILTERED 8u /* same contents as this node */
#define BLOCK_ROLE_TARGET                                                                          \
    16u /* private storage of a filter or job (copy-before-write's temporary image) */

struct block_edge {
    struct list sibling;       /* in parent->children */
    struct list in_node;       /* in node->parents */
    struct block_node *parent; /* NULL for a root */
    struct block_root *root;   /* NULL for an interior edge */
    struct block_node *node;   /* child; changes only while drained */
    char *name;                /* "file", "backing", "target"; of a root: the user */
    unsigned role;
    _Atomic unsigned perm, shared;   /* in force; the gate reads them on any thread */
    unsigned want_perm, want_shared; /* of a root: what its user asks for */
    unsigned next_perm, next_shared; /* scratch of perm.c; else as those in force */
    struct block_node
        *origin;       /* where it was when the graph change began that moves it; referenced */
    struct list moved; /* in the list of that change's moved edges */
};

struct block_node {
    char *name; /* unique; generated "#block..." if the user gave none */
    bool has_user_name;
    bool monitor_owned;
    bool read_only;
    bool auto_read_only; /* a leaf may fall back to read_only = true when it can't be written */
    struct co *opener;   /* not public yet: only this coroutine finds it by name; NULL: public */
    struct block_node *published_with; /* the node by whose publication it became public */
    bool is_open;                      /* co_open is through */
    bool is_leaving;                   /* deleted: not found by name any more */
    bool close_told;                   /* an error of completing it was returned to somebody */
    bool closed;                       /* co_close has run */

    /* drain.c */
    unsigned drain_depth; /* drain_begin without drain_end */
    bool quiesced;        /* the driver was told that a drain has begun */
    bool want_quiesced;   /* scratch from here on */
    unsigned drain_mark;
    struct block_node *drain_next;

    /* graph.c, perm.c; under the graph lock */
    unsigned told_perm, told_shared; /* what co_set_perm was last told */
    bool perm_touched;               /* permissions at and below it are to be worked out */
    struct list left;                /* scratch from here on */
    unsigned perm_mark, perm_waits, reach_mark;
    struct block_node *perm_next, *reach_next;

    bool
        events; /* a fault filter at or below wants to know of events; a driver may set it in co_open */
    bool probed;         /* raw format guessed: guard the first sector */
    unsigned open_flags; /* BLOCK_OPEN_... */
    const struct block_driver *driver;
    void *opaque; /* driver->instance_size bytes, zeroed before co_open */
    unsigned refcount;
    struct list link;            /* in the list of all nodes */
    struct list children;        /* edges from this node */
    struct list parents;         /* edges to this node */
    struct block_edge *file;     /* the child named "file"; NULL if none */
    struct block_edge *backing;  /* the child named "backing"; NULL if none */
    struct block_edge *filtered; /* the child that a filter shows; NULL if none */
    char *filename;              /* plain path or URI; NULL if none */
    struct json_object *options; /* as opened */
    bool beyond_filename;        /* here or below are options that no filename tells */

    /* generic options, inherited by children */
    bool cache_direct, cache_no_flush, discard_unmap, force_share;
    int detect_zeroes; /* enum block_detect_zeroes */

    _Atomic uint64_t size; /* bytes */
    struct block_limits limits;
    unsigned
        supported_write_flags; /* BLOCK_REQ_FUA if the driver does it itself; else the gate flushes */
    unsigned
        supported_zero_flags; /* BLOCK_REQ_FUA, _MAY_UNMAP, _NO_FALLBACK handled by the driver */

    struct list bitmaps; /* of struct block_bitmap; changes only while drained */
    struct range_lock
        rmw; /* writes on nodes with request_alignment > 1; unaligned ones are exclusive */
    _Atomic uint64_t
        write_generation; /* counts writes; with the next a flush without writes costs nothing */
    _Atomic uint64_t flushed_generation;

    /* What the gate counts; shards are struct block_node_shard (op.h). */
    struct counters counters;
};

struct block_driver {
    const char *name; /* "qcow2" */
    size_t instance_size;
    bool is_format; /* interprets its child "file" */
    bool
        is_filter; /* same contents as its filtered child, unless it says otherwise by snapshot functions */
    bool
        is_frozen_view; /* shows a point in time: nothing that is done through it changes what it shows */
    bool is_protocol; /* a leaf that may be opened by filename */
    bool
        keeps_zero_beyond_eof; /* leaf: a file that grows reads as zeroes where it was never written */
    bool
        has_directories; /* its URIs are SCHEME://HOST/PATH[?...]: files of a directory differ behind the last '/' of PATH */
    bool
        flushes_always; /* also with cache.no-flush: another process keeps what was written, and can lose it */
    const char *const *schemes; /* NULL-terminated: "nbd", "nbd+unix"; NULL if none */

    /* --- control: main reactor, coroutine, may yield --- */

    /* Take options out of a filename that has one of the schemes. */
    int (*parse_filename)(const char *filename, struct options *opts, struct error *err);
    /* Score (0 no .. 100 sure) that an image beginning with these bytes has this format. Does no I/O. */
    int (*probe)(const uint8_t *head, size_t size);
    /*
     * Open: take own options, open children with block_co_open_child(), set size and limits. On failure everything of its
     * own is released; edges are detached by the caller. Called before the node is visible.
     */
    int (*co_open)(struct block_node *node, struct options *opts, struct error *err);
    /*
     * The second part of opening, for what depends on others' state at the moment when the node becomes part of the graph; it is
     * drained below the node. NULL: nothing. On failure the node is closed.
     */
    int (*co_begin)(struct block_node *node, struct error *err);
    /*
     * Write out all state (caches, bitmaps) so that the file is complete; the node stays open, and the next write makes
     * it active again. No request is in flight. NULL: nothing to do.
     */
    int (*co_inactivate)(struct block_node *node, struct error *err);
    /* Release everything but edges. After co_inactivate; must not fail. */
    void (*co_close)(struct block_node *node);
    /*
     * Permissions this node needs of `edge`, given the union of what its parents do and the intersection of what they share.
     * NULL: by role, see block_default_child_perm().
     */
    void (*child_perm)(struct block_node *node, struct block_edge *edge, unsigned parents_perm,
                       unsigned parents_shared, unsigned *ret_perm, unsigned *ret_shared);
    /* The node's own cumulative permissions change (image locks). On failure the old ones stay in force. NULL: nothing to do. */
    int (*co_set_perm)(struct block_node *node, unsigned perm, unsigned shared, struct error *err);
    /* Make an image. Takes its options, and refuses what is left with options_check_empty() before it writes. */
    int (*co_create)(const char *filename, uint64_t size, struct options *opts, struct error *err);
    const struct block_option_desc *create_options; /* ends with a NULL name */
    const struct block_option_desc
        *amend_options; /* those that co_amend takes, by name; likewise */
    /*
     * Drain: no more requests will come until drain_end. `drain_busy` tells whether work of the driver's own, which no request
     * waits for any more, is still under way; it is asked again until there is none. None may yield. NULL: nothing to do, not busy.
     */
    void (*drain_begin)(struct block_node *node);
    bool (*drain_busy)(struct block_node *node);
    void (*drain_end)(struct block_node *node);
    int (*co_get_info)(struct block_node *node, struct block_info *ret);
    /* Format-specific part of `info` ("format-specific": {"type":..., "data":...}); a new reference or NULL. */
    struct json_object *(*co_specific_info)(struct block_node *node);
    int (*co_check)(struct block_node *node, unsigned fix, struct block_check_result *ret,
                    struct error *err);
    int (*co_allocated_size)(struct block_node *node, uint64_t *ret);
    /* Change size; called drained. NULL: can't be resized. */
    int (*co_truncate)(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                       struct error *err);
    /*
     * Make a file that is shorter than `size` so long; what is new reads as zeroes. Any reactor, beside I/O: but nobody writes
     * beyond `size` meanwhile. NULL: it can't.
     */
    int (*co_extend)(struct block_node *node, uint64_t size);
    /*
     * Record another backing file; NULL: none. The present backing node stays as it is. NULL: the format has none. The node
     * is drained.
     */
    int (*co_change_backing)(struct block_node *node, const char *filename, const char *format,
                             struct error *err);
    /*
     * Change creation options of an image: those of `opts` that it knows are taken, others are an error. `progress` (may be NULL) is
     * called now and then with what is done of a total. The node is drained.
     */
    int (*co_amend)(struct block_node *node, struct options *opts, block_progress_fn *progress,
                    void *progress_arg, struct error *err);

    /*
     * Forget all contents, so that the disk reads as its backing file; bitmaps keep their bits. Stable when it returns 0. The
     * node is drained. NULL: the format has no backing files.
     */
    int (*co_make_empty)(struct block_node *node, struct error *err);

    /* --- internal snapshots; the node is drained. NULL: the format has none. `id_or_name`: an ID first, else a name. --- */

    /* Make one of the disk as it is now. `name` may be empty; an ID is chosen. */
    int (*co_snapshot_create)(struct block_node *node, const char *name, struct error *err);
    /* The disk becomes what it was then. */
    int (*co_snapshot_apply)(struct block_node *node, const char *id_or_name, struct error *err);
    int (*co_snapshot_delete)(struct block_node *node, const char *id_or_name, struct error *err);
    /* An array of *ret_count (freed by the caller with free(), strings are within it). */
    int (*co_snapshot_list)(struct block_node *node, struct block_snapshot_info **ret,
                            size_t *ret_count, struct error *err);
    /* A read-only node shows the snapshot from now on. Either may be NULL; both must match if both are given. */
    int (*co_snapshot_show)(struct block_node *node, const char *id, const char *name,
                            struct error *err);

    /* Read and write the state of a virtual machine, at an offset in it. The node is drained. NULL: the format keeps none. */
    int (*co_preadv_vmstate)(struct block_node *node, uint64_t offset, struct iov iov);
    int (*co_pwritev_vmstate)(struct block_node *node, uint64_t offset, struct iov iov);

    /*
     * Set in b->bits what is stored of an `unread` bitmap. Those bits can be changed meanwhile by guest writes.
     * -ENOMEM; another error: it can't be read.
     */
    int (*co_fetch_bitmap)(struct block_node *node, struct block_bitmap *b);
    /* Dirty bytes of what is stored of an `unread` bitmap. Errors as above. */
    int (*co_count_bitmap)(struct block_node *node, const struct block_bitmap *b, uint64_t *ret);
    /* 0 if a bitmap of that name and granularity can be made persistent here. NULL: it can't. */
    int (*co_can_store_bitmap)(struct block_node *node, const char *name, uint32_t granularity,
                               struct error *err);
    /*
     * Take what storing a bitmap of that name and granularity wants, which is about to be added: -ENOSPC now rather than when it is
     * stored. NULL: nothing. The node is drained.
     */
    int (*co_reserve_bitmap)(struct block_node *node, const char *name, uint32_t granularity,
                             struct error *err);
    /* Remove a stored bitmap, also one that was not loaded. 1, or 0 if there is none. The node is drained. */
    int (*co_remove_stored_bitmap)(struct block_node *node, const char *name, struct error *err);
    /*
     * The bits of a persistent bitmap change in memory other than by guest writes (merge, clear, enable):
     * make sure that what is on disk does not pass for current. NULL: nothing to do.
     */
    int (*co_bitmap_will_change)(struct block_node *node, struct block_bitmap *b,
                                 struct error *err);

    /* --- I/O: any reactor, coroutine, several at once, may yield. Requests are aligned to the limits and within bounds. --- */

    int (*co_preadv)(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
    int (*co_pwritev)(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
    /* NULL or -ENOTSUP: the gate writes zeroes. */
    int (*co_write_zeroes)(struct block_node *node, uint64_t offset, uint64_t length,
                           unsigned flags);
    /*
     * Copy bytes of `source`, a node of any driver whose contents are what its co_preadv reads, without having them in memory. NULL
     * or -ENOTSUP: the caller reads and writes.
     */
    int (*co_copy_from)(struct block_node *node, uint64_t offset, struct block_node *source,
                        uint64_t source_offset, uint64_t length);
    /* NULL or -ENOTSUP: ignored. */
    int (*co_discard)(struct block_node *node, uint64_t offset, uint64_t length);
    /* Make stable what was acknowledged, in this node and, through its edges, below. NULL: the gate flushes all children. */
    int (*co_flush)(struct block_node *node);
    /* See struct block_status. NULL: filters pass through; others are all data. */
    int (*co_status)(struct block_node *node, uint64_t offset, uint64_t length,
                     struct block_status *ret);
    int (*co_preadv_snapshot)(struct block_node *node, uint64_t offset, struct iov iov);
    int (*co_snapshot_status)(struct block_node *node, uint64_t offset, uint64_t length,
                              struct block_status *ret);
    int (*co_discard_snapshot)(struct block_node *node, uint64_t offset, uint64_t length);
    /* --- figures of its own --- */

    /*
     * A table of at most BLOCK_DRIVER_STATS_MAX rows, without histograms, and a function that fills in a value for each row. Main
     * reactor, while the node is open; must not yield. NULL: there are none.
     */
    const struct stat_desc *stats;
    void (*read_stats)(struct block_node *node, uint64_t *ret_values);

    /* Something happens in a format or in the gate above this node; may hold it up. Fault filters have this. */
    void (*co_event)(struct block_node *node, enum block_event event);
};

/* --- events: any reactor, coroutine, may yield -------------------------------------------------------------- */

/* Announce an event at a node: passed down through raw and filters to the first fault filter, if there is one. */
void block_co_event_at(struct block_node *node, enum block_event event);

/* Announce an event to what is below an edge. One branch where nobody wants to know. */
static inline void block_co_event(const struct block_edge *edge, enum block_event event)
{
    if (__builtin_expect(edge->node->events, false)) {
        block_co_event_at(edge->node, event);
    }
}

/* Whether a node is of the driver that `definition` describes. Its node->driver is a copy, completed with defaults. */
static inline bool block_node_is(const struct block_node *node,
                                 const struct block_driver *definition)
{
    return node->driver->name == definition->name;
}

/* --- for drivers, in co_open --------------------------------------------------------------------------- */

/*
 * Open or look up the child `name` from the option of that name (node name or object) and attach it. `allow_none`: absent
 * is fine and *ret is NULL. Sets node->file / node->backing for those names.
 */
int block_co_open_child(struct block_node *node, struct options *opts, const char *name,
                        unsigned role, bool allow_none, struct block_edge **ret, struct error *err);
/*
 * For filters: open the child `name` that the node shows, and take its size, its discards and its flags. All that a filter with
 * one child has to do, beside its own options. Errors as above.
 */
int block_co_open_filtered(struct block_node *node, struct options *opts, const char *name,
                           struct error *err);
/* Whether the node has contents of a point in time (co_preadv_snapshot), itself or behind filters. Does not yield. */
bool block_node_has_snapshot_access(const struct block_node *node);
/*
 * Open the backing file: from the option `backing` if it is given (null: none), else from the image's own record (a
 * filename relative to the image's; `format` may be NULL). Honours BLOCK_OPEN_NO_BACKING.
 */
int block_co_open_backing(struct block_node *node, struct options *opts, const char *filename,
                          const char *format, struct error *err);
/* Attach a node (a reference is taken) as a child. */
int block_co_attach_child(struct block_node *node, struct block_node *child, const char *name,
                          unsigned role, struct block_edge **ret, struct error *err);
void block_co_detach_child(struct block_edge *edge);

void block_default_child_perm(struct block_node *node, struct block_edge *edge,
                              unsigned parents_perm, unsigned parents_shared, unsigned *ret_perm,
                              unsigned *ret_shared);

/*
 * For co_create of formats: make the (empty) file that the format is about to be written into, or use the export that is
 * there where a protocol can't make any; opened and attached for reading, writing and resizing. Give it back with
 * block_co_root_release(), which closes it. `opts` are for the making (NULL: none), and consumed.
 */
int block_co_create_file(const char *filename, struct options *opts, struct block_root **ret,
                         struct error *err);

/* What parents do together now, and what all of them share. */
void block_node_cumulative_perm(const struct block_node *node, unsigned *ret_perm,
                                unsigned *ret_shared);

/* Set by co_open, co_truncate, and by the gate when a write extends a leaf. Any thread. */
void block_node_set_size(struct block_node *node, uint64_t size);

/* Whether `name` is relative to a directory that there is not: never that which the program happens to run in. */
bool block_is_beside_no_file(const char *base_filename, const char *name);

/*
 * Whether a drain, or the end of a user, waits for requests that may have reached this node: what a driver holds back in the hope of
 * better times should end then. Main reactor.
 */
bool block_node_is_awaited(const struct block_node *node);

#endif
