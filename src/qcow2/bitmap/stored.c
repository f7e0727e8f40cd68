/* SPDX-License-Identifier: Apache-2.0 */
/* Persistent bitmaps: as the directory describes them. */
#include "qcow2/bitmap/stored.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "block/bitmaps.h"

/* Remove a bitmap from its list, if it is on one, and free it. NULL is allowed. */
static void stored_bitmap_free(struct stored_bitmap *b)
{
    if (b) {
        list_remove(&b->link);
        free(b->name);
        free(b->extra);
        free(b);
    }
}

void qcow2_stored_bitmap_free_list(struct list *list)
{
    while (!list_is_empty(list)) {
        stored_bitmap_free(LIST_FIRST(list, struct stored_bitmap, link));
    }
}

void qcow2_free_stored_bitmaps(struct qcow2 *q)
{
    qcow2_stored_bitmap_free_list(&q->bitmaps.stored);
}

struct stored_bitmap *qcow2_stored_bitmap_copy(const struct stored_bitmap *b, const char *name)
{
    struct stored_bitmap *copy = calloc(1, sizeof(*copy));

    if (!copy) {
        return NULL;
    }
    if (b) {
        *copy = *b;
        copy->extra = NULL;
    }
    list_init(&copy->link);
    copy->name = strdup(name);
    if (b && b->extra_size) {
        copy->extra = malloc(b->extra_size);
        if (copy->extra) {
            memcpy(copy->extra, b->extra, b->extra_size);
        }
    }
    if (!copy->name || (copy->extra_size && !copy->extra)) {
        stored_bitmap_free(copy);
        return NULL;
    }
    return copy;
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

/* --- directory -------------------------------------------------------------------------------- */

static int refuse_directory(struct qcow2 *q, const char *what, struct error *err)
{
    return error_set(err, EINVAL, "Image '%s': the bitmap directory is invalid: %s",
                     block_node_display_name(q->node), what);
}

/* Copies extra data and name, which follow the fixed fields of an entry. */
static int copy_variable_fields(struct stored_bitmap *b, const uint8_t *fields, uint32_t name_size)
{
    b->name = strndup((const char *)fields + b->extra_size, name_size);
    b->extra = b->extra_size ? malloc(b->extra_size) : NULL;
    if (!b->name || (b->extra_size && !b->extra)) {
        return -ENOMEM;
    }
    if (b->extra_size) {
        memcpy(b->extra, fields, b->extra_size);
    }
    return 0;
}

/*
 * Appends an entry whose size was checked to bitmaps.stored. `at`: its offset in the directory.
 */
static int add_bitmap_entry(struct qcow2 *q, const uint8_t *e, uint64_t at, struct error *err)
{
    uint32_t name_size = load_be16(e + BITMAP_ENTRY_NAME_SIZE);
    struct stored_bitmap *b = calloc(1, sizeof(*b));

    if (!b) {
        return error_out_of_memory(err);
    }
    list_init(&b->link);
    b->table_offset = load_be64(e + BITMAP_ENTRY_TABLE_OFFSET);
    b->table_entries = load_be32(e + BITMAP_ENTRY_TABLE_SIZE);
    b->flags = load_be32(e + BITMAP_ENTRY_FLAGS);
    b->type = e[BITMAP_ENTRY_TYPE];
    b->granularity_bits = e[BITMAP_ENTRY_GRANULARITY_BITS];
    b->flags_position = q->bitmaps.directory_offset + at + BITMAP_ENTRY_FLAGS;
    b->extra_size = load_be32(e + BITMAP_ENTRY_EXTRA_SIZE);
    if (copy_variable_fields(b, e + BITMAP_ENTRY_FIXED_SIZE, name_size) < 0) {
        stored_bitmap_free(b);
        return error_out_of_memory(err);
    }
    if (strlen(b->name) != name_size) {
        stored_bitmap_free(b);
        return refuse_directory(q, "a name has a NUL byte", err);
    }
    list_append(&q->bitmaps.stored, &b->link);
    return 0;
}

/* Checks and appends the entry at data[at..size). *ret_used: its length with padding. */
static int parse_bitmap_entry(struct qcow2 *q, const uint8_t *data, uint64_t at, uint64_t size,
                              uint64_t *ret_used, struct error *err)
{
    const uint8_t *e = data + at;
    uint32_t name_size;
    uint64_t used;

    if (size - at < BITMAP_ENTRY_FIXED_SIZE) {
        return refuse_directory(q, "an entry is cut off", err);
    }
    name_size = load_be16(e + BITMAP_ENTRY_NAME_SIZE);
    used = round_up(
        (uint64_t)BITMAP_ENTRY_FIXED_SIZE + load_be32(e + BITMAP_ENTRY_EXTRA_SIZE) + name_size, 8);
    if (used > size - at) {
        return refuse_directory(q, "an entry is longer than the directory", err);
    }
    if (name_size == 0 || name_size > BLOCK_BITMAP_NAME_MAX) {
        return refuse_directory(q, "a name is empty or has more than 1023 bytes", err);
    }
    *ret_used = used;
    return add_bitmap_entry(q, e, at, err);
}

static int by_bitmap_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Refuses names that occur twice. Sorted first: there may be 65535. */
static int check_bitmap_names(struct qcow2 *q, unsigned count, struct error *err)
{
    AUTO_FREE const char **names = calloc(count, sizeof(*names));
    const struct stored_bitmap *b;
    unsigned n = 0;

    if (!names) {
        return error_out_of_memory(err);
    }
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        names[n++] = b->name;
    }
    qsort(names, n, sizeof(*names), by_bitmap_name);
    for (unsigned i = 1; i < n; i++) {
        if (strcmp(names[i - 1], names[i]) == 0) {
            return refuse_directory(q, "a name occurs twice", err);
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

    /* Bounds the allocation by the size of the file. */
    if (!range_fits(q->bitmaps.directory_offset, size, block_edge_size(q->node->file))) {
        return refuse_directory(q, "it lies beyond the end of the file", err);
    }
    data = malloc(size);
    if (!data) {
        return error_out_of_memory(err);
    }
    r = block_co_pread(q->node->file, q->bitmaps.directory_offset, data, size);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not read the bitmap directory of '%s'",
                               block_node_display_name(q->node));
    }
    while (at < size) {
        if (++count > BITMAPS_MAX) {
            return refuse_directory(q, "it has more than 65535 bitmaps", err);
        }
        r = parse_bitmap_entry(q, data, at, size, &used, err);
        if (r < 0) {
            return r;
        }
        at += used;
    }
    if (count != q->bitmaps.directory_count) {
        return error_set(err, EINVAL, "%s bitmaps found than specified in header extension",
                         count < q->bitmaps.directory_count ? "Less" : "More");
    }
    return check_bitmap_names(q, count, err);
}

/* --- tables ----------------------------------------------------------------------------------- */

int qcow2_co_read_bitmap_table(struct qcow2 *q, const struct stored_bitmap *b, uint64_t **ret_table)
{
    size_t bytes = (size_t)b->table_entries * 8;
    AUTO_FREE uint64_t *table = NULL;
    int r;

    if (bytes > BITMAP_TABLE_BYTES_MAX || !is_aligned(b->table_offset, q->cluster_size) ||
        !range_fits(b->table_offset, bytes, block_edge_size(q->node->file))) {
        return -EINVAL;
    }
    table = malloc(bytes ? bytes : 8);
    if (!table) {
        return -ENOMEM;
    }
    r = block_co_pread(q->node->file, b->table_offset, table, bytes);
    if (r < 0) {
        return r;
    }
    for (uint32_t i = 0; i < b->table_entries; i++) {
        table[i] = be64toh(table[i]);
    }
    *ret_table = TAKE_PTR(table);
    return 0;
}

uint64_t qcow2_bitmap_budget(const struct qcow2 *q)
{
    return round_up(block_edge_size(q->node->file), q->cluster_size);
}

static int take_budget(uint64_t *budget, uint64_t bytes)
{
    if (*budget < bytes) {
        return -EINVAL;
    }
    *budget -= bytes;
    return 0;
}

int qcow2_check_bitmap_table(const struct qcow2 *q, const uint64_t *table, uint32_t entries,
                             uint64_t *budget)
{
    uint64_t file_size = qcow2_bitmap_budget(q);
    int r = take_budget(budget, (uint64_t)entries * 8);

    for (uint32_t i = 0; i < entries && r == 0; i++) {
        uint64_t offset = table[i] & ENTRY_OFFSET_MASK;

        if (offset == 0) {
            continue;
        }
        if (!is_aligned(offset, q->cluster_size) || (table[i] & ~ENTRY_OFFSET_MASK) ||
            !range_fits(offset, q->cluster_size, file_size)) {
            return -EINVAL;
        }
        r = take_budget(budget, q->cluster_size);
    }
    return r;
}

/* --- what the activity log says nothing of ---------------------------------------------------- */

bool qcow2_activity_ignores(const struct stored_bitmap *b)
{
    return b->is_void || (b->loaded && (b->loaded->inconsistent || b->loaded->borrowed));
}

bool qcow2_activity_is_possible(struct qcow2 *q)
{
    const struct stored_bitmap *b;
    unsigned count = 0;

    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        count += qcow2_activity_ignores(b);
    }
    return count <= ACTIVITY_VOID_MAX;
}
