/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout of images of qcow, version 1. All numbers are big-endian.
 *
 *      header | backing file name | L1 table | L2 tables and clusters, as they were allocated
 *
 * The L1 table leads to L2 tables, and these lead to clusters of the disk. An entry is an offset in
 * the file, or 0 for what the image does not have. With bit 63 an entry of an L2 table leads to a
 * compressed cluster (deflate, RFC 1951): its length is in the cluster_bits bits below that, and
 * its offset in the rest.
 *
 *      header:  0  magic, 32 bits                  24  bytes of the disk, 64 bits
 *               4  version: 1                      32  cluster_bits, 8 bits
 *               8  offset of the backing file      33  l2_bits, 8 bits
 *                  name, 64 bits                   36  encryption, 32 bits
 *              16  its length                      40  offset of the L1 table, 64 bits
 *              20  time of the last change
 *                  of the backing file
 */
#ifndef TIDEMARK_QCOW1_IMAGE_H
#define TIDEMARK_QCOW1_IMAGE_H

#include <pthread.h>

#include "blockmap/blockmap.h"

enum {
    QCOW1_SECTOR = 512,
    QCOW1_HEADER_SIZE = 48,
    QCOW1_ENTRY_SIZE = 8,
    QCOW1_VERSION = 1,
    QCOW1_CLUSTER_BITS_MIN = 9,
    QCOW1_CLUSTER_BITS_MAX = 16,
    /* An L2 table has as many bytes as a cluster may have. */
    QCOW1_L2_BITS_MIN = QCOW1_CLUSTER_BITS_MIN - 3,
    QCOW1_L2_BITS_MAX = QCOW1_CLUSTER_BITS_MAX - 3,
    QCOW1_NAME_MAX = 1023,
    /* Entries of an L1 table in memory: 64 MiB. */
    QCOW1_L1_MAX = 8 * 1024 * 1024,
};

#define QCOW1_MAGIC 0x514649fbU
#define QCOW1_COMPRESSED (UINT64_C(1) << 63)
/* Encryption: AES. */
#define QCOW1_CRYPT_AES 1U

struct qcow1_header {
    uint64_t name_offset, disk_size, l1_offset;
    uint32_t name_length, crypt;
    uint8_t cluster_bits, l2_bits;
};

/* A part of an L2 table in memory. */
enum { QCOW1_PAGE_ENTRIES = 512, QCOW1_PAGES = 512 };
struct qcow1_page {
    /* In the file; 0: none. */
    uint64_t offset;
    uint64_t entry[QCOW1_PAGE_ENTRIES];
};

struct qcow1 {
    struct blockmap map;
    struct qcow1_header header;
    uint64_t cluster_size;
    /* Owned; NULL: none. */
    char *backing_filename;
    /* Entries of an L2 table, and of one page of it. */
    uint64_t table_entries;
    size_t page_entries;
    /* Owned; as many entries as the disk needs. Changed with map.lock held, atomically. */
    uint64_t *l1;
    uint64_t l1_count;
    /* Where the L1 table ends: tables and clusters come after that. */
    uint64_t least;
    /* The next place in the file, before alignment; guarded by map.lock. */
    uint64_t end;
    /* From here on the file reads as zeroes where nothing was put; guarded by map.lock. */
    uint64_t zero_from;
    struct blockmap_room room;
    /*
     * A table whose entry of the L1 table, of this index, could not be written, and may have been:
     * it is used when that is tried again. 0: none. Guarded by map.lock.
     */
    uint64_t spare_table, spare_index;
    pthread_mutex_t page_lock;
    bool has_page_lock;
    /* Guarded by page_lock: owned pages, NULL where there is none yet; and a count of changes. */
    struct qcow1_page *pages[QCOW1_PAGES];
    uint64_t generation;
    /* Likewise: the cluster that was decompressed last, owned, and its entry; NULL: none. */
    uint8_t *inflated;
    uint64_t inflated_entry;
};

extern const struct block_option_desc qcow1_create_options[];
extern const struct schema_type qcow1_create_type;

/* header.c */
/* The first bytes of the file: QCOW1_HEADER_SIZE. Does not yield. */
void qcow1_fill_header(const struct qcow1_header *h, uint8_t *bytes);
/* Entries that an L1 table needs; at least 1. Does not yield. */
uint64_t qcow1_l1_entries(const struct qcow1_header *h);
/* Read header, backing file name and L1 table of a file that is open. -errno. Yields. */
int qcow1_co_load(struct block_node *node, struct error *err);

/* tables.c */
/* Forget what is in memory of L2 tables and of compressed clusters. Does not yield. */
void qcow1_forget_pages(struct qcow1 *q);
/* Write adjacent entries of an L2 table, all in one page of it. -errno. Yields. */
int qcow1_co_set_entries(struct block_node *node, uint64_t table, uint64_t index,
                         const uint64_t *values, size_t count);
/* The L2 table for an offset of the disk, which is made if there is none. -errno. Yields. */
int qcow1_co_make_table_locked(struct block_node *node, uint64_t offset, uint64_t *ret_table);
/* A place of `length` bytes, at a multiple of `unit`. With map.lock held. -errno. Yields. */
int qcow1_co_take_place_locked(struct block_node *node, uint64_t length, uint64_t unit,
                               struct blockmap_place *ret_place);
/* Where a compressed cluster is, and how long. Does not yield. */
void qcow1_locate(const struct qcow1 *q, uint64_t entry, uint64_t *ret_offset, size_t *ret_size);
/* Of struct blockmap_ops. */
int qcow1_co_find(struct block_node *node, uint64_t offset, uint64_t length,
                  struct blockmap_run *ret_run);
int qcow1_co_reserve_locked(struct block_node *node, uint64_t offset, uint64_t length,
                            struct blockmap_place *ret_place);
void qcow1_co_give_back_locked(struct block_node *node, const struct blockmap_place *place);
int qcow1_co_link_locked(struct block_node *node, uint64_t offset,
                         const struct blockmap_place *place);

/* compressed.c */
/* Of struct blockmap_ops. */
int qcow1_co_read_compressed(struct block_node *node, uint64_t offset, struct iov iov,
                             const struct blockmap_run *run);
/*
 * Compress a cluster. *ret_size becomes the bytes in `out`, which has room for one, or 0: it does
 * not become smaller by a sector. -errno. Yields.
 */
int qcow1_co_compress(const struct qcow1 *q, const uint8_t *cluster, uint8_t *out,
                      size_t *ret_size);

/* write.c: of struct block_driver. */
int qcow1_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);

/* create.c: of struct block_driver. */
int qcow1_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err);
int qcow1_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                    struct options *opts, struct error *err);

#endif
