/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block graph for its users: open nodes, attach to them, change the graph, drain.
 *
 * A *node* is an opened image or filter. An *edge* points from a parent to a child node and carries what the
 * parent does to the child (permissions) and what it lets others do (shared permissions). A
 * *root* is the edge of a user that is no node: an export, a job, a command. All I/O enters the graph through roots.
 *
 *      root (NBD export)        root (backup job)
 *             \                    /
 *              node "disk" (qcow2)
 *               | file      | backing
 *            node (file)   node (qcow2) ...
 *
 * Everything in this header runs on the main reactor only; `block_co_...` functions in a coroutine there, and may
 * yield. I/O itself (block/gate.h) runs on any reactor.
 *
 * Drain: block_co_drain_begin(node) stops new requests at every root from which `node` can be reached and waits for
 * those in flight there; interior edges need no counting, since their requests are parts of a root's. Work that no
 * request waits for any more is waited for, too (driver.drain_busy). Graph changes happen between drain_begin and
 * drain_end of the affected nodes.
 *
 * Life of a node: hidden (being opened, or open and not yet published) -> public -> closed, when its last reference is
 * given back. It is *active* from the first write until it is completed (block_co_inactivate(): bitmaps stored, dirty mark
 * cleared), which happens once, when nobody can write any more: as a part of closing. It goes only for the node
 * itself: what is below a filter is live, and nobody's business here.
 */
#ifndef TIDEMARK_BLOCK_BLOCK_H
#define TIDEMARK_BLOCK_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/list.h"
#include "block/options.h"

struct block_node;
struct block_edge;
struct block_option_desc;
struct block_root;
struct block_driver;

/* --- permissions --------------------------------------------------------------------------------- */

#define BLOCK_PERM_CONSISTENT_READ 1u /* what is read is a state that the disk had */
#define BLOCK_PERM_WRITE 2u           /* change the visible contents */
#define BLOCK_PERM_WRITE_UNCHANGED 4u /* write what is there already (copy-on-read) */
#define BLOCK_PERM_RESIZE 8u
#define BLOCK_PERM_ALL 15u

/* "consistent read, write" for messages. `buf` gets at least 64 bytes. */
const char *block_perm_names(unsigned perm, char *buf, size_t buf_size);

/* --- drivers --------------------------------------------------------------------------------------- */

/* Add a driver to the table (once, at start; the struct lives for the process). */
void block_register_driver(const struct block_driver *driver);
const struct block_driver *block_find_driver(const char *name);
/* The driver whose name or URI scheme a filename begins with ("nbd:", "nbd+unix:", "file:"); NULL for a plain path. */
const struct block_driver *block_driver_of_filename(const char *filename);
/* Iterate: NULL begins, NULL ends. */
const struct block_driver *block_next_driver(const struct block_driver *d);
const char *block_driver_name(const struct block_driver *d);

/* What a driver is and can do; bits of block_driver_traits(). */
enum block_driver_trait {
    /* It interprets the contents of its child "file". */
    BLOCK_DRIVER_FORMAT = 1 << 0,
    /* It shows the contents of the child that it filters. */
    BLOCK_DRIVER_FILTER = 1 << 1,
    /* It is a leaf of the graph, and may be opened by filename. */
    BLOCK_DRIVER_PROTOCOL = 1 << 2,
    /* It can make images. */
    BLOCK_DRIVER_CREATES = 1 << 3,
    /* Its images can store bitmaps. */
    BLOCK_DRIVER_STORES_BITMAPS = 1 << 4,
    /* What was never written to its files reads as zeroes. */
    BLOCK_DRIVER_ZERO_BEYOND_EOF = 1 << 5,
};

unsigned block_driver_traits(const struct block_driver *d);
/* Options by which images are made, and those that can be amended; the last has a NULL name. NULL: none. */
const struct block_option_desc *block_driver_create_options(const struct block_driver *d);
const struct block_option_desc *block_driver_amend_options(const struct block_driver *d);
/* Whether filenames with a scheme of the driver hold options, and the options of one (added to `opts`). -EINVAL */
bool block_driver_parses_filename(const struct block_driver *d);
int block_driver_parse_filename(const struct block_driver *d, const char *filename,
                                struct options *opts, struct error *err);
/* Whether it can open an image; false for formats that are known by name only, to be refused. */
bool block_driver_is_usable(const struct block_driver *d);

/* --- open and close -------------------------------------------------------------------------------- */

#define BLOCK_OPEN_RDWR                                                                            \
    1u /* default for the option read-only=off; without it nodes are opened read-only */
#define BLOCK_OPEN_NO_BACKING                                                                      \
    2u /* don't open backing files (block status then ends at this layer) */
#define BLOCK_OPEN_PROBE                                                                           \
    4u /* the user asked to guess the format: for read-only opens it is the default */
#define BLOCK_OPEN_FORCE_SHARE 8u /* -U: take no image locks; read-only only */
#define BLOCK_OPEN_CHECK                                                                           \
    16u /* opened to check or repair: a corrupt image may be opened for writing */
#define BLOCK_OPEN_NO_IO 32u /* only information is wanted (info): no data will be read */
#define BLOCK_OPEN_RESIZE_FILE 64u
/* The bits from here on are the block layer's: for which image of a backing chain a node is opened. */
#define BLOCK_OPEN_CHAIN_SHIFT 12

/*
 * Open a node from options (`opts` is consumed in any case): `driver` (mandatory here), `node-name`, `read-only`,
 * `auto-read-only`, `cache.direct`, `cache.no-flush`, `discard`, `detect-zeroes`, `force-share`, and those of the
 * driver. A child option is a node name or an object. Generic options not given are inherited by children.
 * The caller gets a reference. Errors name the node or file.
 */
int block_co_open(struct options *opts, unsigned flags, struct block_node **ret, struct error *err);

/*
 * Likewise in two steps. A hidden node, and what was opened below it, can be found by name by the same coroutine alone; it
 * makes no claims on public nodes below it by which it could stand in the way of guests. Names are reserved, though:
 * others get "Duplicate nodes". This step does the I/O, and can take as long as a server likes.
 */
int block_co_open_hidden(struct options *opts, unsigned flags, struct block_node **ret,
                         struct error *err);
/*
 * The second step, by the same coroutine: all can find it, and its permissions are worked out as a graph change. On failure it
 * is hidden still. The nodes that it has been given by name are drained by the caller, if others use them.
 */
int block_co_publish(struct block_node *node, struct error *err);
/* Undo that, in a graph change: all that it made public is hidden again. */
void block_unpublish(struct block_node *node);

/*
 * Open a filename: a path, `json:{...}`, `file:...`, `nbd:...`, `nbd://...`, `nbd+unix://...`. `format` names the format driver, or
 * NULL to probe: then a read-only image is probed, a writable one only with BLOCK_OPEN_PROBE, else it is
 * an error that says so. A raw image that was probed refuses writes to its first sector that would make it
 * look like another format. `extra` (may be NULL; consumed) are generic options added at the top.
 */
int block_co_open_filename(const char *filename, const char *format, struct options *extra,
                           unsigned flags, struct block_node **ret, struct error *err);

struct block_node *block_node_ref(struct block_node *node);
/*
 * Give a reference back. The last one closes the node: nobody finds it by name from that moment on, then it is flushed, completed and
 * closed, as are nodes below it that nobody else uses. NULL is fine. Errors are logged.
 */
void block_co_unref(struct block_node *node);
/*
 * Likewise, with the first error in `err`, unless one was set there before; the reference is gone in any case. 0 also if it was
 * not the last.
 */
int block_co_close(struct block_node *node, struct error *err);
/*
 * Complete an image that stays open: flushes, stores persistent bitmaps, clears marks that say "in use". Drained meanwhile. An
 * error that is told here is not logged again when the node is closed. Does nothing for filters.
 */
int block_co_inactivate(struct block_node *node, struct error *err);

/* Values of the option detect-zeroes: whether writes of zeroes become write_zeroes, and may unmap. */
enum block_detect_zeroes {
    BLOCK_DETECT_ZEROES_OFF,
    BLOCK_DETECT_ZEROES_ON,
    BLOCK_DETECT_ZEROES_UNMAP
};

/* Limits of a node, in bytes. Its driver sets them when it opens the node. 0: no limit, or an alignment of 1. */
struct block_limits {
    /* Power of two: reads and writes that reach the driver are aligned to it. */
    uint32_t request_alignment;
    /* Of buffers, for O_DIRECT. */
    uint32_t memory_alignment;
    /* The longest read or write. */
    uint64_t max_transfer;
    /* write_zeroes requests are cut at its multiples; heads and tails are written as data. */
    uint64_t zeroes_alignment;
    uint64_t max_zeroes;
    /* Discards are shrunk to its multiples. */
    uint64_t discard_alignment;
    uint64_t max_discard;
    /* The best request size; 0: unknown. */
    uint32_t opt_transfer;
    /* Allocation unit of the format; 0: none. `info` and NBD's block sizes report it. */
    uint32_t cluster_size;
};

/* --- nodes ----------------------------------------------------------------------------------------- */

/* By node name; NULL if there is none. Hidden ones of this coroutine count. No reference is taken. */
struct block_node *block_node_find(const char *name);
/* As above, with the error "Cannot find device='' nor node-name='x'" (class DeviceNotFound is not used, as in QEMU). */
struct block_node *block_node_lookup(const char *name, struct error *err);
/* Iterate over all nodes, named first to last opened: NULL begins, NULL ends. */
struct block_node *block_node_next(struct block_node *node);

const char *
block_node_name(const struct block_node *node); /* never NULL; "#block123" for unnamed ones */
bool block_node_has_user_name(const struct block_node *node);
/* What messages call it: its filename if it has one, else its node name. Never NULL. */
const char *block_node_display_name(const struct block_node *node);
/* Filename as given (plain path or URI) or a json: string; "" if there is none. */
const char *block_node_filename(const struct block_node *node);
/*
 * The same for people and management: json: with all that is needed where the filename alone opens something else, unless
 * that is too many nodes. To be freed.
 */
char *block_node_full_filename(const struct block_node *node);
/*
 * Path or URI of a backing file that the image of `node` calls `name`. NULL if a relative name is relative to nothing, as in an image
 * that lies in several files. To be freed.
 */
char *block_node_resolve_backing(const struct block_node *node, const char *name);
/*
 * Absolute path or URI of `name` as seen from the directory of `base_filename`; URIs and absolute paths are kept, and all names
 * where the base is a URI without directories (NBD). malloc'ed; NULL: no memory.
 */
char *block_resolve_relative(const char *base_filename, const char *name);
const struct block_driver *block_node_driver(const struct block_node *node);
/* The name of its driver: "qcow2". */
const char *block_node_format(const struct block_node *node);
unsigned block_node_traits(const struct block_node *node);                   /* of its driver */
const struct block_limits *block_node_limits(const struct block_node *node); /* borrowed */

/* Generic options in force. */
struct block_node_settings {
    bool read_only;
    bool probed; /* the format is raw because no other was recognized */
    bool cache_direct, cache_no_flush;
    enum block_detect_zeroes detect_zeroes;
};

struct block_node_settings block_node_settings(const struct block_node *node);
uint64_t block_node_size(const struct block_node *node); /* bytes; any thread */
bool block_node_is_read_only(const struct block_node *node);
/* The options it was opened with. Borrowed. */
struct json_object *block_node_options(const struct block_node *node);
/* Child by the name of the edge ("file", "backing", "target"); NULL if there is none. Borrowed. */
struct block_node *block_node_child(const struct block_node *node, const char *name);
/*
 * Iterate over the edges to children, in the order in which they were attached, and over those from parents: NULL begins,
 * NULL ends. The graph must not change meanwhile.
 */
struct block_edge *block_node_next_child(const struct block_node *node,
                                         const struct block_edge *edge);
struct block_edge *block_node_next_parent(const struct block_node *node,
                                          const struct block_edge *edge);
const char *block_edge_name(const struct block_edge *edge);          /* "file", "backing" */
struct block_node *block_edge_parent(const struct block_edge *edge); /* NULL: a root */
/* The next layer down a chain that reads fall through to: backing of a format node, the filtered child of a filter. */
struct block_node *block_node_filter_or_backing(const struct block_node *node);
/* Whether `to` is `from`, or below it. */
bool block_node_reaches(struct block_node *from, const struct block_node *to);
/* Skip filters: the first node at or below `node` that is none. */
struct block_node *block_node_skip_filters(struct block_node *node);
/* The backing node below filters; NULL if there is none. */
struct block_node *block_node_backing(struct block_node *node);
bool block_node_is_filter(const struct block_node *node);
/* Whether it shows a point in time, which stays however it is opened (snapshot-access). */
bool block_node_is_frozen_view(struct block_node *node);
/* Whether a monitor owns it (blockdev-add); set by block_node_set_monitor_owned(). */
bool block_node_is_monitor_owned(const struct block_node *node);
void block_node_set_monitor_owned(struct block_node *node, bool owned);
/* Nobody finds it by name from now on, though its name stays taken until it is closed: it has been deleted. Does not yield. */
void block_node_forget_name(struct block_node *node);
/* Whether any edge points to it. */
bool block_node_in_use(const struct block_node *node);
/* A user of it for messages: "NBD export 'x'" or "node 'top' as 'backing'". `buf` gets at least 128 bytes. */
const char *block_node_describe_user(const struct block_node *node, char *buf, size_t buf_size);

/* --- roots ------------------------------------------------------------------------------------------- */

/*
 * Attach to a node. `user` is for messages ("NBD export 'disk'"). Fails with -EPERM (and a sentence that names the two
 * sides) when permissions conflict, -EACCES/-EROFS when a read-only node is to be written. Takes a reference to the node.
 */
int block_co_root_new(struct block_node *node, const char *user, unsigned perm, unsigned shared,
                      struct block_root **ret, struct error *err);
/* Wait for its requests, detach, release. NULL is fine. */
void block_co_root_release(struct block_root *root);
/* The user has begun to wait for its requests, which are not to be held back any more. Does not yield. */
void block_root_begin_end(struct block_root *root);
/*
 * The first step of a release, for owners that must not be found half released: stop new requests for good, and wait until
 * nobody looks at the root any more (a request that ends still reads the root after its count went down).
 */
void block_co_root_settle(struct block_root *root);
/* The edge to do I/O through; constant for the life of the root, whatever node it points to. */
struct block_edge *block_root_edge(struct block_root *root);
struct block_node *block_root_node(const struct block_root *root);
const char *block_root_user(const struct block_root *root);
int block_co_root_set_perm(struct block_root *root, unsigned perm, unsigned shared,
                           struct error *err);
/* Point it to another node of the same size, drained meanwhile; on failure nothing changes. */
int block_co_root_replace(struct block_root *root, struct block_node *node, struct error *err);

/* What the owner of a root is told; each may be NULL, none may yield. Main reactor. */
struct block_root_ops {
    void (*drain_begin)(void *arg); /* no new requests; those of the owner wait at the gate */
    bool (*drain_busy)(
        void *arg); /* whether the owner is busy with what the drain has to wait for */
    void (*drain_end)(void *arg);
    /* The node that the root points to has `size` bytes now; within the drain that it was resized in. */
    void (*resized)(void *arg, uint64_t size);
};
/*
 * `ops` must live as long as the root; NULL: the owner is not told any more. If the root is drained already, drain_begin() is
 * called at once.
 */
void block_root_set_ops(struct block_root *root, const struct block_root_ops *ops, void *arg);

/* --- graph changes ----------------------------------------------------------------------------------- */

/*
 * A list of edge changes that take effect together (graph.c): begin; attach, detach, move edges, roots included; settle;
 * end. Between begin and settle the functions that change edges succeed as far as permissions go; settle works those
 * out on the result, once, for all of them. If it fails the caller takes its changes back, settles again, and ends. Nestable:
 * only the outermost settle and end do something. One change at a time; others wait in begin. The nodes
 * concerned are drained by the caller.
 */
void block_co_change_begin(void);
int block_co_change_settle(struct error *err);
void block_co_change_end(void);

/*
 * Point an edge to another node of the same size. What it could write to before is flushed, unless both are filters on the same
 * node. -EINVAL (sizes, cycle), -EPERM and -EAGAIN of permissions and image locks, errors of the flush; on failure nothing
 * changes.
 */
int block_co_edge_move(struct block_edge *edge, struct block_node *node, struct error *err);
/*
 * Everybody on `from` goes to `to`, but for those that `to` itself reaches `from` by: puts a filter or an overlay on a node that is in
 * use, or takes one out. Drains both. Errors as above; on failure nothing changes.
 */
int block_co_node_replace(struct block_node *from, struct block_node *to, struct error *err);

/* --- drain ------------------------------------------------------------------------------------------- */

/* Nestable. See the head of this file. */
void block_co_drain_begin(struct block_node *node);
void block_co_drain_end(struct block_node *node);
/* Several at one instant: all are stopped before any is waited for. Each is ended by block_co_drain_end(). */
void block_co_drain_begin_many(struct block_node *const *nodes, size_t count);
void block_co_drain_all_begin(void);
void block_co_drain_all_end(void);

/* A drain that one root is not stopped by: that of a job which goes on alone. The caller's memory; fields are drain.c's. */
struct block_drain {
    struct list link;
    struct block_node *node;
    const struct block_root *but;
};
void block_co_drain_begin_but(struct block_drain *d, struct block_node *node,
                              const struct block_root *but);
void block_co_drain_end_but(struct block_drain *d);

/* --- creation --------------------------------------------------------------------------------------- */

struct block_option_desc {
    const char *name;
    const char *type; /* "size", "str", "bool (on/off)", "num" */
    const char *help;
};

/*
 * Make an image file: `format` ("qcow2", "raw"), `filename` (a path or URI; existing contents are lost), `size` in
 * bytes (rounded up to 512), `opts` (consumed) the format's creation options by qemu-img's names. -EINVAL names an unknown option.
 */
int block_co_create_image(const char *format, const char *filename, uint64_t size,
                          struct options *opts, struct error *err);

#endif
