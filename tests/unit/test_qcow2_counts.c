/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers of clusters in a sparse tree, compared with an array. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "qcow2/check/reference_counts.h"

#define CLUSTERS 100000u
#define NO_LIMIT (64 * MiB)

/* The same request to both; what can't be counted is skipped. */
static void add_times(struct reference_counts *c, uint32_t *model, uint32_t max, uint64_t first,
                      uint64_t n, uint32_t times)
{
    while (n > 0) {
        uint64_t done;
        int r = reference_counts_add_times(c, first, n, times, &done);

        for (uint64_t i = 0; i < done; i++) {
            model[first + i] += times;
        }
        first += done;
        n -= done;
        if (r < 0) {
            assert_int_equal(r, -ERANGE);
            assert_true((uint64_t)model[first] + times > max);
            first++;
            n--;
        } else {
            assert_int_equal(n, 0);
        }
    }
}

static void add(struct reference_counts *c, uint32_t *model, uint32_t max, uint64_t first,
                uint64_t n)
{
    add_times(c, model, max, first, n, 1);
}

static void compare(const struct reference_counts *c, const uint32_t *model)
{
    uint64_t n;

    for (uint64_t i = 0; i < CLUSTERS; i += n) {
        uint32_t number;

        n = reference_counts_run(c, i, CLUSTERS - i, &number);
        assert_in_range(n, 1, CLUSTERS - i);
        for (uint64_t j = i; j < i + n; j++) {
            if (model[j] != number) {
                fail_msg("cluster %llu has %u, wanted %u", (unsigned long long)j, number, model[j]);
            }
        }
        assert_int_equal(reference_counts_get(c, i), number);
        assert_int_equal(reference_counts_get(c, i + n - 1), number);
    }
}

/* `most` times at once. */
static void check_random(uint32_t max, unsigned rounds, unsigned longest, unsigned most)
{
    struct reference_counts *c = reference_counts_new(CLUSTERS, max, NO_LIMIT);
    uint32_t *model = calloc(CLUSTERS, sizeof(*model));

    srand(max);
    for (unsigned i = 0; i < rounds; i++) {
        uint64_t first = (uint64_t)rand() % CLUSTERS, n = 1 + (uint64_t)rand() % longest;

        add_times(c, model, max, first, MIN(n, CLUSTERS - first), 1 + (uint32_t)rand() % most);
    }
    compare(c, model);
    reference_counts_free(c);
    free(model);
}

static void agrees_with_an_array(void **state)
{
    check_random(1, 3000, 100, 1);
    check_random(3, 3000, 1000, 1);
    check_random(255, 600, 90000, 1);
    check_random(65535, 300, 90000, 1);
    check_random(UINT32_MAX, 700, 90000, 1);
    check_random(UINT32_MAX, 30000, 1, 1);
}

static void many_times_at_once_agree_with_an_array(void **state)
{
    check_random(3, 3000, 1000, 3);
    check_random(255, 600, 90000, 3);
    check_random(65535, 300, 90000, 1000);
    check_random(UINT32_MAX, 600, 90000, 2);
    check_random(UINT32_MAX, 600, 90000, 5000000);
    check_random(UINT32_MAX, 30000, 1, 300);
}

static void whole_file_again_and_again(void **state)
{
    struct reference_counts *c = reference_counts_new(CLUSTERS, 65535, NO_LIMIT);
    uint32_t *model = calloc(CLUSTERS, sizeof(*model));

    for (unsigned i = 0; i < 600; i++) {
        assert_int_equal(reference_counts_any_shared(c), i > 1);
        add(c, model, 65535, 0, CLUSTERS);
        if (i % 100 == 50) {
            compare(c, model);
            add(c, model, 65535, 70000, 1);
        }
    }
    compare(c, model);
    reference_counts_free(c);
    free(model);
}

static void memory_is_bounded(void **state)
{
    uint64_t clusters = 1ULL << 54, done;
    struct reference_counts *c = reference_counts_new(clusters, 65535, MiB);
    unsigned made = 0;

    while (reference_counts_add(c, (clusters - 1) / 4096 * made, 1, &done) == 0) {
        made++;
    }
    assert_in_range(made, 20, 1000);
    reference_counts_free(c);
}

/* A file of an exbibyte is nothing where nothing is in it. */
static void what_is_empty_is_one_run(void **state)
{
    uint64_t clusters = 1ULL << 54, at = 0, runs = 0, done;
    struct reference_counts *c = reference_counts_new(clusters, 65535, MiB);

    assert_int_equal(reference_counts_add(c, clusters / 2, 7, &done), 0);
    assert_int_equal(reference_counts_add(c, clusters - 1, 1, &done), 0);
    while (at < clusters) {
        uint32_t number;

        at += reference_counts_run(c, at, clusters - at, &number);
        runs++;
    }
    assert_in_range(runs, 5, 8000);
    assert_int_equal(reference_counts_get(c, clusters / 2 + 6), 1);
    assert_int_equal(reference_counts_get(c, clusters / 2 + 7), 0);
    reference_counts_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_an_array),
        cmocka_unit_test(many_times_at_once_agree_with_an_array),
        cmocka_unit_test(whole_file_again_and_again),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(what_is_empty_is_one_run),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
