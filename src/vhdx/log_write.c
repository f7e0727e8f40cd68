/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing the log. Each entry has one data sector, so it has two sectors, and entries follow each
 * other in the ring. The order of a change of metadata:
 *
 *   1. the entry is written to the log
 *   2. a flush: the entry is stable, and so are the change before and all data
 *   3. the metadata are changed in place
 *
 * A crash after 2 leaves an entry that is replayed. The change before may not have been stable when
 * a crash came during 2, so each entry says that the one before is to be replayed, too.
 */
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "blockmap/create.h"
#include "vhdx/image.h"

#define ENTRY_SIZE ((size_t)2 * VHDX_LOG_SECTOR)

int vhdx_co_begin_log_locked(struct block_node *node)
{
    struct vhdx *d = node->opaque;
    struct vhdx_header next = d->header;
    int r;

    CO_ASSERT_HELD(&d->map.lock);
    if (next.log_length < 2 * ENTRY_SIZE) {
        return -ENOTSUP;
    }
    blockmap_fill_uuid(next.file_write.bytes);
    blockmap_fill_uuid(next.data_write.bytes);
    blockmap_fill_uuid(next.log.bytes);
    r = vhdx_co_write_header(node->file, &next);
    if (r == 0) {
        d->header = next;
        d->log_at = d->log_tail = 0;
        d->log_sequence++;
        d->log_is_active = true;
    }
    return r;
}

static void fill_entry(const struct vhdx *d, uint64_t file_size, uint64_t offset,
                       const uint8_t *data, uint8_t *e)
{
    uint8_t *descriptor = e + 64, *sector = e + VHDX_LOG_SECTOR;

    memset(e, 0, ENTRY_SIZE);
    store_signature(e, "loge");
    store_le32(e + 8, ENTRY_SIZE);
    store_le32(e + 12, (uint32_t)d->log_tail);
    store_le64(e + 16, d->log_sequence);
    store_le32(e + 24, 1);
    memcpy(e + 32, d->header.log.bytes, 16);
    store_le64(e + 48, file_size);
    store_le64(e + 56, file_size);
    store_signature(descriptor, "desc");
    memcpy(descriptor + 4, data + VHDX_LOG_SECTOR - 4, 4);
    memcpy(descriptor + 8, data, 8);
    store_le64(descriptor + 16, offset);
    store_le64(descriptor + 24, d->log_sequence);
    memcpy(sector, data, VHDX_LOG_SECTOR);
    store_signature(sector, "data");
    store_le32(sector + 4, (uint32_t)(d->log_sequence >> 32));
    store_le32(sector + VHDX_LOG_SECTOR - 4, (uint32_t)d->log_sequence);
    store_le32(e + 4, vhdx_checksum(e, ENTRY_SIZE, 4));
}

int vhdx_co_log_locked(struct block_node *node, uint64_t offset, const uint8_t *data)
{
    struct vhdx *d = node->opaque;
    uint8_t e[ENTRY_SIZE];
    uint64_t at = d->log_at;
    int r;

    CO_ASSERT_HELD(&d->map.lock);
    fill_entry(d, d->room.end, offset, data, e);
    r = block_co_pwrite(node->file, d->header.log_offset + at, e, sizeof(e), 0);
    UNLESS_FAILED(r, block_co_flush(node->file));
    UNLESS_FAILED(r, block_co_pwrite(node->file, offset, data, VHDX_LOG_SECTOR, 0));
    if (r == 0) {
        d->log_tail = at;
        d->log_at = (at + ENTRY_SIZE) % d->header.log_length;
        d->log_sequence++;
    }
    return r;
}

int vhdx_co_end_log(struct block_node *node)
{
    static const struct vhdx_guid none;
    struct vhdx *d = node->opaque;
    struct vhdx_header next = d->header;
    int r;

    if (!d->log_is_active) {
        return 0;
    }
    next.log = none;
    r = vhdx_co_write_header(node->file, &next);
    if (r == 0) {
        d->header = next;
        d->log_is_active = false;
        atomic_store(&d->map.is_writing, false);
    }
    return r;
}

/* --- replay ----------------------------------------------------------------------------------- */

int vhdx_co_replay_log(struct block_node *node, struct error *err)
{
    static const struct vhdx_guid none;
    struct vhdx *d = node->opaque;
    int r = 0;

    if (vhdx_guid_equals(d->header.log.bytes, &none)) {
        return 0;
    }
    for (size_t i = 0; i < d->change_count && r == 0; i++) {
        const struct vhdx_change *c = &d->changes[i];

        if (!range_fits(c->offset, c->length, block_edge_size(node->file))) {
            return error_set(err, EINVAL,
                             "The log of image '%s' changes what is not within the file: offset "
                             "%" PRIu64 ", length %" PRIu64 ", file size %" PRIu64,
                             block_node_display_name(node), c->offset, c->length,
                             block_edge_size(node->file));
        }
        r = c->data ? block_co_pwrite(node->file, c->offset, c->data, c->length, 0)
                    : block_co_write_zeroes(node->file, c->offset, c->length, 0);
    }
    if (r == 0) {
        d->was_replayed = d->change_count > 0;
        d->header.log = none;
        r = vhdx_co_write_header(node->file, &d->header);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not replay the log of '%s'",
                               block_node_display_name(node));
    }
    vhdx_release_changes(d);
    return 0;
}
