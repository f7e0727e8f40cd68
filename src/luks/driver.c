/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The format driver `luks`. Options: file, header (a node with a detached header), key-secret (may
 * be left out if only the header is of interest).
 *
 * Each sector of the disk is a sector of the file, encrypted: so the disk has no holes, and what
 * was never written reads as noise.
 *
 * As with raw images, several programs may write at once if their users share it. Only a change of
 * key slots excludes all others.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "luks/disk.h"
#include "luks/luks.h"
#include "luks/options.h"
#include "luks/sectors.h"
#include "luks/types.h"

/* Most bytes that are encrypted for one write of the file. */
#define WRITE_MAX (2 * MiB)

/* QEMU has no larger disks, and says so. */
#define SIZE_MAX_SHOWN ((uint64_t)(INT64_MAX + 1ULL - GiB))

/* The state of a node. */
struct luks_disk {
    struct block_node *node;
    struct luks_volume *volume;
    /* the child with a detached header; NULL: the header is in the child "file" */
    struct block_edge *header;
    /* bytes; where the sectors begin in the child "file" */
    uint64_t payload_offset;
    /* slots are being changed; nobody else may read the header */
    unsigned changing;
};

/* --- open ------------------------------------------------------------------------------------- */

static int luks_set_size(struct block_node *node, struct error *err)
{
    struct luks_disk *d = node->opaque;
    uint64_t size = block_edge_size(node->file);

    d->payload_offset = d->volume->header.payload_offset;
    if (d->payload_offset > size) {
        return error_set(err, EINVAL,
                         "LUKS payload of '%s' begins past the end of the file: offset %" PRIu64
                         ", file size %" PRIu64,
                         block_node_display_name(node), d->payload_offset, size);
    }
    block_node_set_size(node, round_down(size - d->payload_offset, LUKS_SECTOR));
    return 0;
}

static int co_open_volume(struct block_node *node, struct options *opts, struct error *err)
{
    struct luks_disk *d = node->opaque;
    struct luks_io io = luks_io_of_edge(d->header ? d->header : node->file);
    bool metadata_only = node->open_flags & (BLOCK_OPEN_NO_IO | BLOCK_OPEN_CHECK);
    AUTO_FREE char *secret_id = NULL;
    int r = options_take_str(opts, "key-secret", &secret_id, err);

    node->beyond_filename = d->header || secret_id;
    UNLESS_FAILED(r, luks_co_open(&io, d->header != NULL, &d->volume, err));
    UNLESS_FAILED(r, luks_set_size(node, err));
    if (r == 0 && !secret_id && !metadata_only) {
        r = error_set(err, EINVAL, "Parameter 'key-secret' is required for cipher");
    }
    if (r == 0 && secret_id && !metadata_only) {
        r = luks_co_unlock(d->volume, secret_id, err);
    }
    return r;
}

static void luks_co_close(struct block_node *node)
{
    struct luks_disk *d = node->opaque;

    luks_close(d->volume);
    d->volume = NULL;
}

static int luks_co_open_disk(struct block_node *node, struct options *opts, struct error *err)
{
    struct luks_disk *d = node->opaque;
    int r = block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA, false, NULL, err);

    d->node = node;
    UNLESS_FAILED(
        r, block_co_open_child(node, opts, "header", BLOCK_ROLE_DATA, true, &d->header, err));
    UNLESS_FAILED(r, co_open_volume(node, opts, err));
    if (r < 0) {
        luks_co_close(node);
        return r;
    }
    node->limits.request_alignment =
        MAX(node->file->node->limits.request_alignment, (uint32_t)LUKS_SECTOR);
    node->limits.memory_alignment = node->file->node->limits.memory_alignment;
    node->supported_write_flags = BLOCK_REQ_FUA;
    return 0;
}

/* --- permissions ------------------------------------------------------------------------------ */

/* The header is read at any time, so nobody may change it; unless we do. */
static void luks_child_perm(struct block_node *node, struct block_edge *edge, unsigned parents_perm,
                            unsigned parents_shared, unsigned *ret_perm, unsigned *ret_shared)
{
    const struct luks_disk *d = node->opaque;
    bool has_header = d->header ? edge != node->file : edge == node->file;

    if (d->header && has_header) {
        *ret_perm = 0;
        *ret_shared = BLOCK_PERM_ALL;
    } else {
        block_default_child_perm(node, edge, parents_perm, parents_shared, ret_perm, ret_shared);
    }
    if (has_header) {
        *ret_perm |= BLOCK_PERM_CONSISTENT_READ;
    }
    if (has_header && d->changing > 0) {
        *ret_perm |= BLOCK_PERM_WRITE;
        *ret_shared &= ~(unsigned)BLOCK_PERM_CONSISTENT_READ;
    }
}

static int luks_co_settle(struct block_node *node, struct error *err)
{
    int r;

    block_perm_touch(node);
    block_co_change_begin();
    r = block_co_change_settle(err);
    if (r < 0) {
        ((struct luks_disk *)node->opaque)->changing--;
        block_perm_touch(node);
        (void)block_co_change_settle(NULL);
    }
    block_co_change_end();
    return r;
}

static int luks_co_amend_begin(struct block_node *node, struct error *err)
{
    struct luks_disk *d = node->opaque;

    if (node->read_only) {
        return error_set(err, EACCES, "Block node is read-only");
    }
    d->changing++;
    return luks_co_settle(node, err);
}

static void luks_co_amend_end(struct block_node *node)
{
    struct luks_disk *d = node->opaque;

    d->changing--;
    block_perm_touch(node);
    block_co_change_begin();
    (void)block_co_change_settle(NULL);
    block_co_change_end();
}

/* --- control ---------------------------------------------------------------------------------- */

static const struct block_option_desc luks_amend_options[] = {
    LUKS_CHANGE_OPTION_DESCS(""),
    {NULL, NULL, NULL},
};

static int luks_co_change_keys(struct block_node *node, struct options *opts, bool force,
                               struct error *err)
{
    struct luks_disk *d = node->opaque;
    CLEANUP(luks_change_release) struct luks_change change = {0};
    int r = luks_take_change(opts, "", &change, err);

    UNLESS_FAILED(r, options_check_empty(opts, "Format 'luks'", err));
    return r < 0 ? r : luks_co_change(d->volume, &change, force, err);
}

/* Nothing else can be changed. */
static int luks_co_amend(struct block_node *node, struct options *opts, bool force,
                         block_progress_fn *progress, void *progress_arg, struct error *err)
{
    return luks_co_change_keys(node, opts, force, err);
}

static int luks_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                            struct error *err)
{
    const struct luks_disk *d = node->opaque;
    uint64_t file_size;
    int r;

    if (size > SIZE_MAX_SHOWN) {
        return error_set(err, EFBIG, "offset(%" PRIu64 ") exceeds maximum(%" PRIu64 ")", size,
                         SIZE_MAX_SHOWN);
    }
    if (add_overflows(d->payload_offset, size, &file_size) || file_size > INT64_MAX) {
        return error_set(err, EFBIG, "The requested file size is too large");
    }
    r = block_co_truncate(node->file, file_size, prealloc, err);
    if (r == 0) {
        block_node_set_size(node, size);
    }
    return r;
}

static int luks_co_get_info(struct block_node *node, struct block_info *ret_info)
{
    *ret_info = (struct block_info){.encrypted = true, .has_dirty_flag = true};
    return 0;
}

static struct json_object *luks_co_specific_info(struct block_node *node)
{
    const struct luks_disk *d = node->opaque;
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "type", json_object_new_string("luks"));
    json_object_object_add(o, "data", luks_volume_info(d->volume));
    return o;
}

/* --- I/O -------------------------------------------------------------------------------------- */

static int luks_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct luks_disk *d = node->opaque;
    int r;

    if (!d->volume->cipher) {
        return -EIO;
    }
    r = block_co_preadv(node->file, d->payload_offset + offset, iov, flags);
    if (r < 0 || (flags & BLOCK_REQ_PREFETCH)) {
        return r;
    }
    return luks_co_decrypt(d->volume->cipher, offset / LUKS_SECTOR, iov);
}

static int luks_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct luks_disk *d = node->opaque;
    AUTO_FREE void *buffer = NULL;
    int r = 0;

    if (!d->volume->cipher) {
        return -EIO;
    }
    if (posix_memalign(&buffer, 4096, MIN(iov.size, WRITE_MAX)) != 0) {
        return -ENOMEM;
    }
    for (size_t done = 0, n; done < iov.size && r == 0; done += n) {
        IOV_PART_AUTO(part);

        n = MIN(iov.size - done, WRITE_MAX);
        r = iov_part_set(&part, iov, done, n);
        UNLESS_FAILED(
            r, luks_co_encrypt(d->volume->cipher, (offset + done) / LUKS_SECTOR, part.iov, buffer));
        UNLESS_FAILED(
            r, block_co_pwrite(node->file, d->payload_offset + offset + done, buffer, n, flags));
    }
    return r;
}

/* --- driver ----------------------------------------------------------------------------------- */

static int luks_probe(const uint8_t *head, size_t size)
{
    return luks_has_magic(head, size) ? 100 : 0;
}

static const struct block_driver luks_driver = {
    .name = "luks",
    .help = "format: encrypted disks (LUKS of version 1)",
    .instance_size = sizeof(struct luks_disk),
    .is_format = true,
    .grows_with_file = true,
    .noise_when_new = true,
    .probe = luks_probe,
    .co_open = luks_co_open_disk,
    .co_close = luks_co_close,
    .options = &luks_options_type,
    .reopen_options = block_no_options,
    .exchanges_file = true,
    .file_head = 4096,
    .child_perm = luks_child_perm,
    .co_create = luks_co_create_file,
    .co_format = luks_co_format_nodes,
    .create_options = luks_create_options,
    .create_type = &luks_create_type,
    .amend_type = &luks_amend_type,
    .co_change_keys = luks_co_change_keys,
    .amend_options = luks_amend_options,
    .co_amend_begin = luks_co_amend_begin,
    .co_amend_end = luks_co_amend_end,
    .co_amend = luks_co_amend,
    .co_truncate = luks_co_truncate,
    .co_get_info = luks_co_get_info,
    .co_specific_info = luks_co_specific_info,
    .specific_info_type = &luks_specific_info_type,
    .co_preadv = luks_co_preadv,
    .co_pwritev = luks_co_pwritev,
};

void luks_register_driver(void)
{
    block_register_driver(&luks_driver);
}
