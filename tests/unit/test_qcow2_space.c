/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2: files that can't grow any more. What was given back is used before anything is refused. */
#include <string.h>

#include "co_test.h"

#include "base/cleanup.h"
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
    block_co_drain_end(i->node);
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
    block_co_drain_end(i.node);
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
    assert_int_equal(block_co_bitmap_add(i.node, "b", 65536, true, false, &b, NULL), 0);
    assert_int_equal(block_co_discard(i.edge, 0, PIECE), 0);
    image_close(&i);
    i.file->limit = UINT64_MAX;
    image_check("a", 0);
    image_open(&i, "a", "");
    b = block_bitmap_find(i.node, "b");
    assert_non_null(b);
    assert_false(b->inconsistent);
    image_close(&i);
}

/* Several requests at one time find no room, and share what there is. */
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

/* --- memory ------------------------------------------------------------------------------------------ */

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
        CO_TEST(nothing_is_committed_where_nothing_waits),
        CO_TEST(nothing_is_committed_where_there_is_room),
        CO_TEST(tables_take_what_was_discarded),
        CO_TEST(compressed_data_takes_what_was_discarded),
        CO_TEST(snapshots_take_what_was_discarded),
        CO_TEST(a_longer_table_takes_what_was_discarded),
        CO_TEST(bitmaps_take_what_was_discarded),
        CO_TEST(writers_share_what_was_discarded),
        CO_TEST(a_disk_does_not_grow_without_memory_for_its_bitmaps),
    };

    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
