/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of clusters that were discarded, compared with a map of bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "filter/discard_parts.h"

#define SIZE 300u
#define CLUSTERS 40u

static void random_parts_complete_a_cluster_when_all_bytes_are_there(void **state)
{
    static uint8_t map[CLUSTERS][SIZE];
    struct discard_parts p;
    unsigned completed = 0;

    discard_parts_init(&p);
    srand(7);
    for (int i = 0; i < 40000; i++) {
        unsigned cluster = (unsigned)rand() % CLUSTERS;
        uint32_t from = (uint32_t)rand() % SIZE;
        uint32_t length = 1 + (uint32_t)rand() % (SIZE - from);
        bool whole;

        memset(map[cluster] + from, 1, length);
        whole = !memchr(map[cluster], 0, SIZE);
        assert_int_equal(discard_parts_add(&p, cluster, SIZE, from, from + length), whole);
        if (whole) {
            memset(map[cluster], 0, SIZE);
            completed++;
        }
    }
    assert_true(completed > 20);
    discard_parts_clear(&p);
    assert_int_equal(p.count, 0);
}

static void memory_is_bounded(void **state)
{
    struct discard_parts p;

    discard_parts_init(&p);
    for (uint64_t cluster = 0; cluster < 5000; cluster++) {
        assert_false(discard_parts_add(&p, cluster, SIZE, 0, SIZE / 2));
    }
    assert_in_range(p.count, 1, 1024);
    assert_true(discard_parts_add(&p, 4999, SIZE, SIZE / 2, SIZE));
    assert_false(discard_parts_add(&p, 0, SIZE, SIZE / 2, SIZE)); /* forgotten */
    for (uint32_t at = 0; at < SIZE; at += 2) {
        assert_false(discard_parts_add(&p, 7000, SIZE, at, at + 1));
    }
    assert_true(discard_parts_add(&p, 7000, SIZE, 0, SIZE));
    discard_parts_clear(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_parts_complete_a_cluster_when_all_bytes_are_there),
        cmocka_unit_test(memory_is_bounded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
