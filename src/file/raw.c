/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The format `raw`: its child "file" unchanged, or a part of it (options offset, size).
 *
 * If the format was probed, a guest could write the header of another format, and so choose which
 * files are opened as backing files at the next start. So writes to the first sector that would
 * make the image look like another format are refused.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "file/drivers.h"
#include "file/posix_file.h"
#include "schema/define.h"

#define SECTOR 512

OBJECT(raw_options, "BlockdevOptionsRaw", REQ("file", block_ref_type),
       OPT("offset", schema_bytes, .dflt = "0", .unit = "bytes", .max = INT64_MAX,
           .help = "where the disk begins in the file"),
       OPT("size", schema_bytes, .dflt = "up to the end of the file", .unit = "bytes",
           .max = INT64_MAX, .help = "of the disk; a multiple of 512"));

struct raw_disk {
    /* of the disk in the file */
    uint64_t offset;
    /* the option `size` is set */
    bool has_size;
    /* While the node is reopened: what was. */
    uint64_t old_offset, old_size;
    bool old_has_size;
    /* held for check and write, since two harmless writes could make a header together */
    struct co_mutex first_sector;
};

/* --- open */

/* Check that offset and size of the disk fit the file. */
static int check_raw_range(struct block_node *node, uint64_t size, struct error *err)
{
    const struct raw_disk *d = node->opaque;
    uint64_t file_size = block_edge_size(node->file);

    if (d->offset > file_size) {
        return error_set(err, EINVAL,
                         "Offset (%" PRIu64 ") cannot be greater than size of the containing file "
                         "(%" PRIu64 ") '%s'",
                         d->offset, file_size, block_node_display_name(node->file->node));
    }
    if (d->has_size && size % SECTOR != 0) {
        return error_set(err, EINVAL, "Specified size is not multiple of %d", (int)SECTOR);
    }
    if (!range_fits(d->offset, size, file_size)) {
        return error_set(err, EINVAL,
                         "The sum of offset (%" PRIu64 ") and size (%" PRIu64
                         ") has to be smaller or equal to the size of the containing file "
                         "(%" PRIu64 ") '%s'",
                         d->offset, size, file_size, block_node_display_name(node->file->node));
    }
    return 0;
}

/* Take the options, and set the size of the disk. */
static int take_raw_range(struct block_node *node, struct options *opts, struct error *err)
{
    struct raw_disk *d = node->opaque;
    uint64_t size;
    int r;

    d->has_size = options_has(opts, "size");
    node->beyond_filename = d->has_size || options_has(opts, "offset");
    if ((r = options_take_size(opts, "offset", 0, &d->offset, err)) < 0 ||
        (r = options_take_size(opts, "size", 0, &size, err)) < 0 ||
        (r = check_raw_range(node, size, err)) < 0) {
        return r;
    }
    if (!d->has_size) {
        size = block_edge_size(node->file) - d->offset;
    }
    block_node_set_size(node, size);
    return 0;
}

static void take_file_limits(struct block_node *node)
{
    const struct block_node *file = node->file->node;

    node->events = file->events;
    node->limits.memory_alignment = file->limits.memory_alignment;
    node->limits.opt_transfer = file->limits.opt_transfer;
    node->limits.cached_transfer = file->limits.cached_transfer;
}

static int raw_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct raw_disk *d = node->opaque;
    int r = block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA, false, NULL, err);

    UNLESS_FAILED(r, take_raw_range(node, opts, err));
    if (r < 0) {
        return r;
    }
    take_file_limits(node);
    node->supported_write_flags = BLOCK_REQ_FUA | BLOCK_REQ_UNCHANGED;
    node->supported_zero_flags =
        BLOCK_REQ_FUA | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK | BLOCK_REQ_UNCHANGED;
    co_mutex_init(&d->first_sector);
    return 0;
}

/* All of the file: whoever resizes that resizes the disk. */
static bool raw_has_size_of_file(const struct block_node *node)
{
    const struct raw_disk *d = node->opaque;

    return !d->has_size && d->offset == 0;
}

/* Another process may have changed the size of the file. */
static int raw_co_reload(struct block_node *node, struct error *err)
{
    struct raw_disk *d = node->opaque;
    int r = check_raw_range(node, d->has_size ? block_node_size(node) : 0, err);

    if (r == 0 && !d->has_size) {
        block_node_set_size(node, block_edge_size(node->file) - d->offset);
    }
    return r;
}

/* --- reopen */

static void put_raw_range_back(struct block_node *node)
{
    struct raw_disk *d = node->opaque;

    d->offset = d->old_offset;
    d->has_size = d->old_has_size;
    node->beyond_filename = d->has_size || d->offset;
    block_node_set_size(node, d->old_size);
}

static int raw_co_reopen_prepare(struct block_node *node, struct options *opts, struct error *err)
{
    struct raw_disk *d = node->opaque;
    int r;

    d->old_offset = d->offset;
    d->old_size = block_node_size(node);
    d->old_has_size = d->has_size;
    if (!opts) {
        return 0;
    }
    r = take_raw_range(node, opts, err);
    if (r < 0) {
        put_raw_range_back(node);
    }
    return r;
}

static void raw_co_reopen_commit(struct block_node *node)
{
    take_file_limits(node);
}

static void raw_co_close(struct block_node *node)
{
    struct raw_disk *d = node->opaque;

    co_mutex_destroy(&d->first_sector);
}

/* --- the guard of the first sector */

static bool is_raw_guarded(const struct block_node *node, uint64_t offset)
{
    return __builtin_expect(node->probed && offset < SECTOR, false);
}

static bool looks_like_another_format(const uint8_t *head, size_t size)
{
    for (const struct block_driver *d = block_next_driver(NULL); d; d = block_next_driver(d)) {
        if (d->name != raw_driver.name && d->probe && d->probe(head, size) > 0) {
            return true;
        }
    }
    return false;
}

/*
 * -EPERM if the sector looks like another format after a write of `iov` (NULL: zeroes) at `offset`.
 */
static int co_check_first_sector_locked(struct block_node *node, uint64_t offset,
                                        const struct iov *iov, uint64_t length)
{
    struct raw_disk *d = node->opaque;
    uint8_t head[SECTOR] = {0};
    size_t size = MIN(block_node_size(node), SECTOR);
    size_t changed = MIN(length, SECTOR - offset);
    int r;

    CO_ASSERT_HELD(&d->first_sector);
    r = block_co_pread(node->file, d->offset, head, size);
    if (r < 0) {
        return r;
    }
    if (iov) {
        iov_copy_to_buf(*iov, 0, head + offset, changed);
    } else {
        memset(head + offset, 0, changed);
    }
    return looks_like_another_format(head, SECTOR) ? -EPERM : 0;
}

static int raw_co_write_guarded(struct block_node *node, uint64_t offset, struct iov iov,
                                unsigned flags)
{
    struct raw_disk *d = node->opaque;
    int r;

    co_mutex_lock(&d->first_sector);
    r = co_check_first_sector_locked(node, offset, &iov, iov.size);
    if (r == 0) {
        r = block_co_pwritev(node->file, d->offset + offset, iov, flags);
    }
    co_mutex_unlock(&d->first_sector);
    return r;
}

static int raw_co_zero_guarded(struct block_node *node, uint64_t offset, uint64_t length,
                               unsigned flags)
{
    struct raw_disk *d = node->opaque;
    int r;

    co_mutex_lock(&d->first_sector);
    r = co_check_first_sector_locked(node, offset, NULL, length);
    if (r == 0) {
        r = block_co_write_zeroes(node->file, d->offset + offset, length, flags);
    }
    co_mutex_unlock(&d->first_sector);
    return r;
}

/* --- I/O */

static int raw_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    const struct raw_disk *d = node->opaque;

    block_co_event(node->file, BLOCK_EVENT_READ_AIO);
    return block_co_preadv(node->file, d->offset + offset, iov, flags);
}

/*
 * A format on top extends the disk by writing past the end. If the size is fixed, what follows in
 * the file is not part of the disk.
 */
static bool raw_has_room(const struct block_node *node, uint64_t offset, uint64_t length)
{
    const struct raw_disk *d = node->opaque;

    return !d->has_size || range_fits(offset, length, block_node_size(node));
}

static int raw_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    const struct raw_disk *d = node->opaque;

    if (!raw_has_room(node, offset, iov.size)) {
        return -ENOSPC;
    }
    block_co_event(node->file, BLOCK_EVENT_WRITE_AIO);
    if (is_raw_guarded(node, offset)) {
        return raw_co_write_guarded(node, offset, iov, flags);
    }
    return block_co_pwritev(node->file, d->offset + offset, iov, flags);
}

static int raw_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                               unsigned flags)
{
    const struct raw_disk *d = node->opaque;

    if (!raw_has_room(node, offset, length)) {
        return -ENOSPC;
    }
    if (is_raw_guarded(node, offset)) {
        return raw_co_zero_guarded(node, offset, length, flags);
    }
    return block_co_write_zeroes(node->file, d->offset + offset, length, flags);
}

static int raw_co_read_pages(struct block_node *node, uint64_t offset, uint64_t length,
                             struct block_page_sink *sink)
{
    const struct raw_disk *d = node->opaque;

    return block_co_read_pages(node->file, d->offset + offset, length, sink);
}

/* The file whose names and beginning are those of this disk; NULL: this is another part of it. */
static struct block_node *raw_whole_file(const struct block_node *node)
{
    const struct raw_disk *d = node->opaque;

    return d->offset == 0 ? block_node_skip_filters(node->file->node) : NULL;
}

static char *raw_lasting_name(const struct block_node *node)
{
    struct block_node *file = raw_whole_file(node);

    return file && file->driver->lasting_name ? file->driver->lasting_name(file) : NULL;
}

static bool raw_co_has_name(const struct block_node *node, const char *name)
{
    struct block_node *file = raw_whole_file(node);

    return file && (!file->driver->co_has_name || file->driver->co_has_name(file, name));
}

static int raw_co_read_other(struct block_node *node, const char *name, unsigned place, void *buf,
                             size_t *size)
{
    struct block_node *file = raw_whole_file(node);

    return file && file->driver->co_read_other
               ? file->driver->co_read_other(file, name, place, buf, size)
               : -EINVAL;
}

static int raw_co_copy_from(struct block_node *node, uint64_t offset, struct block_node *source,
                            uint64_t source_offset, uint64_t length)
{
    const struct raw_disk *d = node->opaque;

    if (!raw_has_room(node, offset, length)) {
        return -ENOSPC;
    }
    if (is_raw_guarded(node, offset)) {
        return -ENOTSUP;
    }
    return block_co_copy_from(node->file, d->offset + offset, source, source_offset, length, 0);
}

static int raw_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    const struct raw_disk *d = node->opaque;

    if (is_raw_guarded(node, offset)) {
        /* Discard is a hint: the first sector stays. */
        uint64_t skipped = MIN(length, SECTOR - offset);

        offset += skipped;
        length -= skipped;
    }
    return block_co_discard(node->file, d->offset + offset, length);
}

static int raw_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                         struct block_status *ret_status)
{
    const struct raw_disk *d = node->opaque;

    *ret_status = (struct block_status){
        .flags = BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_OFFSET | BLOCK_STATUS_RECURSE,
        .length = length,
        .map = d->offset + offset,
        .file = node->file->node,
    };
    return 0;
}

static int raw_co_preadv_snapshot(struct block_node *node, uint64_t offset, struct iov iov)
{
    const struct raw_disk *d = node->opaque;

    return block_co_preadv_snapshot(node->file, d->offset + offset, iov);
}

static int raw_co_snapshot_status(struct block_node *node, uint64_t offset, uint64_t length,
                                  struct block_status *ret_status)
{
    const struct raw_disk *d = node->opaque;

    return block_co_snapshot_status(node->file, d->offset + offset, length, ret_status);
}

static int raw_co_discard_snapshot(struct block_node *node, uint64_t offset, uint64_t length)
{
    const struct raw_disk *d = node->opaque;

    return block_co_discard_snapshot(node->file, d->offset + offset, length);
}

/* --- size and creation */

static int raw_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                           struct error *err)
{
    const struct raw_disk *d = node->opaque;
    int r;

    if (d->has_size) {
        return error_set(err, ENOTSUP, "Cannot resize '%s': its size is fixed by the option 'size'",
                         block_node_display_name(node));
    }
    if (size > INT64_MAX - d->offset) {
        return error_set(err, EFBIG, "Disk size too large for the offset %" PRIu64, d->offset);
    }
    r = block_co_truncate(node->file, d->offset + size, prealloc, err);
    if (r == 0 && block_edge_size(node->file) != d->offset + size &&
        block_edge_size(node->file) != round_up(d->offset + size, SECTOR)) {
        /* A device or an export accepts a truncation to a smaller size, but keeps its size. */
        return error_set(err, ENOTSUP, "Cannot resize '%s': its size is fixed",
                         block_node_display_name(node));
    }
    if (r == 0) {
        block_node_set_size(node, block_edge_size(node->file) - d->offset);
    }
    return r;
}

/* Of a protocol that makes no files, the export or disk that exists has to do: nothing is left. */
static int take_no_creation_options(struct options *opts, struct error *err)
{
    AUTO_FREE char *prealloc = NULL;
    int r = options_take_str(opts, "preallocation", &prealloc, err);

    if (r == 0 && prealloc && strcmp(prealloc, "off") != 0) {
        r = error_set(err, ENOTSUP, "Unsupported preallocation mode '%s'", prealloc);
    }
    UNLESS_FAILED(r, options_check_empty(opts, "An export that exists", err));
    return r;
}

/*
 * Use what exists as a new disk: its size stays, and has to be enough. The first sector is cleared,
 * so that what was there before is not taken for an image; the rest keeps its contents.
 */
static int co_use_existing(const struct block_driver *driver, const char *filename, uint64_t size,
                           struct options *opts, struct error *err)
{
    struct block_root *root;
    struct block_edge *file;
    int r = take_no_creation_options(opts, err);

    if (r < 0) {
        return r;
    }
    r = block_co_create_file(filename, NULL, &root, err);
    if (r < 0) {
        error_prepend(err,
                      "Protocol driver '%s' does not support creating new images, so an existing "
                      "image must be selected as the target; however, opening the given target as "
                      "an existing image failed: ",
                      driver->name);
        return r;
    }
    file = block_root_edge(root);
    r = block_co_truncate(file, size, BLOCK_PREALLOC_OFF, err);
    if (r == 0) {
        r = block_co_write_zeroes(file, 0, MIN(SECTOR, block_edge_size(file)), BLOCK_REQ_MAY_UNMAP);
        UNLESS_FAILED(r, block_co_flush(file));
        if (r < 0) {
            error_set_errno(err, -r, "Could not clear the first sector of '%s'", filename);
        }
    }
    block_co_root_release(root);
    return r;
}

static int raw_co_create(const char *filename, uint64_t size, struct options *opts,
                         struct error *err)
{
    const struct block_driver *driver = block_driver_of_filename(filename);

    if (driver && driver->uses_existing) {
        return co_use_existing(driver, filename, size, opts, err);
    }
    if (driver && !driver->co_create) {
        return error_set(err, ENOTSUP, "Protocol '%s' does not support image creation: '%s'",
                         driver->name, filename);
    }
    return (driver ? driver->co_create : posix_file_co_create)(filename, size, opts, err);
}

const struct block_driver raw_driver = {
    .name = "raw",
    .help = "format: the file as it is, or a part of it",
    .instance_size = sizeof(struct raw_disk),
    .is_format = true,
    .grows_with_file = true,
    .options = &raw_options,
    .reopen_options = (const char *const[]){"offset", "size", NULL},
    .exchanges_file = true,
    .co_reopen_prepare = raw_co_reopen_prepare,
    .co_reopen_commit = raw_co_reopen_commit,
    .co_reopen_abort = put_raw_range_back,
    .co_open = raw_co_open,
    .co_reload = raw_co_reload,
    .has_size_of_file = raw_has_size_of_file,
    .co_close = raw_co_close,
    .co_create = raw_co_create,
    .create_options = posix_file_create_options,
    .co_truncate = raw_co_truncate,
    .co_preadv = raw_co_preadv,
    .co_pwritev = raw_co_pwritev,
    .co_write_zeroes = raw_co_write_zeroes,
    .co_copy_from = raw_co_copy_from,
    .co_read_pages = raw_co_read_pages,
    .lasting_name = raw_lasting_name,
    .co_has_name = raw_co_has_name,
    .co_read_other = raw_co_read_other,
    .co_discard = raw_co_discard,
    .co_status = raw_co_status,
    .co_preadv_snapshot = raw_co_preadv_snapshot,
    .co_snapshot_status = raw_co_snapshot_status,
    .co_discard_snapshot = raw_co_discard_snapshot,
};
