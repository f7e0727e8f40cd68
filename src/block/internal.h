/* SPDX-License-Identifier: Apache-2.0 */
/* Shared between the files of the block layer only. */
#ifndef TIDEMARK_BLOCK_INTERNAL_H
#define TIDEMARK_BLOCK_INTERNAL_H

#include "block/driver.h"
#include "loop/loop.h"

#define CACHE_LINE 64

/* Requests in flight that one reactor started: that reactor writes, the drainer sums. */
struct inflight_counter {
    _Alignas(CACHE_LINE) _Atomic uint64_t count;
    /* The reactor has had requests here. */
    atomic_bool used;
};

struct block_root {
    struct block_edge edge;
    /* Of the block layer itself (probing, creation): its I/O runs inside drained sections. */
    bool exempt;
    /* block_co_root_settle() has begun: quiesced for good. */
    bool closing;
    /* block_co_root_settle() has ended. */
    bool settled;
    /* block_root_begin_end() */
    bool ending;
    /* block_root_stay() */
    bool stays;
    /* block_root_belongs_to_device() */
    bool of_device;
    /* NULL: the owner wants no events. */
    const struct block_root_ops *ops;
    void *ops_arg;

    /* In the list of those that are quiesced; drain.c. */
    struct list quiet;
    /* Scratch of drain.c. */
    unsigned wanted_round;
    struct list wanted;
    struct block_root *drain_next;

    /*
     * The drainer sets this and then sums the counters; a request increments, then looks at this.
     */
    atomic_bool quiesced;
    /* Guards `blocked` and `drainer`. */
    pthread_mutex_t guard;
    /* Requests that wait for the end of the drain. */
    struct co_queue blocked;
    /* Suspended until the counters are all zero; NULL: nobody. */
    struct co *drainer;
    struct inflight_counter inflight[REACTOR_MAX];
};

/* --- node_status.c, status.c, status_runs.c: any reactor; they yield --- */

/*
 * Status of one node at `offset`; `contents`: files below are asked about zeroes. Length 0 and EOF
 * at or beyond the end.
 */
int block_co_node_status(struct block_node *node, uint64_t offset, uint64_t length, bool contents,
                         struct block_status *ret_status);
/* As block_co_status_runs(), below the end of `node`, whose requests are counted already. */
int block_co_chain_runs(struct block_node *node, bool contents, uint64_t offset, uint64_t length,
                        struct block_run *ret_runs, unsigned max, unsigned *ret_count);

/* --- drain.c: any reactor --- */

/* A request that found the root quiesced: wait for the end of the drain. Yields. */
void block_co_root_enter_slow(struct block_root *root, unsigned index);
/*
 * A request ended while the root is quiesced: wake the drainer after the last one. Does not yield.
 */
void block_root_leave_slow(struct block_root *root);
/*
 * Quiesce and release roots and nodes according to the drains of all nodes. Waits for no request.
 */
void block_drain_update(void);
/* The root, which is idle, is about to be freed: no drain looks at it again. Does not yield. */
void block_drain_forget_root(const struct block_root *root);

/* A request on the reactor `index` enters the graph by `root`; may yield. */
static inline void block_co_root_enter(struct block_root *root, unsigned index)
{
    atomic_store_explicit(&root->inflight[index].used, true, memory_order_relaxed);
    atomic_fetch_add(&root->inflight[index].count, 1);
    if (__builtin_expect(atomic_load(&root->quiesced), false)) {
        block_co_root_enter_slow(root, index);
    }
}

/* The same, but false if it would have to wait. */
static inline bool block_root_try_enter(struct block_root *root, unsigned index)
{
    bool entered;

    atomic_store_explicit(&root->inflight[index].used, true, memory_order_relaxed);
    atomic_fetch_add(&root->inflight[index].count, 1);
    entered = !atomic_load(&root->quiesced);
    if (!entered) {
        atomic_fetch_sub(&root->inflight[index].count, 1);
        block_root_leave_slow(root);
    }
    return entered;
}

/* The request has ended, on the reactor that it began on. Does not yield. */
static inline void block_root_leave(struct block_root *root, unsigned index)
{
    atomic_fetch_sub(&root->inflight[index].count, 1);
    if (__builtin_expect(atomic_load(&root->quiesced), false)) {
        block_root_leave_slow(root);
    }
}

/* --- node.c: main reactor only --- */

/* struct block_node: public ones, and hidden ones. */
extern struct list block_all_nodes, block_hidden_nodes;
/* All nodes that have a name and do not end, by `by_name`. */
extern struct name_index block_node_names;
/* Free a node that has no edges, and whose driver is closed. */
void block_node_free(struct block_node *node);

/* --- drivers.c --- */
#define BLOCK_DRIVERS_MAX 64

/* Add a copy of a driver, completed with defaults, to the table. Does not yield. */
void block_drivers_add(const struct block_driver *driver);
/* -ENOTSUP for a driver that is known, and cannot be opened; 0 for other names. */
int block_refuse_driver(const char *name, struct error *err);

/* --- open.c, children.c: generic options --- */

/* A format or filter without a filename gets that of the node below. */
void block_inherit_filename(struct block_node *node);
/* Whether a node has the filename of the node below, whichever that is. */
bool block_node_shows_filename(const struct block_node *node);
/* The node, whose image can't be read, is inactive as after it was handed over. In a change. */
void block_node_put_away(struct block_node *node);
/* full_name.c: the image of `node` names this backing file; NULL: none. The text is copied. */
void block_set_auto_backing(struct block_node *node, const char *filename);

/* Generic options: how a node is used. `detect_zeroes` is an enum block_detect_zeroes. */
struct block_use {
    bool read_only, auto_read_only, force_share;
    bool cache_direct, cache_no_flush, discard_unmap;
    int detect_zeroes;
};

/* Those that children inherit, where they are not given. */
enum block_use_option {
    BLOCK_USE_READ_ONLY = 1 << 0,
    BLOCK_USE_AUTO_READ_ONLY = 1 << 1,
    BLOCK_USE_FORCE_SHARE = 1 << 2,
    BLOCK_USE_DISCARD = 1 << 3,
    BLOCK_USE_CACHE_DIRECT = 1 << 4,
    BLOCK_USE_CACHE_NO_FLUSH = 1 << 5,
};

/* Those in force. */
struct block_use block_get_use(const struct block_node *node);
void block_set_use(struct block_node *node, const struct block_use *use);
/* Take them from `opts`. -EINVAL */
int block_take_use(struct options *opts, unsigned flags, struct block_use *ret_use,
                   struct error *err);
/* Which of the inherited options `opts` has: bits of enum block_use_option. */
unsigned block_explicit_use(const struct options *opts);
/* `child` was opened for `parent`, which it follows when that is reopened. */
void block_note_heir(struct block_node *parent, struct block_node *child, unsigned role,
                     unsigned explicit_use);
/* Set those that `child`, in that role, was not given; `parent` uses `use`. */
void block_inherit_use(const struct block_node *parent, const struct block_use *use,
                       struct options *child, unsigned role);

/* --- close.c --- */
/* Complete an image that nobody writes to: see block_co_inactivate(), which drains it first. */
int block_co_complete(struct block_node *node, struct error *err);

/* --- size.c --- */
/* Whether the node, a filter, always has the size of the child at that edge. */
bool block_node_has_size_of(const struct block_node *node, const struct block_edge *child);
/*
 * Whether a write past the end makes the node longer, now and when it is opened again: a file does,
 * but not a format that records the size of its disk. Does not yield.
 */
bool block_node_grows(const struct block_node *node);
/*
 * Whether `to` can replace the node: -EBUSY if a format extends the node as its file, and `to` does
 * not grow. Does not yield.
 */
int block_node_check_growth(const struct block_node *node, const struct block_node *to,
                            struct error *err);
/*
 * A node, about to be a child, learns that what it shows has another size by others' writes: those
 * of other nodes, and of other programs to a file that no node has used. -errno. Yields.
 */
int block_co_renew_size(struct block_node *node, struct error *err);

/* --- threshold.c --- */
/* A write that ends at `end` begins, and the node has a threshold. Does not yield. */
void block_check_write_threshold(struct block_node *node, uint64_t end);

/* --- filename.c --- */
/*
 * Open a node from options (consumed) that name no driver: the format of its `file` is guessed, as
 * by block_co_open_filename(). `what` they are, for messages.
 */
int block_co_open_guessed(const char *what, struct options *opts, unsigned flags,
                          struct block_node **ret_node, struct error *err);

/* --- chain.c --- */
#define BLOCK_OPEN_CHAIN_MASK (~0u << BLOCK_OPEN_CHAIN_SHIFT)
/*
 * As block_co_open_filename(), for the file that `above`, which is being opened, names as its
 * backing file; -ELOOP if that leads into a circle. `extra` is consumed.
 */
int block_co_open_below(struct block_node *above, const char *path, const char *format,
                        struct options *extra, struct block_node **ret_node, struct error *err);

/* --- gate.c --- */
/*
 * block_node.write_generation of a node that nothing was written to: more than what was flushed, as
 * the file may be dirty.
 */
#define BLOCK_NOTHING_WRITTEN 1u

/* Flush all children that block_node_was_written() is true of; the first error. Yields. */
int block_co_flush_children(struct block_node *node);

/* --- bitmaps.c --- */
/* From here on the stored bits must not count as current. 0, or an error of writing. Yields. */
int block_co_bitmap_will_change(struct block_bitmap *b, struct error *err);
/*
 * An earlier change has marked the stored bits as not current. A store since then has removed the
 * mark, so mark them again. If that fails, the bits are stored in any case when the node is closed.
 */
void block_co_bitmap_mark_again(struct block_bitmap *b);
/*
 * A change that can't be taken back was made: with an activity log, commit it now or at the end of
 * the transaction. If that fails, closing the node stores it.
 */
void block_co_bitmap_changed(struct block_bitmap *b);

/* --- bitmap_commits.c --- */
/*
 * A bitmap of the node has changed: true if the calling coroutine makes that stable later. Does not
 * yield.
 */
bool block_bitmap_defer_commit(struct block_node *node);

/* --- bitmap_list.c --- */
/* A bitmap that is not in the list yet; `bits` is consumed on success. NULL: no memory. */
struct block_bitmap *block_bitmap_new(struct block_node *node, const char *name,
                                      struct dirty_bitmap *bits, uint32_t granularity);
/* NULL is fine. */
void block_bitmap_free(struct block_bitmap *b);
/*
 * Add `b` to the end of the list of its node, and take it off. The node is drained. Do not yield.
 */
void block_bitmap_link(struct block_bitmap *b);
void block_bitmap_unlink(struct block_bitmap *b);
/*
 * `successor` records in place of `b`, and is borrowed; NULL: `b` itself does. The node is drained.
 * Does not yield.
 */
void block_bitmap_set_successor(struct block_bitmap *b, struct block_bitmap *successor);

/* What node->sole_recorder has to be. */
const struct dirty_bitmap *block_bitmaps_find_recorder(const struct block_node *node);

/*
 * Whether nothing has to be marked for [offset, offset + length): no bitmap records, or a single
 * one does and is known to have it set. False says nothing.
 */
static inline bool block_bitmaps_are_marked(const struct block_node *node, uint64_t offset,
                                            uint64_t length)
{
    const struct dirty_bitmap *recorder = node->sole_recorder;

    DEBUG_ASSERT(recorder == block_bitmaps_find_recorder(node));
    return __builtin_expect(!recorder, true) || dirty_bitmap_is_known_set(recorder, offset, length);
}

/* --- graph.c --- */
/*
 * An edge is to be detached within a change: its origin, with the reference that the edge had, or
 * NULL.
 */
struct block_node *block_edge_forget_move(struct block_edge *edge);
/*
 * The part of block_co_change_end() that ends no node: nodes without references go to *ret_unused,
 * by `left`. Yields.
 */
void block_co_change_finish(struct list *ret_unused);
/* The change has moved `edge` from a node; remembers the first one, with a reference. */
void block_change_note_move(struct block_edge *edge, struct block_node *from);
/* The edges that the change has moved, by `moved`. */
struct list *block_change_moves(void);
/* The edges at `node` have changed: settle the change. Errors of perm.c. Yields. */
int block_co_settle_at(struct block_node *node, struct error *err);

/* --- serialise.c: called by graph.c --- */

/* After a graph change: which nodes serialise now. Does not yield. */
void block_update_serialising(void);

/* --- detour.c: main reactor; do not yield --- */

/* What the gate has to look at before it goes the short way. */
enum block_detour {
    /* block_node.serialises */
    BLOCK_DETOUR_SERIALISES = 1 << 0,
    /*
     * A filter that does nothing to requests, or to those that it lets pass: they go on at the
     * filtered child, and count for both by `passed`.
     */
    BLOCK_DETOUR_PASSES_READS = 1 << 1,
    BLOCK_DETOUR_PASSES_WRITES = 1 << 2,
};

/* A new node. -ENOMEM */
int block_detour_init(struct block_node *node);
void block_detour_release(struct block_node *node);
/* Something has changed that block_node.detour depends on. */
void block_update_detour(struct block_node *node);

/* --- stats.c: main reactor; does not yield --- */

/* The edge will leave its node. If a filter has its contents by it, both keep what has passed. */
void block_move_passed(struct block_edge *edge);

/* --- perm.c --- */

/* A node without parents ends: no change works out its permissions any more. */
void block_perm_forget(struct block_node *node);
/*
 * -EPERM if another user of the node that `edge` points to now uses what the edge does not share,
 * or shares less than the edge uses. For the error of a change that fails for another reason, too.
 */
int block_perm_check_edge(const struct block_edge *edge, struct error *err);
/* The next two are called by graph.c. */

/*
 * Work out the permissions of the change, and put them in force; on failure the old ones stay.
 * Yields.
 */
int block_co_perm_settle(struct error *err);
/* The change has ended: give up the image locks that only its beginning needed. Yields. */
void block_co_perm_release(void);

/* --- links.c: within a graph change --- */
/* Point an edge that points nowhere to `node`; takes a reference. Does not yield. */
void block_edge_link(struct block_edge *edge, struct block_node *node);
/* Take an edge off its node; the caller gets the reference that the edge had. Does not yield. */
struct block_node *block_edge_unlink(struct block_edge *edge);
/* Likewise for an edge that has a parent: its place among the parent's children too. */
void block_child_link(struct block_edge *edge, struct block_node *child);
struct block_node *block_child_unlink(struct block_edge *edge);
/* Free an edge of a parent that points nowhere. */
void block_edge_free(struct block_edge *edge);
/*
 * Detach a child; the caller gets the reference that the edge had, and that of the node from which
 * an outer change has moved the edge (NULL: none). Yields.
 */
struct block_node *block_co_take_child(struct block_edge *edge, struct block_node **ret_origin);
/* As block_co_root_new(): a root for control I/O, exempt from drain. */
int block_co_root_new_exempt(struct block_node *node, const char *user, unsigned perm,
                             unsigned shared, struct block_root **ret_root, struct error *err);

/* --- probe.c, names.c --- */
/* The format that the first bytes of `node` show; raw if none does. Yields. */
int block_co_probe(struct block_node *node, const struct block_driver **ret_driver,
                   struct error *err);

#endif
