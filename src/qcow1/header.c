/* SPDX-License-Identifier: Apache-2.0 */
/* The header: its fields, what they may be, and what they lead to. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "qcow1/image.h"

void qcow1_fill_header(const struct qcow1_header *h, uint8_t *bytes)
{
    memset(bytes, 0, QCOW1_HEADER_SIZE);
    store_be32(bytes, QCOW1_MAGIC);
    store_be32(bytes + 4, QCOW1_VERSION);
    store_be64(bytes + 8, h->name_offset);
    store_be32(bytes + 16, h->name_length);
    store_be64(bytes + 24, h->disk_size);
    bytes[32] = h->cluster_bits;
    bytes[33] = h->l2_bits;
    store_be32(bytes + 36, h->crypt);
    store_be64(bytes + 40, h->l1_offset);
}

uint64_t qcow1_l1_entries(const struct qcow1_header *h)
{
    unsigned bits = (unsigned)h->cluster_bits + h->l2_bits;

    return h->disk_size == 0 ? 1 : ((h->disk_size - 1) >> bits) + 1;
}

/* What is wrong is said in QEMU's words; the caller says of which image. */
static int check_qcow1_header(const struct qcow1_header *h, struct error *err)
{
    if (h->disk_size <= 1) {
        return error_set(err, EINVAL, "Image size is too small (must be at least 2 bytes)");
    }
    if (h->cluster_bits < QCOW1_CLUSTER_BITS_MIN || h->cluster_bits > QCOW1_CLUSTER_BITS_MAX) {
        return error_set(err, EINVAL, "Cluster size must be between 512 and 64k");
    }
    if (h->l2_bits < QCOW1_L2_BITS_MIN || h->l2_bits > QCOW1_L2_BITS_MAX) {
        return error_set(err, EINVAL, "L2 table size must be between 512 and 64k");
    }
    if (h->crypt > QCOW1_CRYPT_AES) {
        return error_set(err, EINVAL, "invalid encryption method in qcow header");
    }
    if (h->disk_size > INT64_MAX || qcow1_l1_entries(h) > QCOW1_L1_MAX) {
        return error_set(err, EFBIG, "Image too large");
    }
    if (h->name_offset != 0 && h->name_length > QCOW1_NAME_MAX) {
        return error_set(err, EINVAL, "Backing file name too long");
    }
    return 0;
}

static int take_qcow1_header(struct qcow1_header *h, const uint8_t *bytes, struct error *err)
{
    uint32_t version = load_be32(bytes + 4);

    if (load_be32(bytes) != QCOW1_MAGIC) {
        return error_set(err, EINVAL, "Image not in qcow format");
    }
    if (version != QCOW1_VERSION) {
        error_set(err, ENOTSUP, "qcow (v1) does not support qcow version %" PRIu32, version);
        if (version == 2 || version == 3) {
            error_hint(err, "Try the 'qcow2' driver instead.");
        }
        return -ENOTSUP;
    }
    *h = (struct qcow1_header){
        .name_offset = load_be64(bytes + 8),
        .name_length = load_be32(bytes + 16),
        .disk_size = load_be64(bytes + 24),
        .cluster_bits = bytes[32],
        .l2_bits = bytes[33],
        .crypt = load_be32(bytes + 36),
        .l1_offset = load_be64(bytes + 40),
    };
    return check_qcow1_header(h, err);
}

static int co_load_qcow1_name(struct block_node *node, struct error *err)
{
    struct qcow1 *q = node->opaque;
    const struct qcow1_header *h = &q->header;
    int r;

    if (h->name_offset == 0 || h->name_length == 0) {
        return 0;
    }
    q->backing_filename = calloc(1, (size_t)h->name_length + 1);
    if (!q->backing_filename) {
        return error_out_of_memory(err);
    }
    r = blockmap_co_read_exactly(node, node->file, h->name_offset, q->backing_filename,
                                 h->name_length, "backing file name", err);
    return r == 0 && strlen(q->backing_filename) != h->name_length
               ? error_set(err, EINVAL, "The backing file name of '%s' has a byte 0 within",
                           block_node_display_name(node))
               : r;
}

static int co_load_qcow1_l1(struct block_node *node, struct error *err)
{
    struct qcow1 *q = node->opaque;
    int r;

    q->l1_count = qcow1_l1_entries(&q->header);
    q->l1 = calloc((size_t)q->l1_count, sizeof(*q->l1));
    if (!q->l1) {
        return error_out_of_memory(err);
    }
    r = blockmap_co_read_exactly(node, node->file, q->header.l1_offset, q->l1,
                                 (size_t)q->l1_count * sizeof(*q->l1), "L1 table", err);
    if (r < 0) {
        return r;
    }
    for (uint64_t i = 0; i < q->l1_count; i++) {
        q->l1[i] = load_be64(&q->l1[i]);
    }
    return 0;
}

int qcow1_co_load(struct block_node *node, struct error *err)
{
    struct qcow1 *q = node->opaque;
    uint8_t bytes[QCOW1_HEADER_SIZE];
    int r = blockmap_co_read_exactly(node, node->file, 0, bytes, sizeof(bytes), "header", err);

    UNLESS_FAILED(r, take_qcow1_header(&q->header, bytes, err));
    if (r == 0 && q->header.l1_offset < QCOW1_HEADER_SIZE) {
        r = error_set(err, EINVAL, "The L1 table of '%s' begins in its header: offset %" PRIu64,
                      block_node_display_name(node), q->header.l1_offset);
    }
    UNLESS_FAILED(r, co_load_qcow1_name(node, err));
    UNLESS_FAILED(r, co_load_qcow1_l1(node, err));
    if (r < 0) {
        return r;
    }
    q->cluster_size = UINT64_C(1) << q->header.cluster_bits;
    q->table_entries = UINT64_C(1) << q->header.l2_bits;
    q->page_entries = (size_t)MIN(q->table_entries, QCOW1_PAGE_ENTRIES);
    q->least = q->header.l1_offset + q->l1_count * QCOW1_ENTRY_SIZE;
    q->zero_from = block_edge_size(node->file);
    q->end = MAX(q->zero_from, q->least);
    q->room = (struct blockmap_room){0};
    q->spare_table = 0;
    block_node_set_size(node, round_down(q->header.disk_size, QCOW1_SECTOR));
    return 0;
}
