/* SPDX-License-Identifier: Apache-2.0 */
/* The range index against a plain list. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/range_index.h"

#define ITEMS 300

struct entry {
    struct range_item item;
    uint64_t offset, length;
    bool in;
};

static uint64_t random_state = 1;

static uint64_t next_random(void)
{
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return random_state >> 16;
}

static uint64_t random_length(void)
{
    static const unsigned bits[] = {0, 9, 12, 16, 17, 20, 22, 23, 28, 29, 34, 40};
    unsigned b = bits[next_random() % ARRAY_SIZE(bits)];

    return b == 0 ? 0 : (1ULL << b) + next_random() % 3 - 1;
}

static uint64_t random_offset(void)
{
    return (next_random() % 64) << (next_random() % 32);
}

static bool is_before(const struct range_item *item, const void *arg)
{
    return item->serial < *(const uint64_t *)arg;
}

static void check(const struct range_index *index, const struct entry *entries, uint64_t offset,
                  uint64_t length, uint64_t before)
{
    const struct range_item *found = range_index_find(index, offset, length, is_before, &before);
    bool any = false;

    for (size_t i = 0; i < ITEMS; i++) {
        const struct entry *e = &entries[i];

        any = any || (e->in && e->item.serial < before &&
                      range_overlaps(e->offset, e->length, offset, length));
    }
    assert_int_equal(found != NULL, any);
    if (found) {
        assert_true(range_overlaps(found->offset, found->length, offset, length));
        assert_true(found->serial < before);
    }
}

static void test_finds_what_a_list_finds(void **state)
{
    struct entry *entries = calloc(ITEMS, sizeof(*entries));
    struct range_index index;

    range_index_init(&index);
    for (int round = 0; round < 50000; round++) {
        struct entry *e = &entries[next_random() % ITEMS];

        if (e->in) {
            range_index_remove(&index, &e->item);
            e->in = false;
        } else if (next_random() % 3 > 0) {
            e->offset = random_offset();
            e->length = random_length();
            range_index_add(&index, &e->item, e->offset, e->length);
            e->in = true;
        }
        check(&index, entries, random_offset(), random_length(),
              next_random() % 2 ? UINT64_MAX : index.next_serial / 2);
    }
    for (size_t i = 0; i < ITEMS; i++) {
        if (entries[i].in) {
            assert_false(range_index_is_empty(&index));
            range_index_remove(&index, &entries[i].item);
        }
    }
    assert_true(range_index_is_empty(&index));
    free(entries);
}

static void test_neighbours_do_not_overlap(void **state)
{
    struct range_index index;
    struct range_item item;

    range_index_init(&index);
    range_index_add(&index, &item, 65536 - 512, 1024);
    assert_null(range_index_find(&index, 0, 65536 - 512, NULL, NULL));
    assert_null(range_index_find(&index, 65536 + 512, 4096, NULL, NULL));
    assert_ptr_equal(range_index_find(&index, 65536 + 511, 1, NULL, NULL), &item);
    assert_ptr_equal(range_index_find(&index, 65536 - 512, 1, NULL, NULL), &item);
    assert_null(range_index_find(&index, 65536, 0, NULL, NULL));
    range_index_remove(&index, &item);
}

/* Of each length, one that begins at the very end of a region. */
static void test_ranges_are_found_at_their_last_byte(void **state)
{
    for (unsigned bits = 15; bits < 32; bits++) {
        for (int more = -1; more <= 1; more++) {
            uint64_t length = (1ULL << bits) + (uint64_t)(int64_t)more;
            struct range_index index;
            struct range_item item;

            range_index_init(&index);
            range_index_add(&index, &item, (1ULL << 34) - 1, length);
            assert_ptr_equal(range_index_find(&index, (1ULL << 34) + length - 2, 1, NULL, NULL),
                             &item);
            assert_null(range_index_find(&index, (1ULL << 34) + length - 1, 1, NULL, NULL));
            range_index_remove(&index, &item);
        }
    }
}

static void test_the_end_of_the_address_space(void **state)
{
    struct range_index index;
    struct range_item item;

    range_index_init(&index);
    range_index_add(&index, &item, UINT64_MAX - 10, UINT64_MAX);
    assert_ptr_equal(range_index_find(&index, UINT64_MAX - 1, 1, NULL, NULL), &item);
    assert_ptr_equal(range_index_find(&index, 0, UINT64_MAX, NULL, NULL), &item);
    assert_null(range_index_find(&index, 0, 1 << 20, NULL, NULL));
    range_index_remove(&index, &item);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finds_what_a_list_finds),
        cmocka_unit_test(test_neighbours_do_not_overlap),
        cmocka_unit_test(test_ranges_are_found_at_their_last_byte),
        cmocka_unit_test(test_the_end_of_the_address_space),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
