/* SPDX-License-Identifier: Apache-2.0 */
/* What `info` shows, by the names of QEMU's ImageInfoSpecificQCow2. */
#include "qcow2/info.h"

#include <json-c/json.h>
#include <string.h>

#include "qcow2/image.h"

#include "qcow2/bitmap/bitmap.h"
#include "qcow2/create.h"
#include "luks/types.h"
#include "qcow2/data/crypt.h"
#include "qcow2/options.h"
#include "schema/define.h"

ENUM(bitmap_flag_type, "Qcow2BitmapInfoFlags", "in-use", "auto");
static const struct schema_type bitmap_flags_type =
    ARRAY_INIT("Qcow2BitmapInfoFlagsList", bitmap_flag_type);
OBJECT(bitmap_info_type, "Qcow2BitmapInfo", REQ("name", schema_str),
       REQ("granularity", schema_uint32, .unit = "bytes"), REQ("flags", bitmap_flags_type));
static const struct schema_type bitmap_infos_type =
    ARRAY_INIT("Qcow2BitmapInfoList", bitmap_info_type);
static const struct schema_type encryption_info_type = {
    .kind = SCHEMA_OBJECT,
    .name = "ImageInfoSpecificQCow2Encryption",
    .members = MEMBERS(REQ("format", qcow2_encryption_format_type)),
    .tag = "format",
    .variants = (const struct schema_variant[]){{"luks", &luks_info_type}, {NULL, NULL}},
};
OBJECT(qcow2_data_type, "ImageInfoSpecificQCow2",
       REQ("compat", schema_str, .help = "0.10 for version 2, 1.1 for version 3"),
       OPT("data-file", schema_str), OPT("data-file-raw", schema_bool),
       OPT("extended-l2", schema_bool), OPT("lazy-refcounts", schema_bool),
       OPT("corrupt", schema_bool), REQ("refcount-bits", schema_int),
       OPT("encrypt", encryption_info_type), OPT("bitmaps", bitmap_infos_type),
       REQ("compression-type", qcow2_compression_type));
const struct schema_type qcow2_specific_info_type =
    OBJECT_INIT("ImageInfoSpecificQCow2Wrapper", REQ("data", qcow2_data_type));

static const char *compression_name(const struct qcow2 *q)
{
    return q->compression == COMPRESSION_ZSTD ? "zstd" : "zlib";
}

int qcow2_co_get_info(struct block_node *node, struct block_info *ret_info)
{
    const struct qcow2 *q = qcow2_state(node);

    *ret_info = (struct block_info){
        .cluster_size = (uint32_t)q->cluster_size,
        .has_dirty_flag = true,
        .dirty_flag = q->header.incompatible & INCOMPAT_DIRTY,
        .corrupt = (q->header.incompatible & INCOMPAT_CORRUPT) || atomic_load(&q->corrupt),
        .backing_filename = q->header.backing_filename,
        .backing_format = q->header.backing_format,
        .compression_type = compression_name(q),
        .encrypted = q->crypt_method != CRYPT_NONE,
    };
    return 0;
}

/* The entry of the same name in another directory; NULL: there is none. */
static const struct stored_bitmap *find_bitmap_in(const struct list *directory, const char *name)
{
    const struct stored_bitmap *b;

    LIST_FOREACH (b, directory, link) {
        if (strcmp(b->name, name) == 0) {
            return b;
        }
    }
    return NULL;
}

/* `other`: the entry of the same bitmap that counts as well, in doubt. NULL: there is none. */
static struct json_object *bitmap_info(const struct stored_bitmap *b,
                                       const struct stored_bitmap *other)
{
    uint32_t all_flags = b->flags | (other ? other->flags : 0);
    struct json_object *o = json_object_new_object();
    struct json_object *flags = json_object_new_array();

    if (all_flags & BITMAP_FLAG_IN_USE) {
        json_object_array_add(flags, json_object_new_string("in-use"));
    }
    if (all_flags & BITMAP_FLAG_AUTO) {
        json_object_array_add(flags, json_object_new_string("auto"));
    }
    json_object_object_add(o, "flags", flags);
    json_object_object_add(o, "name", json_object_new_string(b->name));
    json_object_object_add(
        o, "granularity",
        json_object_new_uint64(b->granularity_bits < 64 ? 1ULL << b->granularity_bits : 0));
    return o;
}

/* Those of the directory; in doubt (bitmap/joint.h) of both. NULL: there are none. */
static struct json_object *bitmaps_info(const struct qcow2 *q)
{
    struct json_object *bitmaps = json_object_new_array();
    bool in_doubt = q->joint.in_doubt;
    const struct stored_bitmap *b;

    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        json_object_array_add(
            bitmaps, bitmap_info(b, in_doubt ? find_bitmap_in(&q->joint.other, b->name) : NULL));
    }
    LIST_FOREACH (b, &q->joint.other, link) {
        if (in_doubt && !find_bitmap_in(&q->bitmaps.stored, b->name)) {
            json_object_array_add(bitmaps, bitmap_info(b, NULL));
        }
    }
    if (json_object_array_length(bitmaps) == 0) {
        json_object_put(bitmaps);
        return NULL;
    }
    return bitmaps;
}

struct json_object *qcow2_co_specific_info(struct block_node *node)
{
    const struct qcow2 *q = qcow2_state(node);
    struct json_object *o = json_object_new_object();
    struct json_object *data = json_object_new_object(), *bitmaps = bitmaps_info(q);
    bool v3 = q->version >= 3;

    json_object_object_add(data, "compat", json_object_new_string(v3 ? "1.1" : "0.10"));
    if (q->has_data_file) {
        if (q->header.data_filename) {
            json_object_object_add(data, "data-file",
                                   json_object_new_string(q->header.data_filename));
        }
        json_object_object_add(data, "data-file-raw", json_object_new_boolean(q->data_file_raw));
    }
    json_object_object_add(data, "compression-type", json_object_new_string(compression_name(q)));
    if (v3) {
        json_object_object_add(
            data, "lazy-refcounts",
            json_object_new_boolean((q->header.compatible & COMPAT_LAZY_REFCOUNTS) != 0));
    }
    if (bitmaps) {
        json_object_object_add(data, "bitmaps", bitmaps);
    }
    json_object_object_add(data, "refcount-bits", json_object_new_int(1 << q->refcounts.order));
    if (q->crypt_method != CRYPT_NONE) {
        const struct luks_volume *luks = qcow2_luks_volume(q);
        struct json_object *encrypt = luks ? luks_volume_info(luks) : json_object_new_object();

        json_object_object_add(encrypt, "format", json_object_new_string(luks ? "luks" : "aes"));
        json_object_object_add(data, "encrypt", encrypt);
    }
    if (v3) {
        json_object_object_add(
            data, "corrupt",
            json_object_new_boolean((q->header.incompatible & INCOMPAT_CORRUPT) ||
                                    atomic_load(&q->corrupt)));
        json_object_object_add(data, "extended-l2", json_object_new_boolean(q->extended_l2));
    }
    json_object_object_add(o, "type", json_object_new_string("qcow2"));
    json_object_object_add(o, "data", data);
    return o;
}
