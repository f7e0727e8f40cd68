/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The format extension: one cluster, with features one after the other, of which dirty bitmaps are
 * known (parallels.rst, "Format Extension", "Dirty bitmaps feature"). They are bitmaps of a node
 * that is opened for reading; their names are their UUIDs, as in QEMU.
 *
 *      extension: 0 magic, 64 bits    8 MD5 of what follows    24 features
 *      feature:   0 magic, 64 bits    8 flags, 64 bits    16 bytes of data    24 data, padded to 8
 *      bitmap:    0 sectors of the disk, 64 bits    8 UUID    24 sectors of a bit    28 entries
 *                 32 entries of 64 bits, one for each cluster of bits: 0, 1, or its sector
 */
#include <errno.h>
#include <inttypes.h>
#include <nettle/md5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "parallels/image.h"

#define EXTENSION_MAGIC UINT64_C(0xab234cef23dcea87)
#define FEATURE_END UINT64_C(0)
#define FEATURE_BITMAP UINT64_C(0x20385fae252cb34a)

enum {
    EXTENSION_HEADER = 24,
    FEATURE_HEADER = 24,
    BITMAP_HEADER = 32,
    UUID_TEXT_SIZE = 37,
    /* Of an extension in memory. */
    EXTENSION_MAX = 64 * 1024 * 1024,
    BITMAPS_MAX = 1000,
    PIECE = 64 * 1024,
};

struct extension {
    struct block_node *node;
    bool load;
    unsigned bitmaps;
    /* Bytes that bits may still have in the file: more than that would be places of two owners. */
    uint64_t budget;
};

struct stored {
    char name[UUID_TEXT_SIZE];
    /* Bytes of a bit, and of all bits. */
    uint64_t granularity, size;
    const uint8_t *table;
    uint32_t entries;
};

/* -EINVAL, and the reason is logged: nobody is kept from reading the disk. */
static int __attribute__((format(printf, 2, 3)))
refuse_extension(const struct block_node *node, const char *format, ...)
{
    char text[120];
    va_list ap;

    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    log_warning("Image '%s': the format extension is not used: %s", block_node_display_name(node),
                text);
    return -EINVAL;
}

/* --- bitmaps ---------------------------------------------------------------------------------- */

static void format_uuid(const uint8_t *u, char *text)
{
    snprintf(text, UUID_TEXT_SIZE,
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
}

static int take_stored(const struct block_node *node, const uint8_t *data, uint32_t size,
                       struct stored *ret_stored)
{
    const struct parallels *p = node->opaque;
    uint64_t disk = block_node_size(node), bits;
    uint32_t sectors;

    if (size < BITMAP_HEADER) {
        return refuse_extension(node, "a dirty bitmap has %" PRIu32 " bytes", size);
    }
    sectors = load_le32(data + 24);
    if (load_le64(data) != disk / PARALLELS_SECTOR) {
        return refuse_extension(node, "a dirty bitmap is of a disk of another size");
    }
    if (!is_power_of_2(sectors) || sectors > BITMAP_GRANULARITY_MAX / PARALLELS_SECTOR) {
        return refuse_extension(node, "a dirty bitmap has a granularity of %" PRIu32 " sectors",
                                sectors);
    }
    *ret_stored = (struct stored){
        .granularity = (uint64_t)sectors * PARALLELS_SECTOR,
        .table = data + BITMAP_HEADER,
        .entries = load_le32(data + 28),
    };
    format_uuid(data + 8, ret_stored->name);
    bits = div_round_up(disk, ret_stored->granularity);
    ret_stored->size = div_round_up(bits, 8);
    if (ret_stored->entries != div_round_up(ret_stored->size, p->cluster_size) ||
        ret_stored->entries > (size - BITMAP_HEADER) / 8) {
        return refuse_extension(node, "a dirty bitmap has a table of %" PRIu32 " entries",
                                ret_stored->entries);
    }
    return 0;
}

/* Add the bits of the part of the bitmap at `done` whose bytes are at `place` of the file. */
static int co_read_bits(struct block_node *node, struct dirty_bitmap *bits, uint64_t done,
                        uint64_t place, uint64_t length)
{
    AUTO_FREE uint8_t *buf = malloc(PIECE);
    int r = buf ? 0 : -ENOMEM;

    for (uint64_t at = 0, n; at < length && r == 0; at += n) {
        n = MIN(length - at, (uint64_t)PIECE);
        r = block_co_pread(node->file, place + at, buf, n);
        UNLESS_FAILED(r, dirty_bitmap_deserialize(bits, (done + at) * 8, buf, n));
    }
    return r;
}

/* All bits of a bitmap, and the places that they have. */
static int co_read_stored(struct extension *e, const struct stored *s, struct dirty_bitmap *bits)
{
    struct parallels *p = e->node->opaque;
    int r = 0;

    for (uint32_t i = 0; i < s->entries && r == 0; i++) {
        uint64_t entry = load_le64(s->table + 8 * (size_t)i), place, done = i * p->cluster_size;
        uint64_t length = MIN(s->size - done, p->cluster_size);

        if (entry == 1 && bits) {
            dirty_bitmap_set(bits, done * 8 * s->granularity, length * 8 * s->granularity);
        }
        if (entry <= 1) {
            continue;
        }
        if (mul_overflows(entry, PARALLELS_SECTOR, &place) || place < p->bat_end ||
            !range_fits(place, length, block_edge_size(e->node->file))) {
            return refuse_extension(e->node, "the dirty bitmap '%s' is not within the file",
                                    s->name);
        }
        if (length > e->budget) {
            return refuse_extension(e->node, "dirty bitmaps have more bytes than the file");
        }
        e->budget -= length;
        r = parallels_use(p, place, p->cluster_size);
        if (bits) {
            UNLESS_FAILED(r, co_read_bits(e->node, bits, done, place, length));
        }
    }
    return r;
}

static int co_take_stored_bitmap(struct extension *e, const uint8_t *data, uint32_t size)
{
    struct block_bitmap *loaded;
    struct dirty_bitmap *bits = NULL;
    struct stored s = {0};
    int r = take_stored(e->node, data, size, &s);

    if (r == 0 && ++e->bitmaps > BITMAPS_MAX) {
        r = refuse_extension(e->node, "it has more than %d dirty bitmaps", BITMAPS_MAX);
    }
    if (r == 0 && e->load && block_bitmap_find(e->node, s.name)) {
        r = refuse_extension(e->node, "it has two dirty bitmaps '%s'", s.name);
    }
    if (r == 0 && e->load) {
        bits = dirty_bitmap_new(block_node_size(e->node), (uint32_t)s.granularity);
        r = bits ? 0 : -ENOMEM;
    }
    UNLESS_FAILED(r, co_read_stored(e, &s, bits));
    if (r < 0 || !bits) {
        dirty_bitmap_free(bits);
        return r;
    }
    r = block_bitmap_attach_loaded(e->node, s.name, bits, (uint32_t)s.granularity, &loaded, NULL);
    if (r == 0) {
        /* The node is not written; and nothing is stored by this driver. */
        loaded->persistent = false;
        block_bitmap_set_enabled(loaded, true);
    }
    return r;
}

/* --- the extension ---------------------------------------------------------------------------- */

static int co_take_features(struct extension *e, const uint8_t *data, size_t size)
{
    size_t at = EXTENSION_HEADER;
    int r = 0;

    while (r == 0) {
        uint64_t magic;
        uint32_t length;

        if (!range_fits(at, FEATURE_HEADER, size)) {
            return refuse_extension(e->node, "it has no end");
        }
        magic = load_le64(data + at);
        length = load_le32(data + at + 16);
        at += FEATURE_HEADER;
        if (magic == FEATURE_END) {
            return 0;
        }
        if (!range_fits(at, length, size)) {
            return refuse_extension(e->node, "a feature has %" PRIu32 " bytes", length);
        }
        /* What is not known is kept as it is, since the image is not written. */
        r = magic == FEATURE_BITMAP ? co_take_stored_bitmap(e, data + at, length) : 0;
        at += round_up(length, 8);
    }
    return r;
}

static int check_extension_sum(struct block_node *node, const uint8_t *data, size_t size)
{
    struct parallels *p = node->opaque;
    struct md5_ctx md5;
    uint8_t sum[MD5_DIGEST_SIZE];

    if (load_le64(data) != EXTENSION_MAGIC) {
        return refuse_extension(node, "it has the magic 0x%" PRIx64, load_le64(data));
    }
    md5_init(&md5);
    md5_update(&md5, size - EXTENSION_HEADER, data + EXTENSION_HEADER);
    md5_digest(&md5, sizeof(sum), sum);
    if (memcmp(sum, data + 8, sizeof(sum)) != 0) {
        return refuse_extension(node, "its checksum is wrong");
    }
    memcpy(p->extension_sum, sum, sizeof(sum));
    return 0;
}

static int co_read_cluster_of_features(struct extension *e)
{
    struct parallels *p = e->node->opaque;
    AUTO_FREE uint8_t *data = NULL;
    uint64_t place;
    int r;

    if (p->cluster_size > EXTENSION_MAX) {
        return refuse_extension(e->node, "it has %" PRIu64 " bytes, at most %d are supported",
                                p->cluster_size, EXTENSION_MAX);
    }
    if (mul_overflows(p->extension, PARALLELS_SECTOR, &place) || place < p->bat_end ||
        !range_fits(place, p->cluster_size, block_edge_size(e->node->file))) {
        return refuse_extension(e->node, "sector %" PRIu64 " is not within the file", p->extension);
    }
    data = malloc(p->cluster_size);
    if (!data) {
        return -ENOMEM;
    }
    r = block_co_pread(e->node->file, place, data, p->cluster_size);
    UNLESS_FAILED(r, check_extension_sum(e->node, data, p->cluster_size));
    UNLESS_FAILED(r, parallels_use(p, place, p->cluster_size));
    UNLESS_FAILED(r, co_take_features(e, data, p->cluster_size));
    return r;
}

int parallels_co_read_extension(struct block_node *node, bool load, struct error *err)
{
    struct parallels *p = node->opaque;
    struct extension e = {
        .node = node, .load = load && node->read_only, .budget = block_edge_size(node->file)};
    int r;

    if (!p->bat || !p->keeps_extension) {
        return 0;
    }
    r = co_read_cluster_of_features(&e);
    p->is_extension_read = r == 0;
    if (r < 0 && e.load) {
        block_bitmaps_release(node); /* of those before the one that is wrong */
    }
    return r == -EINVAL ? 0
           : r < 0      ? error_set_errno(err, -r, "Could not read the format extension of '%s'",
                                          block_node_display_name(node))
                        : 0;
}
