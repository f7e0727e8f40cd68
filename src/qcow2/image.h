/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An open qcow2 image: its state, the rules of write ordering, and the order of its locks.
 *
 * Terms
 *
 *   stable      survives a power failure: written, and a sync of the file has succeeded since.
 *   reference   a table entry or header field with the offset of a cluster. A cluster's refcount
 *               is the number of references to it.
 *   dirty       changed in memory, and not yet written to the file.
 *   commit      writes what is dirty, in the order drawn below (table/commit.c).
 *   switch      a new table takes the place of an old one: the header is rewritten by one write of
 *               the first sector, which is atomic, and synced.
 *   mark        a bit in the file that says that metadata may not be up to date. It is set, and
 *               stable, before the metadata is: the dirty bit (refcounts and COPIED flags), the
 *               corrupt bit (all metadata), the in-use flag of a bitmap.
 *   hole        a range of the file without space on the file system; it reads as zeroes.
 *   place       the host cluster of a guest cluster: where its data is in the file.
 *   slice       the part of an L2 table or refcount block that is cached as a unit.
 *
 * Rules of write ordering; code cites them by number
 *
 *   R1   A cluster's refcount is stable before anything that references the cluster is.
 *   R2   A reference is gone from disk before the refcount that counts it is lowered.
 *   R3   A table that is replaced as a whole is written to clusters that no live metadata uses,
 *        made stable, and then switched by fields within one sector. Entries of L1 tables, L2
 *        tables and refcount blocks change in place. So may bits and tables of bitmaps that are
 *        stably marked in use.
 *   R4   When a flush has succeeded, all writes acknowledged before it are stable, with the
 *        metadata that maps them.
 *   R5   A persistent bitmap is stably marked in use before the first write that it should record
 *        reaches the file. The mark is removed only when bits, table and directory are stable.
 *        With an activity log (bitmap/activity.c) other programs heed the mark; we trust the stored
 *        bits and all hot regions. Then bits in the file are only ever added to, except by
 *        switching to another directory (R3).
 *   R6   After any crash the image opens, and a check finds at most leaked clusters. R6 and R1 are
 *        relaxed while the dirty bit is stable (snapshot operations, lazy refcounts): the next
 *        writable open then repairs the image first. Version 2 has no dirty bit: a crash within a
 *        snapshot operation can leave wrong COPIED flags, which a check reports.
 *   R7   Data, with the copied head and tail of its cluster, is stable before the entry that maps
 *        it.
 *   R8   A freed cluster is not allocated again, in memory either, before its reference is gone
 *        from disk and its hole is punched.
 *   R9   A dirty bitmap records a write after the write has ended, and also a write that failed
 *        (block/gate.c).
 *   R10  After a sync has failed, every flush fails until the file is reopened
 *        (file/posix_io.c).
 *
 * How the rules are kept
 *
 * Metadata changes in memory only: in the caches of L2 slices and refcount slices, and in the L1
 * and refcount tables. Freed clusters go to a list and keep their refcount. A commit takes a
 * consistent snapshot of all that is dirty, and writes it in this order:
 *
 *    1. the file is made as long as its clusters
 *    2. refcount slices
 *    3. if refcount table entries changed: sync, then the entries
 *    4. sync                                                               (R1, R7)
 *    5. L2 slices, L1 entries
 *    6. sync                                                               (R4)
 *    7. freed clusters: holes are punched, then refcounts are lowered      (R2, R8)
 *
 * With lazy refcounts, the commit for a flush omits steps 2 and 3, under a dirty bit that is stable
 * before. A crash then costs a repair at the next writable open. Closing the image writes the
 * refcounts and removes the bit.
 *
 * Data is written before the entry that maps it changes in memory, so step 4 covers it (R7). A
 * refcount slice may be written at any time, since its counts can only be too high.
 *
 * Locks, in the order in which they are taken
 *
 *   (activity log)      its mutex (block/activity_batch.c): one batch at a time; held across calls
 *                       of bitmap/activity.c and bitmap/keep.c
 *   bitmaps.mutex       bitmaps.stored and its entries, the bitmap directory, the place of the
 *                       activity log: marking in use, storing, removing. The list is replaced on
 *                       the main reactor only
 *   bitmaps.bits_mutex  table and bits of a stored bitmap in the file: reading them without
 *                       bitmaps.mutex (which would hold up a guest's first write), and replacing
 *                       them
 *   guest               range lock over guest offsets. Shared: overwriting in place, and reading
 *                       what a write may move (compressed or shared clusters). Exclusive:
 *                       allocating, zeroing, discarding
 *   commit.mutex        one commit at a time; commit.refcounts_behind, results of commits
 *   verdicts.mutex      acting on a verdict of corruption; held across the write of its mark
 *   lock                all members marked [lock]: allocation, links, what is dirty. Held across
 *                       I/O only to read metadata, to make a new table, or to make the file longer;
 *                       held across a sync only to replace the refcount table
 *   header.mark_mutex   the header on disk, and header.incompatible, while I/O is running; held
 *                       across writes and syncs of the header
 *   shard locks         thread mutexes, inside table/cache.c only
 */
#ifndef TIDEMARK_QCOW2_IMAGE_H
#define TIDEMARK_QCOW2_IMAGE_H

#include <errno.h>
#include <stdatomic.h>

#include "block/driver.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "qcow2/data/cluster_cache.h"
#include "qcow2/header/format.h"
#include "qcow2/table/cache.h"
#include "qcow2/table/cluster_runs.h"
#include "qcow2/table/overlap.h"

/* A header extension of a type that is not interpreted. It is kept as it is. */
struct qcow2_extension {
    struct list link; /* in qcow2_header.extensions */
    uint32_t type;
    uint32_t size;
    uint8_t data[];
};

/* What the header holds that no request needs. */
struct qcow2_header {
    uint64_t length; /* header_length: bytes of the fields, without extensions */
    uint64_t end;    /* on disk, with extensions and backing file name; 0: not written yet */
    struct co_mutex mark_mutex;
    /* [mark_mutex] while I/O is running, and bits are only added then; read without the mutex. */
    _Atomic uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    char *backing_filename;  /* as recorded; NULL if none */
    char *backing_format;    /* as recorded; NULL if none */
    char *data_filename;     /* as recorded; NULL if none */
    uint64_t luks_offset;    /* EXT_FULL_DISK_ENCRYPTION: the place of the header of LUKS */
    uint64_t luks_size;      /* bytes of it, with its key material; 0: there is none */
    uint64_t greatest_size;  /* EXT_GREATEST_SIZE; 0: not recorded */
    struct list extensions;  /* of struct qcow2_extension */
    uint8_t *unknown_fields; /* behind the fields that we know; kept */
    uint32_t unknown_fields_size;
};

/* The active L1 table. */
struct qcow2_l1 {
    uint64_t offset;
    uint32_t size;             /* entries */
    _Atomic uint64_t *entries; /* host byte order; read without lock, stored under [lock] */
    uint8_t *dirty;            /* [lock] a byte per sector of the table on disk */
    size_t dirty_count;        /* [lock] */
};

/* The refcount table. */
struct qcow2_reftable {
    uint64_t offset;    /* [lock], and header.mark_mutex to change it */
    uint32_t size;      /* the same; entries */
    uint64_t *entries;  /* [lock] host byte order */
    uint8_t *dirty;     /* [lock] a byte per sector */
    size_t dirty_count; /* [lock] */
};

struct qcow2_refcounts {
    unsigned order;      /* log2 of the width in bits */
    unsigned block_bits; /* log2 of refcounts per refcount block */
    uint64_t max;
};

struct qcow2_caches {
    struct table_cache l2;
    struct table_cache refcounts;
    struct cluster_cache decompressed;
    uint64_t l2_max;           /* bytes, limit of the options; the disk may need less */
    unsigned clean_seconds;    /* slices unused for this long are dropped; 0: never */
    struct loop_timer cleaner; /* of the main reactor */
};

/* Which clusters of the file are free. */
struct qcow2_alloc {
    uint64_t next_free;       /* [lock] no cluster with a lower index is free */
    uint64_t zero_from;       /* [lock] the file was never written from this offset on: zeroes */
    uint64_t compressed_tail; /* [lock] file offset behind the last compressed cluster; 0: none */
    /* [lock] Clusters whose reference was removed in memory; see R2 and R8. */
    struct cluster_runs frees;
    uint64_t freed_bytes; /* [lock] sum of `frees` */
    bool freeing;         /* [lock] a commit is about to free clusters that it took off `frees` */
};

struct qcow2_commit {
    struct co_mutex mutex;
    bool lazy_refcounts;
    bool refcounts_behind; /* [mutex] the dirty bit was set for lazy refcounts */
    /*
     * By whether refcounts may stay behind: [0] full commits, [1] all, since a full one counts as
     * both. A flush needs a commit that begins after the flush was called.
     */
    struct commit_kind {
        atomic_uint begun; /* number of commits */
        int result;        /* [mutex] of the last one */
    } kinds[2];
};

/* Internal snapshots (snapshot/). Changed only while the node is drained. */
struct qcow2_snapshots {
    struct list list; /* of struct qcow2_snapshot */
    uint32_t count;
    uint64_t offset, size; /* of the snapshot table, in bytes */
};

/* Persistent bitmaps (bitmap/). Main reactor, except for `marked` and the activity log's work. */
struct qcow2_bitmaps {
    struct co_mutex mutex;
    struct co_mutex bits_mutex;
    struct list stored;  /* [mutex] of struct stored_bitmap */
    struct list reserve; /* bitmap/reserve.c: clusters that nothing on disk refers to yet */
    uint64_t directory_offset, directory_size;
    uint32_t directory_count; /* as the header said at open */
    atomic_bool marked;       /* no bitmap on disk counts as current: writes may go on (R5) */
};

/* The activity log (block/activity.h) in the image: bitmap/activity.c. */
struct qcow2_activity {
    enum block_durability level; /* the option durable-bitmaps */
    uint64_t limit;              /* the option durable-bitmaps-size; 0: its default */
    struct block_activity *log;  /* NULL: the image is read-only, or `level` is off */
    /* The map in the file; 0: there is none. [bitmaps.mutex] */
    uint64_t offset, size; /* bytes; size without the rest of the last cluster */
    unsigned region_bits;
    bool is_stale; /* the header has the extension, but not the bit */
    /* The extension as it was at open: entries of the directory that the log says nothing of. */
    uint32_t void_entries[ACTIVITY_VOID_MAX];
    unsigned void_count;
};

/* As the header says; numbers of the format. */
enum qcow2_joint_state {
    JOINT_NONE,     /* the header says nothing */
    JOINT_PREPARED, /* another directory is ready */
    /* Of the first image, until all others know: its own directory is the one decided on. */
    JOINT_DONE,
    JOINT_UNDONE,
};

#define JOINT_ID_SIZE 16u

/* A change of the bitmaps of several images (bitmap/joint.h). [bitmaps.mutex] */
struct qcow2_joint {
    struct list link; /* joint_known.c; main reactor */
    struct qcow2 *image;
    enum qcow2_joint_state state;
    uint8_t id[JOINT_ID_SIZE];
    uint64_t offset, size; /* of the record in the file, bytes */
    bool is_stale;         /* the header has the extension, but not the bit */
    /* The other directory: as it was prepared by this process; NULL: it was found at open. */
    struct bitmap_store *store;
    /* Found at open: the images, the first one first, and the number of this one. */
    char **names;
    uint32_t name_count, own;
    /* Likewise: the directory that is not used, of struct stored_bitmap, and where it is. */
    struct list other;
    uint64_t other_offset, other_size;
    /* Clusters that only that one uses, its own included. */
    struct cluster_runs other_clusters;
    bool in_doubt; /* which of the two counts is not known: both are used */
    bool waits;    /* and stay, until the first image is opened by this process (joint_wait.c) */
    atomic_bool looks; /* a coroutine is going to look for that */
};

/* data/sparse.c: what was found out about the file. */
struct qcow2_sparse {
    atomic_int answer;
    _Atomic uint64_t size; /* of the disk then */
};

/* A violation of the specification that was found: see table/verdict.h. */
struct qcow2_verdict {
    atomic_bool recorded; /* `what` is valid, and has not been reported yet */
    char what[256];
};

struct qcow2_verdicts {
    atomic_uint open; /* recorded and not acted on yet: 0 to 2 */
    struct qcow2_verdict harmless, fatal;
    struct co_mutex mutex; /* held while one is acted on */
};

struct qcow2_options {
    bool pass_discard[QCOW2_FREED_KINDS]; /* punch holes for what was freed for this reason */
    bool discard_no_unref; /* discarded and zeroed clusters keep their place in the file */
};

struct qcow2 {
    struct block_node *node;

    /* The format, from the header. Constant while requests run. */
    uint32_t version;
    unsigned cluster_bits;
    uint64_t cluster_size;
    unsigned l2_bits;         /* log2 of entries per L2 table */
    bool extended_l2;         /* entries of two words, with subclusters */
    unsigned subcluster_bits; /* log2 of a subcluster's size; cluster_bits without extended_l2 */
    enum compression_type compression;
    uint32_t crypt_method;     /* enum crypt_method; see data/crypt.h */
    struct qcow2_crypt *crypt; /* key; NULL: not encrypted, or open for metadata only */
    struct block_edge *data;   /* where guest data is: node->file, or the external data file */
    bool has_data_file;        /* guest data is there at its guest offset, without refcounts */
    bool data_file_raw;        /* the data file alone is always a raw image of the disk */

    struct co_mutex lock;
    struct range_lock guest;

    struct qcow2_header header;
    struct qcow2_l1 l1;
    struct qcow2_refcounts refcounts;
    struct qcow2_reftable reftable;
    struct qcow2_caches caches;
    struct qcow2_alloc alloc;
    struct qcow2_commit commit;
    struct qcow2_snapshots snapshots;
    struct qcow2_bitmaps bitmaps;
    struct qcow2_activity activity;
    struct qcow2_joint joint;
    struct qcow2_excess excess[EXCESS_MAX]; /* at open; bitmap/excess.c */
    unsigned excess_count;
    uint64_t excess_written; /* bytes; the greatest that the header on disk names */
    bool warned_of_excess;   /* that the header has no room for it */
    struct qcow2_sparse sparse;
    struct qcow2_options options;
    struct overlap_guard guard;
    struct qcow2_verdicts verdicts;

    struct qcow2_reopen *reopen; /* reopen.c; NULL: not being reopened */

    struct counters counters; /* by enum qcow2_stat (stats.h) */

    atomic_bool pages_lent; /* data/pages.c: pages of clusters may be in somebody's hands */
    bool read_only;
    atomic_bool flush_refused;     /* the last flush by a user returned an error */
    bool close_failure_reported;   /* the user knows that not all could be written at close */
    atomic_bool broken;            /* no more writes */
    atomic_bool corrupt;           /* a fatal verdict was recorded; it is marked in the header */
    atomic_bool harmless_recorded; /* a harmless one was recorded */
};

/* The state of a node whose driver is qcow2. */
static inline struct qcow2 *qcow2_state(const struct block_node *node)
{
    return node->opaque;
}

/* Set q->refcounts by log2 of the width in bits, 0 to 6; cluster_bits is set. */
static inline void qcow2_set_refcount_order(struct qcow2 *q, unsigned order)
{
    q->refcounts.order = order;
    q->refcounts.block_bits = q->cluster_bits + 3 - order;
    q->refcounts.max = order == 6 ? UINT64_MAX : (1ULL << (1u << order)) - 1;
}

/* Index of the cluster that file offset `offset` is in. */
static inline uint64_t qcow2_cluster_index(const struct qcow2 *q, uint64_t offset)
{
    return offset >> q->cluster_bits;
}

/* Bytes of a subcluster; of a cluster without extended entries. */
static inline uint64_t qcow2_subcluster_size(const struct qcow2 *q)
{
    return 1ULL << q->subcluster_bits;
}

/* Guest bytes that one L2 table maps. */
static inline uint64_t qcow2_l2_span(const struct qcow2 *q)
{
    return 1ULL << (q->cluster_bits + q->l2_bits);
}

/* 0 if the image takes writes; -EIO, or -ENOMEDIUM once it was found corrupt. Any thread. */
static inline int qcow2_check_writable(const struct qcow2 *q)
{
    if (__builtin_expect(!atomic_load_explicit(&q->broken, memory_order_relaxed), true)) {
        return 0;
    }
    return atomic_load_explicit(&q->corrupt, memory_order_relaxed) ? -ENOMEDIUM : -EIO;
}

#endif
