/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout of QED images. All numbers are little-endian.
 *
 *      header cluster | L1 table | L2 tables and data clusters, in the order of their allocation
 *
 * The L1 table leads to L2 tables, and these lead to clusters of the disk; both have the same size.
 * An entry is an offset in the file, 0 for what the image does not have, or (of L2 tables) 1 for a
 * cluster of zeroes.
 *
 *      header:  0  magic, 32 bits                  16  features, 64 bits
 *               4  bytes of a cluster              24  compatible features
 *               8  clusters of a table             32  autoclear features
 *              12  clusters of the header          40  offset of the L1 table
 *                                                  48  bytes of the disk
 *                                                  56  offset and length of the backing file name
 */
#ifndef TIDEMARK_QED_IMAGE_H
#define TIDEMARK_QED_IMAGE_H

#include <pthread.h>

#include "blockmap/blockmap.h"

enum {
    QED_SECTOR = 512,
    QED_HEADER_SIZE = 64,
    QED_ENTRY_SIZE = 8,
    QED_CLUSTER_MIN = 4096,
    QED_CLUSTER_MAX = 64 * 1024 * 1024,
    QED_CLUSTER_DEFAULT = 64 * 1024,
    QED_TABLE_MAX = 16,
    QED_TABLE_DEFAULT = 4,
    /* Of a backing file name: that is recorded, and that another program has recorded. */
    QED_NAME_MAX = 1023,
    QED_FOREIGN_NAME_MAX = 4095,
};

/* Bytes of a disk, whatever the sizes of clusters and tables. */
#define QED_DISK_MAX ((uint64_t)INT64_MAX - QED_SECTOR + 1)

#define QED_MAGIC 0x00444551U
/* Of an L2 table: a cluster of zeroes. */
#define QED_ZERO 1U

/* Features that a reader must know. */
#define QED_F_BACKING_FILE 1U
/* The last writer did not end in order: entries may lead out of the file. */
#define QED_F_NEED_CHECK 2U
/* The backing file is raw, whatever it contains. */
#define QED_F_BACKING_IS_RAW 4U
#define QED_F_KNOWN (QED_F_BACKING_FILE | QED_F_NEED_CHECK | QED_F_BACKING_IS_RAW)

struct qed_header {
    uint32_t cluster_size, table_clusters, header_clusters;
    uint64_t features, compatible, autoclear;
    uint64_t l1_offset, disk_size;
    uint32_t name_offset, name_length;
};

/* A part of an L2 table in memory. */
enum { QED_PAGE_ENTRIES = 512, QED_PAGES = 512 };
struct qed_page {
    /* In the file; 0: none. */
    uint64_t offset;
    uint64_t entry[QED_PAGE_ENTRIES];
};

struct qed {
    struct blockmap map;
    struct qed_header header;
    /* Owned; NULL: none. */
    char *backing_filename;
    /* Entries of a table. */
    uint64_t table_entries;
    /* Owned; as many entries as the disk needs. Changed with map.lock held, atomically. */
    uint64_t *l1;
    uint64_t l1_count;
    /* The next place in the file; guarded by map.lock. */
    uint64_t end;
    /* From here on the file reads as zeroes where nothing was put; guarded by map.lock. */
    uint64_t zero_from;
    struct blockmap_room room;
    /* The reason why the image is not written was logged. Guarded by map.lock. */
    bool is_reported;
    pthread_mutex_t page_lock;
    bool has_page_lock;
    /* Guarded by page_lock: owned pages, NULL where there is none yet; and a count of changes. */
    struct qed_page *pages[QED_PAGES];
    uint64_t generation;
};

extern const struct block_option_desc qed_create_options[];
extern const struct schema_type qed_create_type;

/* header.c */
/* The first bytes of the file: QED_HEADER_SIZE. Does not yield. */
void qed_fill_header(const struct qed_header *h, uint8_t *bytes);
/* Write the header as it is in memory. -errno without a sentence. Yields. */
int qed_co_write_header(struct block_node *node);
/* Whether as many bytes as the tables can lead to do not fit into 64 bits. Does not yield. */
bool qed_sizes_overflow(uint32_t cluster_size, uint32_t table_clusters);
/* The most bytes that a disk can have, a multiple of QED_SECTOR. Does not yield. */
uint64_t qed_disk_max(uint32_t cluster_size, uint32_t table_clusters);
/* Read the header of a file that is open, and check its fields. -errno. Yields. */
int qed_co_load_header(struct block_node *node, struct error *err);
/* Read the backing file name that the header leads to. -errno. Yields. */
int qed_co_load_backing_name(struct block_node *node, struct error *err);

/* tables.c */
/* Whether `length` bytes at `offset` may be a table or a cluster of the image. Does not yield. */
bool qed_is_place(const struct block_node *node, uint64_t offset, uint64_t length);
/* Entries [first, first + count) of the L2 table at `table`, in one page. -errno. Yields. */
int qed_co_get_entries(struct block_node *node, uint64_t table, uint64_t first, size_t count,
                       uint64_t *entries);
/* Write one. -errno. Yields. */
int qed_co_set_entry(struct block_node *node, uint64_t table, uint64_t index, uint64_t value);
/* Write an entry of the L1 table. With map.lock held. -errno. Yields. */
int qed_co_set_l1_locked(struct block_node *node, uint64_t index, uint64_t table);
/* Forget what is in memory of L2 tables. Does not yield. */
void qed_forget_pages(struct qed *q);
/* Of struct blockmap_ops. */
int qed_co_find(struct block_node *node, uint64_t offset, uint64_t length,
                struct blockmap_run *ret_run);
int qed_co_reserve_locked(struct block_node *node, uint64_t offset, uint64_t length,
                          struct blockmap_place *ret_place);
void qed_co_give_back_locked(struct block_node *node, const struct blockmap_place *place);
int qed_co_link_locked(struct block_node *node, uint64_t offset,
                       const struct blockmap_place *place);
int qed_co_zero_locked(struct block_node *node, uint64_t offset);

/* check.c: of struct block_driver; and the same with map.lock held. */
int qed_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret_result,
                 struct error *err);
int qed_co_check_locked(struct block_node *node, unsigned fix,
                        struct block_check_result *ret_result, struct error *err);
/* Of struct blockmap_ops: what another program left to do for the next writer. */
int qed_co_begin_writing_locked(struct block_node *node);

/* create.c: of struct block_driver. */
int qed_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err);
int qed_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                  struct options *opts, struct error *err);

#endif
