/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "commit" of the human monitor: what the image of a disk has goes into its backing file, and the
 * image is emptied. (block-commit drops the image.) Nobody uses the disk meanwhile: the guest is
 * the monitor itself, which runs one command at a time.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control.h"
#include "block/reopen.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/machine/disk.h"
#include "cli/machine/hmp.h"

/* Copy the areas that the image itself has. */
static int co_copy_own_areas(struct block_edge *from, struct block_edge *to, uint64_t size,
                             void *buffer)
{
    for (uint64_t at = 0, length; at < size; at += length) {
        struct block_status st;
        int r = block_co_status(from, at, size - at, &st);

        if (r < 0) {
            return r;
        }
        length = st.length;
        if (!(st.flags & BLOCK_STATUS_ALLOCATED)) {
            continue;
        }
        if (st.flags & BLOCK_STATUS_ZERO) {
            r = block_co_write_zeroes(to, at, length, BLOCK_REQ_MAY_UNMAP);
        } else {
            length = MIN(length, CLI_BUFFER_SIZE);
            r = block_co_pread(from, at, buffer, length);
            UNLESS_FAILED(r, block_co_pwrite(to, at, buffer, length, 0));
        }
        if (r < 0) {
            return r;
        }
    }
    return block_co_flush(to);
}

/* The backing node can be written, and is as large as the image at least. */
static int co_copy_down(struct block_node *top, struct block_node *base, struct error *err)
{
    AUTO_FREE void *buffer = aligned_alloc(CLI_BUFFER_ALIGNMENT, CLI_BUFFER_SIZE);
    struct block_root *from = NULL, *to = NULL;
    uint64_t size = block_node_size(top);
    int r = buffer ? 0 : error_out_of_memory(err);

    UNLESS_FAILED(r, block_co_root_new(top, "commit", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL,
                                       &from, err));
    UNLESS_FAILED(
        r, block_co_root_new(base, "commit",
                             BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
                             BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED, &to, err));
    if (r == 0 && block_node_size(base) < size) {
        r = block_co_truncate(block_root_edge(to), size, BLOCK_PREALLOC_OFF, err);
    }
    if (r == 0) {
        r = co_copy_own_areas(block_root_edge(from), block_root_edge(to), size, buffer);
    }
    if (to) {
        block_co_root_release(to);
    }
    if (from) {
        block_co_root_release(from);
    }
    return r;
}

/* While the image has no backing node, its own areas are all that is read of it. */
static int co_commit_into(struct block_node *top, struct block_node *base, struct error *err)
{
    bool was_read_only = block_node_is_read_only(base);
    int r = block_co_set_backing_node(top, NULL, err), back;

    if (r < 0) {
        return r;
    }
    if (was_read_only) {
        r = block_co_set_read_only(base, false, err);
    }
    UNLESS_FAILED(r, co_copy_down(top, base, err));
    if (was_read_only && !block_node_is_read_only(base)) {
        r = error_first(r, block_co_set_read_only(base, true, r < 0 ? NULL : err));
    }
    back = block_co_set_backing_node(top, base, r < 0 ? NULL : err);
    return error_first(r, back);
}

static int co_commit_disk(struct machine_disk *disk, struct error *err)
{
    struct block_node *top = block_node_skip_filters(machine_disk_node(disk));
    struct block_node *base = block_node_backing(top);
    ERROR_AUTO(cause);
    int r = base ? 0 : -ENOTSUP;

    if (r == 0) {
        co_group_wait(&disk->io.in_flight);
        block_node_ref(base);
        r = co_commit_into(top, base, &cause);
        block_co_unref(base);
        UNLESS_FAILED(r, block_co_make_empty(top, &cause));
    }
    return r < 0 ? error_set(err, -r, "'commit' error for '%s': %s", disk->name,
                             error_is_set(&cause) ? error_message(&cause) : strerror(-r))
                 : 0;
}

/* All disks whose images have backing files. */
static int co_commit_all_disks(struct error *err)
{
    struct machine_disk *disk = NULL;
    int r = 0;

    while (r == 0 && (disk = machine_disk_next(disk))) {
        struct block_node *node = machine_disk_node(disk);

        if (disk->name && node && block_node_backing(block_node_skip_filters(node))) {
            r = co_commit_disk(disk, err);
        }
    }
    return r;
}

int hmp_co_run_commit(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct machine_disk *disk = machine_disk_find(argv[0]);

    hmp->plain_error = true;
    if (strcmp(argv[0], "all") == 0) {
        return co_commit_all_disks(err);
    }
    if (!disk) {
        return error_set(err, ENOENT, "Device '%s' not found", argv[0]);
    }
    if (!machine_disk_node(disk)) {
        return error_set(err, ENOMEDIUM, "Device '%s' has no medium", argv[0]);
    }
    return co_commit_disk(disk, err);
}
