/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a driver implements, and what it sees of its node. Only the block layer and drivers include
 * this header; tools/check-style lists those.
 *
 * NULL in a struct block_driver means: the driver has no such operation. When the driver is
 * registered, block/pass_through.c fills in what filters leave NULL: a filter implements what it
 * changes, and everything else goes to the child that it filters.
 */
#ifndef TIDEMARK_BLOCK_DRIVER_H
#define TIDEMARK_BLOCK_DRIVER_H

#include <stdatomic.h>

#include "base/counters.h"
#include "base/latency.h"
#include "base/list.h"
#include "base/name_index.h"
#include "block/activity.h"
#include "block/bitmaps.h"
#include "block/block.h"
#include "block/control.h"
#include "block/event.h"
#include "block/gate.h"
#include "block/option_types.h"
#include "block/stats.h"
#include "co/sync.h"

/* What an edge means to its parent; decides how permissions and block status pass through. */
enum block_role {
    /* Holds guest data. */
    BLOCK_ROLE_DATA = 1 << 0,
    /* Holds the format's metadata: the parent must be the only writer. */
    BLOCK_ROLE_METADATA = 1 << 1,
    /* Read where this layer has nothing. */
    BLOCK_ROLE_BACKING = 1 << 2,
    /* Has the same contents as the parent. */
    BLOCK_ROLE_FILTERED = 1 << 3,
    /* Private storage of a filter or job, such as the temporary image of copy-before-write. */
    BLOCK_ROLE_TARGET = 1 << 4,
};

struct block_edge {
    struct list sibling;       /* in parent->children */
    struct list in_node;       /* in node->parents */
    struct block_node *parent; /* NULL: a root */
    struct block_root *root;   /* NULL: an interior edge */
    struct block_node *node;   /* the child; changes only while drained */
    char *name;                /* "file", "backing", "target"; of a root: the user */
    unsigned role;             /* enum block_role */

    /* enum block_perm. In force; the gate reads them on any thread. */
    _Atomic unsigned perm, shared;
    /* Of a root: what its user asks for. */
    unsigned want_perm, want_shared;
    /* Scratch of perm.c; equal to those in force outside a graph change. */
    unsigned next_perm, next_shared;

    /* The child when the graph change began that moves this edge, with a reference; else NULL. */
    struct block_node *origin;
    /* In the list of the edges that the change moves. */
    struct list moved;
};

/* What is behind block/bitmaps.h. */
struct block_bitmap {
    struct list link;        /* in the list of its node */
    struct block_node *node; /* owner */
    char *name;              /* "": the successor of another one */
    /*
     * It records in place of this one, whose bits are frozen; NULL: they are not. This member,
     * `recorder` and `enabled` are assigned in bitmap_list.c only.
     */
    struct block_bitmap *successor;
    /* NULL only for an inconsistent bitmap. Readers use block_bitmap_bits(). */
    struct dirty_bitmap *bits;
    /* `bits`, if writes set them: `enabled`, and no successor. */
    struct dirty_bitmap *recorder;
    /* It is one of node->recorders. */
    bool counted_as_recorder;
    /* Bytes that one bit covers; a power of two. */
    uint32_t granularity;
    /* `bits` has only what was set since the image was opened; the image has the other bits. */
    bool unread;
    /* stored_count is known: the dirty bytes in the image, while `unread`. */
    bool counted;
    uint64_t stored_count;
    /* The log has a warning that it can't be counted. */
    bool warned;
    /* Recording. */
    bool enabled;
    /* Stored in the image when that is closed. */
    bool persistent;
    bool inconsistent;
    /* Why (a constant), and when it was found; see struct block_bitmap_state. */
    const char *lost_why;
    int64_t lost_since;
    /* Bytes that are, or may be, dirty without a change, and why (a constant). */
    uint64_t excess;
    const char *excess_why;
    bool read_only;
    /* The stored bits or flags are not current, and not marked so. */
    bool unstored;
    /* Taken off the list: a commit removes what is stored. */
    bool detached;
    /* A job changes the bits in memory: what is stored is not to be used after a crash. */
    bool borrowed;
    /* How many exports and jobs use the bitmap, and the name of the first for messages. */
    unsigned busy;
    char *busy_user;
    /* Of the format driver that stores the bitmap. */
    void *driver_state;
    unsigned driver_flags;
};

struct block_node {
    /* Unique; generated ("#block123") if the user gave none. */
    char *name;
    uint64_t number; /* block_node_number() */
    struct name_entry by_name;
    bool monitor_owned;
    bool read_only;
    /* A leaf that can't be written may be opened read-only instead. */
    bool auto_read_only;
    /* block_node_leave_for_below() */
    bool left_for_below;
    /* block_node_set_iothread() */
    struct user_object *iothread;
    /* block/hand_over.h. Changes only while drained, under the graph lock. */
    bool handed_over;

    /* --- life (open.c, close.c) --- */

    /* While the node is hidden: the coroutine that finds it by name. NULL: public. */
    struct co *opener;
    /* The node by whose publication this node became public, and the list of those of that node. */
    struct block_node *published_with;
    struct list published, publication;
    /* co_open has succeeded. */
    bool is_open;
    /* Deleted: no lookup finds it. */
    bool is_leaving;
    /* An error of completing it was returned to a caller, so closing does not log it again. */
    bool close_reported;
    /* co_close has run. */
    bool closed;

    /* --- drain.c --- */

    /* drain_begin without drain_end. */
    unsigned drain_depth;
    /* In the list of those with a drain_depth. */
    struct list drained;
    /* The driver knows of a drain, and the node is in the list of those. */
    bool quiesced;
    struct list quiet;
    /* Scratch from here on. */
    unsigned wanted_round, drain_mark;
    struct list wanted;
    struct block_node *drain_next;

    /* --- graph.c, perm.c; under the graph lock --- */

    /* The arguments of the latest co_set_perm. */
    unsigned set_perm, set_shared;
    /* In a list of perm.c while permissions at and below the node have to be worked out. */
    struct list touched;
    /* In a list of perm.c while set_perm and set_shared may be more than is in force. */
    struct list over_set;
    /* It has no parents, and is closed: no change concerns it any more. */
    bool retired;
    /* Scratch from here on. */
    struct list left;
    unsigned perm_mark, perm_waits, reach_mark;
    struct block_node *perm_next, *reach_next;

    /* A fault filter at or below wants events. A driver may set it in co_open. */
    bool events;
    /*
     * A scratch image of a filter: space that is discarded is given back before the discard
     * returns, also if it costs more work than to collect such space.
     */
    bool frees_at_once;
    /* A filter that no user has named: file names and disks do not show it. */
    bool implicit;
    /* Raw because no other format was recognized: the first sector is guarded. */
    bool probed;
    /* enum block_open_flags. */
    unsigned open_flags;

    const struct block_driver *driver;
    /* driver->instance_size bytes, all zero before co_open. */
    void *opaque;
    unsigned refcount;
    struct list link;     /* in the list of public or of hidden nodes */
    struct list children; /* edges from this node */
    struct list parents;  /* edges to this node */

    /* The children "file" and "backing", and the one that a filter shows; NULL: none. */
    struct block_edge *file, *backing, *filtered;

    /*
     * The node that this one was opened for, as its child, and in which role: generic options that
     * are not in `explicit_use` (enum block_use_option) follow those of that node when it is
     * reopened. NULL: none, or it is closed.
     */
    struct block_node *inherits_from;
    unsigned inherit_role, explicit_use;
    /* Nodes whose `inherits_from` is this one, by `heir`. */
    struct list heirs, heir;

    /* Plain path or URI; NULL: none. */
    char *filename;
    /*
     * The filename of the backing image that the image itself names: of the node that was opened
     * for that name, else as recorded. NULL: it names none.
     */
    char *auto_backing;
    /* As opened. */
    struct json_object *options;
    /* This node or one below has options that the filename does not contain. */
    bool beyond_filename;

    /* Generic options, inherited by children. `detect_zeroes` is an enum block_detect_zeroes. */
    bool cache_direct, cache_no_flush, discard_unmap, force_share;
    int detect_zeroes;

    /* Bytes. */
    _Atomic uint64_t size;
    struct block_limits limits;
    /*
     * Flags of enum block_req_flags that the driver honours; the gate does the work of the others.
     */
    unsigned supported_write_flags, supported_zero_flags;

    /* struct block_bitmap; changed in bitmap_list.c only, while drained. */
    struct list bitmaps;
    /*
     * Of these, for the gate: the only one that records; NULL: none does; if several do, a bitmap
     * that never knows of a bit that is set. Assigned in bitmap_list.c only.
     */
    const struct dirty_bitmap *sole_recorder;
    /* How many record. */
    size_t recorders;
    /*
     * block/activity.h: the log, which the driver owns, if changes of persistent bitmaps by
     * commands are stable when the command ends; NULL: they are not. And the same while some bitmap
     * records, for the gate; that changes only while drained.
     */
    struct block_activity *log, *activity;
    /* It was said that a crash may separate changes of its bitmaps from those of other nodes. */
    bool warned_apart;
    /* Whose transaction has changed them so last; not to be followed. */
    const struct co *changed_apart;
    /* Writes on nodes with request_alignment > 1; unaligned ones are exclusive. */
    struct range_lock rmw;
    /*
     * Held while the size changes. Commands for one node exclude each other by the control lock;
     * a job that makes an image in the node does not have it.
     */
    struct co_mutex resizing;
    /*
     * Reads of a range exclude changes of it, by `serial`, while the node reaches `serial_disk`
     * (NULL: none): block_node_set_serialising(). Changes only while the node is drained.
     */
    const struct block_node *serial_disk;
    bool serialises;
    struct range_lock serial;
    /*
     * What keeps reads and writes from the gate's short way: bits of enum block_detour; 0: nothing.
     * Assigned in detour.c only.
     */
    _Atomic uint8_t detour;
    /* Counts writes. The gate skips a flush if nothing was written since the latest one. */
    _Atomic uint64_t write_generation;
    _Atomic uint64_t flushed_generation;
    /* The next write that ends beyond this offset is reported, and resets it; 0: none. */
    _Atomic uint64_t write_threshold;
    /*
     * An overlay was put on a node that may have unflushed writes of the users that the overlay has
     * now: a flush of the overlay flushes the backing node, too, until that has succeeded.
     */
    atomic_bool backing_unflushed;

    /*
     * What the gate counts; shards are struct block_node_shard (op.h). And of a filter that lets
     * requests pass (NULL: it does not): requests that passed, which count for the node and for its
     * filtered child. And such requests of filters that were above this node, or of this node with
     * another child.
     */
    struct counters counters, *passed;
    uint64_t passed_before[BLOCK_STATS];
    /* Histograms that a user asked for. */
    struct latency_set latencies;
};

/* Bytes at the end of an image by which a format can be recognized. */
#define BLOCK_TRAILER_SIZE 512

struct block_driver {
    /* "qcow2" */
    const char *name;
    /* What it is for: one line without a full stop; NULL: users can't open it. */
    const char *help;
    size_t instance_size;
    /* Interprets its child "file". */
    bool is_format;
    /* Has the contents of its filtered child, unless its snapshot functions say otherwise. */
    bool is_filter;
    /* Set when a filter is registered: it has no co_truncate of its own, and the child's size. */
    bool passes_size;
    /*
     * Not a filter, but as large as its file, whose users may resize it; NULL: it is not. Does not
     * yield.
     */
    bool (*has_size_of_file)(const struct block_node *node);
    /*
     * A format that records no size of its disk: what is written past the end makes the disk
     * longer, as far as the file allows that.
     */
    bool grows_with_file;
    /* Likewise: it has no co_preadv, and no co_pwritev, of its own. */
    bool passes_reads, passes_writes;
    /* Shows a point in time: no write through it changes what it shows. */
    bool is_frozen_view;
    /* A leaf that may be opened by filename. */
    bool is_protocol;
    /* It has no co_create: others make its files, and one that exists serves as a new disk. */
    bool uses_existing;
    /*
     * Of a leaf, or of what has a leaf from its beginning on: a name by which another such node
     * finds the file later, also another process; the caller frees it. NULL: it has none. Another
     * file may have got that name since, unless co_has_name() says that it is still the node's own
     * (NULL: it always is). And read the first *size bytes of the file `name`, whoever uses it;
     * *size becomes how many there are. `place` 0: by the last part of the name, next to the node's
     * own file; 1: by the name; -EINVAL: those were all. -ENOENT: there is none in this one.
     */
    char *(*lasting_name)(const struct block_node *node);
    bool (*co_has_name)(const struct block_node *node, const char *name);
    int (*co_read_other)(struct block_node *node, const char *name, unsigned place, void *buf,
                         size_t *size);
    /* A leaf: a file that grows reads as zeroes where it was never written. */
    bool keeps_zero_beyond_eof;
    /* What was never written to new images does not read as zeroes. */
    bool noise_when_new;
    /*
     * Shows a backing node where it has nothing, also one that is put there later. As every driver
     * with co_change_backing; this one can't change the name in its image.
     */
    bool takes_backing;
    /* Takes writes with BLOCK_REQ_COMPRESSED; others write the data as they are. */
    bool compresses;
    /*
     * URIs are SCHEME://HOST/PATH[?...]; the files of a directory differ after the last '/' of
     * PATH.
     */
    bool has_directories;
    /* Flushes even with cache.no-flush: another process keeps the data, and can lose them. */
    bool flushes_always;
    /* NULL-terminated: "nbd", "nbd+unix"; NULL: none. */
    const char *const *schemes;
    /*
     * The type of the driver's own options, those that co_open takes: a BlockdevOptions... of
     * QEMU's schema (block/option_types.h has types for children).
     */
    const struct schema_type *options;
    /* Jobs open it; users can't. */
    bool is_internal;
    /* A format that is recognized, and refused: -ENOTSUP with a sentence. */
    int (*refuse)(const char *name, struct error *err);

    /* --- open and close: main reactor, coroutine; `co_` functions may yield, others may not --- */

    /* Add the options that a filename with one of the schemes contains to `opts`. -EINVAL */
    int (*parse_filename)(const char *filename, struct options *opts, struct error *err);
    /*
     * How sure it is, 0 to 100, that an image that begins with these bytes has this format. No I/O.
     */
    int (*probe)(const uint8_t *head, size_t size);
    /*
     * For a format whose images are recognized by their last bytes: how their names end, and how
     * sure it is, 0 to 100, that an image with such a name and these BLOCK_TRAILER_SIZE bytes at
     * its end has this format. NULL: there are none. No I/O.
     */
    const char *suffix;
    int (*probe_trailer)(const uint8_t *trailer);
    /*
     * Open: remove the driver's options from `opts`, open children with block_co_open_child(), set
     * the size and the limits. On failure release everything but edges. The node is hidden.
     */
    int (*co_open)(struct block_node *node, struct options *opts, struct error *err);
    /*
     * Second part of opening, for what depends on the state of other nodes at the moment when the
     * node becomes part of the graph. The nodes below are drained. On failure the node is closed.
     */
    int (*co_begin)(struct block_node *node, struct error *err);
    /*
     * Write out all state (caches, bitmaps), so that the file is complete. No request is in flight.
     * The node stays open; the next write makes it active again.
     */
    int (*co_inactivate)(struct block_node *node, struct error *err);
    /*
     * The node, which is completed and drained, was handed over to another process: nothing may be
     * written by the driver itself until co_reload. A node can also be opened in that state. Must
     * not yield.
     */
    void (*handed_over)(struct block_node *node);
    /*
     * The node, which is drained, is taken over: read what another process may have changed. It has
     * the permissions of a node that was never handed over. On failure everything is as before, or
     * new for reading. NULL: there is nothing that changes.
     */
    int (*co_reload)(struct block_node *node, struct error *err);
    /*
     * Nobody uses the node: ask for its size again, and for nothing else. NULL: others can't change
     * it.
     */
    int (*co_renew_size)(struct block_node *node, struct error *err);
    /*
     * The node, which was completed and is drained, has another file: read the image there, without
     * its backing file. On failure the node has what it had. NULL: it keeps its image.
     */
    int (*co_exchange_image)(struct block_node *node, struct error *err);
    /* Release everything but edges. After co_inactivate. */
    void (*co_close)(struct block_node *node);

    /*
     * The chain from the node down to the one that is returned has to stay as it is: nobody may
     * take a node out of it, or put one in, except filters at whose end it is the same again. NULL,
     * also the function: the chain may change. Does not yield.
     */
    const struct block_node *(*needs_chain_to)(const struct block_node *node);

    /* --- reopening (block/reopen.h): likewise --- */

    /*
     * The node can be reopened with other generic options, and with other values of the options of
     * this list, which NULL ends; NULL: it can't be reopened.
     */
    const char *const *reopen_options;
    /* It can be reopened with another child "file". */
    bool exchanges_file;
    /*
     * Bytes at the beginning of "file" that tell its images apart: another file must be as large,
     * and have the same. 0: any file will do.
     */
    unsigned file_head;
    /*
     * Take the options of the list from `opts` (NULL: they stay as they are), and check them. The
     * node has its new generic options and its new children already, and is drained. Nothing is
     * written. On failure nothing has changed. NULL: there is nothing to do.
     */
    int (*co_reopen_prepare)(struct block_node *node, struct options *opts, struct error *err);
    /*
     * What may fail, and needs the new permissions, which are in force. Nodes below have done it.
     * On failure co_reopen_abort() follows.
     */
    int (*co_reopen_finish)(struct block_node *node, struct error *err);
    /* The end, after a success of co_reopen_prepare: can't fail. */
    void (*co_reopen_commit)(struct block_node *node);
    void (*co_reopen_abort)(struct block_node *node);

    /* --- graph: likewise --- */

    /*
     * The permissions that this node needs on `edge`, given the union of what its parents use and
     * the intersection of what they share. NULL: by role, block_default_child_perm().
     */
    void (*child_perm)(struct block_node *node, struct block_edge *edge, unsigned parents_perm,
                       unsigned parents_shared, unsigned *ret_perm, unsigned *ret_shared);
    /*
     * The node's cumulative permissions change (image locks), or the node is handed over or taken
     * over: `shared` has BLOCK_SHARE_HAND_OVER while it is with another process. On failure the
     * old ones stay in force.
     */
    int (*co_set_perm)(struct block_node *node, unsigned perm, unsigned shared, struct error *err);
    /*
     * Drain: no requests come between drain_begin and drain_end. `drain_busy` is called until it
     * returns false: the driver has no work left that no request waits for, and that reaches
     * `drained`, the node that is to be drained: this one or one below. None may yield.
     */
    void (*drain_begin)(struct block_node *node);
    bool (*drain_busy)(struct block_node *node, const struct block_node *drained);
    /* Whether that work does nothing but read `drained`. NULL: it may do more. */
    bool (*drain_only_reads)(struct block_node *node, const struct block_node *drained);
    void (*drain_end)(struct block_node *node);
    /*
     * block_co_give_up(): those requests may fail for which the driver waits in vain. NULL: it
     * waits for nothing that can be left. May yield.
     */
    void (*co_give_up)(struct block_node *node);

    /*
     * Add a child that nobody uses, or take one out: block_co_add_child() (block/control.h). The
     * node is drained. NULL: its children are fixed.
     */
    int (*co_add_child)(struct block_node *node, struct block_node *child, struct error *err);
    int (*co_del_child)(struct block_node *node, struct block_edge *edge, struct error *err);

    /* --- control: likewise. Contracts are those of block/control.h, which drains the node. --- */

    /*
     * Make an image. Removes its options from `opts`, and refuses the rest by options_check_empty()
     * before it writes anything.
     */
    int (*co_create)(const char *filename, uint64_t size, struct options *opts, struct error *err);
    /* The same in nodes that exist: see block_co_format_node(). */
    int (*co_format)(struct block_node *file, struct block_node *data_file, uint64_t size,
                     struct options *opts, struct error *err);
    /* Of protocols: remove a file, if it is a regular one. NULL: files stay. 0 or -errno. */
    int (*co_remove)(const char *filename);
    /* The options of co_create and of co_amend; the last has a NULL name. */
    const struct block_option_desc *create_options;
    /* The same for blockdev-create: a BlockdevCreateOptions... of QEMU's schema; NULL: refused. */
    const struct schema_type *create_type;
    /* Of co_change_keys, for QMP's x-blockdev-amend; NULL: it refuses the driver. */
    const struct schema_type *amend_type;
    const struct block_option_desc *amend_options;
    int (*co_get_info)(struct block_node *node, struct block_info *ret_info);
    struct json_object *(*co_specific_info)(struct block_node *node);
    /* The type of what that returns, without the member "type": ...Wrapper in QEMU's schema. */
    const struct schema_type *specific_info_type;
    int (*co_allocated_size)(struct block_node *node, uint64_t *ret_size);
    int (*co_check)(struct block_node *node, unsigned fix, struct block_check_result *ret_result,
                    struct error *err);
    int (*co_amend)(struct block_node *node, struct options *opts, bool force,
                    block_progress_fn *progress, void *progress_arg, struct error *err);
    /*
     * The part of co_amend that changes keys of encryption. The node is not drained: guests read
     * and write meanwhile, since computing keys takes long.
     */
    int (*co_change_keys)(struct block_node *node, struct options *opts, bool force,
                          struct error *err);
    /*
     * Before both, drained: get what they need from other users of the file. NULL: nothing. After a
     * success co_amend_end() gives it back.
     */
    int (*co_amend_begin)(struct block_node *node, struct error *err);
    void (*co_amend_end)(struct block_node *node);
    int (*co_change_backing)(struct block_node *node, const char *filename, const char *format,
                             struct error *err);
    int (*co_make_empty)(struct block_node *node, struct error *err);
    int (*co_truncate)(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                       struct error *err);

    int (*co_snapshot_create)(struct block_node *node, const char *name, struct error *err);
    /* With the state of a virtual machine, which has been written and belongs to it alone. */
    int (*co_snapshot_create_vm)(struct block_node *node, const char *name,
                                 const struct block_snapshot_vm *vm, struct error *err);
    int (*co_snapshot_apply)(struct block_node *node, const char *id_or_name, struct error *err);
    int (*co_snapshot_delete)(struct block_node *node, const char *id_or_name, struct error *err);
    /* Does not yield. */
    int (*co_snapshot_list)(struct block_node *node, struct block_snapshot_info **ret_list,
                            size_t *ret_count, struct error *err);
    int (*co_snapshot_show)(struct block_node *node, const char *id, const char *name,
                            struct error *err);

    /* State of a virtual machine, at an offset in that state. */
    int (*co_preadv_vmstate)(struct block_node *node, uint64_t offset, struct iov iov);
    int (*co_pwritev_vmstate)(struct block_node *node, uint64_t offset, struct iov iov);

    /* --- bitmaps in images: likewise --- */

    int (*co_can_store_bitmap)(struct block_node *node, const char *name, uint32_t granularity,
                               struct error *err);
    int (*co_reserve_bitmap)(struct block_node *node, const char *name, uint32_t granularity,
                             struct error *err);
    int (*co_remove_stored_bitmap)(struct block_node *node, const char *name, struct error *err);
    /* `b` goes although the last one has failed for it: what the image has of it counts no more. */
    void (*disown_bitmap)(struct block_bitmap *b);
    /*
     * The greatest size, in bytes, that the disk had while it had bitmaps; 0: not known. And to
     * remember that it was `size`, which is stored with the bitmaps. Neither yields.
     */
    uint64_t (*greatest_size)(const struct block_node *node);
    void (*remember_size)(struct block_node *node, uint64_t size);
    /*
     * Set in `bits` what a bitmap is dirty in that is not one of the node's: it belongs to the
     * export that the node is connected to. -ENOENT: there is none of that name.
     */
    int (*co_read_bitmap)(struct block_node *node, const char *name, struct dirty_bitmap *bits,
                          struct error *err);
    /*
     * Set in b->bits the bits that the image has of a bitmap that is `unread`. Guest writes may set
     * bits meanwhile. -ENOMEM; another error: the stored bits can't be read.
     */
    int (*co_fetch_bitmap)(struct block_node *node, struct block_bitmap *b);
    /* Dirty bytes in the stored bits of a bitmap that is `unread`. Errors as above. */
    int (*co_count_bitmap)(struct block_node *node, const struct block_bitmap *b,
                           uint64_t *ret_bytes);
    /*
     * The bits of a persistent bitmap are about to change in memory by a command (merge, clear,
     * enable): from now on the stored bits must not count as current.
     */
    int (*co_bitmap_will_change)(struct block_node *node, struct block_bitmap *b,
                                 struct error *err);
    /*
     * Make the persistent bitmaps stable as they are, with their flags, while the node stays in
     * use: all of them or, on failure, none. For nodes with a log.
     */
    int (*co_commit_bitmaps)(struct block_node *node, struct error *err);
    /*
     * The same for several nodes: all of them or none, also after a crash (block_joint). The node
     * is drained from the first to the last of these calls.
     */
    /* The name of the image for the others. The caller frees it. NULL: it can't take part. */
    char *(*co_joint_name)(struct block_node *node);
    /*
     * Make both states stable: what is stored, and the bitmaps as they are. `own`: its number.
     * After success the same coroutine settles the node; nobody else stores bitmaps until then.
     */
    int (*co_prepare_bitmaps)(struct block_node *node, const struct block_joint *joint, size_t own,
                              struct error *err);
    /*
     * Of the two the new state counts (`done`), or the old one. For the first image this is the
     * decision: a failure leaves it prepared, to be settled as not done. The others follow; after a
     * failure what was decided counts all the same, in memory and for an open, as long as the first
     * image has not forgotten.
     */
    int (*co_settle_bitmaps)(struct block_node *node, bool done, struct error *err);
    /* Of the first image, when all have followed. */
    int (*co_forget_joint)(struct block_node *node, struct error *err);

    /*
     * --- activity log (block/activity.h): any reactor; one call at a time, under the mutex of the
     * log; requests are in flight ---
     */

    /*
     * Make a map in the image whose regions are all cold, and mark what other programs must not
     * trust any more; stable. If the image can't have one, block_activity_give_up() and 0.
     */
    int (*co_begin_activity)(struct block_node *node);
    /* After that: whether the image could have one now. Main reactor. */
    bool (*co_activity_has_room)(struct block_node *node);
    /* Write bytes of the map at `at`; `sync`: they are stable then. */
    int (*co_write_activity)(struct block_node *node, uint64_t at, const void *buf, size_t size,
                             bool sync);
    /* What was written by the other two functions becomes stable. */
    int (*co_sync_activity)(struct block_node *node);
    /*
     * Add to the stored bits of all bitmaps that record what is set in memory in these ranges
     * (sorted by offset); never remove any. -EBUSY: not now, since they are being stored.
     */
    int (*co_store_bits_of)(struct block_node *node, const struct block_activity_range *ranges,
                            size_t count);

    /*
     * --- I/O: any reactor, coroutine, several at once, may yield. Requests are within bounds, and
     * aligned to the limits. ---
     */

    int (*co_preadv)(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
    /*
     * See block_co_read_pages(). NULL: as -ENOTSUP; of a filter that has no co_preadv, or that lets
     * the read pass, as its child.
     */
    int (*co_read_pages)(struct block_node *node, uint64_t offset, uint64_t length,
                         struct block_page_sink *sink);
    /*
     * Of a filter whose co_preadv and co_pwritev do nothing but to call the gate for the filtered
     * child, and may wait before: whether a request of `length` bytes may go on to the child at
     * once; then it is accounted for. NULL: no. And that a read that was let pass was not made, and
     * comes again; NULL: nothing to do. Do not yield.
     */
    bool (*lets_pass)(struct block_node *node, bool is_write, uint64_t length);
    void (*read_comes_again)(struct block_node *node, uint64_t length);
    int (*co_pwritev)(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
    /* NULL or -ENOTSUP: the gate writes zeroes as data. */
    int (*co_write_zeroes)(struct block_node *node, uint64_t offset, uint64_t length,
                           unsigned flags);
    /*
     * Copy bytes of `source`, a node of any driver whose contents are what its co_preadv reads,
     * without having them in memory. NULL or -ENOTSUP: the caller reads and writes.
     */
    int (*co_copy_from)(struct block_node *node, uint64_t offset, struct block_node *source,
                        uint64_t source_offset, uint64_t length);
    /* NULL or -ENOTSUP: the discard has no effect. */
    int (*co_discard)(struct block_node *node, uint64_t offset, uint64_t length);
    /*
     * Acknowledged writes reach stable storage, here and below. NULL: the gate flushes all
     * children.
     */
    int (*co_flush)(struct block_node *node);
    /* See struct block_status. NULL: a filter has the status of its child; others are all data. */
    int (*co_status)(struct block_node *node, uint64_t offset, uint64_t length,
                     struct block_status *ret_status);
    /*
     * co_status for many areas at once, this layer alone: *ret_count >= 1 of them, at most `max`,
     * from `offset` on, as block_co_status_runs(), but for their depths, which are left alone.
     * Returns after a bounded amount of work. NULL or -ENOTSUP: the gate calls co_status.
     */
    int (*co_status_runs)(struct block_node *node, bool contents, uint64_t offset, uint64_t length,
                          struct block_run *ret_runs, unsigned max, unsigned *ret_count);
    /*
     * Make a file that is shorter than `size` so long; the new part reads as zeroes. Guests may
     * read and write meanwhile, but nobody writes beyond `size`.
     */
    int (*co_extend)(struct block_node *node, uint64_t size);
    /* Access to the contents of a point in time (block/gate.h). */
    int (*co_preadv_snapshot)(struct block_node *node, uint64_t offset, struct iov iov);
    int (*co_snapshot_status)(struct block_node *node, uint64_t offset, uint64_t length,
                              struct block_status *ret_status);
    int (*co_discard_snapshot)(struct block_node *node, uint64_t offset, uint64_t length);
    /* An event in a format or in the gate above this node; may delay it. For fault filters. */
    void (*co_event)(struct block_node *node, enum block_event event);

    /* --- figures of its own --- */

    /*
     * A table of at most BLOCK_DRIVER_STATS_MAX rows, without histograms, and a function that fills
     * in a value for each row. Main reactor, while the node is open; must not yield.
     */
    const struct stat_desc *stats;
    void (*read_stats)(struct block_node *node, uint64_t *ret_values);
};

/* --- events: any reactor, coroutine, may yield ------------------------------------------------ */

/*
 * Whether something was written to the node, or to what lies below it, but for backing nodes: a
 * filter, or another node, may have been put in above what others had written to before, so a flush
 * has to reach it. Of an overlay also whether it flushes its backing node next. Does not yield.
 */
bool block_node_was_written(const struct block_node *node);

/*
 * Announce an event at a node. Raw and filters pass it down to the first fault filter, if there is
 * one.
 */
void block_co_event_at(struct block_node *node, enum block_event event);

/* Announce an event to the nodes below an edge. One branch where no fault filter is. */
static inline void block_co_event(const struct block_edge *edge, enum block_event event)
{
    if (__builtin_expect(edge->node->events, false)) {
        block_co_event_at(edge->node, event);
    }
}

/* An empty list of reopen_options. */
extern const char *const block_no_options[];

/* --- for drivers: main reactor; `co_` functions yield ----------------------------------------- */

/*
 * Whether a node is of the driver that `definition` describes. node->driver is a copy, completed
 * with defaults.
 */
static inline bool block_node_is(const struct block_node *node,
                                 const struct block_driver *definition)
{
    return node->driver->name == definition->name;
}

/*
 * In co_open: open the child `name`, or look it up, from the option of that name (an object or a
 * node name), and attach it. `allow_none`: without the option *ret_edge is NULL. Errors name the
 * option.
 */
int block_co_open_child(struct block_node *node, struct options *opts, const char *name,
                        unsigned role, bool allow_none, struct block_edge **ret_edge,
                        struct error *err);
/*
 * In co_open of filters: open the child `name` that the node shows, and take over its size;
 * discards and write flags are passed on. Errors as above.
 */
int block_co_open_filtered(struct block_node *node, struct options *opts, const char *name,
                           struct error *err);
/*
 * In co_open: open the backing file from the option `backing` if it is given (null: none), else
 * from the name that the image records (relative to the image; `format` may be NULL). With
 * BLOCK_OPEN_NO_BACKING there is none.
 */
int block_co_open_backing(struct block_node *node, struct options *opts, const char *filename,
                          const char *format, struct error *err);
/*
 * Attach a node as a child; takes a reference. `ret_edge` may be NULL. -EINVAL: a cycle; -EPERM. On
 * failure nothing changes.
 */
int block_co_attach_child(struct block_node *node, struct block_node *child, const char *name,
                          unsigned role, struct block_edge **ret_edge, struct error *err);
/* Detach a child and give its reference back. */
void block_co_detach_child(struct block_edge *edge);
/*
 * The permissions at and below the node are worked out when the current graph change settles, or
 * the next one. Main reactor; does not yield.
 */
void block_perm_touch(struct block_node *node);
/* Permissions on a child by the role of its edge; see block_driver.child_perm. */
void block_default_child_perm(struct block_node *node, struct block_edge *edge,
                              unsigned parents_perm, unsigned parents_shared, unsigned *ret_perm,
                              unsigned *ret_shared);
/*
 * In co_create of formats: make an empty file for the format to write, or use the export of a
 * protocol that can't make files; attached for reading, writing and resizing.
 * block_co_root_release() closes it. `opts` (consumed; NULL: none) are options for making the file.
 */
int block_co_create_file(const char *filename, struct options *opts, struct block_root **ret_root,
                         struct error *err);
/*
 * After block_co_create_file(), whose root was released, when making the image has failed: remove
 * the file, which has lost its old contents in any case, and has no new ones. A device stays.
 */
void block_co_remove_unfinished(const char *filename);
/*
 * In co_format: attach to a node for writing and resizing. block_co_root_release() detaches
 * from it.
 */
int block_co_format_begin(struct block_node *node, struct block_root **ret_root, struct error *err);
/* Whether writes are recorded. The node is drained or hidden. Main reactor; does not yield. */
void block_bitmap_set_enabled(struct block_bitmap *b, bool enabled);
/*
 * Exchange the persistent bitmaps of a node for those in `others`, a list of struct block_bitmap by
 * `link` of the same node, for a driver that reads its image again. The node is drained. Main
 * reactor; does not yield.
 */
void block_bitmaps_exchange_persistent(struct block_node *node, struct list *others);
/*
 * The bits of a bitmap are lost: it is inconsistent from now on. `why` is a constant sentence; the
 * first one stays. Does not yield.
 */
void block_bitmap_lose(struct block_bitmap *b, const char *why);
/* `bytes` more may be dirty in a bitmap without a change. `why` as above. */
void block_bitmap_add_excess(struct block_bitmap *b, uint64_t bytes, const char *why);

/* In co_open and co_truncate, and by the gate when a write extends a leaf. Bytes. Any thread. */
void block_node_set_size(struct block_node *node, uint64_t size);
/*
 * Whether the node has contents of a point in time (co_preadv_snapshot), itself or behind filters.
 */
bool block_node_has_snapshot_access(const struct block_node *node);
/* Whether a backing file name is relative although the image has no directory. */
bool block_relative_needs_directory(const char *base_filename, const char *name);
/*
 * Whether a drain, or the end of a user, waits for requests that may have reached this node: the
 * driver should fail the requests that it holds until a server is back.
 */
bool block_node_is_awaited(const struct block_node *node);

#endif
