/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is on a disk: the partition table (MBR with logical partitions, or GPT, by the UEFI
 * specification, section 5.3) and the file system of each partition, by its signature. The disk is
 * a guest's, and nothing on it is trusted. `co_` functions yield, on the main reactor.
 */
#ifndef TIDEMARK_BACKUP_VOLUMES_H
#define TIDEMARK_BACKUP_VOLUMES_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "block/block.h"

#define VOLUMES_MAX 256u

struct volume {
    unsigned number; /* of the partition, from 1 on; 0: the whole disk */
    uint64_t offset, size;
    const char *type; /* "ext4", "vfat" ...; "": none is recognized. Static */
};

/* Bytes of the disk that were read. */
struct volumes_read {
    uint64_t offset, size;
};

struct volumes {
    const char *table; /* "gpt", "mbr", "" for none. Static */
    struct volume *list;
    size_t count;
    char *problem; /* what is wrong with the table, a sentence; NULL: nothing */
    /* All that decides about the rest: a disk of the same size with the same bytes has the same. */
    struct volumes_read *reads;
    size_t read_count;
};

/*
 * Find them. A disk without a table is one volume. A table that is damaged is no error, but a
 * problem; what can be read of it is in the list. Errors are those of reading.
 */
int volumes_co_find(struct block_edge *disk, struct volumes *ret_volumes, struct error *err);
/* A copy without the problem. -ENOMEM. */
int volumes_copy(const struct volumes *v, struct volumes *ret_volumes);
/* Release. */
void volumes_clear(struct volumes *v);
#define VOLUMES_AUTO(name) __attribute__((cleanup(volumes_clear))) struct volumes name = {0}

/*
 * Copy a volume to an empty file, in which zeroes become holes, with several requests in flight.
 * `stop` (may be NULL): -EINTR when it becomes true.
 */
int volume_co_extract(struct block_edge *disk, const struct volume *v, int fd,
                      volatile sig_atomic_t *stop, struct error *err);

#endif
