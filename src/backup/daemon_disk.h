/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk in a process with a QMP socket: checkpoint, point-in-time view, and what is left of both.
 * There are two methods, one for each kind of process; what they share is in daemon_common.c. All
 * names contain the repository's id R, so that a run finds what an earlier one left.
 *
 * In `tidemark daemon` (tidemark_method), while a backup runs:
 *
 *     exports of NODE        export tidemark-R
 *          |                      |
 *          |                 tidemark-R-snap      snapshot-access
 *          |                      |
 *     tidemark-R-cbw  <-----------+               copy-before-write
 *          |        \
 *        NODE     tidemark-R-temp                 temporary image: old data of overwritten clusters
 *
 * In QEMU and qemu-storage-daemon from 7.2 on (qemu_method), where exports cannot be moved:
 *
 *     users of NODE                  export tidemark-R
 *          |                              |
 *     tidemark-R-cbw  --------->  tidemark-R-temp    temporary image, qcow2
 *          |           job              |
 *        NODE  <----------------------- +            its backing file
 *
 * The job tidemark-R is a `blockdev-backup` with sync=none: it copies old data before it is
 * overwritten. QEMU has no way to have a write go on when that copy fails.
 *
 * Where that matters (--cbw-timeout), the device of a guest can be moved, by its property `drive`,
 * to filters as above (qemu_filter_method): one disk at a time, and without a transaction.
 *
 *     bitmaps of NODE:  tidemark-R-<last backup>  frozen (an incremental backup)
 *                       tidemark-R-<this backup>  recording since the checkpoint
 *
 * Main reactor, in a coroutine; all `co_` functions yield, the others do not. They return 0 or
 * -errno.
 */
#ifndef TIDEMARK_BACKUP_DAEMON_DISK_H
#define TIDEMARK_BACKUP_DAEMON_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backup/qmp_client.h"
#include "backup/repository.h"
#include "backup/source.h"
#include "base/error.h"
#include "nbd/client.h"

#define SOURCE_NAME_SIZE 32

struct daemon_disk {
    struct qmp_client *qmp;
    const char *node; /* borrowed */
    char repository[REPOSITORY_ID_SIZE];
    char prefix[SOURCE_NAME_SIZE]; /* "tidemark-R": also the export's id and name, and the job's */
    char cbw[SOURCE_NAME_SIZE], snap[SOURCE_NAME_SIZE], temp[SOURCE_NAME_SIZE];
    char file[SOURCE_NAME_SIZE]; /* below the temporary image, of the method for QEMU */
};

/* What the daemon has, as far as a backup needs it. */
struct daemon_state {
    bool found; /* the node exists */
    bool read_only;
    bool encrypted;      /* on its storage */
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
    char *temp_image; /* path of the temporary image; NULL without has_temp, or if not known */
    char **others;    /* ids of other repositories that have a filter on the same disk */
    size_t other_count;
    char **sockets; /* paths that NBD servers of runs would have, by the temporary images */
    size_t socket_count;
};

/* Release what `s` holds, and make it empty. */
void daemon_state_clear(struct daemon_state *s);
#define DAEMON_STATE_AUTO(name)                                                                    \
    __attribute__((cleanup(daemon_state_clear))) struct daemon_state name = {0}

/* Begin to work with a daemon. `node` and the connection are borrowed; `repository` is an id. */
void daemon_disk_init(struct daemon_disk *s, struct qmp_client *qmp, const char *node,
                      const char *repository);

/* Query the daemon. *ret_state is empty on failure. */
int daemon_disk_co_inspect(struct daemon_disk *s, struct daemon_state *ret_state,
                           struct error *err);
/*
 * The name of the node that `name` means: a node, or a device by its own name or its id. *ret_node
 * is malloc'ed; a copy of `name` if there is nothing by that name.
 */
int daemon_co_find_node(struct qmp_client *qmp, const char *name, char **ret_node,
                        struct error *err);

/*
 * The node below the filter of a run that may have been killed: the format node with the same file,
 * in the answer of query-named-block-nodes. `name` itself if that is no such filter. Borrowed.
 */
const char *daemon_skip_own_filter(struct json_object *nodes, const char *name);

/*
 * Warn of nodes that can be written and that nothing uses: a backup of all disks leaves them out.
 * Yields.
 */
void daemon_co_warn_of_unused(struct qmp_client *qmp);

/* The bitmap of this name; NULL: there is none. */
const struct source_bitmap *daemon_find_bitmap(const struct daemon_state *state, const char *name);

/* --- methods --- */

struct daemon_checkpoint {
    struct daemon_disk *disk;
    const struct daemon_state *state;
    const char *started;   /* bitmap that begins; NULL: none, the disk is read-only */
    const char *frozen;    /* bitmap of the last backup; NULL: everything is read */
    bool whole;            /* everything can be read, and not only what `frozen` marks */
    const char *temp_path; /* the temporary image */
    bool temp_is_qcow2;
    /* Bytes, if the daemon makes the image, in the directory temp_path; 0: it exists. */
    uint64_t temp_size;
    unsigned timeout_s; /* limit of the time that a guest's write waits for it; 0: none */
};

struct daemon_method {
    /* The temporary image has to be qcow2, and the disk becomes its backing file. */
    bool needs_qcow2;
    /* A failing temporary image makes the guest's writes fail, so space has to be watched. */
    bool temp_can_hurt;
    /*
     * Remove the filter and everything else of a run but the bitmaps. The temporary image stays:
     * state->temp_image of the last query names it.
     */
    int (*co_take_down)(struct daemon_disk *s, struct error *err);
    /*
     * Take a run down, and put the bitmaps in order. `last` is the bitmap of the newest complete
     * backup (NULL: none), which stays and records. If a later run had frozen it, what was recorded
     * since is merged into it.
     */
    int (*co_settle)(struct daemon_disk *s, const char *last, struct error *err);
    /*
     * Make the checkpoint of several disks of one daemon, in one transaction: a bitmap begins, the
     * bitmap of the last backup is frozen, and the point-in-time view is set up over the temporary
     * image. *begin and *end are the moments right before and after. On failure nothing is left.
     */
    int (*co_checkpoint)(const struct daemon_checkpoint *list, size_t count,
                         struct backup_moment *begin, struct backup_moment *end, struct error *err);
    /*
     * The address of the daemon's NBD server; if it has none, start one on `own_socket` (NULL: that
     * is an error). *ret_address is to be cleared by the caller.
     */
    int (*co_nbd_address)(struct daemon_disk *s, const char *own_socket,
                          struct socket_address *ret_address, struct error *err);
    /*
     * Export the point-in-time view under the name s->prefix, with the bitmap `frozen` unless that
     * is NULL.
     */
    int (*co_export)(struct daemon_disk *s, const char *frozen, struct error *err);
};

extern const struct daemon_method tidemark_method, qemu_method, qemu_filter_method;

/*
 * Find out what listens at a QMP socket. `limit`: the time that a guest's write waits has to be
 * limited. -ENOTSUP: it lacks what backups need.
 */
int daemon_co_choose_method(struct qmp_client *qmp, bool limit,
                            const struct daemon_method **ret_method, struct error *err);

/* --- for methods: arguments of commands, which are consumed --- */

/* Add a member to `o`, and return `o`, so that calls can be nested. */
struct json_object *qmp_with(struct json_object *o, const char *key, struct json_object *value);
struct json_object *qmp_with_string(struct json_object *o, const char *key, const char *value);
static inline struct json_object *qmp_object(void)
{
    return json_object_new_object();
}
/* Names a bitmap of the disk. */
struct json_object *daemon_bitmap_ref(const struct daemon_disk *s, const char *name);
/* Arguments of block-dirty-bitmap-add. */
struct json_object *daemon_new_bitmap(const struct daemon_disk *s, const struct daemon_state *state,
                                      const char *name);

/* Arguments of block-export-add, for an export of `node` under the name s->prefix. */
struct json_object *daemon_export_arguments(const struct daemon_disk *s, const char *node);

/* --- for methods: transactions --- */

/* Add an action; `data` is consumed. The second: one whose data names a bitmap. */
void daemon_add_action(struct json_object *actions, const char *type, struct json_object *data);
void daemon_add_bitmap_action(struct json_object *actions, const char *type,
                              const struct daemon_disk *s, const char *name);
/* What makes the bitmaps agree with `last`; see co_settle. */
void daemon_settle_bitmaps(struct daemon_disk *s, const struct daemon_state *state,
                           const char *last, struct json_object *actions);
/* Run a transaction; nothing is sent if it has no actions. `actions` is consumed. */
int daemon_co_transact(struct qmp_client *qmp, struct json_object *actions, struct error *err);

/* --- for methods: exports and servers --- */

/* Export the view, with the bitmap `frozen` of the disk (NULL: none): see struct daemon_method. */
int daemon_co_export_view(struct daemon_disk *s, const char *frozen, struct error *err);
/*
 * The digests of clusters of the view, computed by the daemon: see co_digests of struct
 * pull_input_ops. -ENOSYS: this daemon has no command for that.
 */
int daemon_co_digests(struct daemon_disk *s, uint64_t offset, uint64_t length, uint8_t *ret_digests,
                      uint64_t *ret_count);
/*
 * Delete the export, and wait until it is gone: its clients have to leave and its requests to end.
 */
int daemon_co_delete_export(struct daemon_disk *s, struct error *err);
/* Start an NBD server on this unix socket. */
int daemon_co_start_server(struct daemon_disk *s, const char *socket,
                           struct socket_address *ret_address, struct error *err);
/* Stop the server that a run had started on this socket, if nobody uses it; remove the socket. */
void daemon_co_stop_server(struct qmp_client *qmp, const char *socket);

/* --- of both methods for QEMU --- */

/* As those of struct daemon_method. */
int qemu_co_take_down(struct daemon_disk *s, struct error *err);
int qemu_co_settle(struct daemon_disk *s, const char *last, struct error *err);
int qemu_co_nbd_address(struct daemon_disk *s, const char *own_socket,
                        struct socket_address *ret_address, struct error *err);
/* Move the devices that use node `from` to node `to` (NULL: only count). *ret_count: how many. */
int qemu_co_move_devices(struct qmp_client *qmp, const char *from, const char *to,
                         size_t *ret_count, struct error *err);
/* Delete the node of the temporary image; others may hold the node for a moment. */
int qemu_co_delete_temp(struct daemon_disk *s, struct error *err);

/* --- for what talks to a daemon --- */

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
