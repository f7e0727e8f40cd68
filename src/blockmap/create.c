/* SPDX-License-Identifier: Apache-2.0 */
#include "blockmap/create.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "block/control_lock.h"

int blockmap_take_file_options(struct options *opts, struct options **ret_file, struct error *err)
{
    static const char *const names[] = {"nocow", "extent_size_hint", NULL};
    AUTO_OPTIONS struct options *file = options_new();
    int r = file ? 0 : error_out_of_memory(err);

    for (const char *const *name = names; *name && r == 0; name++) {
        AUTO_FREE char *value = NULL;

        r = options_take_text(opts, *name, &value, err);
        if (r == 0 && value) {
            options_set_str(file, *name, value);
        }
    }
    if (r == 0) {
        *ret_file = TAKE_PTR(file);
    }
    return r;
}

int blockmap_take_choice(struct options *opts, const char *key, const char *const *names,
                         int *value, struct error *err)
{
    AUTO_FREE char *text = NULL;
    int r = options_take_str(opts, key, &text, err);

    if (r < 0 || !text) {
        return r;
    }
    for (int i = 0; names[i]; i++) {
        if (strcmp(names[i], text) == 0) {
            *value = i;
            return 0;
        }
    }
    return error_set(err, EINVAL, "Parameter '%s' does not accept value '%s'", key, text);
}

int blockmap_take_preallocation(struct options *opts, struct error *err)
{
    static const char *const modes[] = {"off", "falloc", "full", "metadata", NULL};
    int mode = 0;
    int r = blockmap_take_choice(opts, "preallocation", modes, &mode, err);

    return r == 0 && mode == 3 ? error_set(err, ENOTSUP, "Unsupported preallocation mode: metadata")
                               : r;
}

int blockmap_co_create_file(const char *filename, struct options *file_options,
                            blockmap_co_write_fn *co_write, const void *arg, struct error *err)
{
    struct block_root *root;
    int r = block_co_create_file(filename, file_options, &root, err);

    if (r < 0) {
        return r;
    }
    r = co_write(block_root_edge(root), arg, err);
    block_co_root_release(root);
    if (r < 0) {
        block_co_remove_unfinished(filename);
    }
    return r;
}

int blockmap_co_format(struct block_node *file, blockmap_co_write_fn *co_write, const void *arg,
                       struct error *err)
{
    struct block_root *root;
    int r = block_co_format_begin(file, &root, err);
    bool held;

    if (r < 0) {
        return r;
    }
    held = block_control_pause();
    r = co_write(block_root_edge(root), arg, err);
    if (r >= 0) {
        /* Here, since a release of the root flushes with the control lock. */
        r = block_co_flush(block_root_edge(root));
        r = r < 0 ? error_set_errno(err, -r, "Could not flush '%s'", block_node_display_name(file))
                  : 0;
    }
    block_co_control_resume(held);
    block_co_root_release(root);
    return r;
}

int blockmap_co_clear_file(struct block_edge *file, uint64_t size, struct error *err)
{
    bool is_device = !file->node->driver->keeps_zero_beyond_eof;
    int r = 0;

    if (is_device && block_edge_size(file) >= size) {
        r = block_co_write_zeroes(file, 0, size, BLOCK_REQ_MAY_UNMAP);
        return r < 0 ? error_set_errno(err, -r, "Could not clear '%s'",
                                       block_node_display_name(file->node))
                     : 0;
    }
    if (!is_device) {
        r = block_co_truncate(file, 0, BLOCK_PREALLOC_OFF, err);
    }
    return r < 0 ? r : block_co_truncate(file, size, BLOCK_PREALLOC_OFF, err);
}

void blockmap_fill_uuid(uint8_t *uuid)
{
    if (getrandom(uuid, 16, 0) != 16) {
        abort(); /* never for so few bytes */
    }
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}
