/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clusters that were compared are kept in a small cache, since guests read less than a cluster at a
 * time. It is direct-mapped: a slot for each remainder of the cluster's number.
 */
#include "backup/point.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "backup/chain.h"
#include "backup/key.h"
#include "backup/repository_share.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/driver.h"
#include "loop/loop.h"
#include "schema/define.h"

#define CACHE_SLOTS 256u /* 16 MiB */
#define NO_CLUSTER UINT64_MAX
/* Extents that are looked for in the layers before the map is made. */
#define LOOKS_UNMAPPED 64u

OBJECT(point_options, "BlockdevOptionsTidemarkBackup",
       REQ("repository", schema_str, .help = "the directory of the backups"),
       OPT("at", schema_str, .dflt = "the newest",
           .help = "the backup: its ID, or a beginning that no other one has"),
       OPT("key-secret", schema_str, .dflt = "the key of the program",
           .help = "ID of a secret with the key of the repository"),
       OPT("passphrase-secret", schema_str,
           .help = "ID of a secret with the passphrase of the repository"));

struct cache_slot {
    uint64_t cluster;
    uint8_t *data; /* NULL until it is used first */
};

struct point {
    struct backup_key_ring *ring; /* NULL: the key is that of the program */
    struct repository own;        /* with that key */
    /* `own`, or one that was shared. */
    const struct repository *repository;
    struct chain chain;
    atomic_uint looks; /* extents that were looked for; stays at LOOKS_UNMAPPED */
    bool is_open;      /* the mutex exists */
    /* guards `cache` */
    pthread_mutex_t lock;
    struct cache_slot cache[CACHE_SLOTS];
};

static volatile sig_atomic_t *point_stop;

/* --- opening ---------------------------------------------------------------------------------- */

static int co_open_point_chain(struct point *p, const char *path, const char *at, struct error *err)
{
    const struct repository_entry **entries AUTO_FREE = NULL;
    const struct repository_entry *e;
    size_t count = 0;
    int r = p->ring ? repository_co_open_with(path, p->ring, &p->own, err)
                    : repository_co_share(path, &p->repository, err);

    if (r < 0) {
        return r;
    }
    p->repository = p->ring ? &p->own : p->repository;
    e = repository_find(p->repository, at, err);
    r = e ? repository_chain(p->repository, e, &entries, &count, err) : -ENOENT;
    UNLESS_FAILED(
        r, chain_co_open_unmapped(p->repository, entries, count, point_stop, &p->chain, err));
    return r;
}

static void point_co_close(struct block_node *node)
{
    struct point *p = node->opaque;

    chain_close(&p->chain);
    if (!p->ring) {
        repository_unshare(p->repository);
    }
    repository_close(&p->own);
    backup_key_ring_free(p->ring);
    for (size_t i = 0; i < CACHE_SLOTS; i++) {
        free(p->cache[i].data);
    }
    if (p->is_open) {
        pthread_mutex_destroy(&p->lock);
    }
}

/* Without the option, the node is read-only, as it can't be anything else. */
static bool is_writable_wanted(const struct block_node *node)
{
    struct json_object *option;

    return !node->read_only && !node->auto_read_only &&
           json_object_object_get_ex(node->options, "read-only", &option);
}

/* The key or passphrase that the options name, if there is one. */
static int take_point_key(struct point *p, struct options *opts, struct error *err)
{
    char *key AUTO_FREE = NULL, *passphrase AUTO_FREE = NULL;
    int r = options_take_str(opts, "key-secret", &key, err);

    UNLESS_FAILED(r, options_take_str(opts, "passphrase-secret", &passphrase, err));
    if (r < 0 || (!key && !passphrase)) {
        return r;
    }
    if (key && passphrase) {
        return error_set(err, EINVAL, "'key-secret' and 'passphrase-secret' exclude each other");
    }
    return backup_key_ring_new(key ?: passphrase, !key, &p->ring, err);
}

static int point_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct point *p = node->opaque;
    char *repository AUTO_FREE = NULL, *at AUTO_FREE = NULL;
    int r = options_take_str(opts, "repository", &repository, err);

    UNLESS_FAILED(r, options_take_str(opts, "at", &at, err));
    if (r == 0 && !repository) {
        r = options_missing(opts, "repository", err);
    }
    if (r < 0) {
        return r;
    }
    if (is_writable_wanted(node)) {
        return error_set(err, EACCES, "A backup is never changed: put an overlay on it to write");
    }
    node->read_only = true;
    node->beyond_filename = true;
    p->own = REPOSITORY_INIT;
    r = take_point_key(p, opts, err);
    UNLESS_FAILED(r, co_open_point_chain(p, repository, at, err));
    if (r < 0) {
        point_co_close(node);
        return r;
    }
    for (size_t i = 0; i < CACHE_SLOTS; i++) {
        p->cache[i].cluster = NO_CLUSTER;
    }
    pthread_mutex_init(&p->lock, NULL);
    p->is_open = true;
    block_node_set_size(node, p->chain.disk_size);
    return 0;
}

/* --- reading ---------------------------------------------------------------------------------- */

/* Copy from the cache; false: the cluster is not there. */
static bool read_cached(struct point *p, uint64_t cluster, uint64_t within, struct iov iov,
                        uint64_t done, uint64_t size)
{
    struct cache_slot *slot = &p->cache[cluster % CACHE_SLOTS];
    bool found;

    pthread_mutex_lock(&p->lock);
    found = slot->cluster == cluster;
    if (found) {
        iov_copy_from_buf(iov, done, slot->data + within, size);
    }
    pthread_mutex_unlock(&p->lock);
    return found;
}

static void keep_cluster(struct point *p, uint64_t cluster, const uint8_t *data)
{
    struct cache_slot *slot = &p->cache[cluster % CACHE_SLOTS];

    pthread_mutex_lock(&p->lock);
    slot->data = slot->data ?: malloc(BACKUP_CLUSTER_SIZE);
    if (slot->data) {
        memcpy(slot->data, data, BACKUP_CLUSTER_SIZE);
        slot->cluster = cluster;
    }
    pthread_mutex_unlock(&p->lock);
}

/*
 * Make the map of the chain when it is worth it: who looks at a partition table only does not need
 * one. Without memory for it the layers are asked one after the other.
 */
static void co_prepare_looks(struct point *p)
{
    if (atomic_load(&p->looks) < LOOKS_UNMAPPED &&
        atomic_fetch_add(&p->looks, 1) + 1 == LOOKS_UNMAPPED) {
        (void)chain_co_map(&p->chain, NULL);
    }
}

/* Read and compare an extent of data; `buf` has room for all of it. */
static int co_read_piece(const struct chain_extent *e, uint8_t *buf)
{
    ERROR_AUTO(err);
    int r = chain_co_read_extent(e, buf, &err);

    if (r < 0) {
        log_error("%s", error_message(&err));
    }
    return r == -EBADMSG ? -EIO : r;
}

/*
 * Bytes from the offset to the end of the extent or of the request, by which the request has got
 * further; *buf is allocated when it is needed first.
 */
static int co_read_some(struct point *p, uint64_t offset, uint64_t size, struct iov iov,
                        uint64_t done, uint8_t **buf, uint64_t *ret_size)
{
    const struct chain *c = &p->chain;
    uint64_t first = offset / BACKUP_CLUSTER_SIZE, within = offset % BACKUP_CLUSTER_SIZE;
    uint64_t clusters = div_round_up(within + size, BACKUP_CLUSTER_SIZE);
    struct chain_extent e;
    int r;

    *ret_size = MIN(size, BACKUP_CLUSTER_SIZE - within);
    if (read_cached(p, first, within, iov, done, *ret_size)) {
        return 0;
    }
    chain_extent_at(c, first, clusters, &e);
    if (!e.layer || e.kind == SUMS_ZERO) {
        *ret_size = MIN(size, e.count * BACKUP_CLUSTER_SIZE - within);
        iov_fill(iov, done, 0, *ret_size);
        return 0;
    }
    e.count = MIN(e.count, CHAIN_PIECE);
    *ret_size = MIN(size, e.count * BACKUP_CLUSTER_SIZE - within);
    *buf = *buf ?: malloc((size_t)CHAIN_PIECE * BACKUP_CLUSTER_SIZE);
    if (!*buf) {
        return -ENOMEM;
    }
    r = co_read_piece(&e, *buf);
    if (r < 0) {
        return r;
    }
    iov_copy_from_buf(iov, done, *buf + within, *ret_size);
    if ((within + *ret_size) % BACKUP_CLUSTER_SIZE) {
        /* The next request probably wants the rest. */
        keep_cluster(p, first + e.count - 1, *buf + (e.count - 1) * BACKUP_CLUSTER_SIZE);
    }
    return 0;
}

static int point_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct point *p = node->opaque;
    uint8_t *buf AUTO_FREE = NULL;
    uint64_t n;

    if (flags & BLOCK_REQ_PREFETCH) {
        return 0;
    }
    co_prepare_looks(p);
    for (uint64_t done = 0; done < iov.size; done += n) {
        int r = co_read_some(p, offset + done, iov.size - done, iov, done, &buf, &n);

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int point_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                           struct block_status *ret_status)
{
    struct point *p = node->opaque;
    uint64_t first = offset / BACKUP_CLUSTER_SIZE, within = offset % BACKUP_CLUSTER_SIZE;
    struct chain_extent e;
    bool data;

    co_prepare_looks(p);
    chain_extent_at(&p->chain, first, div_round_up(within + length, BACKUP_CLUSTER_SIZE), &e);
    data = e.layer && e.kind == SUMS_DATA;
    ret_status->length = MIN(length, e.count * BACKUP_CLUSTER_SIZE - within);
    ret_status->flags = BLOCK_STATUS_ALLOCATED | (data ? BLOCK_STATUS_DATA : BLOCK_STATUS_ZERO);
    return 0;
}

static const struct block_driver point_driver = {
    .name = POINT_DRIVER,
    .help = "a disk as it was at a backup, every read compared with its checksum",
    .options = &point_options,
    .instance_size = sizeof(struct point),
    .is_protocol = true,
    .co_open = point_co_open,
    .co_close = point_co_close,
    .co_preadv = point_co_preadv,
    .co_status = point_co_status,
};

void point_stop_by(volatile sig_atomic_t *stop)
{
    point_stop = stop;
}

void point_register_driver(void)
{
    block_register_driver(&point_driver);
}
