/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal to the drivers `file`, `host_device` and `host_cdrom`. Reading order: posix_open.c,
 * posix_calls.c, posix_io.c, posix_pages.c, posix_status.c, posix_space.c (zeroes, discard, size),
 * punch.c, posix_create.c, posix_other.c.
 *
 * * Functions with `co_` in their name run in a coroutine and may yield; the others do not yield.
 */
#ifndef TIDEMARK_FILE_POSIX_FILE_H
#define TIDEMARK_FILE_POSIX_FILE_H

#include "base/checked.h"
#include "block/driver.h"
#include "file/image_lock.h"
#include "file/punch.h"

#define STATUS_CACHE_EXTENTS 64
#define STATUS_CACHE_RUNS 4

/*
 * Adjacent extents, from `start` on, as SEEK_DATA and SEEK_HOLE found them. Data and holes
 * alternate. An answer "hole" is valid until the next write to the node, and only while locks keep
 * others from writing; an answer "data" is valid until space of the file is freed.
 */
struct status_run {
    uint64_t start;
    /* of each extent, rising; the next extent begins there */
    uint64_t ends[STATUS_CACHE_EXTENTS];
    /* 0: nothing is known */
    unsigned count;
    bool first_is_data;
    /* of the node, before the search */
    uint64_t write_generation;
    /* of the file, before the search */
    uint64_t space_generation;
};

/* Of several readers, each of which asks for one part of the file after the other. */
struct status_cache {
    /* guards all below */
    pthread_mutex_t guard;
    struct status_run runs[STATUS_CACHE_RUNS];
    /* the next one to be replaced */
    unsigned oldest;
};

/*
 * Flushes that come while one runs wait, and share the next. After a failure the kernel may have
 * dropped the data that it could not write, and it reports that only once. So every flush fails
 * from then on, until the file is opened again (rule R10, qcow2/image.h).
 */
struct sync_group {
    /* guards all below */
    pthread_mutex_t guard;
    bool running;
    /* number of fdatasync calls begun, and number of the last one that has ended */
    uint64_t started, done;
    /* 0, or the first failure as -errno */
    int error;
    struct co_queue waiters;
};

/* What requests have to keep to: more than single bytes for O_DIRECT only. */
struct posix_limits {
    uint32_t block_size, memory_alignment; /* bytes */
    uint64_t max_transfer;                 /* bytes; 0: no limit */
};

struct posix_file {
    int fd;
    /* While the node is reopened: its other descriptor; -1: none. The limits of that. */
    int other_fd;
    struct posix_limits other_limits;
    /* That is the one that was in use before. */
    bool exchanged;
    bool is_device;
    /* Pages that the kernel has are dropped when another process may have written the file. */
    bool drop_cache;
    bool native_aio; /* aio=native, which wants O_DIRECT */
    /* image locks are in use */
    bool locking;
    /* locks keep other processes from writing */
    atomic_bool sole_writer;
    /* block size of O_DIRECT requests in bytes, else 1 */
    uint32_t block_size;
    struct image_lock lock;
    struct sync_group sync;
    struct status_cache status;
    struct punch_queue punches;
    /* counts operations that make holes or move the end of the file */
    _Atomic uint64_t space_generation;
    /* the file system has refused the operation with EOPNOTSUPP */
    atomic_bool no_zero_range;
    atomic_bool no_punch_hole;
    atomic_bool no_allocate;
    /* Whether the kernel tells which pages are in memory: 1, -1: no, 0: not known yet. */
    atomic_int sees_residency;
    /* Whether it can make holes, so that a place gets other pages: likewise. */
    atomic_int detaches;
};

/* Disks have whole sectors. */
#define POSIX_FILE_SECTOR 512

/*
 * The size of the node of a file of `file_size` bytes. The node ends at the end of the sector in
 * which the file ends; the part beyond the file reads as zeroes, and a write there extends the
 * file.
 */
static inline uint64_t posix_file_node_size(uint64_t file_size)
{
    return file_size > INT64_MAX - POSIX_FILE_SECTOR ? file_size
                                                     : round_up(file_size, POSIX_FILE_SECTOR);
}

/* --- posix_open.c */

/* Functions of struct block_driver (block/driver.h). */
int posix_file_co_open_regular(struct block_node *node, struct options *opts, struct error *err);
int posix_file_co_open_device(struct block_node *node, struct options *opts, struct error *err);
void posix_file_co_close(struct block_node *node);
int posix_file_co_set_perm(struct block_node *node, unsigned perm, unsigned shared,
                           struct error *err);

/* Those that reopen a node, or take it over from another process. */
extern const char *const posix_file_reopen_options[];
int posix_file_co_reopen_prepare(struct block_node *node, struct options *opts, struct error *err);
int posix_file_co_reopen_finish(struct block_node *node, struct error *err);
void posix_file_co_reopen_commit(struct block_node *node);
void posix_file_co_reopen_abort(struct block_node *node);
int posix_file_co_reload(struct block_node *node, struct error *err);
int posix_file_co_renew_size(struct block_node *node, struct error *err);

/*
 * The limits of a descriptor that is opened with O_DIRECT, or not. 0, or -errno of asking a device.
 */
int posix_file_co_limits(int fd, bool is_device, bool direct, struct posix_limits *ret_limits);
/* Those that are in force. */
struct posix_limits posix_file_get_limits(const struct block_node *node);
void posix_file_set_limits(struct block_node *node, const struct posix_limits *limits);
/*
 * O_DIRECT wrote the whole last block of a file: cut off the part beyond the disk, if the node has
 * the write permission, and `perm` does not.
 */
void posix_file_co_trim_padding(struct block_node *node, unsigned perm);
/* -EINVAL, with the sentence for aio=native without cache.direct. */
int posix_file_refuse_native_aio(struct error *err);

/* Options of file, host_device and host_cdrom. */
extern const struct schema_type posix_file_options;
/* Of query-named-block-nodes. */
extern const struct schema_type posix_file_specific_info_type;
/* Of blockdev-create. */
extern const struct schema_type posix_file_create_type;

/* parse_filename of the driver: "PATH" or "SCHEME:PATH". 0 or -EINVAL. */
int posix_file_parse_filename(const char *filename, struct options *opts, struct error *err);

/* --- posix_calls.c: system calls that may block, on the offload pool in daemons */

/*
 * The size in bytes of a regular file or a device. 0 or -errno. The first one blocks; it is for
 * functions that run on the offload pool.
 */
int posix_file_size(int fd, bool is_device, uint64_t *ret_size);
int posix_file_co_size(int fd, bool is_device, uint64_t *ret_size);

/* As image_lock_is_supported(), image_lock_copy() and image_lock_set(). */
bool posix_file_co_has_locks(int fd);
int posix_file_co_copy_lock(const struct image_lock *l, int fd, const char *name,
                            struct error *err);
int posix_file_co_lock(struct image_lock *l, unsigned perm, unsigned shared, const char *name,
                       struct error *err);

/* As close(2). */
void posix_file_co_close_fd(int fd);

/*
 * A question about a file that queries ask: `ask` makes one call that may block, and returns 0 with
 * *ret_value set, or -errno. It may run when the file is closed already. -ETIMEDOUT, on the main
 * reactor of a program that serves others: the file system does not answer for a second, or has not
 * answered an earlier question about this file yet.
 */
typedef int posix_file_ask(int fd, uint64_t *ret_value);
int posix_file_co_ask(const struct posix_file *f, posix_file_ask *ask, uint64_t *ret_value);
/* The file is closed: the answers that are late are no longer about it. Any thread. */
void posix_file_forget_questions(const struct posix_file *f);

/*
 * Another descriptor of the same file, which writes through the page cache. The caller owns it.
 * -errno if it can't be opened.
 */
int posix_file_co_reopen_buffered(int fd);

/* --- posix_io.c */

/* No flush is in flight when the group is destroyed. */
void sync_group_init(struct sync_group *g);
void sync_group_destroy(struct sync_group *g);

/* Functions of struct block_driver. */
int posix_file_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
int posix_file_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
int posix_file_co_copy_from(struct block_node *node, uint64_t offset, struct block_node *source,
                            uint64_t source_offset, uint64_t length);
int posix_file_co_flush(struct block_node *node);

/* --- posix_pages.c */

/* A function of struct block_driver. */
int posix_file_co_read_pages(struct block_node *node, uint64_t offset, uint64_t length,
                             struct block_page_sink *sink);

/* --- posix_status.c */

/* Nothing is known at first. */
void status_cache_init(struct status_cache *c);
void status_cache_destroy(struct status_cache *c);

/* A function of struct block_driver. */
int posix_file_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                         struct block_status *ret_status);

/* --- posix_space.c */

/* Functions of struct block_driver. */
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
int posix_file_co_allocated_size(struct block_node *node, uint64_t *ret_size);
struct json_object *posix_file_co_specific_info(struct block_node *node);

/*
 * Make a regular file `size` bytes long, and preallocate what is added. `name` is for messages.
 * Returns 0 or -errno; after an error the file has its old size.
 */
int posix_file_co_resize(int fd, const char *name, uint64_t size, enum block_prealloc prealloc,
                         struct error *err);

/* --- posix_other.c */

/* Functions of struct block_driver. */
char *posix_file_lasting_name(const struct block_node *node);
bool posix_file_co_has_name(const struct block_node *node, const char *name);
int posix_file_co_read_other(struct block_node *node, const char *name, unsigned place, void *buf,
                             size_t *size);

/* --- posix_create.c */

/* The options of posix_file_co_create(), for help and checks. */
extern const struct block_option_desc posix_file_create_options[];

/*
 * Create a file, or prepare a device, of `size` bytes. `filename` may begin with a scheme of the
 * drivers. An option that is unknown is an error. Returns 0 or -errno; after an error a file that
 * did not exist before is removed.
 */
int posix_file_co_create(const char *filename, uint64_t size, struct options *opts,
                         struct error *err);
/* Of struct block_driver. -EINVAL: it is no regular file. */
int posix_file_co_remove(const char *filename);

#endif
