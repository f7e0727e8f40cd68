/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/migrate_bitmaps.h"

#include <errno.h>

#include "base/cleanup.h"
#include "block/bitmaps.h"
#include "block/node.h"
#include "cli/machine/disk.h"
#include "qmp/answer.h"
#include "qmp/schema.h"

/* The disk on the node gives the name, if there is one: the other machine may have other nodes. */
static const char *alias_of(const struct block_node *node)
{
    return block_node_device_or_name(node);
}

static struct block_node *find_alias(const char *alias)
{
    struct machine_disk *disk = machine_disk_find(alias);

    return disk ? machine_disk_node(disk) : block_node_find(alias);
}

/* --- saving ----------------------------------------------------------------------------------- */

/* What is dirty: the beginnings and lengths of ranges, one after the other. */
static struct json_object *ranges_of(const struct dirty_bitmap *bits)
{
    struct json_object *ranges = json_object_new_array();
    uint64_t offset = 0, start, length, end = dirty_bitmap_size(bits);

    while (offset < end && dirty_bitmap_next_dirty(bits, offset, end, &start, &length)) {
        json_object_array_add(ranges, json_object_new_uint64(start));
        json_object_array_add(ranges, json_object_new_uint64(length));
        offset = start + length;
    }
    return ranges;
}

static int co_save_bitmap(struct block_bitmap *b, struct json_object *list, struct error *err)
{
    struct json_object *o;
    int r = block_bitmap_inconsistent(b) ? 0 : block_bitmap_check(b, BLOCK_BITMAP_REFUSE_BUSY, err);

    UNLESS_FAILED(r, block_co_bitmap_fetch(b, err));
    if (r < 0 || block_bitmap_inconsistent(b)) {
        return r;
    }
    o = json_object_new_object();
    qmp_put_str(o, "node", alias_of(block_bitmap_node(b)));
    qmp_put_str(o, "name", block_bitmap_name(b));
    qmp_put_uint(o, "granularity", block_bitmap_granularity(b));
    qmp_put_bool(o, "persistent", block_bitmap_persistent(b));
    qmp_put_bool(o, "enabled", block_bitmap_enabled(b));
    qmp_put_new(o, "ranges", ranges_of(block_bitmap_bits(b)));
    json_object_array_add(list, o);
    return 0;
}

int migrate_co_save_bitmaps(struct json_object **ret_list, struct error *err)
{
    struct json_object *list = json_object_new_array();
    struct block_node *node = NULL;
    int r = 0;

    while (r >= 0 && (node = block_node_next(node))) {
        struct block_bitmap *b = NULL;

        /* The newest comes first in the list of a node. */
        while (r >= 0 && (b = block_bitmap_previous(node, b))) {
            r = co_save_bitmap(b, list, err);
        }
    }
    if (r < 0) {
        json_object_put(list);
        return r;
    }
    *ret_list = list;
    return 0;
}

/* --- loading ---------------------------------------------------------------------------------- */

static int co_set_ranges(struct block_bitmap *b, struct json_object *ranges, struct error *err)
{
    uint64_t size = block_node_size(block_bitmap_node(b));
    struct dirty_bitmap *bits = dirty_bitmap_new(size, block_bitmap_granularity(b));
    int r = 0;

    if (!bits) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i + 1 < json_object_array_length(ranges) && r >= 0; i += 2) {
        uint64_t start = json_object_get_uint64(json_object_array_get_idx(ranges, i));
        uint64_t length = json_object_get_uint64(json_object_array_get_idx(ranges, i + 1));

        if (start > size || length > size - start) {
            r = error_set(err, EINVAL, "Bitmap '%s' is of a disk of another size",
                          block_bitmap_name(b));
        } else {
            dirty_bitmap_set(bits, start, length);
        }
    }
    UNLESS_FAILED(r, block_co_bitmap_add_bits(b, bits, err));
    dirty_bitmap_free(bits);
    return r;
}

static int co_make_bitmap(struct json_object *o, struct error *err)
{
    const char *alias = qmp_get_str(o, "node"), *name = qmp_get_str(o, "name");
    struct block_node *node = alias ? find_alias(alias) : NULL;
    struct block_bitmap *b;
    int r;

    if (!node || !name) {
        return error_set(err, EINVAL, "Error: unknown bitmap alias or node '%s'", alias ?: "");
    }
    if (block_bitmap_find(node, name)) {
        return 0;
    }
    r = block_co_bitmap_add(node, name, (uint32_t)qmp_get_uint(o, "granularity", 0),
                            qmp_get_bool(o, "persistent", false), true, &b, err);
    UNLESS_FAILED(r, co_set_ranges(b, qmp_get(o, "ranges"), err));
    if (r >= 0 && qmp_get_bool(o, "enabled", true)) {
        r = block_co_bitmap_set_enabled(b, true, err);
    }
    return r;
}

int migrate_co_load_bitmaps(struct json_object *list, struct error *err)
{
    int r = 0;

    for (size_t i = 0; i < json_object_array_length(list) && r >= 0; i++) {
        r = co_make_bitmap(json_object_array_get_idx(list, i), err);
    }
    return r;
}
