/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/migrate_bitmaps.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "block/node.h"
#include "cli/machine/disk.h"
#include "cli/machine/migrate_mapping.h"
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

/* What names a bitmap on the way, and how the other machine keeps it. */
struct passage {
    const char *node, *name;
    bool persistent;
};

/* False: the mapping leaves the bitmap here. */
static bool find_passage(const struct block_bitmap *b, struct passage *ret_passage)
{
    const struct block_node *node = block_bitmap_node(b);
    struct json_object *node_entry, *entry = NULL;

    *ret_passage =
        (struct passage){alias_of(node), block_bitmap_name(b), block_bitmap_persistent(b)};
    if (!migrate_has_mapping()) {
        return true;
    }
    node_entry = migrate_find_node(block_node_name(node), false);
    entry = node_entry ? migrate_find_bitmap(node_entry, block_bitmap_name(b), false) : NULL;
    if (entry) {
        ret_passage->node = qmp_get_str(node_entry, "alias");
        ret_passage->name = qmp_get_str(entry, "alias");
        ret_passage->persistent = migrate_bitmap_persistent(entry, ret_passage->persistent);
    }
    return entry != NULL;
}

static int check_passage(const struct passage *way, struct error *err)
{
    return strlen(way->name) <= MIGRATE_ALIAS_MAX
               ? 0
               : error_set(err, EINVAL,
                           "Cannot migrate bitmap '%s' on node '%s': Name is longer than %d bytes",
                           way->name, way->node, MIGRATE_ALIAS_MAX);
}

static int co_save_bitmap(struct block_bitmap *b, struct json_object *list, struct error *err)
{
    struct passage way;
    struct json_object *o;
    int r;

    if (block_bitmap_inconsistent(b) || !find_passage(b, &way)) {
        return 0;
    }
    r = check_passage(&way, err);
    UNLESS_FAILED(r, block_bitmap_check(b, BLOCK_BITMAP_REFUSE_BUSY, err));
    UNLESS_FAILED(r, block_co_bitmap_fetch(b, err));
    if (r < 0 || block_bitmap_inconsistent(b)) {
        return r;
    }
    o = json_object_new_object();
    qmp_put_str(o, "node", way.node);
    qmp_put_str(o, "name", way.name);
    qmp_put_uint(o, "granularity", block_bitmap_granularity(b));
    qmp_put_bool(o, "persistent", way.persistent);
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

/* Where a bitmap of the stream goes. */
struct place {
    struct block_node *node;
    const char *name;
    bool persistent;
};

static int find_mapped_place(const char *node, const char *name, struct place *place,
                             struct error *err)
{
    struct json_object *node_entry = migrate_find_node(node, true);
    struct json_object *entry = node_entry ? migrate_find_bitmap(node_entry, name, true) : NULL;

    if (!node_entry) {
        return error_set(err, EINVAL, "Unknown node alias '%s'", node);
    }
    if (!entry) {
        return error_set(err, EINVAL, "Unknown bitmap alias '%s' on node '%s' (alias '%s')", name,
                         qmp_get_str(node_entry, "node-name"), node);
    }
    place->name = qmp_get_str(entry, "name");
    place->persistent = migrate_bitmap_persistent(entry, place->persistent);
    place->node = block_node_find(qmp_get_str(node_entry, "node-name"));
    return place->node ? 0
                       : error_set(err, EINVAL, "Cannot find node-name='%s'",
                                   qmp_get_str(node_entry, "node-name"));
}

static int find_bitmap_place(struct json_object *o, struct place *place, struct error *err)
{
    const char *node = qmp_get_str(o, "node") ?: "", *name = qmp_get_str(o, "name") ?: "";

    *place = (struct place){NULL, name, qmp_get_bool(o, "persistent", false)};
    if (migrate_has_mapping()) {
        return find_mapped_place(node, name, place, err);
    }
    place->node = find_alias(node);
    return place->node
               ? 0
               : error_set(err, EINVAL, "Cannot find device='%s' nor node-name='%s'", node, node);
}

static int co_make_bitmap(struct json_object *o, struct error *err)
{
    struct place place;
    struct block_bitmap *b;
    int r = find_bitmap_place(o, &place, err);

    if (r < 0 || block_bitmap_find(place.node, place.name)) {
        return r;
    }
    if (place.persistent && !block_node_stores_bitmaps(place.node)) {
        log_error("Bitmap '%s' ends with the machine: node '%s' stores none", place.name,
                  block_node_name(place.node));
        place.persistent = false;
    }
    r = block_co_bitmap_add(place.node, place.name, (uint32_t)qmp_get_uint(o, "granularity", 0),
                            place.persistent, true, &b, err);
    if (r < 0) {
        return r;
    }
    r = co_set_ranges(b, qmp_get(o, "ranges"), err);
    if (r >= 0 && qmp_get_bool(o, "enabled", true)) {
        r = block_co_bitmap_set_enabled(b, true, err);
    }
    /* A backup by a bitmap without all of its bits would lack data. */
    if (r < 0) {
        (void)block_co_bitmap_remove(b, NULL);
    }
    return r;
}

void migrate_co_load_bitmaps(struct json_object *list)
{
    ERROR_AUTO(err);
    int r = 0;

    for (size_t i = 0; i < json_object_array_length(list) && r >= 0; i++) {
        r = co_make_bitmap(json_object_array_get_idx(list, i), &err);
    }
    if (r < 0) {
        log_error("%s; the bitmaps that follow are lost", error_message(&err));
    }
}
