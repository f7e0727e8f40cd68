/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A layer: what one backup holds, to be read. Its checksum file was compared with the manifest, and
 * the runs are in memory; digests and clusters are read from the files when they are needed, the
 * clusters from the qcow2 image without a node: by the tables, in the offload pool. The backing
 * file or data file that an image names is never followed.
 *
 * Chains of several points in time of one repository share their layers: a layer exists once in the
 * process, whoever uses it, as long as it is used. Its two files stay open meanwhile, so that a
 * prune may remove their names. Only when the process may not open that many files (RLIMIT_NOFILE),
 * the files of further layers are opened for each read; then a prune makes such a read fail.
 *
 * Getting and putting: main reactor. Reading: any thread.
 */
#ifndef TIDEMARK_BACKUP_LAYER_H
#define TIDEMARK_BACKUP_LAYER_H

#include <stdbool.h>
#include <stddef.h>
#include <signal.h>
#include <stdint.h>

#include "backup/repository.h"
#include "backup/sums.h"
#include "base/error.h"

struct layer {
    char *image, *sums_path; /* for messages */
    struct sums_runs runs;   /* what the backup holds */
    uint64_t disk_size;      /* bytes, at that time */
};

/*
 * Get the layer of a backup. -EBADMSG: a file is not what the manifest says; others as
 * repository_open_file() and sums_open(). Errors name the file. -EINTR: *stop (may be NULL) became
 * true while the checksum file was compared. Yields.
 */
int layer_co_get(const struct repository *r, const struct repository_entry *e,
                 volatile sig_atomic_t *stop, struct layer **ret_layer, struct error *err);
/* Release. NULL is fine. Does not yield. */
void layer_put(struct layer *layer);

/*
 * Read digests of a layer, the first of which has this index. -EINVAL: there are fewer; -ESTALE:
 * the file is another one by now; or errors of read(2). Does not yield; may block.
 */
int layer_read_digests(const struct layer *layer, uint64_t index, uint8_t *ret_digests,
                       size_t count);
/*
 * Read `count` clusters into `buf`, and their digests, the first of which has the index `digest`.
 * What the image does not hold, and what is past its end, reads as zeroes. *ret_digests_failed: the
 * error is one of the digests, as above; else -EIO or -EBADMSG: the image is damaged; -ESTALE,
 * -ENOMEM, or errors of read(2). Does not yield; may block.
 */
int layer_read_clusters(const struct layer *layer, uint64_t first, size_t count, uint64_t digest,
                        uint8_t *buf, uint8_t *ret_digests, bool *ret_digests_failed);

/*
 * While somebody holds them, layers that nobody uses are kept as well, for the next one who opens a
 * point in time; their files are closed after a few seconds. The last one to let go releases them.
 * Does not yield.
 */
void layers_hold(void);
void layers_let_go(void);

#endif
