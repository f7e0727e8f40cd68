/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block graph for its users: open nodes, attach to them, change the graph, drain.
 *
 * A *node* is an opened image or filter. An *edge* points from a parent to a child node; it has the
 * permissions that the parent needs, and those that the parent shares with others. A *root* is the
 * edge of a user that is not a node: an export, a job, a command. All I/O enters the graph through
 * roots (block/gate.h).
 *
 *      root (NBD export)      root (backup job)
 *                  \            /
 *                node "disk" (qcow2)
 *                  |           |
 *                "file"    "backing"
 *                  |           |
 *             node (file)   node (qcow2) ...
 *
 * Everything in this header runs on the main reactor only. The `block_co_` functions run in a
 * coroutine there, and may yield; the others do not.
 *
 * Drain: block_co_drain_begin(node) stops new requests at every root from which `node` can be
 * reached, and waits for the requests in flight there. Interior edges count no requests, since
 * those are parts of a root's. The drain also waits for work that no request waits for
 * (block_driver.drain_busy). If something in flight hangs, requests go on from time to time, until
 * block_co_drain_begin() returns. Graph changes happen between drain_begin and drain_end of the
 * nodes concerned.
 *
 * Life of a node, with the function that makes each transition:
 *
 *      (none)
 *        | block_co_open_hidden()
 *      hidden
 *        | block_co_publish()
 *      public
 *        | last block_co_unref()
 *      closed
 *
 * A public node is *active* from its first write until it is completed: bitmaps stored, dirty mark
 * cleared. It is completed once, when nobody can write any more, as a part of closing
 * (block/close.c), or by block_co_inactivate().
 */
#ifndef TIDEMARK_BLOCK_BLOCK_H
#define TIDEMARK_BLOCK_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/list.h"
#include "block/node.h"
#include "block/options.h"

/*
 * --- permissions ---------------------------------------------------------------------------------
 */

enum block_perm {
    /* Read contents that the disk had at one moment. */
    BLOCK_PERM_CONSISTENT_READ = 1 << 0,
    /* Change the visible contents. */
    BLOCK_PERM_WRITE = 1 << 1,
    /* Write the contents that are visible already (copy-on-read). */
    BLOCK_PERM_WRITE_UNCHANGED = 1 << 2,
    BLOCK_PERM_RESIZE = 1 << 3,
    BLOCK_PERM_ALL = (1 << 4) - 1,
    /*
     * Only ever shared, and not a part of ALL: others may write to the images below in the backing
     * chain. A job that commits shares it, as it writes what the chain shows already.
     */
    BLOCK_SHARE_CHAIN = 1 << 4,
    /*
     * Likewise, of roots: the node may be handed over to another process (block/hand_over.h). The
     * root has no permission but to read meanwhile, and lets others do everything.
     */
    BLOCK_SHARE_HAND_OVER = 1 << 5,
};

/* What the users of a node use together: bits of enum block_perm. */
unsigned block_node_used_perm(const struct block_node *node);
/* "consistent read, write" for messages. `buf` has at least 64 bytes. */
const char *block_perm_names(unsigned perm, char *buf, size_t buf_size);
/*
 * Sentences about conflicts of permissions say "an unnamed block device" for an export, as QEMU's
 * do. Once, at start.
 */
void block_use_qemu_names(bool use);
bool block_uses_qemu_names(void);

/* --- open and close --------------------------------------------------------------------------- */

enum block_open_flags {
    /* The default of the option read-only is off; without this flag it is on. */
    BLOCK_OPEN_RDWR = 1 << 0,
    /* Open no backing files; block status then ends at this layer. */
    BLOCK_OPEN_NO_BACKING = 1 << 1,
    /* The user asks for the format to be guessed; the default of read-only opens. */
    BLOCK_OPEN_PROBE = 1 << 2,
    /* -U: take no image locks. Read-only opens only. */
    BLOCK_OPEN_FORCE_SHARE = 1 << 3,
    /* Opened to check or repair: a corrupt image may be opened for writing. */
    BLOCK_OPEN_CHECK = 1 << 4,
    /* Only information is wanted (info): no data will be read. */
    BLOCK_OPEN_NO_IO = 1 << 5,
    /* The file below may be resized. */
    BLOCK_OPEN_RESIZE_FILE = 1 << 6,
};

/* The bits from this one on are the block layer's: the index of an image in its backing chain. */
#define BLOCK_OPEN_CHAIN_SHIFT 12

/*
 * Open a node from options (`opts` is consumed in any case): `driver` (mandatory here),
 * `node-name`, `read-only`, `auto-read-only`, `cache.direct`, `cache.no-flush`, `discard`,
 * `detect-zeroes`, `force-share`, and those of the driver. A child option is a node name or an
 * object. Children inherit the generic options that they are not given. The caller gets a
 * reference. Errors name the node or file. (QAPI schema of QEMU: BlockdevOptions.)
 */
int block_co_open(struct options *opts, unsigned flags, struct block_node **ret_node,
                  struct error *err);
/*
 * The first of the two steps of block_co_open(). Only the coroutine that opened it finds a hidden
 * node, or the nodes opened below it, by name; for others the name is taken ("Duplicate nodes"). It
 * claims no permissions on public nodes below it that could stand in the way of guests. All I/O of
 * opening is in this step: it takes as long as a server likes.
 */
int block_co_open_hidden(struct options *opts, unsigned flags, struct block_node **ret_node,
                         struct error *err);
/*
 * The second step, by the same coroutine: everybody finds the node, and its permissions are settled
 * as a graph change. On failure the node is still hidden. If others use the nodes that it refers to
 * by name, the caller has drained those.
 */
int block_co_publish(struct block_node *node, struct error *err);
/* Undo that, in a graph change: all nodes that it made public are hidden again. */
void block_unpublish(struct block_node *node);
/*
 * Open a filename: a path, `json:{...}`, `file:...`, `nbd:...`, `nbd://...`, `nbd+unix://...`.
 * `format` names the format driver; NULL: the format is probed, of a writable image only with
 * BLOCK_OPEN_PROBE (else an error that says so). A raw image that was probed refuses writes to its
 * first sector that would make it look like another format. `extra` (may be NULL; consumed) are
 * generic options for the node.
 */
int block_co_open_filename(const char *filename, const char *format, struct options *extra,
                           unsigned flags, struct block_node **ret_node, struct error *err);

/* Take a reference. */
struct block_node *block_node_ref(struct block_node *node);
/* Whether the caller's reference is the only one: to give it back closes the node. */
bool block_node_has_one_ref(const struct block_node *node);
/*
 * Give a reference back; NULL is fine. The last one closes the node: at once no lookup finds it any
 * more, then it is flushed, completed and closed, and so are the nodes below it that nobody else
 * uses. Errors are logged.
 */
void block_co_unref(struct block_node *node);
/*
 * Likewise, with the first error in `err`, unless `err` is set already. The reference is gone in
 * any case. 0 also if it was not the last one.
 */
int block_co_close(struct block_node *node, struct error *err);
/*
 * Complete an image that stays open: flush, store persistent bitmaps, clear the marks that say "in
 * use". The node is drained meanwhile. An error that is returned here is not logged again when the
 * node is closed. Filters have nothing to complete.
 */
int block_co_inactivate(struct block_node *node, struct error *err);
/*
 * Whether that has anything to do. Of a node with requests in flight it says nothing about what
 * these will leave.
 */
bool block_node_has_to_complete(const struct block_node *node);
/*
 * Whether completing the node saves writes that no flush followed: what leads to them may be in
 * memory only, and what the kernel has of them may take long. Without that it stores bitmaps, and
 * clears marks.
 */
bool block_node_keeps_writes(const struct block_node *node);
/*
 * The same, but one user is neither stopped nor waited for: `reader` changes nothing in the node.
 * Requests of his that hang elsewhere do not keep the node from being completed.
 */
int block_co_inactivate_but(struct block_node *node, const struct block_root *reader,
                            struct error *err);

/* --- roots ------------------------------------------------------------------------------------ */

/*
 * Attach to a node. `user` is for messages ("NBD export 'disk'"). -EPERM, with a sentence that
 * names both sides, when permissions conflict; -EACCES or -EROFS when a read-only node is to be
 * written; -EAGAIN when another process has locked the image. Takes a reference to the node.
 */
int block_co_root_new(struct block_node *node, const char *user, unsigned perm, unsigned shared,
                      struct block_root **ret_root, struct error *err);
/* Wait for its requests, detach, release. NULL is fine. */
void block_co_root_release(struct block_root *root);
/* The user has begun to wait for the requests of the root: drains hold them back no longer. */
void block_root_begin_end(struct block_root *root);
/*
 * Whoever has requests in flight at the node has given them up, and calls this from time to time:
 * a server that has answered nothing for 2 s is left, and requests to it fail. The node and what it
 * keeps its data in, not its backing chain. The caller keeps the node, and does not hold the
 * control lock. Main reactor; yields.
 */
void block_co_give_up(struct block_node *node);
/*
 * The first step of a release, for owners that must not be found half released: stop new requests
 * for good, and wait until no coroutine looks at the root any more (a request that ends still reads
 * the root after its count went down).
 */
void block_co_root_settle(struct block_root *root);
/*
 * The edge to do I/O through. It is the same for the life of the root, whatever node the root
 * points to.
 */
struct block_edge *block_root_edge(struct block_root *root);
struct block_node *block_root_node(const struct block_root *root);
/*
 * The root means its node itself, such as the owner of a bitmap, and not the disk that the node
 * shows: it does not follow when another node takes the place of that one.
 */
void block_root_stay(struct block_root *root);
/* The user is a guest device: messages call it "block device 'user'". Does not yield. */
void block_root_belongs_to_device(struct block_root *root);
/* Errors as of block_co_root_new(); on failure the old permissions stay in force. */
int block_co_root_set_perm(struct block_root *root, unsigned perm, unsigned shared,
                           struct error *err);
/*
 * Point the root to another node of the same size; both are drained meanwhile. On failure nothing
 * changes.
 */
int block_co_root_replace(struct block_root *root, struct block_node *node, struct error *err);

/* Events for the owner of a root. Each may be NULL; none may yield. */
struct block_root_ops {
    /* No new requests: those of the owner wait at the gate. */
    void (*drain_begin)(void *arg);
    /* Whether the owner does work that the drain has to wait for. */
    bool (*drain_busy)(void *arg);
    void (*drain_end)(void *arg);
    /*
     * The node that the root points to has `size` bytes now; within the drain that it was resized
     * in.
     */
    void (*resized)(void *arg, uint64_t size);
};

/*
 * `ops` must live as long as the root; NULL: no events from now on. If the root is drained already,
 * drain_begin() is called at once.
 */
void block_root_set_ops(struct block_root *root, const struct block_root_ops *ops, void *arg);

/* --- graph changes ---------------------------------------------------------------------------- */

/*
 * A graph change is a list of edge changes that take effect together (graph.c): begin; attach,
 * detach, move edges, roots included; settle; end. Between begin and settle, functions that change
 * edges do not fail because of permissions; settle works the permissions out on the result, once.
 * If it fails, the caller takes its changes back, settles again, and ends. Changes nest: only the
 * outermost settle and end have an effect. There is one change at a time; begin waits for others.
 * The caller has drained the nodes concerned.
 */
void block_co_change_begin(void);
int block_co_change_settle(struct error *err);
void block_co_change_end(void);
/*
 * What users have written to the nodes that they leave in this change is on stable storage where
 * they go: a flush of such a node that fails is logged, and does not make settle fail. In a graph
 * change, before its settle. Main reactor; does not yield.
 */
void block_change_excuse_flushes(void);

/*
 * The users of `node` have left it for an image below it in its chain, which they write to: while
 * the node has no users again, it does not keep images below from being written. In a graph change,
 * before its settle. Main reactor.
 */
void block_node_leave_for_below(struct block_node *node);

/*
 * Point an edge to another node, of the same size unless the edge is that to a backing node. What
 * the edge could write to before is flushed, unless both nodes are filters on the same node.
 * -EINVAL (sizes, cycle), -EPERM and -EAGAIN of permissions and image locks, errors of the flush.
 * On failure nothing changes.
 */
int block_co_edge_move(struct block_edge *edge, struct block_node *node, struct error *err);
/*
 * The same, to a node of any size, when block_node_check_resize() has allowed that: after the
 * change, and in the same drain, block_report_size() reports it to its users.
 */
int block_co_edge_point(struct block_edge *edge, struct block_node *node, struct error *err);
/*
 * Move all edges that point to `from` to `to`, except those by which `to` reaches `from`: puts a
 * filter or an overlay on a node that is in use, or takes one out. Drains both. Errors as above. On
 * failure nothing changes.
 */
int block_co_node_replace(struct block_node *from, struct block_node *to, struct error *err);

/*
 * Put an overlay on a node in use, within a graph change: the node becomes its child "backing", and
 * all other edges that pointed to the node point to the overlay, except those of roots that stay.
 * The caller has drained both. The overlay may have another size, if every node above can follow.
 * On failure nothing has changed.
 */
struct block_append;
int block_co_append(struct block_node *overlay, struct block_node *node,
                    struct block_append **ret_append, struct error *err);
/* Undo that, in the same change; `append` is consumed. */
void block_co_append_undo(struct block_append *append);
/* The change has succeeded: those above learn of the new size. Consumes `append`. Doesn't yield. */
void block_append_end(struct block_append *append);

/* --- drain ------------------------------------------------------------------------------------ */

/* Drains nest. See the head of this file. */
void block_co_drain_begin(struct block_node *node);
void block_drain_end(struct block_node *node);
/*
 * Several nodes at one instant: all are stopped before any is waited for. Each is ended by
 * block_drain_end().
 */
void block_co_drain_begin_many(struct block_node *const *nodes, size_t count);
/* The same, until `stop(arg)`: false, and nothing is drained any more. `stop` does not yield. */
bool block_co_drain_begin_unless(struct block_node *const *nodes, size_t count,
                                 bool (*stop)(const void *arg), const void *arg);
/*
 * The same, for a short time: with the control lock, after a drain without it has found that no
 * request hangs. *ns is how long the last attempt took at most, 0 before the first; each has twice
 * the time of the one before. False: nothing is drained any more.
 */
bool block_co_drain_begin_soon(struct block_node *const *nodes, size_t count, int64_t *ns);

/*
 * A drain that does not stop one root: that of a job which goes on alone. The caller's memory;
 * fields are drain.c's.
 */
struct block_drain {
    struct list link;
    struct block_node *node;
    const struct block_root *but;
};

/*
 * Begin such a drain for the one of `reader`, which only reads; reads that filters make go on, too.
 * The graph stays as it is until the end.
 */
void block_co_drain_begin_writers(struct block_drain *d, struct block_node *node,
                                  const struct block_root *reader);
/*
 * Begin one in which nothing but `but` goes on, unless `stop(arg)` before that: false, and nothing
 * is drained any more. `stop` does not yield.
 */
bool block_co_drain_begin_but_unless(struct block_drain *d, struct block_node *node,
                                     const struct block_root *but, bool (*stop)(const void *arg),
                                     const void *arg);
void block_drain_end_but(struct block_drain *d);

/* --- creation --------------------------------------------------------------------------------- */

/*
 * Make an image file: `format` ("qcow2", "raw"), `filename` (a path or URI; existing contents are
 * lost), `size` in bytes (rounded up to 512), `opts` (consumed) the format's creation options by
 * qemu-img's names. -EINVAL names an unknown option.
 */
int block_co_create_image(const char *format, const char *filename, uint64_t size,
                          struct options *opts, struct error *err);

/*
 * Called before an image is made, with the options that the format gets: for programs that print
 * that. Main reactor; must not yield. NULL: nobody.
 */
typedef void block_creation_fn(const char *format, const char *filename, uint64_t size,
                               const struct options *opts);
void block_set_creation_fn(block_creation_fn *fn);
/* Whether the driver can make images in nodes. */
bool block_driver_formats_nodes(const struct block_driver *driver);
/* As block_co_create_image(), with a protocol and the size as it is. */
int block_co_create_exactly(const struct block_driver *driver, const char *filename, uint64_t size,
                            struct options *opts, struct error *err);
/*
 * Make an image of a format in nodes that exist: the file, whose contents are lost, and the data
 * file (NULL: none), whose contents stay as far as `size` reaches. Nothing is opened by a name.
 * `size` in bytes, a multiple of 512; `opts` (consumed) as above, without those of the file and
 * without data_file. The control lock is paused. -EPERM, with a sentence, if others use the nodes.
 */
int block_co_format_node(const struct block_driver *driver, struct block_node *file,
                         struct block_node *data_file, uint64_t size, struct options *opts,
                         struct error *err);

#endif
