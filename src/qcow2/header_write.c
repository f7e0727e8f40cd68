/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing the header.
 *
 * Layout of what we write:
 *
 *   0         header, 112 bytes
 *   112       bitmaps extension, if there are bitmaps: first, so that it lies in the first sector (R3)
 *             backing format, unknown extensions, feature names if they fit in the sector, end mark
 *   ...       backing file name, at an unchanged place as long as nothing grows into it; else at one that was unused
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "qcow2/snapshot.h"

static void put_extension(struct strbuf *sb, uint32_t type, const void *data, size_t size)
{
    static const uint8_t padding[8];
    uint8_t head[8];

    store_be32(head, type);
    store_be32(head + 4, (uint32_t)size);
    strbuf_append(sb, head, sizeof(head));
    strbuf_append(sb, data, size);
    strbuf_append(sb, padding, round_up(size, 8) - size);
}

static void put_bitmaps(const struct qcow2 *q, struct strbuf *sb)
{
    const struct stored_bitmap *b;
    uint8_t data[EXT_BITMAPS_SIZE] = {0};
    uint32_t count = 0;

    LIST_FOREACH (b, &q->stored_bitmaps, link) {
        count++;
    }
    if (q->bitmap_directory_size == 0) {
        return;
    }
    store_be32(data, count);
    store_be64(data + 8, q->bitmap_directory_size);
    store_be64(data + 16, q->bitmap_directory_offset);
    put_extension(sb, EXT_BITMAPS, data, sizeof(data));
}

struct feature_name {
    uint8_t type; /* 0 incompatible, 1 compatible, 2 autoclear */
    uint8_t bit;
    const char *name;
};

static void put_feature_names(struct strbuf *sb)
{
    static const struct feature_name names[] = {
        {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
        {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
        {2, 0, "bitmaps"},
    };
    uint8_t data[ARRAY_SIZE(names) * 48] = {0};

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        data[i * 48] = names[i].type;
        data[i * 48 + 1] = names[i].bit;
        memcpy(data + i * 48 + 2, names[i].name, strlen(names[i].name));
    }
    /* It explains, nothing more: left out where it would push others out of the sector. */
    if (sb->len + 8 + sizeof(data) + 8 <= SECTOR_SIZE) {
        put_extension(sb, EXT_FEATURE_NAMES, data, sizeof(data));
    }
}

static void put_fixed_part(const struct qcow2 *q, uint8_t *h)
{
    store_be32(h + HDR_MAGIC, QCOW2_MAGIC);
    store_be32(h + HDR_VERSION, q->version);
    store_be32(h + HDR_CLUSTER_BITS, q->cluster_bits);
    store_be64(h + HDR_SIZE, block_node_size(q->node));
    store_be32(h + HDR_L1_SIZE, q->l1_size);
    store_be64(h + HDR_L1_OFFSET, q->l1_offset);
    store_be64(h + HDR_REFTABLE_OFFSET, q->reftable_offset);
    store_be32(h + HDR_REFTABLE_CLUSTERS,
               (uint32_t)((uint64_t)q->reftable_entries * 8 >> q->cluster_bits));
    store_be32(h + HDR_NB_SNAPSHOTS, q->snapshot_count);
    store_be64(h + HDR_SNAPSHOTS_OFFSET, q->snapshots_offset);
    store_be64(h + HDR_INCOMPATIBLE, q->incompatible);
    store_be64(h + HDR_COMPATIBLE, q->compatible);
    store_be64(h + HDR_AUTOCLEAR, q->autoclear);
    store_be32(h + HDR_REFCOUNT_ORDER, q->refcount_order);
    store_be32(h + HDR_LENGTH, HDR_OUR_SIZE + q->unknown_fields_size);
    h[HDR_COMPRESSION_TYPE] = (uint8_t)q->compression;
}

/* A header cluster to be written, and the one that is there. */
struct header_write {
    uint8_t *old, *new;    /* cluster_size bytes each */
    size_t extensions_end; /* with the end mark */
    size_t
        cut; /* where an end mark can be put so that the extensions before it lie in the first sector */
    size_t name, name_end; /* backing file name; 0: none */
    bool name_moves;
};

static void header_write_release(struct header_write *w)
{
    free(w->old);
    free(w->new);
}

/* A place for the backing file name that nothing on disk uses now, if that does not change with the first sector. */
static size_t find_name_place(struct qcow2 *q, const struct header_write *w, size_t size)
{
    uint64_t old = load_be64(w->old + HDR_BACKING_OFFSET);
    uint64_t old_size = load_be32(w->old + HDR_BACKING_SIZE);
    size_t behind = MAX(w->extensions_end, SECTOR_SIZE);

    if (!range_fits(old, old_size, q->cluster_size)) {
        old = old_size = 0;
    }
    if (old >= w->extensions_end && range_fits(old, size, q->cluster_size) && size == old_size &&
        memcmp(w->old + old, q->backing_filename, size) == 0) {
        return old;
    }
    if (range_fits(w->extensions_end, size, SECTOR_SIZE)) {
        return w->extensions_end;
    }
    if (old >= behind && range_fits(behind, size, old)) {
        return behind;
    }
    return round_up(MAX(behind, old + old_size), 8);
}

static int place_backing_name(struct qcow2 *q, struct header_write *w, struct error *err)
{
    size_t size = q->backing_filename ? strlen(q->backing_filename) : 0;
    size_t at;

    if (size == 0) {
        return 0;
    }
    at = find_name_place(q, w, size);
    if (!range_fits(at, size, q->cluster_size)) {
        return error_set(err, ENOSPC,
                         "Image '%s': the backing file name of %zu bytes does not fit into the "
                         "header cluster beside the extensions",
                         block_node_display_name(q->node), size);
    }
    w->name = at;
    w->name_end = at + size;
    w->name_moves = memcmp(w->old + at, q->backing_filename, size) != 0;
    memcpy(w->new + at, q->backing_filename, size);
    store_be64(w->new + HDR_BACKING_OFFSET, at);
    store_be32(w->new + HDR_BACKING_SIZE, (uint32_t)size);
    return 0;
}

/* What we know comes first, so that it is in the first sector. */
static void put_extensions(struct qcow2 *q, struct strbuf *sb, struct header_write *w)
{
    const struct qcow2_extension *e;

    put_bitmaps(q, sb);
    if (q->greatest_size > block_node_size(q->node) && q->bitmap_directory_size > 0) {
        uint8_t size[8];

        store_be64(size, q->greatest_size);
        put_extension(sb, EXT_GREATEST_SIZE, size, sizeof(size));
    }
    if (q->data_filename) {
        put_extension(sb, EXT_DATA_FILE_NAME, q->data_filename, strlen(q->data_filename));
    }
    if (q->backing_format) {
        put_extension(sb, EXT_BACKING_FORMAT, q->backing_format, strlen(q->backing_format));
    }
    w->cut = sb->len;
    LIST_FOREACH (e, &q->extensions, link) {
        put_extension(sb, e->type, e->data, e->size);
        if (sb->len + 8 <= SECTOR_SIZE) {
            w->cut = sb->len;
        }
    }
    if (q->version >= 3) {
        put_feature_names(sb);
    }
    put_extension(sb, EXT_END, NULL, 0);
}

static int build_header(struct qcow2 *q, struct header_write *w, struct error *err)
{
    uint8_t fixed[HDR_OUR_SIZE] = {0};
    STRBUF_AUTO(sb);

    put_fixed_part(q, fixed);
    if (q->version == 2) {
        strbuf_append(&sb, fixed, HDR_V2_SIZE);
    } else {
        strbuf_append(&sb, fixed, sizeof(fixed));
        strbuf_append(&sb, q->unknown_fields, q->unknown_fields_size);
    }
    put_extensions(q, &sb, w);
    if (sb.failed) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    if (sb.len > q->cluster_size || w->cut + 8 > SECTOR_SIZE) {
        return error_set(err, ENOSPC,
                         "Image '%s': the header extensions need %zu bytes, more than there is "
                         "room for",
                         block_node_display_name(q->node), sb.len);
    }
    memcpy(w->new, sb.data, sb.len);
    w->extensions_end = sb.len;
    return place_backing_name(q, w, err);
}

/* The bytes [from, to) of the new cluster, stable. */
static int co_write_part(struct qcow2 *q, const struct header_write *w, size_t from, size_t to)
{
    int r = block_co_pwrite(q->node->file, from, w->new + from, to - from, 0);

    return r < 0 ? r : block_co_flush(q->node->file);
}

/*
 * Extensions behind the first sector can't be switched together with it. While they change, an end mark in the first sector
 * hides them: a crash then loses those that nobody here knows, and nothing else.
 */
static int co_write_hidden_extensions(struct qcow2 *q, const struct header_write *w)
{
    uint8_t sector[SECTOR_SIZE] = {0};
    int r;

    memcpy(sector, w->new, w->cut);
    r = block_co_pwrite(q->node->file, 0, sector, sizeof(sector), 0);
    r = r < 0 ? r : block_co_flush(q->node->file);
    return r < 0 ? r : co_write_part(q, w, SECTOR_SIZE, w->extensions_end);
}

static int co_write_built(struct qcow2 *q, const struct header_write *w)
{
    bool hide =
        w->extensions_end > SECTOR_SIZE &&
        memcmp(w->old + SECTOR_SIZE, w->new + SECTOR_SIZE, w->extensions_end - SECTOR_SIZE) != 0;
    int r = 0;

    if (w->name_moves && w->name_end > SECTOR_SIZE) {
        r = co_write_part(q, w, MAX(w->name, SECTOR_SIZE), w->name_end);
    }
    if (r == 0 && hide) {
        r = co_write_hidden_extensions(q, w);
    }
    if (r < 0 && !hide) {
        return r; /* nothing that the old header names has changed */
    }
    r = r < 0 ? r : co_write_part(q, w, 0, SECTOR_SIZE);
    if (r < 0) {
        /* Which header is on disk? The old one for sure, or no more writes that rely on one of them. */
        int again = hide ? -EIO : block_co_pwrite(q->node->file, 0, w->old, SECTOR_SIZE, 0);

        again = again < 0 ? again : block_co_flush(q->node->file);
        if (again < 0) {
            log_error("image '%s': the header could not be written (%s); it takes no more writes",
                      block_node_display_name(q->node), strerror(-r));
            atomic_store(&q->broken, true);
        }
    }
    return r;
}

int qcow2_co_write_header(struct qcow2 *q, struct error *err)
{
    CLEANUP(header_write_release)
    struct header_write w = {
        .old = calloc(1, q->cluster_size),
        .new = calloc(1, q->cluster_size),
    };
    int r;

    if (!w.old || !w.new) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    r = block_co_pread(q->node->file, 0, w.old, q->cluster_size);
    if (r == 0) {
        r = build_header(q, &w, err);
        if (r < 0) {
            return r;
        }
        r = co_write_built(q, &w);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the header of '%s'",
                               block_node_display_name(q->node));
    }
    return 0;
}
