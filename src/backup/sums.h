/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checksum file of a backup: which clusters the backup holds, and a digest of the contents of
 * each. Together with the checksum files of the backups before, it defines what every cluster of
 * the disk must read as, and which backup to read it from.
 *
 *     0   header, 64 bytes, little-endian:
 *           0 "TIDESUMS"   8 u32 version 1   12 u32 cluster bits   16 u64 size of the disk in bytes
 *          24 u64 number of digests   32 u64 number of runs   40 zeroes
 *    64   a digest for each cluster of each run, in their order: the first 16 bytes of its
 *         SHA-256; zeroes, for zeroes
 *         runs, ascending and disjoint: u64 first cluster, u32 clusters, u32 kind (1 data, 2
 *         zeroes)
 *
 * A short last cluster is padded with zeroes for its digest. Only `co_` functions yield. Functions
 * return 0 or -errno.
 */
#ifndef TIDEMARK_BACKUP_SUMS_H
#define TIDEMARK_BACKUP_SUMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backup/stored.h"
#include "base/error.h"

#define SUMS_HEADER_SIZE 64
#define SUMS_DIGEST_SIZE 16

enum sums_kind { SUMS_DATA = 1, SUMS_ZERO = 2 };

struct sums_run {
    uint64_t first; /* cluster */
    uint32_t count; /* clusters, > 0 */
    enum sums_kind kind;
    uint64_t digest; /* index of the first one's digest */
};

/* A growing list of runs. */
struct sums_runs {
    struct sums_run *list; /* owned */
    size_t count, capacity;
    uint64_t digests; /* clusters so far */
};

/* Release the list, and make it empty. */
void sums_runs_clear(struct sums_runs *r);
/*
 * Append a run; it is joined to the last one where possible. `first` is not below the end of the
 * last run. -ENOMEM.
 */
int sums_runs_add(struct sums_runs *r, uint64_t first, uint64_t count, enum sums_kind kind);

/* The index of the first run that ends after the cluster; the count of runs if there is none. */
size_t sums_runs_find(const struct sums_runs *r, uint64_t cluster);
/* Whether one of the runs has one of the clusters [first, end). */
bool sums_runs_overlap(const struct sums_runs *r, uint64_t first, uint64_t end);

/* --- writing: digests go to their places in any order, header and runs at the end --- */

/* Write `count` digests, the first of which has this index. */
int sums_write_digests(struct stored *file, uint64_t index, const uint8_t *digests, size_t count);
/* Write header and runs, and complete the file. The caller syncs. */
int sums_write_finish(struct stored *file, const struct sums_runs *runs, uint64_t disk_size);

/* --- reading --- */

struct sums {
    int fd; /* -1: not open */
    struct stored *file;
    uint64_t disk_size;
    struct sums_runs runs;
};

/*
 * Open a checksum file: check everything but the digests themselves, also against the size of the
 * disk. `fd` is consumed in any case; errors call the file `shown`. `seal`: see stored_open().
 * -EINVAL, -EBADMSG, -ENOMEM, and errors of read(2).
 */
int sums_open(int fd, const struct backup_key *seal, const char *shown, uint64_t disk_size,
              struct sums *ret_sums, struct error *err);
/* Close the file and release the runs. */
void sums_close(struct sums *s);
/*
 * Read `count` digests, the first of which has this index. -EINVAL: the file has fewer; errors of
 * read(2).
 */
int sums_read_digests(const struct sums *s, uint64_t index, uint8_t *ret_digests, size_t count);

/*
 * The digests of the clusters in `data`; `size` is a multiple of the cluster size. 0, or errors of
 * sha256_of_buffer(). Runs in the offload pool; yields.
 */
int sums_co_digest_clusters(const uint8_t *data, size_t size, uint8_t *ret_digests);
/* The same, on this thread; does not yield. */
int sums_digest_clusters(const uint8_t *data, size_t size, uint8_t *ret_digests);

#endif
