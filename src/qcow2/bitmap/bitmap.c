/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps: the directory, marking in use.
 *
 * A bitmap on disk is as current as the last store. The first guest write marks every bitmap that records in use, and
 * syncs, before it goes on (R5). Bitmaps that don't record keep what they had, so they need no mark and survive a crash.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/bitmap/bitmap.h"

void qcow2_stored_bitmap_free(struct stored_bitmap *b)
{
    if (b) {
        list_remove(&b->link);
        free(b->name);
        free(b->extra);
        free(b);
    }
}

void qcow2_free_stored_bitmaps(struct qcow2 *q)
{
    struct stored_bitmap *b, *next;

    LIST_FOREACH_SAFE (b, next, &q->bitmaps.stored, link) {
        qcow2_stored_bitmap_free(b);
    }
}

struct stored_bitmap *qcow2_find_stored(struct qcow2 *q, const char *name)
{
    struct stored_bitmap *b;

    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        if (strcmp(b->name, name) == 0) {
            return b;
        }
    }
    return NULL;
}

uint64_t qcow2_bitmap_entry_bytes(const char *name, uint32_t extra_size)
{
    return round_up((uint64_t)BITMAP_ENTRY_FIXED_SIZE + extra_size + strlen(name), 8);
}

uint64_t qcow2_bitmap_table_entries(const struct qcow2 *q, uint64_t disk_size,
                                    unsigned granularity_bits)
{
    uint64_t granules = div_round_up(disk_size, 1ULL << granularity_bits);

    return div_round_up(div_round_up(granules, 8), q->cluster_size);
}

int qcow2_check_bitmap_size(const struct qcow2 *q, uint64_t disk_size, const char *name,
                            uint32_t granularity, struct error *err)
{
    uint64_t entries =
        qcow2_bitmap_table_entries(q, disk_size, (unsigned)__builtin_ctz(granularity));

    if (entries * 8 > BITMAP_TABLE_BYTES_MAX || entries > BITMAP_BYTES_MAX >> q->cluster_bits) {
        return error_set(err, EFBIG,
                         "Bitmap '%s': with a granularity of %u bytes it would be larger than "
                         "512 MiB, or its table than 64 MiB; use a larger granularity",
                         name, granularity);
    }
    return 0;
}

/* --- directory --------------------------------------------------------------------------------- */

static int bad_directory(struct qcow2 *q, const char *what, struct error *err)
{
    return error_set(err, EINVAL, "Image '%s': the bitmap directory is invalid: %s",
                     block_node_display_name(q->node), what);
}

/* One entry at data[at..size). *ret_used: its length with padding. */
static int parse_entry(struct qcow2 *q, const uint8_t *data, uint64_t at, uint64_t size,
                       uint64_t *ret_used, struct error *err)
{
    const uint8_t *e = data + at;
    struct stored_bitmap *b;
    uint32_t name_size, extra_size;
    uint64_t used;

    if (size - at < BITMAP_ENTRY_FIXED_SIZE) {
        return bad_directory(q, "an entry is cut off", err);
    }
    name_size = load_be16(e + BITMAP_ENTRY_NAME_SIZE);
    extra_size = load_be32(e + BITMAP_ENTRY_EXTRA_SIZE);
    used = round_up((uint64_t)BITMAP_ENTRY_FIXED_SIZE + extra_size + name_size, 8);
    if (used > size - at) {
        return bad_directory(q, "an entry is longer than the directory", err);
    }
    if (name_size == 0 || name_size > BLOCK_BITMAP_NAME_MAX) {
        return bad_directory(q, "a name is empty or has more than 1023 bytes", err);
    }
    b = calloc(1, sizeof(*b));
    if (!b) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    list_init(&b->link);
    b->table_offset = load_be64(e + BITMAP_ENTRY_TABLE_OFFSET);
    b->table_entries = load_be32(e + BITMAP_ENTRY_TABLE_SIZE);
    b->flags = load_be32(e + BITMAP_ENTRY_FLAGS);
    b->type = e[BITMAP_ENTRY_TYPE];
    b->granularity_bits = e[BITMAP_ENTRY_GRANULARITY_BITS];
    b->flags_position = q->bitmaps.directory_offset + at + BITMAP_ENTRY_FLAGS;
    b->extra_size = extra_size;
    b->name = strndup((const char *)e + BITMAP_ENTRY_FIXED_SIZE + extra_size, name_size);
    b->extra = extra_size ? malloc(extra_size) : NULL;
    if (!b->name || (extra_size && !b->extra)) {
        qcow2_stored_bitmap_free(b);
        return error_set(err, ENOMEM, "Out of memory");
    }
    if (extra_size) {
        memcpy(b->extra, e + BITMAP_ENTRY_FIXED_SIZE, extra_size);
    }
    if (strlen(b->name) != name_size) {
        qcow2_stored_bitmap_free(b);
        return bad_directory(q, "a name has a NUL byte", err);
    }
    list_append(&q->bitmaps.stored, &b->link);
    *ret_used = used;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* There may be 65535 of them, so they are sorted rather than each looked for. */
static int check_names(struct qcow2 *q, unsigned count, struct error *err)
{
    AUTO_FREE const char **names = calloc(count, sizeof(*names));
    const struct stored_bitmap *b;
    unsigned n = 0;

    if (!names) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        names[n++] = b->name;
    }
    qsort(names, n, sizeof(*names), by_name);
    for (unsigned i = 1; i < n; i++) {
        if (strcmp(names[i - 1], names[i]) == 0) {
            return bad_directory(q, "a name is there twice", err);
        }
    }
    return 0;
}

int qcow2_co_read_bitmap_directory(struct qcow2 *q, struct error *err)
{
    uint64_t size = q->bitmaps.directory_size, at = 0, used = 0;
    AUTO_FREE uint8_t *data = NULL;
    unsigned count = 0;
    int r;

    /* A file that ends before has no directory there; this bounds what is allocated. */
    if (!range_fits(q->bitmaps.directory_offset, size, block_edge_size(q->node->file))) {
        return bad_directory(q, "it lies beyond the end of the file", err);
    }
    data = malloc(size);
    if (!data) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    r = block_co_pread(q->node->file, q->bitmaps.directory_offset, data, size);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not read the bitmap directory of '%s'",
                               block_node_display_name(q->node));
    }
    while (at < size) {
        if (++count > BITMAPS_MAX) {
            return bad_directory(q, "it has more than 65535 bitmaps", err);
        }
        r = parse_entry(q, data, at, size, &used, err);
        if (r < 0) {
            return r;
        }
        at += used;
    }
    if (count != q->bitmaps.directory_count) {
        return error_set(err, EINVAL, "%s bitmaps found than specified in header extension",
                         count < q->bitmaps.directory_count ? "Less" : "More");
    }
    return check_names(q, count, err);
}

/* --- marking in use ------------------------------------------------------------------------------ */

/* Whether guest writes make what is on disk untrue: also of one that could not be read, but may be the next time. */
static bool records(const struct stored_bitmap *b)
{
    return b->loaded && !b->loaded->inconsistent ? b->loaded->enabled
                                                 : (b->flags & BITMAP_FLAG_AUTO) != 0;
}

/* The flags field is four bytes within one sector, so each mark is there or not. Synced by the caller, who then notes it. */
static int co_mark(struct qcow2 *q, const struct stored_bitmap *b)
{
    uint8_t flags[4];
    int r;

    store_be32(flags, b->flags | BITMAP_FLAG_IN_USE);
    r = qcow2_co_overlap_check(q, b->flags_position, sizeof(flags),
                               OVERLAP_BIT(OVERLAP_BITMAP_DIRECTORY));
    return r < 0 ? r : block_co_pwrite(q->node->file, b->flags_position, flags, sizeof(flags), 0);
}

static bool needs_mark(const struct stored_bitmap *b)
{
    return records(b) && !(b->flags & BITMAP_FLAG_IN_USE);
}

/* A mark counts once it is stable; after an error all are written again. */
static int co_mark_all(struct qcow2 *q)
{
    struct stored_bitmap *b;
    bool any = false;
    int r = 0;

    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        if (needs_mark(b) && r == 0) {
            any = true;
            r = co_mark(q, b);
        }
    }
    if (r < 0 || !any) {
        return r;
    }
    r = block_co_flush(q->node->file);
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        if (needs_mark(b) && r == 0) {
            b->flags |= BITMAP_FLAG_IN_USE;
        }
    }
    return r;
}

int qcow2_co_mark_bitmaps(struct qcow2 *q)
{
    int r = 0;

    co_mutex_lock(&q->bitmaps.mutex);
    if (!atomic_load(&q->bitmaps.marked)) {
        r = co_mark_all(q);
        if (r == 0) {
            atomic_store_explicit(&q->bitmaps.marked, true, memory_order_release);
        }
    }
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}

int qcow2_co_mark_in_use_locked(struct qcow2 *q, struct stored_bitmap *b)
{
    int r;

    if (b->flags & BITMAP_FLAG_IN_USE) {
        return 0;
    }
    r = co_mark(q, b);
    r = r < 0 ? r : block_co_flush(q->node->file);
    b->flags |= r == 0 ? BITMAP_FLAG_IN_USE : 0;
    return r;
}

int qcow2_co_bitmap_will_change(struct block_node *node, struct block_bitmap *bitmap,
                                struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    struct stored_bitmap *b;
    int r = 0;

    if (q->read_only) {
        return 0;
    }
    co_mutex_lock(&q->bitmaps.mutex);
    b = qcow2_find_stored(q, bitmap->name);
    r = b ? qcow2_co_mark_in_use_locked(q, b) : 0;
    co_mutex_unlock(&q->bitmaps.mutex);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not mark bitmap '%s' of '%s' as in use",
                               bitmap->name, block_node_display_name(node));
    }
    return 0;
}
