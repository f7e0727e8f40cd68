/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's side of a backup: checkpoint, point-in-time view, and what is left of both.
 *
 * While a backup runs (R is the repository's id, NODE the disk):
 *
 *     exports of NODE        export tidemark-R
 *          |                      |
 *          |                 tidemark-R-snap      snapshot-access
 *          |                      |
 *     tidemark-R-cbw  <-----------+               copy-before-write
 *          |        \
 *        NODE     tidemark-R-temp                 old data of what the guest overwrites, in a temporary file
 *
 *     bitmaps of NODE:  tidemark-R-<last backup>  frozen (an incremental backup)
 *                       tidemark-R-<this backup>  recording since the checkpoint
 *
 * All names are the repository's, so that a run finds what an earlier one left. Whatever happened, source_co_settle()
 * makes the daemon agree with the last complete backup; it ends a backup that succeeded, one that failed, and one
 * that was cut off.
 *
 * Main reactor, in a coroutine; all `co_` functions yield.
 */
#ifndef TIDEMARK_BACKUP_SOURCE_H
#define TIDEMARK_BACKUP_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backup/qmp_client.h"
#include "backup/repository.h"
#include "base/error.h"
#include "nbd/client.h"

#define SOURCE_NAME_SIZE 32

struct source {
    struct qmp_client *qmp;
    const char *node;              /* borrowed */
    char prefix[SOURCE_NAME_SIZE]; /* "tidemark-R": also the export's id and name */
    char cbw[SOURCE_NAME_SIZE], snap[SOURCE_NAME_SIZE], temp[SOURCE_NAME_SIZE];
    char *own_socket; /* of the NBD server, if a run had to start it */
};

struct source_bitmap {
    char *name;
    bool recording, busy, persistent, inconsistent;
};

/* What the daemon has, as far as it matters here. */
struct source_state {
    bool found; /* there is such a node */
    bool read_only;
    bool stores_bitmaps; /* its format keeps persistent bitmaps */
    uint64_t virtual_size;
    struct source_bitmap *bitmaps; /* of the node, with the repository's prefix */
    size_t bitmap_count;
    char **exports; /* ids of exports of the node */
    size_t export_count;
    char **moved_exports; /* ids of exports that a run has put on its filter */
    size_t moved_count;
    bool has_cbw, has_snap, has_temp, has_export;
    bool others; /* another repository's filter is there */
};

void source_state_clear(struct source_state *s);
#define SOURCE_STATE_AUTO(name)                                                                    \
    __attribute__((cleanup(source_state_clear))) struct source_state name = {0}

/* `node` and the connection are borrowed. -ENOMEM. */
int source_init(struct source *s, struct qmp_client *qmp, const char *node,
                const struct repository *r, struct error *err);
void source_clear(struct source *s);

/* Name of the bitmap that begins with backup `id`, malloc'ed; NULL: no memory. */
char *source_bitmap_name(const struct source *s, const char *id);

/* Ask. *ret is empty on failure. */
int source_co_inspect(struct source *s, struct source_state *ret, struct error *err);

/* The bitmap of backup `id`; NULL if it is not there. */
const struct source_bitmap *source_find_bitmap(const struct source *s,
                                               const struct source_state *state, const char *id);

/*
 * Take out the filter and everything else of a run, and put the bitmaps in order: `last` is the newest complete backup
 * (NULL: none), and its bitmap is the one that stays and records. If a later run had frozen it, what was
 * recorded since is merged into it.
 */
int source_co_settle(struct source *s, const char *last, struct error *err);

/*
 * The checkpoint, in one transaction: the bitmap of backup `id` begins, that of backup `base` (NULL: a full backup)
 * is frozen, and the point-in-time view is set up over the temporary file `temp_path`. *begin and *end are the moments
 * right before and after.
 */
int source_co_checkpoint(struct source *s, const struct source_state *state, const char *id,
                         const char *base, const char *temp_path, struct backup_moment *begin,
                         struct backup_moment *end, struct error *err);

/*
 * Where the daemon's NBD server is: *ret, from `uri` (NULL: ask the daemon; if it has none, one is started on our own
 * socket).
 */
int source_co_nbd_address(struct source *s, const char *uri, struct nbd_address *ret,
                          struct error *err);

/* Export the point-in-time view under the name s->prefix, with the frozen bitmap of backup `base`, if not NULL. */
int source_co_export(struct source *s, const char *base, struct error *err);

#endif
