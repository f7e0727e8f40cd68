/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What jobs that change backing chains (commit, stream) share: putting a filter on a node that is
 * in use, and taking it out again; the names by which images record other images.
 *
 * Main reactor. `co_` functions run in a coroutine and yield.
 */
#ifndef TIDEMARK_JOB_CHAIN_H
#define TIDEMARK_JOB_CHAIN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "block/control_lock.h"

struct block_node;
struct block_root;
struct job;
struct options;

/* --- filters ---------------------------------------------------------------------------------- */

/*
 * Open a filter from `opts` (consumed; with the driver), whose child "file" is to be `below`, and
 * give it all users of `below`. `name`: its node name; NULL: generated. Within a graph change;
 * `below` is drained. The permissions are not settled yet. The caller gets a reference.
 */
int chain_co_insert_filter(struct options *opts, const char *name, struct block_node *below,
                           struct block_node **ret_filter, struct error *err);
/*
 * Undo that: its users go to the node below it, and the reference is given back. The filter must
 * need no permissions without users. Within a graph change or not.
 */
void chain_co_remove_filter(struct block_node *filter);

/* --- images ----------------------------------------------------------------------------------- */

/* The node above `node` in the chain from `top` down; NULL: it is not in there, or is `top`. */
struct block_node *chain_above(struct block_node *top, const struct block_node *node);

/* The backing node of the last image above `base`: `base`, or a filter on it. */
struct block_node *chain_stop(struct block_node *top, struct block_node *base);

/*
 * The image below `top` that `name` means: as it was opened, or as the image above it would record
 * it. Filters are passed. NULL: none. The caller has the control lock. Yields where the name is no
 * image's own: links of the file system are followed then, if that answers in time.
 */
struct block_node *chain_co_find(struct block_node *top, const char *name);

/*
 * The name by which `overlay` should record `base` (a node that is no filter) in its header: it
 * leads to the image from the directory of the overlay. The caller frees it. NULL: no memory. Both
 * are referenced. Yields.
 */
char *chain_co_backing_name(const struct block_node *overlay, const struct block_node *base);
/*
 * The format to record with it. `mask_protocol`: "raw" where the node has no format of its own, but
 * is a file or a server's export.
 */
const char *chain_backing_format(const struct block_node *base, bool mask_protocol);

/* Flush a node. The error says which. Yields. */
int chain_co_flush(struct block_node *node, struct error *err);
/*
 * For the co_prepare of a job that can be cancelled there, before it writes an image of its own.
 * Between the work and this moment the job may have waited for long, and the image's storage may
 * not answer any more: flush the image, and ask the storage. Other commands go on meanwhile. 0: it
 * answers, and the last step has begun; -ECANCELED (without `err`), or -errno of the flush. Yields.
 */
int chain_co_ask(struct job *job, struct block_node *image, struct error *err);

/* A step that writes an image while a job ends; the members are private. */
struct chain_work {
    struct block_control_work work;
    struct block_node *image;
    bool apart;
};
/*
 * Work apart on `image` (block_control_begin_work()): a disk that begins to hang delays who uses
 * it, and no others. The caller has the control lock, and references the image. Does not yield.
 */
void chain_begin_work(struct chain_work *w, struct block_node *image, bool changes_graph);
/* The caller has the control lock again. */
void chain_co_end_work(struct chain_work *w);

/*
 * Record `base` (NULL: none) as the backing file in the header of an image. `backing_file`: under
 * this name; NULL: as chain_co_backing_name() says. An image that is read-only is written all the
 * same.
 */
int chain_co_write_header(struct block_node *overlay, struct block_node *base,
                          const char *backing_file, bool mask_protocol, struct error *err);
/*
 * Record `base` as the backing file in the headers of all images whose backing node is `node`, or a
 * filter on that. `backing_file`: under this name; NULL: as chain_co_backing_name() says.
 */
int chain_co_write_headers(struct block_node *node, struct block_node *base,
                           const char *backing_file, bool mask_protocol, struct error *err);
/* job_check_node() of these images. */
int chain_co_check_overlays(struct block_node *node, struct error *err);

/*
 * Images that show no consistent contents for the time of a job which commits through them into an
 * image below. Start with {0}.
 */
struct chain_guard {
    struct block_root **roots; /* owned */
    size_t count;
};

/*
 * Images below `top` and above `base` may be read by nobody else. `user` is for messages. Within a
 * graph change, whose permissions the caller settles. -ENOMEM
 */
int chain_co_guard(struct chain_guard *guard, const char *user, struct block_node *top,
                   struct block_node *base, struct error *err);
/* Undo that, at any time; again has no effect. */
void chain_co_unguard(struct chain_guard *guard);

/*
 * A node that is writable for the time of a job. Start with {0}. Not within a graph change; the
 * control lock is held.
 */
struct chain_writable {
    struct block_node *node; /* a reference; NULL: it was writable before */
};

/* Errors of opening for writing. */
int chain_co_begin_writable(struct chain_writable *w, struct block_node *node, struct error *err);
/* The node is read-only again, if it was. Nobody uses it for writing. */
void chain_co_end_writable(struct chain_writable *w);
/* It stays as it is. Yields if it has no other user. */
void chain_co_keep_writable(struct chain_writable *w);

#endif
