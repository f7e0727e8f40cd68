/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the drivers `file` and `host_device` share. Reading order: posix_open.c, posix_calls.c, posix_io.c,
 * posix_status.c, posix_space.c (zeroes, discard, size), punch.c, posix_create.c.
 */
#ifndef TIDEMARK_FILE_POSIX_FILE_H
#define TIDEMARK_FILE_POSIX_FILE_H

#include "base/checked.h"
#include "block/driver.h"
#include "file/image_lock.h"
#include "file/punch.h"

#define STATUS_CACHE_EXTENTS 64

/*
 * Extents as SEEK_DATA and SEEK_HOLE found them, one after the other from `start`. A hole is believed until
 * the next write to the node, and only where locks keep others from writing; data until space is given back. Then they
 * are looked for again.
 */
struct status_cache {
    pthread_mutex_t guard; /* guards all below */
    uint64_t start;
    uint64_t ends[STATUS_CACHE_EXTENTS]; /* of each extent, rising; the next begins there */
    unsigned count;                      /* 0: nothing known */
    bool first_is_data;                  /* from there on they alternate */
    uint64_t write_generation;           /* of the node, before the search */
    uint64_t space_generation;           /* of the file, before the search */
};

/*
 * Flushes that come while one runs wait and share the next. After a failure the kernel may have dropped what it could
 * not write, and it tells only once; so every flush fails from then on, until the file is opened anew.
 */
struct sync_group {
    pthread_mutex_t guard; /* guards all below */
    bool running;
    uint64_t started, done; /* numbers of fdatasync calls */
    int error;              /* 0, or the first failure as -errno */
    struct co_queue waiters;
};

struct posix_file {
    int fd;
    bool is_device;
    bool locking;            /* image locks are in use */
    atomic_bool sole_writer; /* locks keep other processes from writing */
    uint32_t block_size;     /* of O_DIRECT requests, else 1 */
    struct image_lock lock;
    struct sync_group sync;
    struct status_cache status;
    struct punch_queue punches;
    _Atomic uint64_t space_generation; /* counts what makes holes or moves the end */
    atomic_bool no_zero_range;         /* EOPNOTSUPP was seen */
    atomic_bool no_punch_hole;         /* likewise */
    atomic_bool no_allocate;           /* likewise */
};

/* --- posix_open.c --- */
int posix_file_co_open_regular(struct block_node *node, struct options *opts, struct error *err);
int posix_file_co_open_device(struct block_node *node, struct options *opts, struct error *err);
void posix_file_co_close(struct block_node *node);
int posix_file_co_set_perm(struct block_node *node, unsigned perm, unsigned shared,
                           struct error *err);
int posix_file_parse_filename(const char *filename, struct options *opts, struct error *err);

/*
 * Disks have whole sectors. So a file that ends within one is a node that ends with it: the rest reads as zeroes, and the
 * file grows over it when it is written.
 */
#define POSIX_FILE_SECTOR 512

static inline uint64_t posix_file_node_size(uint64_t file_size)
{
    return file_size > INT64_MAX - POSIX_FILE_SECTOR ? file_size
                                                     : round_up(file_size, POSIX_FILE_SECTOR);
}

/* --- posix_calls.c: what may block, made on the offload pool where somebody else would wait --- */
/* Size in bytes of a regular file or block device. 0 or -errno; the first one blocks, for functions that are there already. */
int posix_file_size(int fd, bool is_device, uint64_t *ret);
int posix_file_co_size(int fd, bool is_device, uint64_t *ret);
/* As image_lock_is_supported() and image_lock_set(). */
bool posix_file_co_has_locks(int fd);
int posix_file_co_lock(struct image_lock *l, unsigned perm, unsigned shared, const char *name,
                       struct error *err);
void posix_file_co_close_fd(int fd);
/* 0 or -errno. */
int posix_file_co_unlink(const char *path);
/* Another descriptor of the file, for writing through the page cache; or -errno. */
int posix_file_co_reopen_buffered(int fd);

/* --- posix_io.c --- */
void sync_group_init(struct sync_group *g);
void sync_group_destroy(struct sync_group *g);
int posix_file_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
int posix_file_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
int posix_file_co_copy_from(struct block_node *node, uint64_t offset, struct block_node *source,
                            uint64_t source_offset, uint64_t length);
int posix_file_co_flush(struct block_node *node);

/* --- posix_status.c --- */
void status_cache_init(struct status_cache *c);
void status_cache_destroy(struct status_cache *c);
int posix_file_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                         struct block_status *ret);

/* --- posix_space.c --- */
int posix_file_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                               unsigned flags);
int posix_file_co_zero_device(struct block_node *node, uint64_t offset, uint64_t length,
                              unsigned flags);
int posix_file_co_discard(struct block_node *node, uint64_t offset, uint64_t length);
int posix_file_co_discard_device(struct block_node *node, uint64_t offset, uint64_t length);
int posix_file_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                           struct error *err);
int posix_file_co_extend(struct block_node *node, uint64_t size);
int posix_file_co_truncate_device(struct block_node *node, uint64_t size,
                                  enum block_prealloc prealloc, struct error *err);
int posix_file_co_allocated_size(struct block_node *node, uint64_t *ret);
struct json_object *posix_file_co_specific_info(struct block_node *node);
/* Make the file `size` bytes long, preallocated as said; `name` is for messages. On failure it has its old size. Yields. */
int posix_file_co_resize(int fd, const char *name, uint64_t size, enum block_prealloc prealloc,
                         struct error *err);

/* --- posix_create.c --- */
extern const struct block_option_desc posix_file_create_options[];
/* `filename` may begin with one of the schemes of the drivers. Checks that `opts` is empty when its own are taken. */
int posix_file_co_create(const char *filename, uint64_t size, struct options *opts,
                         struct error *err);

#endif
