/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Storing persistent bitmaps. Bits that changed, tables and a directory are written to new clusters, then one write of the header's
 * first sector switches to the new directory (R3), in which the bitmaps are no longer marked in use (R5), then what the old one
 * used is freed. A crash before the switch leaves the old directory with its marks. Where there is no room for that,
 * bitmap_in_place.c has another way.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/header/corrupt.h"
#include "qcow2/header/header.h"
#include "qcow2/snapshot/references.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"

void qcow2_garbage_add(struct free_list *g, uint64_t offset, uint64_t length)
{
    if (g->count == g->capacity) {
        size_t capacity = g->capacity ? g->capacity * 2 : 16;
        struct qcow2_free_run *runs = realloc(g->runs, capacity * sizeof(*runs));

        if (!runs) {
            return; /* a leak on disk */
        }
        g->runs = runs;
        g->capacity = capacity;
    }
    g->runs[g->count++] = (struct qcow2_free_run){.offset = offset, .length = length};
}

/* Of the old state. A broken table may name other metadata, which had better not be freed. */
static void co_free_old_locked(struct qcow2 *q, const struct qcow2_free_run *run)
{
    for (uint64_t i = 0; i < run->length; i += q->cluster_size) {
        if (!qcow2_co_overlap_hits_locked(q, run->offset + i)) {
            (void)qcow2_free_later_locked(q, run->offset + i, q->cluster_size, false,
                                          QCOW2_FREED_BY_OTHER);
        }
    }
}

/* `referenced`: they were, until the header was switched; else nothing ever referred to them. From run `first` on. */
static void co_garbage_free(struct qcow2 *q, struct free_list *g, size_t first, bool referenced)
{
    co_mutex_lock(&q->lock);
    for (size_t i = first; i < g->count; i++) {
        struct qcow2_free_run *run = &g->runs[i];

        if (referenced) {
            co_free_old_locked(q, run);
        } else {
            qcow2_co_unalloc_locked(q, run->offset, run->length >> q->cluster_bits);
        }
    }
    co_mutex_unlock(&q->lock);
    g->count = MIN(g->count, first);
}

int qcow2_co_bitmap_write_new(struct qcow2 *q, struct bitmap_store *st, const void *data,
                              size_t size, uint64_t *ret_offset)
{
    uint64_t offset;
    int r = qcow2_co_write_new_clusters(q, data, size, &offset);

    if (r == 0) {
        qcow2_garbage_add(&st->made, offset, round_up(size, q->cluster_size));
        *ret_offset = offset;
    }
    return r;
}

/* The same, in the place that was reserved for it, if there is one: the table of bitmap `name`, or (NULL) the directory. */
static int co_write_reserved(struct qcow2 *q, struct bitmap_store *st, const char *name,
                             const void *data, size_t size, uint64_t *ret_offset)
{
    uint64_t offset;
    int r;

    if (!qcow2_co_bitmap_reserve_use(q, name, size, &offset)) {
        return qcow2_co_bitmap_write_new(q, st, data, size, ret_offset);
    }
    r = block_co_pwrite(q->node->file, offset, data, size, 0);
    if (r == 0) {
        *ret_offset = offset;
    }
    return r;
}

/* --- one bitmap -------------------------------------------------------------------------------- */

static bool is_all_ones(const uint8_t *buf, size_t size)
{
    return buf[0] == 0xff && memcmp(buf, buf + 1, size - 1) == 0;
}

static void free_tables(struct bitmap_tables *t)
{
    free(t->now);
    free(t->before);
    free(t->bits);
    free(t->stored);
}

static int co_prepare_tables(struct qcow2 *q, struct block_bitmap *b, const struct stored_bitmap *s,
                             struct bitmap_tables *t)
{
    uint64_t budget = qcow2_bitmap_budget(q);
    int r;

    t->bitmap = b;
    t->now_entries = qcow2_bitmap_table_entries(q, block_node_size(q->node),
                                                (unsigned)__builtin_ctz(b->granularity));
    if (t->now_entries * 8 > BITMAP_TABLE_BYTES_MAX) {
        return -EFBIG;
    }
    t->now = calloc(MAX(t->now_entries, 1), 8);
    t->bits = malloc(q->cluster_size);
    t->stored = malloc(q->cluster_size);
    if (!t->now || !t->bits || !t->stored) {
        return -ENOMEM;
    }
    if (!s || s->table_entries == 0) {
        return 0;
    }
    r = qcow2_co_read_bitmap_table(q, s, &t->before);
    r = r < 0 ? r : qcow2_check_bitmap_table(q, t->before, s->table_entries, &budget);
    if (r < 0 && r != -ENOMEM && !b->unread) {
        free(t->before); /* all is in memory; what cannot be found leaks */
        t->before = NULL;
        t->before_entries = 0;
        return 0;
    }
    t->before_entries = s->table_entries;
    return r;
}

static uint64_t entry_before(const struct bitmap_tables *t, uint64_t i)
{
    return i < t->before_entries ? t->before[i] : 0;
}

/*
 * The bits of entry `i` as they shall be stored: with those that are still in the image only. *ret_same: they are what is stored,
 * in a cluster of its own. Clusters stay where they are then, so that a large bitmap is not written again for a few bits.
 */
static int co_bits_to_store(struct qcow2 *q, struct bitmap_tables *t, uint64_t i, bool *ret_any,
                            bool *ret_same)
{
    const uint64_t entry = entry_before(t, i), offset = entry & ENTRY_OFFSET_MASK;
    int r;

    *ret_any =
        dirty_bitmap_serialize(t->bitmap->bits, i * q->cluster_size * 8, t->bits, q->cluster_size);
    *ret_same = false;
    if (offset == 0) {
        if (t->bitmap->unread && entry == BITMAP_TABLE_ALL_ONES) {
            memset(t->bits, 0xff, q->cluster_size);
            *ret_any = true;
        }
        return 0;
    }
    if (!*ret_any) {
        *ret_same = *ret_any = t->bitmap->unread;
        return 0;
    }
    r = block_co_pread(q->node->file, offset, t->stored, q->cluster_size);
    if (r < 0) {
        return t->bitmap->unread ? r : 0;
    }
    for (uint64_t k = 0; t->bitmap->unread && k < q->cluster_size; k++) {
        t->bits[k] |= t->stored[k];
    }
    *ret_same = memcmp(t->bits, t->stored, q->cluster_size) == 0;
    return 0;
}

static int co_store_cluster(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                            uint64_t i)
{
    bool any, same;
    int r = co_bits_to_store(q, t, i, &any, &same);

    if (r < 0) {
        t->bitmap->inconsistent = true; /* a part of it was in the image only */
        return r;
    }
    if (same) {
        t->now[i] = entry_before(t, i);
    } else if (any && is_all_ones(t->bits, q->cluster_size)) {
        t->now[i] = BITMAP_TABLE_ALL_ONES;
    } else if (any) {
        return st->in_place
                   ? qcow2_co_in_place_bits(q, st, t, i)
                   : qcow2_co_bitmap_write_new(q, st, t->bits, q->cluster_size, &t->now[i]);
    }
    return 0;
}

/* The clusters of bits of the last store that this one does not use. */
static void collect_replaced(struct qcow2 *q, const struct bitmap_tables *t, struct free_list *old)
{
    for (uint64_t i = 0; i < t->before_entries; i++) {
        uint64_t offset = t->before[i] & ENTRY_OFFSET_MASK;

        if (offset != 0 && (i >= t->now_entries || t->now[i] != offset)) {
            qcow2_garbage_add(old, offset, q->cluster_size);
        }
    }
}

/* The table, in host byte order up to here. *ret_offset is where it was, if it was stored before (`s`), and where it is then. */
static int co_store_table(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                          const struct stored_bitmap *s, uint64_t *ret_offset)
{
    const char *name = t->bitmap->name;
    uint64_t size = t->now_entries * 8, kept = 0;
    uint64_t before = round_up(t->before_entries * 8, q->cluster_size);
    int r = 0;

    for (uint64_t i = 0; i < t->now_entries; i++) {
        t->now[i] = htobe64(t->now[i]);
    }
    if (st->in_place && s && qcow2_co_in_place_table(q, st, t, s)) {
        kept = round_up(size, q->cluster_size);
    } else {
        st->moved = true;
        r = size > 0 ? co_write_reserved(q, st, name, t->now, size, ret_offset) : 0;
    }
    if (r == 0 && t->before && before > kept) {
        qcow2_garbage_add(&st->old, s->table_offset + kept, before - kept);
    }
    return r;
}

/* Bits and table; the entry's fields for the directory. `s`: how it was stored before, or NULL. */
static int co_store_bits(struct qcow2 *q, struct bitmap_store *st, struct block_bitmap *b,
                         const struct stored_bitmap *s, struct stored_bitmap *ret)
{
    struct bitmap_tables t = {0};
    int r = co_prepare_tables(q, b, s, &t);

    if (r < 0 && b->unread && r != -ENOMEM && r != -EFBIG) {
        b->inconsistent = true;
    }
    for (uint64_t i = 0; i < t.now_entries && r == 0; i++) {
        r = co_store_cluster(q, st, &t, i);
    }
    if (r == 0) {
        collect_replaced(q, &t, &st->old);
        r = co_store_table(q, st, &t, s, &ret->table_offset);
    }
    if (r == 0 && t.overstated > 0) {
        log_warning("image '%s': no room to store bitmap '%s' as it is: %llu bytes too many are "
                    "dirty in what is stored",
                    block_node_display_name(q->node), b->name, (unsigned long long)t.overstated);
    }
    ret->table_entries = (uint32_t)t.now_entries;
    ret->granularity_bits = (uint8_t)__builtin_ctz(b->granularity);
    ret->type = BITMAP_TYPE_DIRTY;
    ret->flags = (b->enabled ? BITMAP_FLAG_AUTO : 0) | (ret->flags & BITMAP_FLAG_EXTRA_COMPATIBLE);
    free_tables(&t);
    return r;
}

/* Everything that a bitmap on disk uses. A table that can't be read leaks what it refers to. */
static void co_collect_old(struct qcow2 *q, const struct stored_bitmap *b, struct free_list *old)
{
    uint64_t budget = qcow2_bitmap_budget(q);
    AUTO_FREE uint64_t *table = NULL;

    if (b->table_entries == 0 || qcow2_co_read_bitmap_table(q, b, &table) < 0) {
        return;
    }
    if (qcow2_check_bitmap_table(q, table, b->table_entries, &budget) < 0) {
        return; /* who knows what it is */
    }
    for (uint32_t i = 0; i < b->table_entries; i++) {
        uint64_t offset = table[i] & ENTRY_OFFSET_MASK;

        if (offset != 0) {
            qcow2_garbage_add(old, offset, q->cluster_size);
        }
    }
    qcow2_garbage_add(old, b->table_offset,
                      round_up((uint64_t)b->table_entries * 8, q->cluster_size));
}

/* --- directory --------------------------------------------------------------------------------- */

static void append_entry(struct strbuf *sb, struct stored_bitmap *b)
{
    static const uint8_t padding[8];
    uint8_t e[BITMAP_ENTRY_FIXED_SIZE] = {0};
    size_t name_size = strlen(b->name), used;

    store_be64(e + BITMAP_ENTRY_TABLE_OFFSET, b->table_offset);
    store_be32(e + BITMAP_ENTRY_TABLE_SIZE, b->table_entries);
    store_be32(e + BITMAP_ENTRY_FLAGS, b->flags);
    e[BITMAP_ENTRY_TYPE] = b->type;
    e[BITMAP_ENTRY_GRANULARITY_BITS] = b->granularity_bits;
    store_be16(e + BITMAP_ENTRY_NAME_SIZE, (uint16_t)name_size);
    store_be32(e + BITMAP_ENTRY_EXTRA_SIZE, b->extra_size);
    b->flags_position =
        sb->len + BITMAP_ENTRY_FLAGS; /* in the directory; the caller adds its place */
    used = sizeof(e) + b->extra_size + name_size;
    strbuf_append(sb, e, sizeof(e));
    strbuf_append(sb, b->extra, b->extra_size);
    strbuf_append(sb, b->name, name_size);
    strbuf_append(sb, padding, round_up(used, 8) - used);
}

static void free_list_of_stored(struct list *list)
{
    while (!list_is_empty(list)) {
        qcow2_stored_bitmap_free(LIST_FIRST(list, struct stored_bitmap, link));
    }
}

void qcow2_adopt_entries(struct qcow2 *q, struct list *entries)
{
    struct stored_bitmap *b;

    free_list_of_stored(&q->bitmaps.stored);
    list_splice(&q->bitmaps.stored, entries);
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        if (b->loaded) {
            b->loaded->driver_state = b;
        }
    }
}

static int co_write_directory(struct qcow2 *q, struct bitmap_store *st, const void *data,
                              size_t size, uint64_t *ret_offset)
{
    if (st->place == 0) {
        return co_write_reserved(q, st, NULL, data, size, ret_offset);
    }
    if (size > q->cluster_size) {
        return -ENOSPC;
    }
    *ret_offset = st->place;
    return block_co_pwrite(q->node->file, st->place, data, size, 0);
}

/*
 * Put st->entries in place of q->bitmaps.stored, on disk and in memory: they move. On failure nothing changes.
 */
static int co_switch_directory(struct qcow2 *q, struct bitmap_store *st, struct error *err)
{
    uint64_t old_offset = q->bitmaps.directory_offset, old_size = q->bitmaps.directory_size;
    uint64_t old_autoclear = q->header.autoclear, offset = 0;
    struct list old_list;
    struct stored_bitmap *b;
    STRBUF_AUTO(directory);
    int r = 0;

    LIST_FOREACH (b, &st->entries, link) {
        append_entry(&directory, b);
    }
    if (directory.failed) {
        r = -ENOMEM;
    } else if (directory.len > 0) {
        r = co_write_directory(q, st, directory.data, directory.len, &offset);
    }
    r = r < 0 ? r : qcow2_co_commit(q); /* refcounts of it all, and a sync: R1 */
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the bitmaps of '%s'",
                               block_node_display_name(q->node));
    }
    list_init(&old_list);
    list_splice(&old_list, &q->bitmaps.stored);
    list_splice(&q->bitmaps.stored, &st->entries);
    q->bitmaps.directory_offset = offset;
    q->bitmaps.directory_size = directory.len;
    q->header.autoclear = directory.len > 0 ? q->header.autoclear | AUTOCLEAR_BITMAPS
                                            : q->header.autoclear & ~AUTOCLEAR_BITMAPS;
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        list_splice(&st->entries, &q->bitmaps.stored);
        list_splice(&q->bitmaps.stored, &old_list);
        q->bitmaps.directory_offset = old_offset;
        q->bitmaps.directory_size = old_size;
        q->header.autoclear = old_autoclear;
        return r;
    }
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        b->flags_position += offset;
        if (b->loaded) {
            b->loaded->driver_state = b;
        }
    }
    free_list_of_stored(&old_list);
    if (old_size > 0) {
        qcow2_garbage_add(&st->old, old_offset, round_up(old_size, q->cluster_size));
    }
    return 0;
}

/* A copy of an entry, to be changed or kept; NULL if out of memory. */
static struct stored_bitmap *copy_stored(const struct stored_bitmap *b, const char *name)
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
        qcow2_stored_bitmap_free(copy);
        return NULL;
    }
    return copy;
}

/* --- store ------------------------------------------------------------------------------------- */

bool qcow2_bitmap_is_stale(const struct stored_bitmap *s, const struct block_bitmap *b)
{
    if (!b->persistent || b->inconsistent || b->read_only) {
        return false; /* and never stored */
    }
    return !s || b->unstored || (s->flags & BITMAP_FLAG_IN_USE) ||
           b->enabled != !!(s->flags & BITMAP_FLAG_AUTO);
}

static bool anything_to_store(struct qcow2 *q)
{
    struct block_bitmap *b;

    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        if (qcow2_bitmap_is_stale(b->driver_state, b)) {
            return true;
        }
    }
    return false;
}

/* Bits of `b` written anew. If they can't be read any more, what is stored stays as it is, in use. */
static int co_store_anew(struct qcow2 *q, struct bitmap_store *st, struct block_bitmap *b,
                         const struct stored_bitmap *s, struct stored_bitmap *copy)
{
    size_t made = st->made.count;
    int r;

    copy->loaded = b;
    r = co_store_bits(q, st, b, s, copy);
    if (r < 0 && s && b->inconsistent) {
        log_warning("image '%s': bitmap '%s' can't be read (%s); it is inconsistent",
                    block_node_display_name(q->node), b->name, strerror(-r));
        co_garbage_free(q, &st->made, made, false);
        copy->table_offset = s->table_offset;
        copy->table_entries = s->table_entries;
        copy->flags = s->flags | BITMAP_FLAG_IN_USE;
        return 0;
    }
    return r;
}

/* Append the entry of `s` as it is, or with the bits of `b` written anew. Either may be NULL. */
static int co_append_entry(struct qcow2 *q, struct bitmap_store *st, const char *name,
                           const struct stored_bitmap *s, struct block_bitmap *b)
{
    struct stored_bitmap *copy = copy_stored(s, name);

    if (!copy) {
        return -ENOMEM;
    }
    list_append(&st->entries, &copy->link);
    return b ? co_store_anew(q, st, b, s, copy) : 0;
}

/* The entries as they shall be, in the order in which they were made. */
static int co_make_entries(struct qcow2 *q, struct bitmap_store *st)
{
    struct stored_bitmap *s;
    struct block_bitmap *b;
    int r = 0;

    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        bool stale = s->loaded && qcow2_bitmap_is_stale(s, s->loaded);

        r = co_append_entry(q, st, s->name, s, stale ? s->loaded : NULL);
        if (r < 0) {
            return r;
        }
    }
    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        if (!b->driver_state && qcow2_bitmap_is_stale(NULL, b)) {
            r = co_append_entry(q, st, b->name, NULL, b);
            if (r < 0) {
                return r;
            }
        }
    }
    return 0;
}

static void store_begin(struct qcow2 *q, struct bitmap_store *st)
{
    *st = (struct bitmap_store){0};
    list_init(&st->entries);
    list_init(&st->tables);
    qcow2_bitmap_reserve_begin(q);
}

/* `result` is returned. */
static int co_store_end(struct qcow2 *q, struct bitmap_store *st, int result)
{
    if (result == 0) {
        co_garbage_free(q, &st->old, 0, true);
    } else if (!st->written) {
        co_garbage_free(q, &st->made, 0, false);
    }
    if (result < 0) {
        qcow2_bitmap_reserve_begin(q); /* it is all there for another attempt */
    }
    free_list_of_stored(&st->entries);
    qcow2_in_place_free_tables(st);
    free(st->made.runs);
    free(st->old.runs);
    return result;
}

static int co_store_elsewhere(struct qcow2 *q, struct error *err)
{
    struct bitmap_store st;
    int r;

    store_begin(q, &st);
    r = co_make_entries(q, &st);
    if (r < 0) {
        error_set_errno(err, -r, "Could not store the bitmaps of '%s'",
                        block_node_display_name(q->node));
    } else {
        r = co_switch_directory(q, &st, err);
    }
    return co_store_end(q, &st, r);
}

static int co_store_in_place(struct qcow2 *q, struct error *err)
{
    struct bitmap_store st;
    int r = qcow2_co_in_place_begin(q, err);

    store_begin(q, &st);
    st.in_place = true;
    if (r == 0) {
        r = co_make_entries(q, &st);
        r = r < 0 ? r : qcow2_co_in_place_write_tables(q, &st);
        r = r < 0 || st.moved ? r : qcow2_co_in_place_finish(q, &st);
        if (r < 0) {
            error_set_errno(err, -r, "Could not store the bitmaps of '%s'",
                            block_node_display_name(q->node));
        }
    }
    r = r < 0 || !st.moved ? r : co_switch_directory(q, &st, err);
    return co_store_end(q, &st, r);
}

static int co_store_locked(struct qcow2 *q, struct error *err)
{
    struct stored_bitmap *s;
    ERROR_AUTO(why);
    int r;

    if (!anything_to_store(q)) {
        return 0;
    }
    r = co_store_elsewhere(q, &why);
    if (qcow2_is_no_room(r)) {
        error_clear(&why);
        r = co_store_in_place(q, &why);
    }
    if (r < 0) {
        error_move(err, &why);
        return r;
    }
    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        if (s->loaded) {
            s->loaded->unstored = false;
        }
    }
    atomic_store(&q->bitmaps.marked, false); /* the next write marks again */
    return 0;
}

int qcow2_co_store_bitmaps(struct qcow2 *q, struct error *err)
{
    int r;

    if (q->read_only) {
        return 0;
    }
    co_mutex_lock(&q->bitmaps.mutex);
    co_mutex_lock(&q->bitmaps.bits_mutex);
    r = co_store_locked(q, err);
    co_mutex_unlock(&q->bitmaps.bits_mutex);
    if (r == 0) {
        qcow2_co_bitmap_reserve_end(q);
    }
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}

/* --- add and remove ---------------------------------------------------------------------------- */

int qcow2_co_can_store_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                              struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    const struct stored_bitmap *s;
    struct block_bitmap *b;
    uint64_t count = 0;
    int r;

    if (q->read_only) {
        return error_set(err, EROFS, "Image '%s' is read-only: it can't store bitmap '%s'",
                         block_node_display_name(node), name);
    }
    if (q->version < 3) {
        return error_set(err, ENOTSUP, "Cannot store dirty bitmaps in qcow2 v2 files");
    }
    s = qcow2_find_stored(q, name);
    /* One that was taken off the node goes from the image when the transaction that does it is through. */
    if (s && !(s->loaded && block_bitmap_find(node, name) != s->loaded)) {
        return error_set(err, EEXIST, "Image '%s' stores a bitmap '%s' already",
                         block_node_display_name(node), name);
    }
    r = qcow2_check_bitmap_size(q, block_node_size(node), name, granularity, err);
    if (r < 0) {
        return r;
    }
    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        count++; /* also those that were not loaded */
    }
    for (b = block_bitmap_next(node, NULL); b; b = block_bitmap_next(node, b)) {
        count += b->persistent && !b->driver_state;
    }
    if (count >= BITMAPS_MAX) {
        return error_set(err, ENOSPC, "Image '%s' has %u bitmaps, which is the maximum",
                         block_node_display_name(node), BITMAPS_MAX);
    }
    return qcow2_co_check_room_for_bitmaps(q, err);
}

static int co_remove_locked(struct qcow2 *q, const char *name, struct error *err)
{
    struct stored_bitmap *s, *gone = qcow2_find_stored(q, name);
    struct block_bitmap *bitmap = gone ? gone->loaded : NULL;
    struct bitmap_store st;
    ERROR_AUTO(why);
    int r = gone ? qcow2_refuse_broken(q, err) : 0;

    if (r < 0 || !gone) {
        return r;
    }
    store_begin(q, &st);
    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        struct stored_bitmap *copy = s == gone ? NULL : copy_stored(s, s->name);

        if (copy) {
            list_append(&st.entries, &copy->link);
        } else if (s != gone) {
            r = error_set(&why, ENOMEM, "Out of memory");
        }
    }
    co_collect_old(q, gone, &st.old);
    r = r < 0 ? r : co_switch_directory(q, &st, &why);
    if (qcow2_is_no_room(r) && bitmap && qcow2_co_in_place_directory(q, gone, &st) == 0) {
        error_clear(&why);
        r = co_switch_directory(q, &st, &why);
    }
    if (r < 0) {
        error_move(err, &why);
    } else if (bitmap) {
        bitmap->driver_state = NULL;
        bitmap->inconsistent = bitmap->inconsistent || bitmap->unread;
        bitmap->unread = false;
    }
    r = co_store_end(q, &st, r);
    return r < 0 ? r : 1;
}

int qcow2_co_remove_stored_bitmap(struct block_node *node, const char *name, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    int r;

    co_mutex_lock(&q->bitmaps.mutex);
    co_mutex_lock(&q->bitmaps.bits_mutex);
    r = co_remove_locked(q, name, err);
    co_mutex_unlock(&q->bitmaps.bits_mutex);
    if (r == 1) {
        qcow2_co_bitmap_reserve_again(q);
    }
    if (r >= 0) {
        qcow2_co_unreserve_bitmap(q, name);
    }
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}
