/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2: files that can't grow any more. What was given back is used before anything is refused. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "co_test.h"

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/activity.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/data/sparse.h"
#include "qcow2/table/refcount.h"
#include "qcow2_fixture.h"

#define SIZE (8 * MiB)
#define CLUSTER (4 * KiB)
#define PIECE (64 * KiB)

/* An image with 1s in its first quarter, flushed, whose file is full. */
static void make_full(struct image *i, const char *options)
{
    image_create("a", SIZE, options);
    image_open(i, "a", "");
    assert_int_equal(image_write(i, 0, SIZE / 4, 1), 0);
    assert_int_equal(block_co_flush(i->edge), 0);
    i->file->limit = i->file->size;
}

static void close_full(struct image *i)
{
    image_close(i);
    i->file->limit = UINT64_MAX;
    image_check("a", 0);
}

static int co_resize(struct image *i, uint64_t size)
{
    int r;

    block_co_drain_begin(i->node);
    r = i->node->driver->co_truncate(i->node, size, BLOCK_PREALLOC_OFF, NULL);
    block_drain_end(i->node);
    return r;
}

static unsigned flushes(const struct image *i)
{
    unsigned n = 0;

    for (unsigned k = 0; k < i->file->log_count; k++) {
        n += i->file->log[k].kind == MEMORY_FILE_FLUSH;
    }
    return n;
}

static void what_was_discarded_is_written_to_without_a_flush(void *arg)
{
    struct image i;

    make_full(&i, "cluster_size=4k");
    assert_int_equal(image_write(&i, SIZE / 2, PIECE, 2), -ENOSPC);
    assert_int_equal(block_co_discard(i.edge, 0, 2 * PIECE), 0);
    assert_int_equal(image_write(&i, SIZE / 2, PIECE, 2), 0);
    image_expect(&i, SIZE / 2, PIECE, 2);
    image_expect(&i, 0, 2 * PIECE, 0);
    image_expect(&i, 2 * PIECE, SIZE / 4 - 2 * PIECE, 1);
    close_full(&i);
}

static void storage_that_is_late_is_asked_for_again(void *arg)
{
    struct image i;

    make_full(&i, "cluster_size=4k");
    i.file->tells_stored = true;
    i.file->stored_result = -ETIMEDOUT;
    assert_false(qcow2_co_is_sparse(i.q));
    i.file->stored_result = 0;
    assert_true(qcow2_co_is_sparse(i.q));
    i.file->stored_result = -EIO;
    assert_true(qcow2_co_is_sparse(i.q)); /* it is not asked again */
    i.file->tells_stored = false;
    close_full(&i);
}

static void nothing_is_committed_where_nothing_waits(void *arg)
{
    struct image i;

    make_full(&i, "cluster_size=4k");
    i.file->log_count = 0;
    assert_int_equal(image_write(&i, SIZE / 2, PIECE, 2), -ENOSPC);
    assert_int_equal(flushes(&i), 0);
    close_full(&i);
}

static void nothing_is_committed_where_there_is_room(void *arg)
{
    struct image i;

    image_create("a", SIZE, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, SIZE / 4, 1), 0);
    assert_int_equal(block_co_discard(i.edge, 0, 2 * PIECE), 0);
    i.file->log_count = 0;
    assert_int_equal(image_write(&i, SIZE / 2, PIECE, 2), 0);
    assert_int_equal(flushes(&i), 0);
    image_close(&i);
    image_check("a", 0);
}

/* The table of the area is copied or made, then its clusters. */
static void tables_take_what_was_discarded(void *arg)
{
    struct image i;

    make_full(&i, "cluster_size=4k");
    assert_int_equal(block_co_write_zeroes(i.edge, SIZE / 2, CLUSTER, 0), -ENOSPC);
    assert_int_equal(block_co_discard(i.edge, 0, CLUSTER), 0);
    assert_int_equal(block_co_write_zeroes(i.edge, SIZE / 2, CLUSTER, 0), 0);
    close_full(&i);
}

static void compressed_data_takes_what_was_discarded(void *arg)
{
    uint8_t *data AUTO_FREE = malloc(SIZE / 4);
    struct iovec vec;
    struct image i;

    assert_non_null(data);
    memset(data, 3, SIZE / 4);
    make_full(&i, "cluster_size=4k");
    assert_int_equal(block_co_pwritev(i.edge, SIZE / 2, iov_from_buf(&vec, data, SIZE / 4),
                                      BLOCK_REQ_COMPRESSED),
                     -ENOSPC);
    assert_int_equal(block_co_discard(i.edge, 0, 8 * PIECE), 0);
    assert_int_equal(block_co_pwritev(i.edge, SIZE / 2, iov_from_buf(&vec, data, SIZE / 4),
                                      BLOCK_REQ_COMPRESSED),
                     0);
    image_expect(&i, SIZE / 2, SIZE / 4, 3);
    assert_true(image_status(&i, SIZE / 2) & BLOCK_STATUS_COMPRESSED);
    close_full(&i);
}

static void snapshots_take_what_was_discarded(void *arg)
{
    struct image i;

    make_full(&i, "cluster_size=4k");
    assert_int_equal(block_co_discard(i.edge, 0, PIECE), 0);
    block_co_drain_begin(i.node);
    assert_int_equal(i.node->driver->co_snapshot_create(i.node, "s", NULL), 0);
    block_drain_end(i.node);
    close_full(&i);
}

static void a_longer_table_takes_what_was_discarded(void *arg)
{
    struct image i;

    make_full(&i, "cluster_size=4k");
    assert_int_equal(co_resize(&i, 8 * GiB), -ENOSPC);
    assert_int_equal(block_node_size(i.node), SIZE);
    assert_int_equal(block_co_discard(i.edge, 0, 2 * PIECE), 0);
    assert_int_equal(co_resize(&i, 8 * GiB), 0);
    close_full(&i);
}

static void bitmaps_take_what_was_discarded(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    make_full(&i, "cluster_size=4k");
    assert_int_equal(block_co_discard(i.edge, 0, PIECE), 0);
    assert_int_equal(block_co_bitmap_add(i.node, "b", 65536, true, false, &b, NULL), 0);
    image_close(&i);
    i.file->limit = UINT64_MAX;
    image_check("a", 0);
    image_open(&i, "a", "");
    b = block_bitmap_find(i.node, "b");
    assert_non_null(b);
    assert_false(b->inconsistent);
    image_close(&i);
}

/* Several requests at the same time find no room, and share what there is. */
struct writers {
    struct image *image;
    struct co_group group;
    int results[8];
};

struct writer {
    struct writers *all;
    unsigned number;
};

static void write_one(void *arg)
{
    struct writer *w = arg;

    w->all->results[w->number] =
        image_write(w->all->image, SIZE / 2 + w->number * PIECE, PIECE, (int)(10 + w->number));
    co_group_done(&w->all->group);
}

static void writers_share_what_was_discarded(void *arg)
{
    struct writers all = {.image = NULL};
    struct writer writers[8];
    unsigned done = 0;
    struct image i;

    make_full(&i, "cluster_size=4k");
    all.image = &i;
    co_group_init(&all.group);
    assert_int_equal(block_co_discard(i.edge, 0, 5 * PIECE), 0); /* and L2 tables */
    for (unsigned k = 0; k < 8; k++) {
        writers[k] = (struct writer){&all, k};
        co_group_add(&all.group);
        assert_int_equal(reactor_spawn(reactor_current(), write_one, &writers[k]), 0);
    }
    co_group_wait(&all.group);
    co_group_destroy(&all.group);
    for (unsigned k = 0; k < 8; k++) {
        done += all.results[k] == 0;
        if (all.results[k] == 0) {
            image_expect(&i, SIZE / 2 + k * PIECE, PIECE, (int)(10 + k));
        } else {
            assert_int_equal(all.results[k], -ENOSPC);
        }
    }
    assert_true(done >= 3);
    close_full(&i);
}

/* --- bitmaps ---------------------------------------------------------------------------------- */

static struct block_bitmap *add(struct image *i, const char *name, uint32_t granularity)
{
    struct block_bitmap *b;

    assert_int_equal(block_co_bitmap_add(i->node, name, granularity, true, false, &b, NULL), 0);
    return b;
}

/* The image takes all that it is going to take, but for `spare` bytes. */
static void fill(struct image *i, uint64_t spare)
{
    uint64_t at = SIZE / 4;

    assert_int_equal(block_co_flush(i->edge), 0);
    i->file->limit = i->file->size + 2 * PIECE;
    for (uint64_t step = CLUSTER; step >= 512; step /= 2) {
        while (image_write(i, at, step, 2) == 0) {
            at += step;
        }
    }
    assert_true(at < SIZE);
    assert_int_equal(block_co_flush(i->edge), 0);
    i->file->limit += spare;
}

/* Open again; bitmap NAME is sound, and has all of [0, `end`) and `dirty` bytes. */
static struct block_bitmap *expect_stored(struct image *i, const char *name, uint64_t end,
                                          uint64_t dirty)
{
    struct block_bitmap *b;

    i->file->limit = UINT64_MAX;
    image_check("a", 0);
    image_open(i, "a", "");
    b = block_bitmap_find(i->node, name);
    assert_non_null(b);
    assert_false(b->inconsistent);
    assert_int_equal(block_co_bitmap_fetch(b, NULL), 0);
    for (uint64_t at = 0; at < end; at += b->granularity) {
        assert_true(dirty_bitmap_get(b->bits, at));
    }
    assert_int_equal(dirty_bitmap_count(b->bits), dirty);
    return b;
}

static void a_bitmap_has_its_room_when_it_is_added(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    make_full(&i, "cluster_size=4k");
    assert_int_equal(block_co_bitmap_add(i.node, "b", 65536, true, false, &b, NULL), -ENOSPC);
    assert_null(block_bitmap_find(i.node, "b"));
    i.file->limit += CLUSTER; /* a table, and no directory */
    assert_int_equal(block_co_bitmap_add(i.node, "b", 65536, true, false, &b, NULL), -ENOSPC);
    i.file->limit += CLUSTER;
    add(&i, "b", 65536);
    close_full(&i);
    expect_stored(&i, "b", 0, 0);
    image_close(&i);
}

static void room_comes_back_with_a_bitmap_that_goes(void *arg)
{
    struct image i;

    make_full(&i, "cluster_size=4k");
    i.file->limit += 2 * CLUSTER;
    for (int k = 0; k < 4; k++) {
        assert_int_equal(block_co_bitmap_remove(add(&i, "b", 65536), NULL), 0);
    }
    close_full(&i);
}

/* There is no cluster for its bits, only its table and the directory. */
static void a_new_bitmap_is_stored_as_all_dirty(void *arg)
{
    struct block_bitmap_state state;
    struct block_bitmap *b;
    struct image i;
    uint64_t dirty;

    image_create("a", SIZE, "cluster_size=4k");
    image_open(&i, "a", "");
    b = add(&i, "b", CLUSTER);
    fill(&i, 0);
    block_bitmap_get_state(b, &state);
    assert_int_equal(state.trust, BLOCK_BITMAP_EXACT);
    dirty = dirty_bitmap_count(b->bits);
    assert_int_equal(qcow2_co_store_bitmaps(i.q, NULL), 0);
    block_bitmap_get_state(b, &state);
    assert_int_equal(state.trust, BLOCK_BITMAP_SUPERSET);
    assert_int_equal(state.excess, SIZE - dirty);
    assert_string_equal(state.why, "there was no space to store it exactly");
    close_full(&i);
    expect_stored(&i, "b", SIZE, SIZE);
    image_close(&i);
}

/* What the program says on stderr goes to a file until the end, which returns its text. */
static FILE *begin_stderr(int *ret_saved)
{
    FILE *file = tmpfile();

    assert_non_null(file);
    *ret_saved = dup(STDERR_FILENO);
    assert_true(*ret_saved >= 0 && dup2(fileno(file), STDERR_FILENO) >= 0);
    return file;
}

static void end_stderr(FILE *file, int saved, char *text, size_t size)
{
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    rewind(file);
    text[fread(text, 1, size - 1, file)] = '\0';
    assert_int_equal(fclose(file), 0);
}

/* The table has an entry for far more than the disk. */
static void bits_kept_as_all_dirty_are_counted(void *arg)
{
    struct block_activity_range all = {.offset = 0, .length = SIZE};
    char text[512], wanted[64];
    struct block_bitmap *b;
    struct image i;
    FILE *file;
    int saved;

    image_create("a", SIZE, "cluster_size=4k");
    image_open(&i, "a", "");
    b = add(&i, "b", CLUSTER);
    assert_int_equal(qcow2_co_store_bitmaps(i.q, NULL), 0);
    fill(&i, 0);
    (void)snprintf(wanted, sizeof(wanted), "exactly: %llu bytes are stored as dirty that are not",
                   (unsigned long long)(SIZE - dirty_bitmap_count(b->bits)));
    file = begin_stderr(&saved);
    assert_int_equal(qcow2_co_store_bits_of(i.node, &all, 1), 0);
    end_stderr(file, saved, text, sizeof(text));
    assert_non_null(strstr(text, wanted));
    close_full(&i);
}

static void a_spare_cluster_is_used_for_bits(void *arg)
{
    struct image i;
    uint64_t dirty;

    image_create("a", SIZE, "cluster_size=4k");
    image_open(&i, "a", "");
    add(&i, "b", CLUSTER);
    fill(&i, CLUSTER);
    dirty = dirty_bitmap_count(block_bitmap_find(i.node, "b")->bits);
    close_full(&i);
    expect_stored(&i, "b", 0, dirty);
    image_close(&i);
}

/* Its bits have a cluster, which is overwritten. */
static void a_stored_bitmap_is_stored_in_place(void *arg)
{
    struct block_bitmap *b;
    struct image i;
    uint64_t dirty;

    image_create("a", SIZE, "cluster_size=4k");
    image_open(&i, "a", "");
    add(&i, "b", CLUSTER);
    b = add(&i, "unchanged", CLUSTER);
    block_bitmap_set_enabled(b, false);
    assert_int_equal(image_write(&i, 0, CLUSTER, 1), 0);
    image_close(&i);
    image_open(&i, "a", ""); /* its bits stay in the image */
    fill(&i, 0);
    b = block_bitmap_find(i.node, "b");
    assert_true(b->unread);
    dirty = dirty_bitmap_count(b->bits) + CLUSTER;
    close_full(&i);
    expect_stored(&i, "b", CLUSTER, dirty);
    assert_int_equal(block_co_bitmap_fetch(block_bitmap_find(i.node, "unchanged"), NULL), 0);
    assert_int_equal(dirty_bitmap_count(block_bitmap_find(i.node, "unchanged")->bits), 0);
    image_close(&i);
}

/* A stored one and new ones: they get a new directory, for which there is room kept. */
static void stored_and_new_bitmaps_find_room_together(void *arg)
{
    struct image i;

    image_create("a", SIZE, "cluster_size=4k");
    image_open(&i, "a", "");
    add(&i, "old", CLUSTER);
    assert_int_equal(image_write(&i, 0, CLUSTER, 1), 0);
    image_close(&i);
    image_open(&i, "a", "");
    add(&i, "new", CLUSTER);
    fill(&i, 0);
    close_full(&i);
    expect_stored(&i, "new", SIZE, SIZE);
    assert_false(block_bitmap_find(i.node, "old")->inconsistent);
    image_close(&i);
}

/* There is no room. "stays" has bits in some clusters, "grows" has none. */
static void open_full_with_bitmaps(struct image *i, unsigned spare)
{
    image_create("a", SIZE, "cluster_size=512");
    image_open(i, "a", "");
    add(i, "stays", 512);
    assert_int_equal(image_write(i, 0, CLUSTER, 1), 0);
    add(i, "grows", 512);
    image_close(i);
    image_open(i, "a", "");
    fill(i, spare);
}

static void expect_covers(struct image *i, const char *name, bool or_inconsistent)
{
    struct block_bitmap *b = block_bitmap_find(i->node, name);

    assert_non_null(b);
    if (or_inconsistent && b->inconsistent) {
        return;
    }
    assert_false(b->inconsistent);
    assert_int_equal(block_co_bitmap_fetch(b, NULL), 0);
    assert_true(strcmp(name, "grows") == 0 || dirty_bitmap_get(b->bits, 0));
    assert_true(dirty_bitmap_get(b->bits, SIZE / 4));
}

/* Index of the first write to [offset, offset + length); fails the test if there is none. */
static unsigned first_write(const struct memory_file *f, uint64_t offset, uint64_t length)
{
    for (unsigned n = 0; n < f->log_count; n++) {
        if (f->log[n].kind == MEMORY_FILE_WRITE && f->log[n].offset >= offset &&
            f->log[n].offset < offset + length) {
            return n;
        }
    }
    fail_msg("no write to %llu", (unsigned long long)offset);
    return 0;
}

/* Refcounts and bits, flush, tables, flush, flags, flush. */
static void marks_go_after_all_that_is_overwritten(void *arg)
{
    uint64_t directory, table;
    unsigned n, flags;
    struct image i;

    open_full_with_bitmaps(&i, 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    directory = i.q->bitmaps.directory_offset;
    table = LIST_FIRST(&i.q->bitmaps.stored, struct stored_bitmap, link)->table_offset;
    i.file->log_count = 0;
    assert_int_equal(block_co_inactivate(i.node, NULL), 0);
    assert_int_equal(i.q->bitmaps.directory_offset, directory);
    n = first_write(i.file, table, 512);
    assert_int_equal(i.file->log[n - 1].kind, MEMORY_FILE_FLUSH);
    flags = first_write(i.file, directory, 512);
    assert_true(flags > n);
    assert_int_equal(i.file->log[flags - 1].kind, MEMORY_FILE_FLUSH);
    for (n = flags; i.file->log[n].kind == MEMORY_FILE_WRITE; n++) {
        assert_int_equal(i.file->log[n].length, 8);
    }
    assert_int_equal(n, flags + 2);
    assert_int_equal(i.file->log[n].kind, MEMORY_FILE_FLUSH);
    close_full(&i);
}

/*
 * Media fail from the n-th write or flush of a store on; then another guest write comes with a
 * flush, and a crash or an orderly close.
 */
static int store_and_stop(unsigned after, unsigned spare, bool write, bool crash)
{
    struct image i;
    int r;

    open_full_with_bitmaps(&i, spare);
    memory_file_fail(i.file, MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH, after, EIO);
    r = block_co_inactivate(i.node, NULL);
    memory_file_fail(i.file, 0, 0, 0);
    if (write && !atomic_load(&i.q->broken)) {
        assert_int_equal(image_write(&i, 0, 512, 3), 0);
        assert_int_equal(block_co_flush(i.edge), 0);
    }
    if (crash) {
        image_kill(&i);
    } else {
        image_close(&i);
    }
    i.file->limit = UINT64_MAX;
    image_check("a", crash || r < 0 ? 32 : 0);
    image_open(&i, "a", "");
    assert_true(!write || !crash || block_bitmap_find(i.node, "stays")->inconsistent);
    expect_covers(&i, "stays", crash);
    expect_covers(&i, "grows", crash);
    image_close(&i);
    return r;
}

static void storing_in_place_may_fail_anywhere(void *arg)
{
    unsigned after;

    log_set_level(LOG_LEVEL_ERROR);
    for (unsigned way = 0; way < 8; way++) {
        for (after = 0; store_and_stop(after, way & 4 ? 512 : 0, way & 1, way & 2) < 0; after++) {
        }
        assert_true(after > 6);
    }
    log_set_level(LOG_LEVEL_WARNING);
}

/*
 * The table of an image that is corrupt names a cluster that is not the bitmap's alone: `refcount`
 * 2, or the L1 table.
 */
static void store_over(bool l1)
{
    uint8_t *before, *table;
    uint64_t cluster;
    struct image i;

    open_full_with_bitmaps(&i, 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    table =
        i.file->data + LIST_FIRST(&i.q->bitmaps.stored, struct stored_bitmap, link)->table_offset;
    if (l1) {
        store_be64(table, i.q->l1.offset);
    }
    cluster = load_be64(table);
    if (!l1) {
        co_mutex_lock(&i.q->lock);
        assert_int_equal(qcow2_co_refcount_add_locked(i.q, cluster / 512, 1, 1), 0);
        co_mutex_unlock(&i.q->lock);
    }
    before = malloc(512);
    assert_non_null(before);
    assert_int_equal(image_write(&i, 0, CLUSTER, 3), 0);
    dirty_bitmap_set(block_bitmap_find(i.node, "stays")->bits, PIECE, CLUSTER);
    memcpy(before, i.file->data + cluster, 512);
    assert_int_equal(block_co_inactivate(i.node, NULL), 0);
    assert_memory_equal(i.file->data + cluster, before, 512);
    free(before);
    image_close(&i);
    i.file->limit = UINT64_MAX;
    image_check("a", 1);
    image_open(&i, "a", "");
    expect_covers(&i, "stays", false);
    image_close(&i);
}

static void nothing_that_others_have_is_overwritten(void *arg)
{
    store_over(false);
    store_over(true);
}

/* One of its clusters takes the directory. */
static void a_bitmap_can_be_removed_without_room(void *arg)
{
    struct image i;

    open_full_with_bitmaps(&i, 0);
    assert_int_equal(block_co_bitmap_remove(block_bitmap_find(i.node, "grows"), NULL), -ENOSPC);
    assert_int_equal(block_co_bitmap_remove(block_bitmap_find(i.node, "stays"), NULL), 0);
    close_full(&i);
    image_open(&i, "a", "");
    assert_null(block_bitmap_find(i.node, "stays"));
    expect_covers(&i, "grows", false);
    image_close(&i);
}

/* Up to the end of the removal the bitmap is in use, or not there. */
static void a_removal_without_room_may_fail_anywhere(void *arg)
{
    struct block_bitmap *b;
    struct image i;
    int r = -EIO;

    log_set_level(LOG_LEVEL_ERROR);
    for (unsigned after = 0; r < 0; after++) {
        open_full_with_bitmaps(&i, 0);
        memory_file_fail(i.file, MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH, after, EIO);
        r = block_co_bitmap_remove(block_bitmap_find(i.node, "stays"), NULL);
        memory_file_fail(i.file, 0, 0, 0);
        image_kill(&i);
        i.file->limit = UINT64_MAX;
        image_check("a", 32);
        image_open(&i, "a", "");
        b = block_bitmap_find(i.node, "stays");
        assert_true(!b || b->inconsistent);
        image_close(&i);
    }
    log_set_level(LOG_LEVEL_WARNING);
}

/* What a removal takes of the room for a new directory comes back before guests can have it. */
static void a_removal_leaves_room_for_the_others(void *arg)
{
    struct image i;

    image_create("a", SIZE, "cluster_size=4k");
    image_open(&i, "a", "");
    add(&i, "old", CLUSTER);
    add(&i, "stays", CLUSTER);
    image_close(&i);
    image_open(&i, "a", "");
    add(&i, "new", CLUSTER);
    fill(&i, 0);
    assert_int_equal(block_co_bitmap_remove(block_bitmap_find(i.node, "old"), NULL), 0);
    for (uint64_t at = SIZE / 2; image_write(&i, at, CLUSTER, 3) == 0; at += CLUSTER) {
    }
    close_full(&i);
    expect_stored(&i, "new", SIZE, SIZE);
    assert_null(block_bitmap_find(i.node, "old"));
    assert_false(block_bitmap_find(i.node, "stays")->inconsistent);
    image_close(&i);
}

/* The L1 table gets 128 clusters, the bitmap's two instead of one. */
static void a_disk_does_not_grow_without_room_for_longer_tables(void *arg)
{
    uint64_t size, room;
    struct image i;

    image_create("a", 64 * MiB, "cluster_size=512");
    image_open(&i, "a", "");
    add(&i, "b", 512);
    assert_int_equal(image_write(&i, 0, CLUSTER, 1), 0);
    image_close(&i);
    image_open(&i, "a", "");
    size = i.file->size;
    for (room = 120; room < 160; room++) {
        i.file->limit = size + room * 512;
        if (co_resize(&i, 256 * MiB) == 0) {
            break;
        }
        assert_int_equal(block_node_size(i.node), 64 * MiB);
        assert_false(block_bitmap_find(i.node, "b")->inconsistent);
    }
    assert_int_equal(block_node_size(i.node), 256 * MiB);
    close_full(&i);
    expect_stored(&i, "b", CLUSTER, CLUSTER);
    assert_int_equal(dirty_bitmap_size(block_bitmap_find(i.node, "b")->bits), 256 * MiB);
    image_close(&i);
}

static void a_full_disk_shrinks_with_its_bitmaps(void *arg)
{
    struct image i;

    image_create("a", SIZE, "cluster_size=512");
    image_open(&i, "a", "");
    add(&i, "b", 512);
    assert_int_equal(image_write(&i, 0, SIZE / 2, 1), 0);
    image_close(&i);
    image_open(&i, "a", "");
    assert_int_equal(block_co_flush(i.edge), 0);
    i.file->limit = i.file->size;
    assert_int_equal(image_write(&i, 0, CLUSTER, 2), 0); /* marks it */
    assert_int_equal(co_resize(&i, SIZE / 4), 0);
    close_full(&i);
    expect_stored(&i, "b", SIZE / 4, SIZE / 4);
    image_close(&i);
}

/* --- memory ----------------------------------------------------------------------------------- */

static void a_disk_does_not_grow_without_memory_for_its_bitmaps(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    image_create("a", SIZE, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(block_co_bitmap_add(i.node, "b", 512, true, false, &b, NULL), 0);
    assert_int_equal(image_write(&i, MiB, CLUSTER, 1), 0);
    dirty_bitmap_set_memory_limit(b->bits, 0);
    assert_int_equal(co_resize(&i, 2 * SIZE), -ENOMEM);
    assert_int_equal(block_node_size(i.node), SIZE);
    dirty_bitmap_set_memory_limit(b->bits, SIZE_MAX);
    assert_int_equal(co_resize(&i, 2 * SIZE), 0);
    assert_int_equal(image_write(&i, 2 * SIZE - CLUSTER, CLUSTER, 1), 0);
    assert_true(dirty_bitmap_get(b->bits, 2 * SIZE - CLUSTER));
    image_close(&i);
    image_check("a", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(what_was_discarded_is_written_to_without_a_flush),
        CO_TEST(storage_that_is_late_is_asked_for_again),
        CO_TEST(nothing_is_committed_where_nothing_waits),
        CO_TEST(nothing_is_committed_where_there_is_room),
        CO_TEST(tables_take_what_was_discarded),
        CO_TEST(compressed_data_takes_what_was_discarded),
        CO_TEST(snapshots_take_what_was_discarded),
        CO_TEST(a_longer_table_takes_what_was_discarded),
        CO_TEST(bitmaps_take_what_was_discarded),
        CO_TEST(writers_share_what_was_discarded),
        CO_TEST(a_bitmap_has_its_room_when_it_is_added),
        CO_TEST(room_comes_back_with_a_bitmap_that_goes),
        CO_TEST(a_new_bitmap_is_stored_as_all_dirty),
        CO_TEST(bits_kept_as_all_dirty_are_counted),
        CO_TEST(a_spare_cluster_is_used_for_bits),
        CO_TEST(a_stored_bitmap_is_stored_in_place),
        CO_TEST(stored_and_new_bitmaps_find_room_together),
        CO_TEST(marks_go_after_all_that_is_overwritten),
        CO_TEST(nothing_that_others_have_is_overwritten),
        CO_TEST(storing_in_place_may_fail_anywhere),
        CO_TEST(a_bitmap_can_be_removed_without_room),
        CO_TEST(a_removal_without_room_may_fail_anywhere),
        CO_TEST(a_removal_leaves_room_for_the_others),
        CO_TEST(a_disk_does_not_grow_without_room_for_longer_tables),
        CO_TEST(a_full_disk_shrinks_with_its_bitmaps),
        CO_TEST(a_disk_does_not_grow_without_memory_for_its_bitmaps),
    };

    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
