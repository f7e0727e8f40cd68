/* SPDX-License-Identifier: Apache-2.0 */
/* The header: its fields, what they may be, and the backing file name that it leads to. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "qed/image.h"

void qed_fill_header(const struct qed_header *h, uint8_t *bytes)
{
    store_le32(bytes, QED_MAGIC);
    store_le32(bytes + 4, h->cluster_size);
    store_le32(bytes + 8, h->table_clusters);
    store_le32(bytes + 12, h->header_clusters);
    store_le64(bytes + 16, h->features);
    store_le64(bytes + 24, h->compatible);
    store_le64(bytes + 32, h->autoclear);
    store_le64(bytes + 40, h->l1_offset);
    store_le64(bytes + 48, h->disk_size);
    store_le32(bytes + 56, h->name_offset);
    store_le32(bytes + 60, h->name_length);
}

int qed_co_write_header(struct block_node *node)
{
    const struct qed *q = node->opaque;
    uint8_t bytes[QED_HEADER_SIZE];

    qed_fill_header(&q->header, bytes);
    return block_co_pwrite(node->file, 0, bytes, sizeof(bytes), 0);
}

static void take_header(struct qed_header *h, const uint8_t *bytes)
{
    *h = (struct qed_header){
        .cluster_size = load_le32(bytes + 4),
        .table_clusters = load_le32(bytes + 8),
        .header_clusters = load_le32(bytes + 12),
        .features = load_le64(bytes + 16),
        .compatible = load_le64(bytes + 24),
        .autoclear = load_le64(bytes + 32),
        .l1_offset = load_le64(bytes + 40),
        .disk_size = load_le64(bytes + 48),
        .name_offset = load_le32(bytes + 56),
        .name_length = load_le32(bytes + 60),
    };
}

bool qed_sizes_overflow(uint32_t cluster_size, uint32_t table_clusters)
{
    uint64_t entries = (uint64_t)cluster_size * table_clusters / QED_ENTRY_SIZE, bytes;

    return mul_overflows(entries, entries, &bytes) || mul_overflows(bytes, cluster_size, &bytes);
}

uint64_t qed_disk_max(uint32_t cluster_size, uint32_t table_clusters)
{
    uint64_t entries = (uint64_t)cluster_size * table_clusters / QED_ENTRY_SIZE;

    return qed_sizes_overflow(cluster_size, table_clusters)
               ? QED_DISK_MAX
               : MIN(entries * entries * cluster_size, QED_DISK_MAX);
}

/* What is wrong is said in QEMU's words; the caller says of which image. */
static int check_qed_sizes(const struct qed_header *h, struct error *err)
{
    if (!is_power_of_2(h->cluster_size) || h->cluster_size < QED_CLUSTER_MIN ||
        h->cluster_size > QED_CLUSTER_MAX) {
        return error_set(err, EINVAL, "QED cluster size is invalid");
    }
    if (!is_power_of_2(h->table_clusters) || h->table_clusters > QED_TABLE_MAX) {
        return error_set(err, EINVAL, "QED table size is invalid");
    }
    if (h->disk_size > qed_disk_max(h->cluster_size, h->table_clusters) ||
        !is_aligned(h->disk_size, QED_SECTOR)) {
        return error_set(err, EINVAL, "QED image size is invalid");
    }
    return 0;
}

static int check_header(const struct block_node *node, const struct qed_header *h,
                        struct error *err)
{
    uint64_t unknown = h->features & ~(uint64_t)QED_F_KNOWN;
    int r;

    if (unknown) {
        return error_set(err, ENOTSUP, "Unsupported QED features: %" PRIx64, unknown);
    }
    r = check_qed_sizes(h, err);
    if (r < 0) {
        return r;
    }
    if (h->header_clusters == 0 || h->header_clusters > UINT32_MAX / h->cluster_size ||
        !qed_is_place(node, h->l1_offset, (uint64_t)h->table_clusters * h->cluster_size)) {
        return error_set(err, EINVAL, "QED table offset is invalid");
    }
    if ((h->features & QED_F_BACKING_FILE) &&
        (h->name_length > QED_FOREIGN_NAME_MAX ||
         !range_fits(h->name_offset, h->name_length,
                     (uint64_t)h->header_clusters * h->cluster_size))) {
        return error_set(err, EINVAL, "QED backing filename offset is invalid");
    }
    return 0;
}

int qed_co_load_header(struct block_node *node, struct error *err)
{
    struct qed *q = node->opaque;
    uint8_t bytes[QED_HEADER_SIZE];
    int r = blockmap_co_read_exactly(node, node->file, 0, bytes, sizeof(bytes), "header", err);

    if (r < 0) {
        return r;
    }
    if (load_le32(bytes) != QED_MAGIC) {
        return error_set(err, EINVAL, "Image not in QED format");
    }
    take_header(&q->header, bytes);
    return check_header(node, &q->header, err);
}

int qed_co_load_backing_name(struct block_node *node, struct error *err)
{
    struct qed *q = node->opaque;
    int r;

    free(q->backing_filename);
    q->backing_filename = NULL;
    if (!(q->header.features & QED_F_BACKING_FILE) || q->header.name_length == 0) {
        return 0;
    }
    q->backing_filename = calloc(1, (size_t)q->header.name_length + 1);
    if (!q->backing_filename) {
        return error_out_of_memory(err);
    }
    r = blockmap_co_read_exactly(node, node->file, q->header.name_offset, q->backing_filename,
                                 q->header.name_length, "backing file name", err);
    return r == 0 && strlen(q->backing_filename) != q->header.name_length
               ? error_set(err, EINVAL, "The backing file name of '%s' has a byte 0 within",
                           block_node_display_name(node))
               : r;
}
