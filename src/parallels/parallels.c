/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver `parallels`. Options: file; backing, which the image does not record. The open reads
 * the header and the BAT.
 *
 * Before the first write the header says "in use", stably, and when the image is completed that it
 * is not. An image that was not closed in order, or whose BAT has errors, is repaired when it is
 * opened for writing, as by QEMU.
 *
 * A format extension (dirty bitmaps) that is valid would be wrong after a write. So an image that
 * has one is not written: nobody loses a bitmap by opening a disk.
 */
#include "parallels/parallels.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/option_types.h"
#include "parallels/image.h"
#include "schema/define.h"

/* --- I/O -------------------------------------------------------------------------------------- */

static int parallels_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                               unsigned flags)
{
    struct parallels *p = node->opaque;
    struct range_entry entry;
    int r;

    co_range_lock(&p->requests, &entry, offset, iov.size, false);
    r = blockmap_co_preadv(node, offset, iov, flags);
    range_unlock(&p->requests, &entry);
    return r;
}

static int parallels_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                                unsigned flags)
{
    struct parallels *p = node->opaque;
    struct range_entry entry;
    int r;

    co_range_lock(&p->requests, &entry, offset, iov.size, false);
    r = blockmap_co_pwritev(node, offset, iov, flags);
    range_unlock(&p->requests, &entry);
    return r;
}

static int co_zero_shared(struct block_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct parallels *p = node->opaque;
    struct range_entry entry;
    int r;

    co_range_lock(&p->requests, &entry, offset, length, false);
    r = blockmap_co_write_zeroes(node, offset, length, flags);
    range_unlock(&p->requests, &entry);
    return r;
}

/* Clusters that are zeroed as a whole are taken out of the BAT, if nothing is behind that. */
static int parallels_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                     unsigned flags)
{
    const struct parallels *p = node->opaque;
    uint64_t end = offset + length, size = block_node_size(node);
    int r = 0;

    if (node->backing) {
        return co_zero_shared(node, offset, length, flags);
    }
    r = blockmap_co_begin_writing(node);
    for (uint64_t next; offset < end && r == 0; offset = next) {
        uint64_t cluster_end = (offset / p->cluster_size + 1) * p->cluster_size;

        next = MIN(end, cluster_end);
        if (offset % p->cluster_size == 0 && next == MIN(cluster_end, size)) {
            r = parallels_co_unlink(node, offset);
        } else {
            r = co_zero_shared(node, offset, next - offset, flags);
        }
    }
    return r;
}

static int parallels_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    const struct parallels *p = node->opaque;
    int r = node->backing ? -ENOTSUP : blockmap_co_begin_writing(node);

    for (uint64_t end = offset + length; offset < end && r == 0; offset += p->cluster_size) {
        r = parallels_co_unlink(node, offset);
    }
    return r;
}

/* Before the first write. */
static int parallels_co_begin_writing_locked(struct block_node *node)
{
    struct parallels *p = node->opaque;
    struct parallels old = *p;
    int r = p->needs_repair ? parallels_co_repair_locked(node, true, NULL) : 0;

    if (r < 0) {
        return r;
    }
    p->in_use = PARALLELS_IN_USE;
    p->flags &= ~PARALLELS_F_EMPTY;
    p->extension = 0; /* one that is valid is not written */
    r = parallels_co_write_fields(node);
    UNLESS_FAILED(r, block_co_flush(node->file));
    if (r < 0) {
        p->in_use = old.in_use;
        p->flags = old.flags;
        p->extension = old.extension;
    }
    return r;
}

static const struct blockmap_ops parallels_map_ops = {
    .co_find = parallels_co_find,
    .co_reserve_locked = parallels_co_reserve_locked,
    .co_give_back_locked = parallels_co_give_back_locked,
    .co_link_locked = parallels_co_link_locked,
    .co_begin_writing_locked = parallels_co_begin_writing_locked,
};

/* --- open and close --------------------------------------------------------------------------- */

static void parallels_co_close(struct block_node *node)
{
    struct parallels *p = node->opaque;

    blockmap_destroy(&p->map);
    if (p->has_requests) {
        range_lock_destroy(&p->requests);
        p->has_requests = false;
    }
    free(p->bat);
    free(p->used);
    p->bat = NULL;
    p->used = NULL;
}

static int check_parallels_writing(const struct block_node *node, struct error *err)
{
    const struct parallels *p = node->opaque;

    /* A repair keeps the extension. */
    return p->keeps_extension && !(node->open_flags & BLOCK_OPEN_CHECK)
               ? blockmap_refuse_writing(
                     node,
                     "has a format extension with dirty bitmaps, which a write would make invalid",
                     err)
               : 0;
}

static int co_repair_at_open(struct block_node *node, struct error *err)
{
    struct parallels *p = node->opaque;
    int r;

    if (!p->needs_repair || node->read_only || node->handed_over ||
        (node->open_flags & (BLOCK_OPEN_CHECK | BLOCK_OPEN_NO_IO))) {
        return 0;
    }
    co_mutex_lock(&p->map.lock);
    r = parallels_co_repair_locked(node, false, err);
    co_mutex_unlock(&p->map.lock);
    return r;
}

static int parallels_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct parallels *p = node->opaque;
    int r = block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA, false,
                                NULL, err);

    UNLESS_FAILED(r, parallels_co_load(node, err));
    UNLESS_FAILED(r, check_parallels_writing(node, err));
    UNLESS_FAILED(r, parallels_co_read_extension(node, true, err));
    UNLESS_FAILED(r, block_co_open_backing(node, opts, NULL, NULL, err));
    if (r == 0) {
        blockmap_init(&p->map, &parallels_map_ops, p->cluster_size);
        range_lock_init(&p->requests);
        p->has_requests = true;
        r = co_repair_at_open(node, err);
    }
    if (r < 0) {
        parallels_co_close(node);
        return r;
    }
    if (is_power_of_2(p->cluster_size)) {
        node->limits.cluster_size = (uint32_t)p->cluster_size;
    }
    node->limits.discard_alignment = p->cluster_size;
    node->limits.request_alignment = PARALLELS_SECTOR;
    node->limits.memory_alignment = node->file->node->limits.memory_alignment;
    return 0;
}

/* All is stable, then the mark goes. */
static int parallels_co_inactivate(struct block_node *node, struct error *err)
{
    struct parallels *p = node->opaque;
    int r;

    if (!atomic_load(&p->map.is_writing)) {
        return 0;
    }
    r = block_co_flush(node->file);
    if (r == 0) {
        blockmap_co_cut_room(node->file, &p->room, parallels_data_end(p));
        p->zero_from = MIN(p->zero_from, block_edge_size(node->file));
        p->in_use = 0;
        r = parallels_co_write_fields(node);
    }
    if (r < 0) {
        p->in_use = PARALLELS_IN_USE;
        return error_set_errno(err, -r, "Could not complete '%s'", block_node_display_name(node));
    }
    atomic_store(&p->map.is_writing, false);
    return 0;
}

static int parallels_co_reopen_prepare(struct block_node *node, struct options *opts,
                                       struct error *err)
{
    return check_parallels_writing(node, err);
}

/* Another process may have written. */
static int co_load_again(struct block_node *node, const struct parallels *old, struct error *err)
{
    struct parallels *p = node->opaque;
    int r = parallels_co_load(node, err);

    UNLESS_FAILED(r, check_parallels_writing(node, err));
    UNLESS_FAILED(r, parallels_co_read_extension(node, false, err));
    if (r == 0 && p->cluster_size != old->cluster_size) {
        r = error_set(err, EINVAL, "Image '%s' has another cluster size than before",
                      block_node_display_name(node));
    }
    if (r == 0 && (p->is_extension_read != old->is_extension_read ||
                   memcmp(p->extension_sum, old->extension_sum, sizeof(p->extension_sum)) != 0)) {
        r = error_set(err, EINVAL, "Image '%s' has other dirty bitmaps than before",
                      block_node_display_name(node));
    }
    return r;
}

static int parallels_co_reload(struct block_node *node, struct error *err)
{
    struct parallels *p = node->opaque;
    struct parallels old = *p;
    uint64_t size = block_node_size(node);
    int r;

    p->bat = NULL;
    p->used = NULL;
    r = co_load_again(node, &old, err);
    if (r < 0) {
        free(p->bat);
        free(p->used);
        *p = old;
        block_node_set_size(node, size); /* as long as its table */
        return r;
    }
    free(old.bat);
    free(old.used);
    atomic_store(&p->map.is_writing, false);
    return 0;
}

/* --- the driver ------------------------------------------------------------------------------- */

static int parallels_probe(const uint8_t *head, size_t size)
{
    bool known = size >= PARALLELS_HEADER_SIZE &&
                 (memcmp(head, parallels_magic, PARALLELS_MAGIC_SIZE) == 0 ||
                  memcmp(head, parallels_magic_extended, PARALLELS_MAGIC_SIZE) == 0);

    return known && load_le32(head + PARALLELS_AT_VERSION) == PARALLELS_VERSION ? 100 : 0;
}

static const struct schema_type parallels_options_type =
    OBJECT_INIT("BlockdevOptionsParallels", REQ("file", block_ref_type),
                OPT("backing", block_ref_or_null_type,
                    .help = "an image that is read where this one has nothing; the image itself "
                            "names none"));

static const struct block_driver parallels_driver = {
    .name = "parallels",
    .help = "format: expandable disks of Parallels and Virtuozzo",
    .options = &parallels_options_type,
    .instance_size = sizeof(struct parallels),
    .is_format = true,
    .takes_backing = true,
    .probe = parallels_probe,
    .co_open = parallels_co_open,
    .co_close = parallels_co_close,
    .co_reload = parallels_co_reload,
    .co_inactivate = parallels_co_inactivate,
    .co_reopen_prepare = parallels_co_reopen_prepare,
    .reopen_options = block_no_options,
    .co_create = parallels_co_create,
    .co_format = parallels_co_format,
    .create_options = parallels_create_options,
    .create_type = &parallels_create_type,
    .co_check = parallels_co_check,
    .co_preadv = parallels_co_preadv,
    .co_pwritev = parallels_co_pwritev,
    .co_write_zeroes = parallels_co_write_zeroes,
    .co_discard = parallels_co_discard,
    .co_status = blockmap_co_status,
};

void parallels_register_driver(void)
{
    block_register_driver(&parallels_driver);
}
