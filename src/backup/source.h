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
 *        NODE     tidemark-R-temp                 temporary image: old data of overwritten clusters
 *
 *     bitmaps of NODE:  tidemark-R-<last backup>  frozen (an incremental backup)
 *                       tidemark-R-<this backup>  recording since the checkpoint
 *
 * All names contain the repository's id, so that a run finds what an earlier one left. Whatever
 * happened, source_co_settle() makes the daemon agree with the newest complete backup; every backup
 * ends with it, whether it succeeded, failed or was killed.
 *
 * Main reactor, in a coroutine; all `co_` functions yield, the others do not. They return 0 or
 * -errno.
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
#define SOURCE_PREFIX "tidemark-"

struct source {
    struct qmp_client *qmp;
    const char *node; /* borrowed */
    char repository[REPOSITORY_ID_SIZE];
    char prefix[SOURCE_NAME_SIZE]; /* "tidemark-R": also the export's id and name */
    char cbw[SOURCE_NAME_SIZE], snap[SOURCE_NAME_SIZE], temp[SOURCE_NAME_SIZE];
};

struct source_bitmap {
    char *name;
    bool recording, busy, persistent, inconsistent;
};

/* What the daemon has, as far as a backup needs it. */
struct source_state {
    bool found; /* the node exists */
    bool read_only;
    bool stores_bitmaps; /* its format keeps persistent bitmaps */
    uint64_t virtual_size;
    char *disk;                    /* absolute path of its file or device; NULL if it has none */
    struct source_bitmap *bitmaps; /* of the node, with the repository's prefix */
    size_t bitmap_count;
    char **exports; /* ids of exports of the node */
    size_t export_count;
    char **moved_exports; /* ids of exports that a run has put on its filter */
    size_t moved_count;
    bool has_cbw, has_snap, has_temp, has_export;
    char *temp_image; /* path of the temporary image; NULL without has_temp */
    char **others;    /* ids of other repositories that have a filter on the same disk */
    size_t other_count;
};

/* Release what `s` holds, and make it empty. */
void source_state_clear(struct source_state *s);
#define SOURCE_STATE_AUTO(name)                                                                    \
    __attribute__((cleanup(source_state_clear))) struct source_state name = {0}

/* Begin to work with a daemon. `node` and the connection are borrowed; `repository` is an id. */
void source_init(struct source *s, struct qmp_client *qmp, const char *node,
                 const char *repository);

/*
 * A name for the bitmap that begins with backup `id`, malloc'ed; NULL: no memory. The name ends in
 * random characters, since copies of a repository share its id, and clocks may be set back.
 */
char *source_new_bitmap_name(const struct source *s, const char *id);

/* Query the daemon. *ret_state is empty on failure. */
int source_co_inspect(struct source *s, struct source_state *ret_state, struct error *err);

/* The bitmap of this name; NULL: there is none. */
const struct source_bitmap *source_find_bitmap(const struct source_state *state, const char *name);

/*
 * Remove the filter and everything else of a run but the bitmaps. The temporary image stays:
 * state->temp_image of the last query names it.
 */
int source_co_take_down(struct source *s, struct error *err);

/*
 * Take a run down, and put the bitmaps in order. `last` is the bitmap of the newest complete backup
 * (NULL: none), which stays and records. If a later run had frozen it, what was recorded since is
 * merged into it.
 */
int source_co_settle(struct source *s, const char *last, struct error *err);

struct source_checkpoint {
    const char *started;   /* bitmap that begins; NULL: none, the disk is read-only */
    const char *frozen;    /* bitmap of the last backup; NULL: a full backup */
    const char *temp_path; /* the temporary image */
    bool temp_is_qcow2;
    unsigned timeout_s; /* limit of the time that a guest's write waits for it; 0: none */
};

/*
 * Make the checkpoint, in one transaction: a bitmap begins, the bitmap of the last backup is
 * frozen, and the point-in-time view is set up over the temporary image. *begin and *end are the
 * moments right before and after.
 */
int source_co_checkpoint(struct source *s, const struct source_state *state,
                         const struct source_checkpoint *c, struct backup_moment *begin,
                         struct backup_moment *end, struct error *err);

/*
 * The address of the daemon's NBD server, from `uri`; NULL: ask the daemon, and if it has none,
 * start one on `own_socket`. *ret_address is to be cleared by the caller.
 */
int source_co_nbd_address(struct source *s, const char *uri, const char *own_socket,
                          struct socket_address *ret_address, struct error *err);

/*
 * Export the point-in-time view under the name s->prefix, with the bitmap `frozen` unless that is
 * NULL.
 */
int source_co_export(struct source *s, const char *frozen, struct error *err);

/* --- of any repository --- */

struct source_leftover {
    char repository[REPOSITORY_ID_SIZE];
    char *node;       /* of the disk; NULL if not known */
    bool filter;      /* a run lives, or was killed */
    char *temp_image; /* of that run; NULL if it has none */
    size_t bitmaps;
    uint64_t dirty; /* bytes that the bitmaps mark, all together */
};

struct source_leftovers {
    struct source_leftover *list;
    size_t count;
};

/* Release what `l` holds, and make it empty. */
void source_leftovers_clear(struct source_leftovers *l);
/*
 * What backups to any directory have in the daemon: an entry for each pair of repository and disk.
 * `node`: only on that node; NULL: on all.
 */
int source_co_leftovers(struct qmp_client *qmp, const char *node,
                        struct source_leftovers *ret_leftovers, struct error *err);

/* --- for source*.c --- */

/* Whether `name` begins with "tidemark-R-"; R goes into `ret_text`. */
bool source_name_repository(const char *name, char ret_text[static REPOSITORY_ID_SIZE]);
/*
 * A path that the daemon reported, as this process has to open it; malloc'ed. NULL: no path, or no
 * memory.
 */
char *source_daemon_path(const struct qmp_client *qmp, const char *path);
/* The string member `key`; "" if there is none. Borrowed. */
const char *source_string(struct json_object *o, const char *key);
/* Elements of an array; 0 if `list` is no array. */
size_t source_length(struct json_object *list);

#endif
