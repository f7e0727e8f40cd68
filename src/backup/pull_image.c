/* SPDX-License-Identifier: Apache-2.0 */
/* Pulling from an image that this process has opened. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "backup/pull_input.h"
#include "base/checked.h"
#include "base/list.h"
#include "bitmap/bitmap.h"
#include "block/bitmaps.h"
#include "block/gate.h"

struct pull_image {
    struct pull_input input;
    struct block_root *root;
    struct block_bitmap *bitmap;
};

static struct pull_image *image_of(struct pull_input *input)
{
    return container_of(input, struct pull_image, input);
}

static int co_changed_image(struct pull_input *input, pull_input_area *area, void *arg,
                            struct error *err)
{
    struct pull_image *p = image_of(input);
    const struct dirty_bitmap *bits;
    uint64_t offset = 0, length;
    int r = block_co_bitmap_fetch(p->bitmap, err);

    if (r < 0) {
        return r;
    }
    bits = block_bitmap_bits(p->bitmap);
    while (dirty_bitmap_next_dirty(bits, offset, UINT64_MAX, &offset, &length)) {
        r = area(arg, offset, length);
        if (r < 0) {
            return error_out_of_memory(err);
        }
        offset += length;
    }
    return 0;
}

static int co_begin_image(struct pull_input *input, uint64_t disk_size, struct error *err)
{
    uint64_t size = block_node_size(block_root_node(image_of(input)->root));

    return size < disk_size ? error_set(err, EIO, "%s has %" PRIu64 " bytes, the disk has %" PRIu64,
                                        input->shown, size, disk_size)
                            : 0;
}

static int co_data_image(struct pull_input *input, uint64_t offset, uint64_t length,
                         pull_input_area *area, void *arg)
{
    struct block_edge *edge = block_root_edge(image_of(input)->root);

    while (length > 0) {
        struct block_status status;
        int r = block_co_status_above(edge, NULL, offset, length, &status, NULL);

        if (r == 0 && status.length == 0) {
            r = -EIO;
        }
        if (r == 0 && !(status.flags & BLOCK_STATUS_ZERO)) {
            r = area(arg, offset, status.length);
        }
        if (r < 0) {
            return r;
        }
        offset += status.length;
        length -= status.length;
    }
    return 0;
}

static int co_read_image(struct pull_input *input, uint64_t offset, void *buf, uint64_t size)
{
    return block_co_pread(block_root_edge(image_of(input)->root), offset, buf, size);
}

static void co_release_image(struct pull_input *input, uint64_t offset, uint64_t size)
{
}

static void co_give_up_image(struct pull_input *input)
{
    block_co_give_up(block_root_node(image_of(input)->root));
}

static void co_close_image_input(struct pull_input *input)
{
    free(image_of(input));
}

static const struct pull_input_ops pull_image_ops = {
    .co_changed = co_changed_image,
    .co_begin = co_begin_image,
    .co_data = co_data_image,
    .co_read = co_read_image,
    .co_release = co_release_image,
    .co_give_up = co_give_up_image,
    .co_close = co_close_image_input,
};

int pull_image_new(struct block_root *root, struct block_bitmap *bitmap, const char *shown,
                   struct pull_input **ret_input, struct error *err)
{
    struct pull_image *p = calloc(1, sizeof(*p));

    if (!p) {
        return error_out_of_memory(err);
    }
    *p = (struct pull_image){
        .input = {.ops = &pull_image_ops, .shown = shown, .has_bitmap = bitmap != NULL},
        .root = root,
        .bitmap = bitmap,
    };
    *ret_input = &p->input;
    return 0;
}
