/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drivers and nodes as their users see them: how to find them, and what can be asked of them.
 *
 * Main reactor, unless a function says otherwise. None of these functions yields. What they return
 * is borrowed: it is valid as long as the node is, or until the caller yields if it holds no
 * reference.
 */
#ifndef TIDEMARK_BLOCK_NODE_H
#define TIDEMARK_BLOCK_NODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "block/options.h"

struct block_node;
struct block_edge;
struct block_root;
struct block_driver;

/* --- drivers ---------------------------------------------------------------------------------- */

/* An option by which images are made or amended; arrays of them end with a NULL name. */
struct block_option_desc {
    const char *name;
    const char *type; /* "size", "str", "bool (on/off)", "num" */
    const char *help;
};

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
    /* Its images can have backing files. */
    BLOCK_DRIVER_BACKING = 1 << 6,
    /* What was never written to its files reads as zeroes. */
    BLOCK_DRIVER_ZERO_BEYOND_EOF = 1 << 5,
    /* What was never written to its new images does not read as zeroes. */
    BLOCK_DRIVER_NOISE_WHEN_NEW = 1 << 7,
    /* It stores data compressed where that is asked for. */
    BLOCK_DRIVER_COMPRESSES = 1 << 8,
};

/*
 * Add a driver to the table: once, at start. The table has a copy, in which a filter's missing
 * functions pass everything on (pass_through.c).
 */
void block_register_driver(const struct block_driver *driver);
/* By name; NULL: there is none. */
const struct block_driver *block_find_driver(const char *name);
/*
 * The driver whose URI scheme or name a filename begins with ("nbd:", "nbd+unix:", "file:"); NULL:
 * a plain path.
 */
const struct block_driver *block_driver_of_filename(const char *filename);
/* -EINVAL if a filename begins like an address of a protocol that there is not. Does not yield. */
int block_check_scheme(const char *filename, struct error *err);
/* Iterate: NULL begins, NULL ends. */
const struct block_driver *block_next_driver(const struct block_driver *d);
const char *block_driver_name(const struct block_driver *d);
/* Whether users can open images with it; not if it is known only to be refused, or is of jobs. */
bool block_driver_is_usable(const struct block_driver *d);
/* Bits of enum block_driver_trait. */
unsigned block_driver_traits(const struct block_driver *d);
/* Options for making images, and for amending them; NULL: none. */
const struct block_option_desc *block_driver_create_options(const struct block_driver *d);
const struct block_option_desc *block_driver_amend_options(const struct block_driver *d);
/* Whether filenames with a scheme of the driver contain options. */
bool block_driver_parses_filename(const struct block_driver *d);
/* Add the options that `filename` contains to `opts`. -EINVAL: a malformed URI; -ENOMEM. */
int block_driver_parse_filename(const struct block_driver *d, const char *filename,
                                struct options *opts, struct error *err);

/* --- lookup ----------------------------------------------------------------------------------- */

/*
 * By its name, or that of a device that uses it (block/device.h); NULL: there is none. Hidden nodes
 * are found by the coroutine that opens them only.
 */
struct block_node *block_node_find(const char *name);
/*
 * As above, with the error "Cannot find device='x' nor node-name='x'", of the generic class as in
 * QEMU, or that the device has no medium.
 */
struct block_node *block_node_lookup(const char *name, struct error *err);
/* Iterate over all public nodes, in the order in which they were opened: NULL begins, NULL ends. */
struct block_node *block_node_next(struct block_node *node);

/* --- names ------------------------------------------------------------------------------------ */

/* Never NULL: a node that the user did not name is "#block123". */
const char *block_node_name(const struct block_node *node);
/* The name for messages: the filename if there is one, else the node name. Never NULL. */
const char *block_node_display_name(const struct block_node *node);
/* The filename as given (plain path or URI), or a json: string; "" if there is none. */
const char *block_node_filename(const struct block_node *node);
/*
 * The filename for people and management: json: with all options that are needed where the plain
 * filename would open something else, unless that takes too many nodes. The caller frees the
 * string. NULL: no memory.
 */
char *block_node_full_filename(const struct block_node *node);
/*
 * The same for an image that gets it as the name of its backing file: without filters between
 * images, and with the backing image only if the image names another file. Looks files up; where
 * their file system does not answer in time, they count as others. The caller references the node.
 * Yields.
 */
char *block_node_co_filename_to_record(const struct block_node *node);
/*
 * Path or URI of a backing file that the image of `node` calls `name`; the caller frees the string.
 * NULL: no memory, or a relative name of an image that has no directory (an image in several
 * files).
 */
char *block_node_resolve_backing(const struct block_node *node, const char *name);
/*
 * The backing file that the image of `node` records is that of `backing`: the full filename of
 * `node` does not have to say so. Without memory it will.
 */
void block_note_recorded_backing(struct block_node *node, const struct block_node *backing);
/* Whether a backing file name that an image records is relative to the directory of the image. */
bool block_is_relative(const char *name);
/*
 * Path or URI of `name` as seen from the directory of `base_filename`. URIs and absolute paths stay
 * as they are, and so do all names where the base is a URI without directories (NBD). The caller
 * frees the string. NULL: no memory.
 */
char *block_resolve_relative(const char *base_filename, const char *name);
/*
 * Absolute path of a relative `name` in the working directory, or `name` as it is. Asks no file
 * system. The caller frees the string. NULL: no memory.
 */
char *block_absolute_name(const char *name);

/* --- properties ------------------------------------------------------------------------------- */

/*
 * Values of the option detect-zeroes: whether writes of zeroes become write_zeroes, and may unmap.
 */
enum block_detect_zeroes {
    BLOCK_DETECT_ZEROES_OFF,
    BLOCK_DETECT_ZEROES_ON,
    BLOCK_DETECT_ZEROES_UNMAP
};

/*
 * Limits of a node, in bytes. Its driver sets them when it opens the node. 0: no limit, or an
 * alignment of 1.
 */
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
    /*
     * For who copies much: data come from another process of this machine, and reads of this size
     * stay in the processor's caches on their way; 0: longer ones are as good. Bytes.
     */
    uint32_t cached_transfer;
    /* Allocation unit of the format; 0: none. `info` and NBD's block sizes report it. */
    uint32_t cluster_size;
};

/* Generic options in force. */
struct block_node_settings {
    bool read_only;
    bool probed; /* the format is raw because no other was recognized */
    bool cache_direct, cache_no_flush, discard_unmap;
    enum block_detect_zeroes detect_zeroes;
};

/* A name for a node that was given none. To be freed; NULL: no memory. */
char *block_generated_node_name(void);
/*
 * An object of the type iothread, in which users of the node should do their work unless they were
 * given another; NULL: none. The node has a reference. Main reactor.
 */
struct user_object *block_node_iothread(const struct block_node *node);
void block_node_set_iothread(struct block_node *node, struct user_object *object);
/* The table's entry of its driver. */
const struct block_driver *block_node_driver(const struct block_node *node);
/* The name of its driver: "qcow2". */
const char *block_node_format(const struct block_node *node);
/* Of its driver: bits of enum block_driver_trait. */
unsigned block_node_traits(const struct block_node *node);
const struct block_limits *block_node_limits(const struct block_node *node);
struct block_node_settings block_node_settings(const struct block_node *node);
/*
 * The node is an image, opened again, whose format was probed: if that is raw, writes that make its
 * first sector look like another format fail with -EPERM. Before the first write; does not yield.
 */
void block_node_set_probed(struct block_node *node);
/* Bytes. Any thread. */
uint64_t block_node_size(const struct block_node *node);
/* A number that grows with each write to the node, and each change of its size. Main reactor. */
uint64_t block_node_write_generation(const struct block_node *node);
/* Whether it was reported already that the node could not be completed. Main reactor. */
bool block_node_failure_reported(const struct block_node *node);
bool block_node_is_read_only(const struct block_node *node);
/* The options that the node was opened with. */
struct json_object *block_node_options(const struct block_node *node);
/* A number that no other node of this process has, or had: a name may be that of another later. */
uint64_t block_node_number(const struct block_node *node);
bool block_node_is_filter(const struct block_node *node);
/*
 * Whether the node shows a point in time, whatever is written through it (snapshot-access, behind
 * filters too).
 */
bool block_node_is_frozen_view(struct block_node *node);
/*
 * While `disk` is the node, or below it, a change of a range of the node waits for the reads and
 * status queries of the range that are in flight, and lets new ones wait, what is read from backing
 * files included. For the target of a copy-before-write whose backing file is the disk, or becomes
 * that: a read that finds nothing in the target has to be done with the disk before a guest's write
 * changes the disk. NULL: no longer, as at the end of the node. `disk` is only compared: it may end
 * earlier. The node is drained.
 */
void block_node_set_serialising(struct block_node *node, const struct block_node *disk);
/* Whether a monitor owns it (blockdev-add). The owner sets that, and has a reference. */
bool block_node_is_monitor_owned(const struct block_node *node);
void block_node_set_monitor_owned(struct block_node *node, bool owned);
/*
 * The node has been deleted: no lookup finds it from now on, though its name is taken until it is
 * closed.
 */
void block_node_forget_name(struct block_node *node);

/* --- neighbours ------------------------------------------------------------------------------- */

/* The child at the edge of that name ("file", "backing", "target"); NULL: there is none. */
struct block_node *block_node_child(const struct block_node *node, const char *name);
/*
 * The next node down a chain: the filtered child of a filter, the backing node of a format; NULL:
 * there is none.
 */
struct block_node *block_node_filter_or_backing(const struct block_node *node);
/* The first node at or below `node` that is not a filter. */
struct block_node *block_node_skip_filters(struct block_node *node);
/* Say that no user has named this filter. */
void block_node_set_implicit(struct block_node *node);
/* The first node at or below `node` that is not such a filter. */
struct block_node *block_node_skip_implicit(struct block_node *node);
/* A file or device of this host, or raw on one. Main reactor. */
bool block_node_is_plain_file(const struct block_node *node);
/* The backing node of the first node that is not a filter; NULL: there is none. */
struct block_node *block_node_backing(struct block_node *node);
/* Whether `to` is `from`, or below it. */
bool block_node_reaches(struct block_node *from, const struct block_node *to);
/* Whether edges lead from one to the other, in any directions; a node is joined with itself. */
bool block_node_is_joined(struct block_node *a, const struct block_node *b);
/*
 * Call `fn` for the public nodes at and below one, each once, parents before their children. `fn`
 * may neither change the graph, nor call one of these three functions, nor yield.
 */
typedef void block_node_fn(struct block_node *node, void *arg);
void block_node_foreach_below(struct block_node *from, block_node_fn *fn, void *arg);
/*
 * Whether the link from the node down its chain has to stay as it is for a public node at or above
 * it, other than `but` (NULL: any counts). Does not yield.
 */
bool block_node_is_link_needed(const struct block_node *node, const struct block_node *but);
/* The node down to which this one needs its chain as it is; NULL: it does not. Does not yield. */
const struct block_node *block_node_needs_chain_to(const struct block_node *node);
/* Whether any edge points to the node. */
bool block_node_in_use(const struct block_node *node);
/*
 * Iterate over the edges to children, in the order in which they were attached, and over those from
 * parents: NULL begins, NULL ends. The graph must not change meanwhile.
 */
struct block_edge *block_node_next_child(const struct block_node *node,
                                         const struct block_edge *edge);
struct block_edge *block_node_next_parent(const struct block_node *node,
                                          const struct block_edge *edge);
/* "file", "backing"; of a root: the user. */
const char *block_edge_name(const struct block_edge *edge);
/* NULL: the edge is a root. */
struct block_node *block_edge_parent(const struct block_edge *edge);
/* The child. */
struct block_node *block_edge_node(const struct block_edge *edge);
/* The permissions in force (enum block_perm): what the parent uses, and what it shares. */
unsigned block_edge_perm(const struct block_edge *edge);
unsigned block_edge_shared(const struct block_edge *edge);
/* Size of the child in bytes. Any thread. */
uint64_t block_edge_size(const struct block_edge *edge);

#endif
