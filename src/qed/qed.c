/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver `qed`. Options: file, backing. The open checks the header; entries of tables are
 * checked when they are used.
 *
 * A crash of this driver leaves clusters that nothing leads to, and never an entry that leads out
 * of the file (blockmap/blockmap.h): so QED_F_NEED_CHECK is only cleared here, and never set.
 */
#include "qed/qed.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/option_types.h"
#include "qed/image.h"
#include "schema/define.h"

static const struct blockmap_ops qed_map_ops = {
    .co_find = qed_co_find,
    .co_reserve_locked = qed_co_reserve_locked,
    .co_give_back_locked = qed_co_give_back_locked,
    .co_link_locked = qed_co_link_locked,
    .co_begin_writing_locked = qed_co_begin_writing_locked,
    .co_zero_locked = qed_co_zero_locked,
};

/* --- opening ---------------------------------------------------------------------------------- */

static uint64_t count_l1(const struct qed *q, uint64_t disk_size)
{
    return div_round_up(div_round_up(disk_size, q->header.cluster_size), q->table_entries);
}

static int co_load_l1(struct block_node *node, struct error *err)
{
    struct qed *q = node->opaque;
    uint64_t count = count_l1(q, q->header.disk_size);
    int r;

    free(q->l1);
    q->l1_count = 0;
    q->l1 = calloc((size_t)MAX(count, 1u), sizeof(*q->l1));
    if (!q->l1) {
        return error_out_of_memory(err);
    }
    r = blockmap_co_read_exactly(node, node->file, q->header.l1_offset, q->l1,
                                 (size_t)count * sizeof(*q->l1), "L1 table", err);
    if (r < 0) {
        return r;
    }
    for (uint64_t i = 0; i < count; i++) {
        q->l1[i] = load_le64(&q->l1[i]);
    }
    q->l1_count = count;
    return 0;
}

static int co_load_qed(struct block_node *node, struct error *err)
{
    struct qed *q = node->opaque;
    int r = qed_co_load_header(node, err);

    UNLESS_FAILED(r, qed_co_load_backing_name(node, err));
    if (r < 0) {
        return r;
    }
    q->table_entries = (uint64_t)q->header.table_clusters * q->header.cluster_size / QED_ENTRY_SIZE;
    q->zero_from = block_edge_size(node->file);
    q->end = round_up(q->zero_from, q->header.cluster_size);
    q->room = (struct blockmap_room){0};
    block_node_set_size(node, q->header.disk_size);
    return co_load_l1(node, err);
}

static void qed_release(struct qed *q)
{
    if (q->has_page_lock) {
        qed_forget_pages(q);
        pthread_mutex_destroy(&q->page_lock);
        q->has_page_lock = false;
    }
    free(q->l1);
    q->l1 = NULL;
    free(q->backing_filename);
    q->backing_filename = NULL;
}

static void qed_co_close(struct block_node *node)
{
    struct qed *q = node->opaque;

    blockmap_destroy(&q->map);
    qed_release(q);
}

static const char *backing_format(const struct qed *q)
{
    return q->header.features & QED_F_BACKING_IS_RAW ? "raw" : NULL;
}

static int qed_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct qed *q = node->opaque;
    int r = block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA, false,
                                NULL, err);

    pthread_mutex_init(&q->page_lock, NULL);
    q->has_page_lock = true;
    UNLESS_FAILED(r, co_load_qed(node, err));
    UNLESS_FAILED(r,
                  block_co_open_backing(node, opts, q->backing_filename, backing_format(q), err));
    if (r < 0) {
        qed_co_close(node);
        return r;
    }
    blockmap_init(&q->map, &qed_map_ops, q->header.cluster_size);
    node->limits.cluster_size = q->header.cluster_size;
    node->limits.request_alignment = QED_SECTOR;
    node->limits.memory_alignment = node->file->node->limits.memory_alignment;
    return 0;
}

static int qed_co_inactivate(struct block_node *node, struct error *err)
{
    struct qed *q = node->opaque;

    blockmap_co_cut_room(node->file, &q->room, q->end);
    return 0;
}

/* Another process may have written. */
static int qed_co_reload(struct block_node *node, struct error *err)
{
    struct qed *q = node->opaque;
    struct qed old = *q;
    int r;

    q->l1 = NULL;
    q->backing_filename = NULL;
    r = co_load_qed(node, err);
    if (r == 0 && q->header.cluster_size != old.header.cluster_size) {
        r = error_set(err, EINVAL, "Image '%s' has another cluster size than before",
                      block_node_display_name(node));
    }
    if (r < 0) {
        free(q->l1);
        free(q->backing_filename);
        *q = old;
        block_node_set_size(node, q->header.disk_size); /* as long as its table */
        return r;
    }
    free(old.l1);
    free(old.backing_filename);
    qed_forget_pages(q);
    atomic_store(&q->map.is_writing, false);
    return 0;
}

/* --- changes of the image --------------------------------------------------------------------- */

static int co_write_change(struct block_node *node, const struct qed_header *old, struct error *err)
{
    struct qed *q = node->opaque;
    int r;

    q->header.autoclear = 0;
    r = qed_co_write_header(node);
    UNLESS_FAILED(r, block_co_flush(node->file));
    if (r < 0) {
        q->header = *old;
        return error_set_errno(err, -r, "Could not write the header of '%s'",
                               block_node_display_name(node));
    }
    return 0;
}

static int check_new_size(const struct block_node *node, uint64_t size,
                          enum block_prealloc prealloc, struct error *err)
{
    const struct qed *q = node->opaque;
    uint64_t most = qed_disk_max(q->header.cluster_size, q->header.table_clusters);

    if (prealloc != BLOCK_PREALLOC_OFF) {
        return error_set(err, ENOTSUP, "Images of the format 'qed' can't be preallocated");
    }
    if (!is_aligned(size, QED_SECTOR) || size > most) {
        return error_set(err, EINVAL,
                         "Invalid image size: it must be a multiple of 512, and at most %" PRIu64,
                         most);
    }
    if (size < q->header.disk_size) {
        return error_set(err, ENOTSUP, "Shrinking images is currently not supported");
    }
    if (node->backing && block_edge_size(node->backing) > q->header.disk_size) {
        return error_set(err, ENOTSUP,
                         "Image '%s' can't grow, since its backing file is longer, and what that "
                         "has there would appear",
                         block_node_display_name(node));
    }
    return 0;
}

/*
 * What a cluster has past the end of the disk becomes zero, stably, before the disk includes that:
 * QEMU puts there what a longer backing file has.
 */
static int co_clear_tail(struct block_node *node, struct error *err)
{
    const struct qed *q = node->opaque;
    uint64_t size = q->header.disk_size, rest = round_up(size, q->header.cluster_size) - size;
    struct blockmap_run run;
    int r;

    if (rest == 0) {
        return 0;
    }
    r = qed_co_find(node, size - QED_SECTOR, QED_SECTOR, &run);
    if (r == 0 && run.kind == BLOCKMAP_DATA) {
        r = block_co_write_zeroes(run.edge, run.host + QED_SECTOR, rest, 0);
        UNLESS_FAILED(r, block_co_flush(run.edge));
    }
    return r < 0 ? error_set_errno(err, -r, "Could not clear the end of '%s'",
                                   block_node_display_name(node))
                 : 0;
}

static int qed_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                           struct error *err)
{
    struct qed *q = node->opaque;
    struct qed_header old = q->header;
    uint64_t count = count_l1(q, size);
    uint64_t *l1;
    int r = check_new_size(node, size, prealloc, err);

    if (r < 0) {
        return r;
    }
    /* The table in the file has all its entries already; those beyond the old size are 0. */
    l1 = calloc((size_t)MAX(count, 1u), sizeof(*l1));
    if (!l1) {
        return error_out_of_memory(err);
    }
    memcpy(l1, q->l1, (size_t)q->l1_count * sizeof(*l1));
    r = blockmap_co_read_exactly(node, node->file, q->header.l1_offset + q->l1_count * sizeof(*l1),
                                 l1 + q->l1_count, (size_t)(count - q->l1_count) * sizeof(*l1),
                                 "L1 table", err);
    for (uint64_t i = q->l1_count; i < count; i++) {
        l1[i] = load_le64(&l1[i]);
    }
    UNLESS_FAILED(r, size > q->header.disk_size ? co_clear_tail(node, err) : 0);
    q->header.disk_size = size;
    UNLESS_FAILED(r, co_write_change(node, &old, err));
    if (r < 0) {
        q->header = old;
        free(l1);
        return r;
    }
    free(q->l1);
    q->l1 = l1;
    q->l1_count = count;
    block_node_set_size(node, size);
    return 0;
}

/*
 * Where the header has room for another name than the one that counts now: they take turns. Another
 * program may have left a name that is too long for that; then its place is used again.
 */
static uint32_t place_for_name(const struct qed_header *now, size_t length)
{
    uint32_t half = QED_CLUSTER_MIN / 2, end;

    if (!(now->features & QED_F_BACKING_FILE) || now->name_offset >= half) {
        return QED_HEADER_SIZE;
    }
    end = MAX(half, now->name_offset + now->name_length);
    return range_fits(end, length, (uint64_t)now->header_clusters * now->cluster_size)
               ? end
               : QED_HEADER_SIZE;
}

static int qed_co_change_backing(struct block_node *node, const char *filename, const char *format,
                                 struct error *err)
{
    struct qed *q = node->opaque;
    struct qed_header old = q->header;
    AUTO_FREE char *name = filename ? strdup(filename) : NULL;
    size_t length = filename ? strlen(filename) : 0;
    int r = 0;

    if (filename && !name) {
        return error_out_of_memory(err);
    }
    if (length > QED_NAME_MAX) {
        return error_set(err, EINVAL, "The backing file name has %zu bytes; at most %d are allowed",
                         length, QED_NAME_MAX);
    }
    q->header.features &= ~(uint64_t)(QED_F_BACKING_FILE | QED_F_BACKING_IS_RAW);
    q->header.name_offset = q->header.name_length = 0;
    if (filename) {
        q->header.features |= QED_F_BACKING_FILE;
        q->header.features |= format && strcmp(format, "raw") == 0 ? QED_F_BACKING_IS_RAW : 0;
        q->header.name_offset = place_for_name(&old, length);
        q->header.name_length = (uint32_t)length;
        r = block_co_pwrite(node->file, q->header.name_offset, name, length, 0);
        UNLESS_FAILED(r, block_co_flush(node->file));
    }
    if (r < 0) {
        q->header = old;
        return error_set_errno(err, -r, "Could not write the backing file name of '%s'",
                               block_node_display_name(node));
    }
    r = co_write_change(node, &old, err);
    if (r == 0) {
        free(q->backing_filename);
        q->backing_filename = TAKE_PTR(name);
    }
    return r;
}

/* --- the driver ------------------------------------------------------------------------------- */

static int qed_probe(const uint8_t *head, size_t size)
{
    return size >= QED_HEADER_SIZE && load_le32(head) == QED_MAGIC ? 100 : 0;
}

static int qed_co_get_info(struct block_node *node, struct block_info *ret_info)
{
    const struct qed *q = node->opaque;

    *ret_info = (struct block_info){
        .cluster_size = q->header.cluster_size,
        .has_dirty_flag = true,
        .dirty_flag = q->header.features & QED_F_NEED_CHECK,
        .backing_filename = q->backing_filename,
        .backing_format = q->backing_filename ? backing_format(q) : NULL,
    };
    return 0;
}

static const struct schema_type qed_options_type =
    OBJECT_INIT("BlockdevOptionsGenericCOWFormat", REQ("file", block_ref_type),
                OPT("backing", block_ref_or_null_type,
                    .help = "the backing file; default: as the image says, null: none"));

static const struct block_driver qed_driver = {
    .name = "qed",
    .help = "format: QED of early QEMU",
    .options = &qed_options_type,
    .instance_size = sizeof(struct qed),
    .is_format = true,
    .probe = qed_probe,
    .co_open = qed_co_open,
    .co_close = qed_co_close,
    .co_reload = qed_co_reload,
    .co_inactivate = qed_co_inactivate,
    .reopen_options = block_no_options,
    .exchanges_file = true,
    .file_head = 4096,
    .co_create = qed_co_create,
    .co_format = qed_co_format,
    .create_options = qed_create_options,
    .create_type = &qed_create_type,
    .co_get_info = qed_co_get_info,
    .co_check = qed_co_check,
    .co_change_backing = qed_co_change_backing,
    .co_truncate = qed_co_truncate,
    .co_preadv = blockmap_co_preadv,
    .co_pwritev = blockmap_co_pwritev,
    .co_write_zeroes = blockmap_co_write_zeroes,
    .co_status = blockmap_co_status,
};

void qed_register_driver(void)
{
    block_register_driver(&qed_driver);
}
