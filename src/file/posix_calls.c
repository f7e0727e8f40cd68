/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls that a local file system answers at once, but for which a network file system waits for its
 * server: attributes, locks, close (which writes cached data). A daemon makes them on the offload
 * pool (loop_co_brief()).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/list.h"
#include "block/passed_fd.h"
#include "file/posix_file.h"
#include "loop/loop.h"

/* --- size */

struct size_call {
    int fd;
    bool is_device;
    uint64_t size;
};

int posix_file_size(int fd, bool is_device, uint64_t *ret_size)
{
    struct stat st;
    off_t end;

    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    /* Files of the system whose contents are made when they are read have no end. */
    if (is_device ? S_ISCHR(st.st_mode) : st.st_size == 0) {
        end = lseek(fd, 0, SEEK_END);
        *ret_size = end > 0 ? (uint64_t)end : 0;
        return end < 0 ? -errno : 0;
    }
    if (is_device) {
        return ioctl(fd, BLKGETSIZE64, ret_size) < 0 ? -errno : 0;
    }
    *ret_size = (uint64_t)st.st_size;
    return 0;
}

static int get_size(void *arg)
{
    struct size_call *c = arg;

    return posix_file_size(c->fd, c->is_device, &c->size);
}

int posix_file_co_size(int fd, bool is_device, uint64_t *ret_size)
{
    struct size_call c = {.fd = fd, .is_device = is_device};
    int r = loop_co_brief(get_size, &c);

    if (r == 0) {
        *ret_size = c.size;
    }
    return r;
}

/* --- locks */

static int query_locks(void *arg)
{
    return image_lock_is_supported(*(int *)arg);
}

bool posix_file_co_has_locks(int fd)
{
    return loop_co_brief(query_locks, &fd) > 0;
}

struct lock_call {
    struct image_lock *lock;
    unsigned perm, shared;
    const char *name;
    struct error *err;
};

static int set_lock(void *arg)
{
    const struct lock_call *c = arg;

    return image_lock_set(c->lock, c->perm, c->shared, c->name, c->err);
}

int posix_file_co_lock(struct image_lock *l, unsigned perm, unsigned shared, const char *name,
                       struct error *err)
{
    struct lock_call c = {l, perm, shared, name, err};

    return loop_co_brief(set_lock, &c);
}

struct copy_lock_call {
    const struct image_lock *lock;
    int fd;
    const char *name;
    struct error *err;
};

static int copy_lock(void *arg)
{
    const struct copy_lock_call *c = arg;

    return image_lock_copy(c->lock, c->fd, c->name, c->err);
}

int posix_file_co_copy_lock(const struct image_lock *l, int fd, const char *name, struct error *err)
{
    struct copy_lock_call c = {l, fd, name, err};

    return loop_co_brief(copy_lock, &c);
}

/* --- names and descriptors */

static int close_file(void *arg)
{
    return fdset_close(*(int *)arg);
}

void posix_file_co_close_fd(int fd)
{
    loop_co_brief(close_file, &fd);
}

static int reopen_buffered(void *arg)
{
    char path[32];
    int fd;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", *(int *)arg);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int posix_file_co_reopen_buffered(int fd)
{
    return loop_co_brief(reopen_buffered, &fd);
}

/* --- questions that queries ask */

/* A question to the file system, on the main reactor. */
struct file_question {
    struct loop_call call;
    /* In `late`, when nobody waits any more. */
    struct list link;
    /* NULL: the node has been closed since. */
    const struct posix_file *file;
    int fd;
    posix_file_ask *ask;
    uint64_t value;
};

static pthread_mutex_t late_guard = PTHREAD_MUTEX_INITIALIZER;
static struct list late = LIST_INIT(late);

static int ask_blocking(struct loop_call *call)
{
    struct file_question *q = container_of(call, struct file_question, call);

    return q->ask(q->fd, &q->value);
}

static void answered_late(struct loop_call *call)
{
    struct file_question *q = container_of(call, struct file_question, call);

    pthread_mutex_lock(&late_guard);
    list_remove(&q->link);
    pthread_mutex_unlock(&late_guard);
    free(q);
}

/* How long to wait for an answer about a file; 0: another one is late. Nanoseconds. */
static int64_t patience_with(const struct posix_file *f)
{
    const struct file_question *q;
    int64_t patience;

    pthread_mutex_lock(&late_guard);
    patience = list_is_empty(&late) ? LOOP_PATIENCE_NS : LOOP_LATE_PATIENCE_NS;
    LIST_FOREACH (q, &late, link) {
        patience = q->file == f ? 0 : patience;
    }
    pthread_mutex_unlock(&late_guard);
    return patience;
}

/*
 * Who serves nobody else waits for as long as it takes. So does a guest's request, on a reactor of
 * another thread: it needs the answer, and a coroutine that stays there keeps that from ending.
 */
static int co_ask_here(const struct posix_file *f, posix_file_ask *ask, uint64_t *ret_value)
{
    struct file_question q = {.call.fn = ask_blocking, .fd = f->fd, .ask = ask};

    loop_co_call_within(&q.call, INT64_MAX);
    if (q.call.result == 0) {
        *ret_value = q.value;
    }
    return q.call.result;
}

int posix_file_co_ask(const struct posix_file *f, posix_file_ask *ask, uint64_t *ret_value)
{
    struct file_question *q;
    int64_t patience_ns;
    int r;

    if (!loop_is_serving() || reactor_current() != reactor_main()) {
        return co_ask_here(f, ask, ret_value);
    }
    patience_ns = patience_with(f);
    if (patience_ns == 0) {
        return -ETIMEDOUT;
    }
    q = malloc(sizeof(*q));
    if (!q) {
        return -ENOMEM;
    }
    *q = (struct file_question){.call = {.fn = ask_blocking, .end_late = answered_late},
                                .file = f,
                                .fd = f->fd,
                                .ask = ask};
    list_init(&q->link);
    if (!loop_co_call_within(&q->call, patience_ns)) {
        pthread_mutex_lock(&late_guard);
        list_append(&late, &q->link);
        pthread_mutex_unlock(&late_guard);
        return -ETIMEDOUT;
    }
    r = q->call.result;
    if (r == 0) {
        *ret_value = q->value;
    }
    free(q);
    return r;
}

void posix_file_forget_questions(const struct posix_file *f)
{
    struct file_question *q;

    pthread_mutex_lock(&late_guard);
    LIST_FOREACH (q, &late, link) {
        if (q->file == f) {
            q->file = NULL;
        }
    }
    pthread_mutex_unlock(&late_guard);
}
