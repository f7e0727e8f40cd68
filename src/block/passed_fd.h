/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors that a manager has passed to this process.
 *
 * A *descriptor set* holds descriptors of one file, opened in different ways. When a file is opened
 * by the path /dev/fdset/ID, the descriptor whose access mode and O_DIRECT are those asked for is
 * duplicated. Set and duplicates end separately: a set from which all descriptors were removed is
 * gone when the last duplicate is closed.
 *
 * A *named descriptor* belongs to a monitor, and can be used once: as the address of a socket.
 *
 * Sets are for any thread; names for the main reactor. Nothing here yields.
 */
#ifndef TIDEMARK_BLOCK_PASSED_FD_H
#define TIDEMARK_BLOCK_PASSED_FD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* --- sets ------------------------------------------------------------------------------------- */

#define FDSET_PREFIX "/dev/fdset/"

/*
 * Add `fd`, which is owned by the set on success, to the set `id`, or to a new one with the lowest
 * free id if `id` is NULL. `opaque` describes it for query-fdsets; NULL: nothing. *ret_id: the set.
 * -EINVAL: `id` is negative; -ENOMEM.
 */
int fdset_add(int fd, const int64_t *id, const char *opaque, int64_t *ret_id, struct error *err);

/*
 * Take a descriptor out of a set, or all of them if `fd` is NULL: their number, and an array of
 * them. The caller closes them, and frees the array. -ENOENT: there is none; -ENOMEM.
 */
int fdset_take(int64_t id, const int64_t *fd, int **ret_fds, struct error *err);

/* What query-fdsets shows: `set` is called for each set, and `fd` for each descriptor in it. */
struct fdset_visitor {
    void (*set)(int64_t id, void *arg);
    void (*fd)(int fd, const char *opaque, void *arg);
    void *arg;
};

/* Visit all sets, the greatest id first, and the descriptors in the order in which they came. */
void fdset_visit(const struct fdset_visitor *visitor);

/* Whether a path is that of a set, well-formed or not. */
bool fdset_is_path(const char *path);

/*
 * As open(2) with O_CLOEXEC, for a path of a set: another descriptor of the open file, which shares
 * its position, flags and locks. Ends with fdset_close(). -EINVAL: the path is malformed; -ENOENT:
 * there is no such set; -EACCES: none of its descriptors was opened in this way; errors of dup(2).
 */
int fdset_open(const char *path, int flags, struct error *err);

/*
 * As fdset_open() of the set from which `fd` comes. The new descriptor has to be of the same file:
 * -EACCES if the set has none such. -ENOENT: `fd` comes from no set.
 */
int fdset_reopen(int fd, int flags);

/* Whether `fd` comes from fdset_open(), and no other duplicate of the same descriptor is open. */
bool fdset_is_last(int fd);

/* As close(2), for any descriptor; those of fdset_open() are forgotten. */
int fdset_close(int fd);

/* --- names ------------------------------------------------------------------------------------ */

struct fd_names;

/* The names of a monitor: a reference; NULL without memory. */
struct fd_names *fd_names_new(void);
struct fd_names *fd_names_ref(struct fd_names *names);
/* With the last reference the descriptors are closed. NULL is fine. */
void fd_names_unref(struct fd_names *names);
/* Close all descriptors now, by loop_co_close(). Yields. */
void fd_names_co_close_all(struct fd_names *names);

/* Give `fd` (owned from then on) a name; one that had the name before is closed. -ENOMEM. */
int fd_names_put(struct fd_names *names, const char *name, int fd, struct error *err);
/* Take a descriptor, which the caller owns, from a name; -ENOENT: there is none. */
int fd_names_take(struct fd_names *names, const char *name);

/* Memory of the caller. */
struct fd_names_use {
    struct fd_names_use *next;
    const void *task;
    struct fd_names *names;
};
/* The running coroutine executes a command of that monitor from now on, and no longer. */
void fd_names_begin(struct fd_names_use *use, struct fd_names *names);
void fd_names_end(struct fd_names_use *use);

/*
 * The descriptor of a socket by an address of type fd: a name, in a command of a monitor, or a
 * number elsewhere. Non-blocking and close-on-exec; the caller owns it. -ENOENT, -EINVAL;
 * -ENOTSOCK: it is no socket, and a named one is closed.
 */
int passed_socket(const char *text, struct error *err);

#endif
