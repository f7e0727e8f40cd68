/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An open qcow2 image.
 *
 * Write ordering. These rules are cited by number in this folder.
 *
 *  R1  A cluster's refcount is stable before anything that references the cluster is.
 *  R2  A reference is gone from disk before the refcount it held is lowered.
 *  R3  A table that is replaced whole is written to a place no live metadata uses, stable, and switched
 *      by fields within one sector. Entries of L1 and L2 tables and of refcount blocks change in place; so may
 *      bits and tables of bitmaps that are stably marked in use.
 *  R4  An acknowledged flush: all writes acknowledged before it, and the metadata that finds them, are stable.
 *  R5  A persistent bitmap is marked in use, stably, before the first write that it should record reaches the disk; the
 *      mark is taken away only after bits, table and directory are stable.
 *  R6  After any crash the image opens, and the worst a check finds is leaked clusters. Relaxed, as R1 is, while the dirty bit is
 *      stable (snapshot.c, lazy refcounts): then the next writable open repairs first. Version 2 has no such bit: a crash within a
 *      snapshot operation can leave COPIED flags there that a check reports.
 *  R7  Data, with the copied head and tail of its cluster, is stable before the entry that maps it.
 *  R8  A freed cluster is allocated again, in memory too, only once its reference is gone from disk and its hole is punched.
 *
 * How they are kept. Metadata changes in memory only: in the caches of L2 slices and refcount slices, in the L1 and
 * refcount tables. Freed clusters go to a list and keep their refcount. A *commit* (commit.c) takes a
 * consistent snapshot of all that is dirty and writes it in an order that keeps the rules:
 *
 *      file as long as its clusters ->
 *      refcount slices -> [sync, refcount table entries] -> sync -> L2 slices, L1 entries -> sync -> freed clusters
 *                                                           (R1, R7)                 (R4)    punched, refcounts lowered (R2, R8)
 *
 * With lazy refcounts the commit that a flush asks for leaves the first step out, under a dirty bit that is stable before:
 * a crash then costs the next writable open a repair. Closing catches up and takes the bit away.
 *
 * Data is written before the entry that maps it is changed in memory, so the sync before the L2
 * slices covers it (R7). A refcount slice may be written at any time, since it can only be too high.
 *
 * Locks, in the order they are taken; an arrow may not be walked backwards:
 *
 *   bitmap_mutex         stored_bitmaps and its entries, the directory: marking in use, storing, removing
 *   stored_bits_mutex    what a stored bitmap has in the image: reading it without bitmap_mutex, since that holds up a guest's
 *                        first write, and replacing it
 *   guest (range_lock)   guest ranges: overwriting in place, and reading what a write elsewhere may move (compressed or
 *                        shared clusters) shared; allocating, zeroing, discarding exclusive
 *   commit_mutex         one commit at a time; refcounts_behind, results of commits
 *   lock (co_mutex)      everything marked [lock] below: allocation, links, what is dirty. Held across I/O
 *                        only to read metadata, to make a new table or the file longer; across a sync only when the refcount
 *                        table is replaced, or the image found corrupt
 *   mark_mutex           the field of incompatible features, here and on disk, beside I/O; held across its write and a sync
 *   cache shard locks    thread mutexes, inside cache.c only
 */
#ifndef TIDEMARK_QCOW2_STATE_H
#define TIDEMARK_QCOW2_STATE_H

#include <errno.h>
#include <stdatomic.h>

#include "block/driver.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "qcow2/table/cache.h"
#include "qcow2/data/cluster_cache.h"
#include "qcow2/header/format.h"
#include "qcow2/table/overlap.h"

/* A header extension that we don't interpret, kept as it is. */
struct qcow2_extension {
    struct list link;
    uint32_t type;
    uint32_t size;
    uint8_t data[];
};

/* A bitmap as the directory on disk describes it. */
struct stored_bitmap {
    struct list link;
    char *name;
    uint64_t table_offset;
    uint32_t table_entries;
    uint32_t flags;
    uint8_t type;
    uint8_t granularity_bits;
    uint8_t *extra; /* extra data, kept */
    uint32_t extra_size;
    uint64_t flags_position;     /* byte offset in the file of its flags field */
    struct block_bitmap *loaded; /* NULL if it was not loaded (unknown type or flags) */
};

/* What took a reference away; it decides whether the space goes back to the file system. */
enum qcow2_freed {
    QCOW2_FREED_BY_WRITE,    /* contents moved: kept, the next allocation takes it */
    QCOW2_FREED_BY_REQUEST,  /* discard or zeroing: pass-discard-request */
    QCOW2_FREED_BY_SNAPSHOT, /* pass-discard-snapshot */
    QCOW2_FREED_BY_OTHER,    /* tables that moved: pass-discard-other */
    QCOW2_FREED_BY_SHRINKING,
    QCOW2_FREED_KINDS,
};

/* Clusters whose reference was dropped in memory; see R2 and R8. */
struct qcow2_free_run {
    uint64_t offset;
    uint64_t length;
    bool compressed; /* length is bytes of a compressed cluster: refcounts only, no hole */
    enum qcow2_freed why;
};

struct free_list {
    struct qcow2_free_run *runs;
    size_t count, capacity;
};

struct qcow2 {
    struct block_node *node;

    /* From the header; constant after open, but for control operations. */
    uint32_t version;
    unsigned cluster_bits;
    uint64_t cluster_size;
    unsigned l2_bits;        /* log2 of entries per L2 table */
    unsigned refcount_order; /* log2 of refcount width in bits */
    unsigned refblock_bits;  /* log2 of refcounts per refcount block */
    uint64_t refcount_max;
    uint64_t incompatible; /* beside I/O bits are only added, under mark_mutex */
    uint64_t compatible, autoclear;
    enum compression_type compression;
    uint32_t crypt_method;     /* enum crypt_method; see crypt.h */
    struct qcow2_crypt *crypt; /* key; NULL: not encrypted, or open for metadata only */
    uint64_t header_length;
    uint8_t *unknown_fields; /* of the header, behind what we know; kept */
    uint32_t unknown_fields_size;
    char *backing_filename; /* as recorded; NULL if none */
    char *backing_format;   /* likewise */
    struct list extensions; /* of struct qcow2_extension */
    uint64_t header_end;    /* on disk, with extensions and backing file name; 0: none yet */
    bool extended_l2;       /* entries of two words, with subclusters */
    unsigned
        subcluster_bits; /* log2 of a subcluster's size; cluster_bits without extended entries */
    struct block_edge *data; /* where guest data lies: node->file, or the external data file */
    bool has_data_file;      /* guest data lies there at its guest offset, and has no refcounts */
    bool data_file_raw;      /* the data file alone is a raw image of the disk, at any time */
    char *data_filename;     /* as recorded; NULL if none */
    uint64_t l1_offset;
    uint64_t greatest_size; /* that the disk had while there were bitmaps; 0: not recorded */

    struct co_mutex lock;
    struct co_mutex commit_mutex;
    struct co_mutex mark_mutex;
    struct range_lock guest;

    /* L1 table in host byte order. Read with relaxed atomics by anyone, stored under lock. */
    _Atomic uint64_t *l1;
    uint32_t l1_size;
    uint8_t *l1_dirty;     /* [lock] a byte per sector of the table on disk */
    size_t l1_dirty_count; /* [lock] */

    uint64_t reftable_offset;    /* [lock] */
    uint64_t *reftable;          /* [lock] host byte order */
    uint32_t reftable_entries;   /* [lock] */
    uint8_t *reftable_dirty;     /* [lock] a byte per sector */
    size_t reftable_dirty_count; /* [lock] */

    struct table_cache l2_cache;
    struct table_cache ref_cache;

    uint64_t l2_cache_max;           /* bytes, as the options say; the disk may need less */
    unsigned cache_clean_seconds;    /* what was not used for so long is dropped; 0: never */
    struct loop_timer cache_cleaner; /* of the main reactor */

    struct cluster_cache decompressed;

    uint64_t next_free; /* [lock] no free cluster index lies below */
    uint64_t zero_from; /* [lock] file offsets from here on were never written and read as zeroes */
    uint64_t compressed_tail; /* [lock] file offset behind the last compressed cluster; 0: none */
    struct free_list frees;   /* [lock] */
    uint64_t freed_bytes;     /* [lock] sum of the above */
    bool freeing;             /* [lock] a commit has some in hand that are not free yet */

    /* A flush needs a commit that begins after it was called. */
    struct commit_kind {
        atomic_uint begun;
        int result; /* of the last one; guarded by commit_mutex */
    } commits[2];   /* [lazy]; a full one counts as both */
    bool lazy_refcounts;
    bool refcounts_behind; /* the dirty bit was set for that; guarded by commit_mutex */

    /* Internal snapshots (snapshot.c). Changed only while drained. */
    struct list snapshots; /* of struct qcow2_snapshot */
    uint32_t snapshot_count;
    uint64_t snapshots_offset, snapshots_size;

    /* Persistent bitmaps (bitmap.c). Main reactor, except for bitmaps_marked. */
    struct list stored_bitmaps;
    struct list bitmap_reserve; /* bitmap_reserve.c: clusters that nothing on disk refers to yet */
    uint64_t bitmap_directory_offset, bitmap_directory_size;
    uint32_t bitmap_directory_count; /* as the header said at open */
    struct co_mutex bitmap_mutex;    /* guards stored_bitmaps: see above */
    struct co_mutex stored_bits_mutex;
    atomic_bool bitmaps_marked; /* nothing on disk passes for current: writes may go on (R5) */

    struct overlap_guard guard;

    /* sparse.c: what was found out about the file, for a disk of this size. */
    atomic_int sparse;
    _Atomic uint64_t sparse_size;

    bool pass_discard[QCOW2_FREED_KINDS]; /* punch holes for what was freed so */
    bool discard_no_unref; /* what is discarded or zeroed keeps its place in the file */
    bool read_only;
    bool close_told;     /* the user knows that what is cached could not be written at close */
    atomic_bool broken;  /* no more writes */
    atomic_bool corrupt; /* for good, and marked in the header: metadata breaks the specification */
    atomic_bool corruption_told; /* a harmless case of it was told */
};

static inline struct qcow2 *qcow2_state(const struct block_node *node)
{
    return node->opaque;
}

/* Sets what follows from the width of a refcount; cluster_bits is set. */
static inline void qcow2_set_refcount_order(struct qcow2 *q, unsigned order)
{
    q->refcount_order = order;
    q->refblock_bits = q->cluster_bits + 3 - order;
    q->refcount_max = order == 6 ? UINT64_MAX : (1ULL << (1u << order)) - 1;
}

static inline uint64_t qcow2_cluster_index(const struct qcow2 *q, uint64_t offset)
{
    return offset >> q->cluster_bits;
}

/* Bytes of guest disk that one L2 table maps. */
static inline uint64_t qcow2_l2_span(const struct qcow2 *q)
{
    return 1ULL << (q->cluster_bits + q->l2_bits);
}

/* --- header.c, header_write.c --- */
int qcow2_co_read_header(struct qcow2 *q, struct error *err);
/*
 * Write the header as the fields say, and sync. All of it is switched by one write of the first sector (R3). When
 * it fails, the header on disk is the old one for sure, or the image takes no more writes (q->broken).
 */
int qcow2_co_write_header(struct qcow2 *q, struct error *err);
/* -ENOSPC if the first bitmap could not be stored for want of room in the header: in small clusters, beside a long backing file name. */
int qcow2_co_check_room_for_bitmaps(struct qcow2 *q, struct error *err);
void qcow2_free_header(struct qcow2 *q);
/* Add incompatible feature bits, stable when it returns 0; also while guests write. Yields. */
int qcow2_co_set_incompatible(struct qcow2 *q, uint64_t bits);
/* -ENOTSUP, with the names that the image has for its incompatible features `unknown`. `sector`: the file's first one. */
int qcow2_co_refuse_features(struct qcow2 *q, const uint8_t *sector, uint64_t unknown,
                             struct error *err);

/* Guest offset of the VM state of a disk of `size` bytes: the next that an L2 table begins with. */
static inline uint64_t qcow2_vmstate_offset(const struct qcow2 *q, uint64_t size)
{
    return round_up(size, qcow2_l2_span(q));
}

/* --- vmstate.c: see struct block_driver --- */
int qcow2_co_preadv_vmstate(struct block_node *node, uint64_t offset, struct iov iov);
int qcow2_co_pwritev_vmstate(struct block_node *node, uint64_t offset, struct iov iov);

/* --- backing.c: see struct block_driver --- */
int qcow2_co_change_backing(struct block_node *node, const char *filename, const char *format,
                            struct error *err);

/* --- entries of L2 slices: by index of the cluster in the slice --- */

static inline unsigned qcow2_slice_entries(const struct qcow2 *q)
{
    return 1u << (q->l2_cache.entry_bits - 3 - q->extended_l2);
}

/* Entries of a whole table. */
static inline uint64_t qcow2_table_entries(const struct qcow2 *q)
{
    return 1ULL << q->l2_bits;
}

static inline uint64_t qcow2_load_entry(const struct qcow2 *q, const struct cache_entry *slice,
                                        unsigned index)
{
    return cache_load_be64(slice, index << q->extended_l2);
}

/* The subcluster bitmap; 0 without extended entries. */
static inline uint64_t qcow2_load_bitmap(const struct qcow2 *q, const struct cache_entry *slice,
                                         unsigned index)
{
    return q->extended_l2 ? cache_load_be64(slice, (index << 1) + 1) : 0;
}

/* Both at one time, for those who don't hold the lock. */
static inline void qcow2_load_both(const struct qcow2 *q, struct cache_entry *slice, unsigned index,
                                   uint64_t *ret_entry, uint64_t *ret_bitmap)
{
    uint64_t pair[2] = {0};

    if (q->extended_l2) {
        cache_load_pair_be64(slice, index << 1, pair);
    } else {
        pair[0] = cache_load_be64(slice, index);
    }
    *ret_entry = pair[0];
    *ret_bitmap = pair[1];
}

static inline void qcow2_store_entry(const struct qcow2 *q, struct cache_entry *slice,
                                     unsigned index, uint64_t entry, uint64_t bitmap)
{
    if (q->extended_l2) {
        cache_store_pair_be64(slice, index << 1, entry, bitmap);
    } else {
        cache_store_be64(slice, index, entry);
    }
}

static inline uint64_t qcow2_subcluster_size(const struct qcow2 *q)
{
    return 1ULL << q->subcluster_bits;
}

/* --- map.c --- */
enum cluster_type {
    CLUSTER_UNALLOCATED,
    CLUSTER_UNALLOCATED_PLACED, /* as above, but its cluster has a host cluster (subclusters only) */
    CLUSTER_ZERO,               /* no host cluster */
    CLUSTER_ZERO_ALLOC,         /* reads as zeroes, has a host cluster */
    CLUSTER_NORMAL,
    CLUSTER_COMPRESSED,
};

/* Guest bytes that are mapped alike: contiguous in the file where the type has a host offset. */
struct qcow2_run {
    enum cluster_type type;
    bool copied;     /* every cluster has refcount 1 (COPIED flag): may be overwritten in place */
    uint64_t host;   /* file offset for the first byte; of a compressed run: its entry */
    uint64_t length; /* bytes from the offset asked for; > 0 */
};

/* What maps [offset, offset + length): the first run of it. Any reactor, no lock. -EIO if metadata is corrupt. */
int qcow2_co_map(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *ret);
/* The same for those who are going to write: a corrupt entry is told in other words. */
int qcow2_co_map_to_write(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *ret);
/* For those who are going to drop what is there: a corrupt entry passes for a normal cluster of its own. */
int qcow2_co_map_to_drop(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *ret);
/*
 * Decode an L2 entry for one of its subclusters (0 without extended entries). -EIO if it breaks the specification, which is the
 * caller's to tell: qcow2_co_corrupt_entry(). *ret_host: of the cluster; the entry itself if it is compressed.
 */
int qcow2_decode_entry(const struct qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub,
                       enum cluster_type *ret_type, uint64_t *ret_host);
/* The bytes of the file that an entry holds references to; false if none. `compressed` as qcow2_free_later_locked() wants it. */
bool qcow2_entry_extent(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset,
                        uint64_t *ret_length, bool *ret_compressed);
/* The slice with the entry for guest `offset`, pinned; its table is made if it does not exist. *ret_index: in the slice. */
int qcow2_co_l2_slice_locked(struct qcow2 *q, uint64_t offset, struct cache_entry **ret,
                             unsigned *ret_index);
/* Change an L1 entry in memory. */
void qcow2_set_l1_entry_locked(struct qcow2 *q, uint64_t l1_index, uint64_t entry);

/* --- corrupt.c --- */
/*
 * Metadata broke the specification: tell once. A writable image is marked in its header, stably, and takes no more writes. Any
 * reactor, with or without the lock. Returns -EIO.
 */
int qcow2_co_corrupt(struct qcow2 *q, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same for what does no harm. */
void qcow2_corrupt_nonfatal(struct qcow2 *q, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* qcow2_co_corrupt() for the entry at `index` of a pinned slice, come upon while reading or writing guest offset `guest`. */
int qcow2_co_corrupt_entry(struct qcow2 *q, const struct cache_entry *slice, unsigned index,
                           uint64_t guest, bool writing);
/* 0 if the image takes writes; -EIO, or -ENOMEDIUM once it was found corrupt. */
static inline int qcow2_check_writable(const struct qcow2 *q)
{
    if (__builtin_expect(!atomic_load_explicit(&q->broken, memory_order_relaxed), true)) {
        return 0;
    }
    return atomic_load_explicit(&q->corrupt, memory_order_relaxed) ? -ENOMEDIUM : -EIO;
}
/* The same for what changes the image as a whole, in words. */
int qcow2_refuse_broken(const struct qcow2 *q, struct error *err);

/* --- refcount.c --- */
int qcow2_co_refcount_get_locked(struct qcow2 *q, uint64_t cluster, uint64_t *ret);
/* How many of `count` clusters from `first` on are in use; *ret_done: of so many, one slice's. */
int qcow2_co_count_used_locked(struct qcow2 *q, uint64_t first, uint64_t count, uint64_t *ret_used,
                               uint64_t *ret_done);
/* Add `delta` to the refcounts of `count` clusters from index `first`. -ERANGE on overflow, -EIO below zero. */
int qcow2_co_refcount_add_locked(struct qcow2 *q, uint64_t first, uint64_t count, int64_t delta);
uint64_t qcow2_refcount_load(const void *block, unsigned order, uint64_t index);
void qcow2_refcount_store(void *block, unsigned order, uint64_t index, uint64_t value);

/* --- alloc.c --- */
/*
 * Allocate up to `want` clusters in one piece (at least one; exactly `want` if `exact`), refcount 1. *ret_fresh: never
 * written, reads as zeroes. -ENOSPC/-EFBIG/-EIO.
 */
int qcow2_co_alloc_locked(struct qcow2 *q, uint64_t want, bool exact, uint64_t *ret_offset,
                          uint64_t *ret_got, bool *ret_fresh);
/* One cluster for metadata or compressed data; `what` it is to be, for the message if its place is taken. */
int qcow2_co_alloc_one_locked(struct qcow2 *q, const char *what, uint64_t *ret_offset,
                              bool *ret_fresh);
/* Room for `size` <= cluster_size bytes of compressed data; shares clusters with other compressed data. */
int qcow2_co_alloc_bytes_locked(struct qcow2 *q, size_t size, uint64_t *ret_offset);
/* Give back clusters that were allocated and never referenced. */
void qcow2_co_unalloc_locked(struct qcow2 *q, uint64_t offset, uint64_t clusters);
/* A reference was dropped in memory: free after the next commit. Compressed: byte range of its data. */
int qcow2_free_later_locked(struct qcow2 *q, uint64_t offset, uint64_t length, bool compressed,
                            enum qcow2_freed why);
/* Byte range that a compressed entry names. */
void qcow2_compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset,
                            uint64_t *ret_size);

/* --- commit.c --- */
/* Make everything that was acknowledged stable (R4). Concurrent callers share commits. */
int qcow2_co_commit(struct qcow2 *q);
/* As above; with lazy refcounts those may stay behind what is on disk, under the dirty bit. */
int qcow2_co_commit_guest(struct qcow2 *q);
/* Commit it all, and take the dirty bit away that qcow2_co_commit_guest() has set. Drained. */
int qcow2_co_catch_up(struct qcow2 *q, struct error *err);
/* Nothing was written since it was opened, and nothing waits to be. */
bool qcow2_co_is_untouched(struct qcow2 *q);
/*
 * Make the file as long as the clusters in it. A write that allocates leaves what it has no data for to the end of the file; other
 * programs want to read whole clusters. Where it fails, ours reads zeroes there all the same.
 */
void qcow2_co_cover_clusters_locked(struct qcow2 *q);
/* Called after metadata was changed, no lock held: commits if much is dirty. */
int qcow2_co_limit_dirty(struct qcow2 *q);
/* No room in the file, on its file system, on its device, or for this user. */
static inline bool qcow2_is_want_of_room(int result)
{
    return result == -ENOSPC || result == -EDQUOT || result == -EFBIG;
}
/*
 * Something failed with `result`, and has given back what it had allocated. Whether it is worth to try again: there was no
 * room, and since then a commit has freed what waited for one, more than the places of tables that moved. `lock` is not held.
 */
bool qcow2_co_make_room(struct qcow2 *q, int result);

/* --- read.c, write.c, zero.c --- */
int qcow2_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
int qcow2_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
int qcow2_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                          unsigned flags);
int qcow2_co_discard(struct block_node *node, uint64_t offset, uint64_t length);
/* Whole clusters, also beyond the end of the disk: zero, those with a place keep it; or no mapping at all. */
int qcow2_co_zero_clusters(struct qcow2 *q, uint64_t offset, uint64_t length);
int qcow2_co_drop_clusters(struct qcow2 *q, uint64_t offset, uint64_t length);
/* Read guest bytes into a flat buffer, the guest range held; zeroes behind the end of the disk. */
int qcow2_co_read_old(struct qcow2 *q, uint64_t offset, void *buf, size_t size);

/* --- compress.c, decompress.c --- */
/* Compressed clusters are read and written in batches of so much, one at least. */
#define QCOW2_BATCH_CLUSTERS 64
#define QCOW2_BATCH_BYTES (2 * MiB)
static inline unsigned qcow2_batch_clusters(const struct qcow2 *q)
{
    return (unsigned)MAX(MIN(QCOW2_BATCH_BYTES >> q->cluster_bits, QCOW2_BATCH_CLUSTERS), 1);
}
/* Whole clusters, except at the end of the disk. What does not get smaller, or overwrites something, is stored as it is. */
int qcow2_co_write_compressed(struct qcow2 *q, uint64_t offset, struct iov iov);
/*
 * The compressed clusters that the request begins with, as far as a batch goes. *ret_done: bytes; 0 if the first one is not
 * compressed. Nobody else may change entries of the range.
 */
int qcow2_co_read_compressed(struct qcow2 *q, uint64_t offset, struct iov iov, size_t *ret_done);

/* --- empty.c: see struct block_driver --- */
int qcow2_co_make_empty(struct block_node *node, struct error *err);

/* --- bitmap*.c --- */
int qcow2_co_load_bitmaps(struct qcow2 *q, struct error *err);
int qcow2_co_fetch_bitmap(struct block_node *node, struct block_bitmap *bitmap);
int qcow2_co_count_bitmap(struct block_node *node, const struct block_bitmap *bitmap,
                          uint64_t *ret);
/* Store all persistent bitmaps and take the in-use marks away. */
int qcow2_co_store_bitmaps(struct qcow2 *q, struct error *err);
/* Before a guest write, when !bitmaps_marked: R5. */
int qcow2_co_mark_bitmaps(struct qcow2 *q);
int qcow2_co_can_store_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                              struct error *err);
int qcow2_co_reserve_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                            struct error *err);
int qcow2_co_remove_stored_bitmap(struct block_node *node, const char *name, struct error *err);
int qcow2_co_bitmap_will_change(struct block_node *node, struct block_bitmap *b, struct error *err);
void qcow2_free_stored_bitmaps(struct qcow2 *q);
void qcow2_free_bitmap_reserve(struct qcow2 *q);

/* --- sparse.c --- */
/* Whether much of what is in use lies in holes of the file: clusters preallocated, or written in part. Found out at the first call. Yields. */
bool qcow2_co_is_sparse(struct qcow2 *q);

/* --- create.c, check.c, info.c --- */
int qcow2_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err);
extern const struct block_option_desc qcow2_create_options[];
int qcow2_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret,
                   struct error *err);
struct json_object *qcow2_co_specific_info(struct block_node *node);
int qcow2_co_get_info(struct block_node *node, struct block_info *ret);

#endif
