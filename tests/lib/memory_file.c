/* SPDX-License-Identifier: Apache-2.0 */
#include "memory_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "co/co.h"
#include "loop/loop.h"

#define FILES_MAX 8
#define LIMIT_DEFAULT (256 * MiB)

static struct memory_file *files[FILES_MAX];

struct memory_file *memory_file(const char *name)
{
    for (unsigned i = 0; i < FILES_MAX; i++) {
        if (!files[i]) {
            files[i] = calloc(1, sizeof(*files[i]));
            if (!files[i]) {
                break;
            }
            snprintf(files[i]->name, sizeof(files[i]->name), "%s", name);
            files[i]->limit = LIMIT_DEFAULT;
            pthread_mutex_init(&files[i]->lock, NULL);
        }
        if (strcmp(files[i]->name, name) == 0) {
            return files[i];
        }
    }
    abort();
}

static void unmap(struct memory_file *f)
{
    if (f->data && munmap(f->data, f->capacity) < 0) {
        abort();
    }
}

void memory_file_script(struct memory_file *f, bool scripted)
{
    pthread_mutex_lock(&f->lock);
    f->scripted = scripted;
    f->flushes = 0;
    for (unsigned i = 0; i < MEMORY_FILE_SCRIPT; i++) {
        f->script[i] = scripted ? 1 : MIN(f->script[i], 0);
    }
    pthread_mutex_unlock(&f->lock);
}

void memory_file_end_flush(struct memory_file *f, unsigned n, int result)
{
    pthread_mutex_lock(&f->lock);
    f->script[n] = result;
    pthread_mutex_unlock(&f->lock);
}

unsigned memory_file_flushes(struct memory_file *f)
{
    unsigned n;

    pthread_mutex_lock(&f->lock);
    n = f->flushes;
    pthread_mutex_unlock(&f->lock);
    return n;
}

void memory_file_free_all(void)
{
    for (unsigned i = 0; i < FILES_MAX && files[i]; i++) {
        pthread_mutex_destroy(&files[i]->lock);
        unmap(files[i]);
        free(files[i]);
        files[i] = NULL;
    }
}

static int grow_locked(struct memory_file *f, uint64_t size)
{
    if (size > f->limit) {
        return -ENOSPC;
    }
    if (size > f->capacity) {
        uint64_t capacity = MAX(2 * f->capacity, round_up(size, 64 * KiB));
        /* Pages that nobody touches cost nothing: an image has large holes. */
        uint8_t *data = mmap(NULL, capacity, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (data == MAP_FAILED) {
            abort();
        }
        if (f->size > 0) {
            memcpy(data, f->data, f->size);
        }
        unmap(f);
        f->data = data;
        f->capacity = capacity;
    }
    f->size = MAX(f->size, size);
    return 0;
}

static void shrink_locked(struct memory_file *f, uint64_t size)
{
    if (f->size > size) {
        memset(f->data + size, 0, f->size - size);
    }
    f->size = size;
}

void memory_file_grow(struct memory_file *f, uint64_t size)
{
    if (grow_locked(f, size) < 0) {
        abort();
    }
}

void memory_file_clear(struct memory_file *f, uint64_t size)
{
    if (f->data && madvise(f->data, f->capacity, MADV_DONTNEED) < 0) {
        abort();
    }
    f->size = 0;
    memory_file_grow(f, size);
}

void memory_file_copy(struct memory_file *to, const struct memory_file *from)
{
    if (to->size > from->size) {
        shrink_locked(to, from->size);
    }
    if (grow_locked(to, from->size) < 0) {
        abort();
    }
    memcpy(to->data, from->data, from->size);
}

void memory_file_fail(struct memory_file *f, unsigned kinds, unsigned after, int errnum)
{
    pthread_mutex_lock(&f->lock);
    f->fail_kinds = kinds;
    f->fail_after = after;
    f->fail_errno = errnum;
    pthread_mutex_unlock(&f->lock);
}

/* --- driver ----------------------------------------------------------------------------------- */

static struct memory_file *file_of(struct block_node *node)
{
    return *(struct memory_file **)node->opaque;
}

/* Returns with the lock held. */
static int co_begin(struct memory_file *f, unsigned kind, uint64_t offset, uint64_t length)
{
    co_reschedule();
    pthread_mutex_lock(&f->lock);
    if (f->fail_kinds & kind) {
        if (f->fail_after == 0) {
            return -f->fail_errno;
        }
        f->fail_after--;
    }
    if (kind != MEMORY_FILE_READ && f->log_count < MEMORY_FILE_LOG) {
        f->log[f->log_count++] = (struct memory_file_op){kind, offset, length};
    }
    return 0;
}

static int end(struct memory_file *f, int r)
{
    pthread_mutex_unlock(&f->lock);
    return r;
}

static int memory_parse_filename(const char *filename, struct options *opts, struct error *err)
{
    options_set_str(opts, "name", strchr(filename, ':') + 1);
    return 0;
}

static int memory_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    AUTO_FREE char *name = NULL;
    int r = options_take_str(opts, "name", &name, err);

    if (r < 0) {
        return r;
    }
    *(struct memory_file **)node->opaque = memory_file(name);
    block_node_set_size(node, file_of(node)->size);
    return 0;
}

static int memory_co_create(const char *filename, uint64_t size, struct options *opts,
                            struct error *err)
{
    struct memory_file *f = memory_file(strchr(filename, ':') + 1);

    shrink_locked(f, 0);
    return grow_locked(f, size);
}

static int memory_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    struct memory_file *f = file_of(node);
    int r = co_begin(f, MEMORY_FILE_READ, offset, iov.size);

    if (r == 0) {
        iov_copy_from_buf(iov, 0, f->data + offset, iov.size);
    }
    return end(f, r);
}

static int memory_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                             unsigned flags)
{
    struct memory_file *f = file_of(node);
    int r = co_begin(f, MEMORY_FILE_WRITE, offset, iov.size);

    r = r < 0 ? r : grow_locked(f, offset + iov.size);
    if (r == 0) {
        iov_copy_to_buf(iov, 0, f->data + offset, iov.size);
    }
    return end(f, r);
}

static int memory_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                  unsigned flags)
{
    struct memory_file *f = file_of(node);
    int r = co_begin(f, MEMORY_FILE_WRITE, offset, length);

    r = r < 0 ? r : grow_locked(f, offset + length);
    if (r == 0) {
        memset(f->data + offset, 0, length);
    }
    return end(f, r);
}

static int memory_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct memory_file *f = file_of(node);
    int r = co_begin(f, MEMORY_FILE_DISCARD, offset, length);

    if (r == 0 && offset < f->size) {
        memset(f->data + offset, 0, MIN(length, f->size - offset));
    }
    return end(f, r);
}

/* As the script says; 1: there is none. */
static int co_scripted_flush(struct memory_file *f)
{
    unsigned n;
    int r;

    pthread_mutex_lock(&f->lock);
    n = f->flushes++;
    r = f->scripted && n < MEMORY_FILE_SCRIPT ? 1 : 0;
    pthread_mutex_unlock(&f->lock);
    if (r == 0) {
        return 1;
    }
    while (r == 1) {
        loop_co_sleep(NS_PER_MS / 10);
        pthread_mutex_lock(&f->lock);
        r = f->script[n];
        pthread_mutex_unlock(&f->lock);
    }
    return r;
}

static int memory_co_flush(struct block_node *node)
{
    struct memory_file *f = file_of(node);
    int r = co_scripted_flush(f);

    if (r <= 0) {
        return r;
    }
    return end(f, co_begin(f, MEMORY_FILE_FLUSH, 0, 0));
}

static int memory_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                              struct error *err)
{
    struct memory_file *f = file_of(node);
    int r = 0;

    if (size < f->size) {
        shrink_locked(f, size);
    } else {
        r = grow_locked(f, size);
    }
    block_node_set_size(node, f->size);
    return r;
}

static int memory_co_allocated_size(struct block_node *node, uint64_t *ret_size)
{
    const struct memory_file *f = file_of(node);

    *ret_size = f->stored;
    return f->tells_stored ? f->stored_result : -ENOTSUP;
}

const struct block_driver memory_file_driver = {
    .name = "memory-file",
    .instance_size = sizeof(struct memory_file *),
    .is_protocol = true,
    .keeps_zero_beyond_eof = true,
    .schemes = (const char *const[]){"memory", NULL},
    .parse_filename = memory_parse_filename,
    .co_open = memory_co_open,
    .co_create = memory_co_create,
    .co_preadv = memory_co_preadv,
    .co_pwritev = memory_co_pwritev,
    .co_write_zeroes = memory_co_write_zeroes,
    .co_discard = memory_co_discard,
    .co_flush = memory_co_flush,
    .co_truncate = memory_co_truncate,
    .co_allocated_size = memory_co_allocated_size,
};
