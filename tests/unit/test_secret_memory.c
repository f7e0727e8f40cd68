/* SPDX-License-Identifier: Apache-2.0 */
/* Memory for keys: what was in it is gone, also if a later user gets the same place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/secret_memory.h"

#define BLOCKS 40

static void assert_erased(const uint8_t *p, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        assert_int_equal(p[i], 0);
    }
}

static void memory_is_zeroed_whoever_had_it(void **state)
{
    const size_t sizes[] = {1, 20, 64, 4000, 4080, 4081, 100000};
    uint8_t *blocks[BLOCKS];

    for (size_t round = 0; round < ARRAY_SIZE(sizes); round++) {
        for (size_t i = 0; i < BLOCKS; i++) {
            blocks[i] = secret_alloc(sizes[(round + i) % ARRAY_SIZE(sizes)]);
            assert_non_null(blocks[i]);
            assert_erased(blocks[i], sizes[(round + i) % ARRAY_SIZE(sizes)]);
            memset(blocks[i], 0xa5, sizes[(round + i) % ARRAY_SIZE(sizes)]);
        }
        for (size_t i = 0; i < BLOCKS; i++) {
            secret_free(blocks[i]);
        }
    }
}

static void what_grows_keeps_its_contents(void **state)
{
    char *p = secret_realloc(NULL, 6);

    memcpy(p, "secret", 6);
    p = secret_realloc(p, 10000);
    assert_memory_equal(p, "secret", 6);
    assert_erased((uint8_t *)p + 6, 9994);
    secret_free(p);
}

/* An iteration of PBKDF2 takes and gives back a few bytes, and there are millions. */
static void small_blocks_cost_no_calls_of_the_system(void **state)
{
    struct rusage before, after;

    secret_free(secret_alloc(20));
    getrusage(RUSAGE_SELF, &before);
    for (int i = 0; i < 20000; i++) {
        secret_free(secret_alloc(20));
    }
    getrusage(RUSAGE_SELF, &after);
    /* A page that is mapped again is a fault. */
    assert_in_range(after.ru_minflt - before.ru_minflt, 0, 2000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zeroed_whoever_had_it),
        cmocka_unit_test(what_grows_keeps_its_contents),
        cmocka_unit_test(small_blocks_cost_no_calls_of_the_system),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
