/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/list.h"
#include "block/passed_fd.h"

struct member {
    struct list link; /* in `members` or `copies` of its set */
    int fd;
    /* of the descriptor that was passed; its copies, with which it shares locks, have the same */
    uint64_t serial;
    char *opaque; /* owned; NULL: none */
};

struct fdset {
    struct list link; /* in `fdsets`, sorted by id */
    int64_t id;
    struct list members; /* struct member: what was passed; owned */
    struct list copies;  /* struct member: duplicates in use, closed by their users */
};

/* Guards all below. Files are opened and closed on the offload pool. */
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static struct list fdsets = LIST_INIT(fdsets);
static uint64_t last_serial;

/* --- sets and members ------------------------------------------------------------------------- */

static struct fdset *find_fdset(int64_t id)
{
    struct fdset *set;

    LIST_FOREACH (set, &fdsets, link) {
        if (set->id == id) {
            return set;
        }
    }
    return NULL;
}

/* The set of this id, which is made if there is none; NULL without memory. */
static struct fdset *get_fdset(int64_t id)
{
    struct fdset *set = find_fdset(id), *next;

    if (set || !(set = calloc(1, sizeof(*set)))) {
        return set;
    }
    set->id = id;
    list_init(&set->members);
    list_init(&set->copies);
    LIST_FOREACH (next, &fdsets, link) {
        if (next->id > id) {
            break;
        }
    }
    /* Before `next`, or before the head: at the end. */
    list_append(&next->link, &set->link);
    return set;
}

static int64_t lowest_free_id(void)
{
    const struct fdset *set;
    int64_t id = 0;

    LIST_FOREACH (set, &fdsets, link) {
        if (set->id != id) {
            break;
        }
        id++;
    }
    return id;
}

static struct member *new_member(int fd, uint64_t serial, const char *opaque)
{
    struct member *m = calloc(1, sizeof(*m));

    if (m && opaque && !(m->opaque = strdup(opaque))) {
        free(m);
        return NULL;
    }
    if (m) {
        m->fd = fd;
        m->serial = serial;
    }
    return m;
}

static void free_member(struct member *m)
{
    list_remove(&m->link);
    free(m->opaque);
    free(m);
}

static void free_if_empty(struct fdset *set)
{
    if (list_is_empty(&set->members) && list_is_empty(&set->copies)) {
        list_remove(&set->link);
        free(set);
    }
}

int fdset_add(int fd, const int64_t *id, const char *opaque, int64_t *ret_id, struct error *err)
{
    struct member *m;
    struct fdset *set;

    if (id && *id < 0) {
        return error_set(err, EINVAL, "Parameter 'fdset-id' expects a non-negative value");
    }
    pthread_mutex_lock(&guard);
    m = new_member(fd, ++last_serial, opaque);
    set = m ? get_fdset(id ? *id : lowest_free_id()) : NULL;
    if (set) {
        list_append(&set->members, &m->link);
        *ret_id = set->id;
    }
    pthread_mutex_unlock(&guard);
    if (!set) {
        if (m) {
            free(m->opaque);
        }
        free(m);
        return error_out_of_memory(err);
    }
    return 0;
}

/* Take descriptors out of the set, into an array that has room for all; returns their number. */
static int take_from_set(struct fdset *set, const int64_t *fd, int *fds)
{
    struct member *m, *next;
    int count = 0;

    LIST_FOREACH_SAFE (m, next, &set->members, link) {
        if (!fd || *fd == m->fd) {
            fds[count++] = m->fd;
            free_member(m);
        }
    }
    return count;
}

static size_t count_members(const struct fdset *set)
{
    const struct member *m;
    size_t count = 0;

    LIST_FOREACH (m, &set->members, link) {
        count++;
    }
    return count;
}

/* As fdset_take(), without a message. */
static int take_locked(int64_t id, const int64_t *fd, int **ret_fds)
{
    struct fdset *set = find_fdset(id);
    int count;

    *ret_fds = set ? calloc(count_members(set) + 1, sizeof(int)) : NULL;
    if (!*ret_fds) {
        return set ? -ENOMEM : -ENOENT;
    }
    count = take_from_set(set, fd, *ret_fds);
    free_if_empty(set);
    if (count == 0 && fd) {
        free(*ret_fds);
        return -ENOENT;
    }
    return count;
}

int fdset_take(int64_t id, const int64_t *fd, int **ret_fds, struct error *err)
{
    int r;

    pthread_mutex_lock(&guard);
    r = take_locked(id, fd, ret_fds);
    pthread_mutex_unlock(&guard);
    if (r != -ENOENT) {
        return r < 0 ? error_out_of_memory(err) : r;
    }
    return fd ? error_set(err, ENOENT,
                          "File descriptor named 'fdset-id:%" PRId64 ", fd:%" PRId64 "' not found",
                          id, *fd)
              : error_set(err, ENOENT, "File descriptor named 'fdset-id:%" PRId64 "' not found",
                          id);
}

void fdset_visit(const struct fdset_visitor *visitor)
{
    pthread_mutex_lock(&guard);
    for (struct list *l = fdsets.prev; l != &fdsets; l = l->prev) {
        const struct fdset *set = container_of(l, struct fdset, link);
        const struct member *m;

        visitor->set(set->id, visitor->arg);
        LIST_FOREACH (m, &set->members, link) {
            visitor->fd(m->fd, m->opaque, visitor->arg);
        }
    }
    pthread_mutex_unlock(&guard);
}

/* --- opening ---------------------------------------------------------------------------------- */

bool fdset_is_path(const char *path)
{
    return strncmp(path, FDSET_PREFIX, strlen(FDSET_PREFIX)) == 0;
}

static int parse_fdset_path(const char *path, int64_t *ret_id)
{
    const char *text = path + strlen(FDSET_PREFIX);
    char *end;

    errno = 0;
    *ret_id = strtoll(text, &end, 10);
    return text[0] < '0' || text[0] > '9' || *end || errno ? -EINVAL : 0;
}

static bool was_opened_with(int fd, int flags)
{
    int mask = O_ACCMODE | O_DIRECT, own = fcntl(fd, F_GETFL);

    return own >= 0 && (own & mask) == (flags & mask);
}

static bool is_same_open_file(int a, int b)
{
    struct stat x, y;

    return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Duplicate the first descriptor of these flags, of the same file as `like` unless that is -1. */
static int copy_from_set(struct fdset *set, int flags, int like)
{
    const struct member *m;

    LIST_FOREACH (m, &set->members, link) {
        if (was_opened_with(m->fd, flags) && (like < 0 || is_same_open_file(m->fd, like))) {
            int fd = fcntl(m->fd, F_DUPFD_CLOEXEC, 0), code = errno;
            struct member *copy = fd < 0 ? NULL : new_member(fd, m->serial, NULL);

            if (fd >= 0 && !copy) {
                close(fd);
                return -ENOMEM;
            }
            if (copy) {
                list_append(&set->copies, &copy->link);
            }
            return fd < 0 ? -code : fd;
        }
    }
    return -EACCES;
}

int fdset_open(const char *path, int flags, struct error *err)
{
    struct fdset *set;
    int64_t id;
    int r = parse_fdset_path(path, &id);

    if (r < 0) {
        return error_set(err, -r, "Could not parse fdset %s", path);
    }
    pthread_mutex_lock(&guard);
    set = find_fdset(id);
    r = set ? copy_from_set(set, flags, -1) : -ENOENT;
    pthread_mutex_unlock(&guard);
    return r < 0 ? error_set_errno(err, -r, "Could not dup FD for %s flags %x", path,
                                   (unsigned)flags & (O_ACCMODE | O_DIRECT))
                 : r;
}

/* --- duplicates ------------------------------------------------------------------------------- */

static struct member *find_handed_out_locked(int fd, struct fdset **ret_set)
{
    struct fdset *set;
    struct member *m;

    LIST_FOREACH (set, &fdsets, link) {
        LIST_FOREACH (m, &set->copies, link) {
            if (m->fd == fd) {
                *ret_set = set;
                return m;
            }
        }
    }
    return NULL;
}

int fdset_reopen(int fd, int flags)
{
    struct fdset *set;
    int r;

    pthread_mutex_lock(&guard);
    r = find_handed_out_locked(fd, &set) ? copy_from_set(set, flags, fd) : -ENOENT;
    pthread_mutex_unlock(&guard);
    return r;
}

bool fdset_is_last(int fd)
{
    const struct member *copy, *other;
    struct fdset *set;
    unsigned count = 0;

    pthread_mutex_lock(&guard);
    copy = find_handed_out_locked(fd, &set);
    if (copy) {
        LIST_FOREACH (other, &set->copies, link) {
            count += other->serial == copy->serial;
        }
    }
    pthread_mutex_unlock(&guard);
    return count == 1;
}

int fdset_close(int fd)
{
    struct member *copy;
    struct fdset *set;

    pthread_mutex_lock(&guard);
    copy = find_handed_out_locked(fd, &set);
    if (copy) {
        free_member(copy);
        free_if_empty(set);
    }
    pthread_mutex_unlock(&guard);
    return close(fd);
}
