/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver `qcow`. Options: file, backing. The open checks the header; entries of tables are
 * checked when they are used. The image records no format of its backing file, which is probed.
 *
 * A crash leaves clusters that nothing leads to, and never an entry that leads out of the file
 * (blockmap/blockmap.h). There is no check, as in QEMU.
 */
#include "qcow1/qcow1.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/option_types.h"
#include "qcow1/image.h"
#include "schema/define.h"

static const struct blockmap_ops qcow1_map_ops = {
    .co_find = qcow1_co_find,
    .co_read_compressed = qcow1_co_read_compressed,
    .replaces_compressed = true,
    .co_reserve_locked = qcow1_co_reserve_locked,
    .co_give_back_locked = qcow1_co_give_back_locked,
    .co_link_locked = qcow1_co_link_locked,
};

/* --- opening ---------------------------------------------------------------------------------- */

static void qcow1_co_close(struct block_node *node)
{
    struct qcow1 *q = node->opaque;

    blockmap_destroy(&q->map);
    if (q->has_page_lock) {
        qcow1_forget_pages(q);
        pthread_mutex_destroy(&q->page_lock);
        q->has_page_lock = false;
    }
    free(q->l1);
    q->l1 = NULL;
    free(q->backing_filename);
    q->backing_filename = NULL;
}

static int check_encryption(const struct block_node *node, struct error *err)
{
    const struct qcow1 *q = node->opaque;

    if (q->header.crypt != QCOW1_CRYPT_AES || (node->open_flags & BLOCK_OPEN_NO_IO)) {
        return 0;
    }
    error_set(err, ENOTSUP, "Image '%s' is encrypted, which is not supported for the format 'qcow'",
              block_node_display_name(node));
    error_hint(err, "Convert the image first, with QEMU's 'qemu-img convert -O qcow2'");
    return -ENOTSUP;
}

static int qcow1_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct qcow1 *q = node->opaque;
    int r = block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA, false,
                                NULL, err);

    pthread_mutex_init(&q->page_lock, NULL);
    q->has_page_lock = true;
    UNLESS_FAILED(r, qcow1_co_load(node, err));
    UNLESS_FAILED(r, check_encryption(node, err));
    UNLESS_FAILED(r, block_co_open_backing(node, opts, q->backing_filename, NULL, err));
    if (r < 0) {
        qcow1_co_close(node);
        return r;
    }
    blockmap_init(&q->map, &qcow1_map_ops, q->cluster_size);
    node->limits.cluster_size = (uint32_t)q->cluster_size;
    node->limits.request_alignment = QCOW1_SECTOR;
    node->limits.memory_alignment = node->file->node->limits.memory_alignment;
    return 0;
}

static int qcow1_co_inactivate(struct block_node *node, struct error *err)
{
    struct qcow1 *q = node->opaque;

    blockmap_co_cut_room(node->file, &q->room, q->end);
    return 0;
}

/* Another process may have written. */
static int qcow1_co_reload(struct block_node *node, struct error *err)
{
    struct qcow1 *q = node->opaque;
    struct qcow1 old = *q;
    uint64_t size = block_node_size(node);
    int r;

    q->l1 = NULL;
    q->backing_filename = NULL;
    r = qcow1_co_load(node, err);
    UNLESS_FAILED(r, check_encryption(node, err));
    if (r == 0 && q->header.cluster_bits != old.header.cluster_bits) {
        r = error_set(err, EINVAL, "Image '%s' has another cluster size than before",
                      block_node_display_name(node));
    }
    if (r < 0) {
        free(q->l1);
        free(q->backing_filename);
        *q = old;
        block_node_set_size(node, size); /* as long as its table */
        return r;
    }
    free(old.l1);
    free(old.backing_filename);
    qcow1_forget_pages(q);
    return 0;
}

/* --- I/O -------------------------------------------------------------------------------------- */

/* No entry says "zeroes": over a backing file they are data. */
static int qcow1_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                 unsigned flags)
{
    return node->backing ? -ENOTSUP : blockmap_co_write_zeroes(node, offset, length, flags);
}

/* What is in memory of the L1 table is written, as the table may be empty in the file. */
static void co_restore_l1_locked(struct block_node *node)
{
    struct qcow1 *q = node->opaque;
    size_t size = (size_t)q->l1_count * QCOW1_ENTRY_SIZE;
    AUTO_FREE uint8_t *bytes = malloc(size);
    int r = bytes ? 0 : -ENOMEM;

    CO_ASSERT_HELD(&q->map.lock);
    for (uint64_t i = 0; i < q->l1_count && r == 0; i++) {
        store_be64(bytes + i * QCOW1_ENTRY_SIZE, q->l1[i]);
    }
    UNLESS_FAILED(r, block_co_pwrite(node->file, q->header.l1_offset, bytes, size, 0));
    if (r < 0) {
        log_error("image '%s': the L1 table is empty in the file, and can't be written: %s",
                  block_node_display_name(node), strerror(-r));
    }
}

/* After a commit: the table is empty, stably, and then the file is cut. */
static int qcow1_co_make_empty(struct block_node *node, struct error *err)
{
    struct qcow1 *q = node->opaque;
    uint64_t length = q->l1_count * QCOW1_ENTRY_SIZE;
    int r;

    co_mutex_lock(&q->map.lock);
    r = block_co_write_zeroes(node->file, q->header.l1_offset, length, 0);
    UNLESS_FAILED(r, block_co_flush(node->file));
    if (r == 0) {
        memset(q->l1, 0, (size_t)length);
        qcow1_forget_pages(q);
        q->end = q->least;
        q->spare_table = 0;
        q->room.is_used = true;
        blockmap_co_cut_room(node->file, &q->room, q->end);
        q->zero_from = block_edge_size(node->file);
    } else {
        co_restore_l1_locked(node);
    }
    co_mutex_unlock(&q->map.lock);
    return r < 0 ? error_set_errno(err, -r, "Could not empty the L1 table of '%s'",
                                   block_node_display_name(node))
                 : 0;
}

/* --- the driver ------------------------------------------------------------------------------- */

static int qcow1_probe(const uint8_t *head, size_t size)
{
    return size >= QCOW1_HEADER_SIZE && load_be32(head) == QCOW1_MAGIC &&
                   load_be32(head + 4) == QCOW1_VERSION
               ? 100
               : 0;
}

static int qcow1_co_get_info(struct block_node *node, struct block_info *ret_info)
{
    const struct qcow1 *q = node->opaque;

    *ret_info = (struct block_info){
        .cluster_size = (uint32_t)q->cluster_size,
        .encrypted = q->header.crypt == QCOW1_CRYPT_AES,
        .backing_filename = q->backing_filename,
    };
    return 0;
}

static const struct schema_type qcow1_options_type =
    OBJECT_INIT("BlockdevOptionsQcow", REQ("file", block_ref_type),
                OPT("backing", block_ref_or_null_type,
                    .help = "the backing file; default: as the image says, null: none"));

static const struct block_driver qcow1_driver = {
    .name = "qcow",
    .help = "format: the first version of qcow, of QEMU before 2008",
    .options = &qcow1_options_type,
    .instance_size = sizeof(struct qcow1),
    .is_format = true,
    .takes_backing = true,
    .compresses = true,
    .probe = qcow1_probe,
    .co_open = qcow1_co_open,
    .co_close = qcow1_co_close,
    .co_reload = qcow1_co_reload,
    .co_inactivate = qcow1_co_inactivate,
    .reopen_options = block_no_options,
    .co_create = qcow1_co_create,
    .co_format = qcow1_co_format,
    .create_options = qcow1_create_options,
    .create_type = &qcow1_create_type,
    .co_get_info = qcow1_co_get_info,
    .co_make_empty = qcow1_co_make_empty,
    .co_preadv = blockmap_co_preadv,
    .co_pwritev = qcow1_co_pwritev,
    .co_write_zeroes = qcow1_co_write_zeroes,
    .co_status = blockmap_co_status,
};

void qcow1_register_driver(void)
{
    block_register_driver(&qcow1_driver);
}
