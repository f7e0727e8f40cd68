/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/lazy_library.h"

static struct {
    double (*cosine)(double);
    double (*sine)(double);
} table;

static void test_the_table_is_filled_in_order(void **state)
{
    static const char *const names[] = {"cos", "sin"};
    struct lazy_library lib = {.file = "libm.so.6", .names = names, .count = 2, .table = &table};

    assert_int_equal(lazy_library_load(&lib, NULL), 0);
    assert_true(table.cosine(0) > 0.9);
    assert_true(fabs(table.sine(0)) < 0.1);
    assert_int_equal(lazy_library_load(&lib, NULL), 0);
}

static void assert_fails(struct lazy_library *lib, const char *sentence)
{
    ERROR_AUTO(err);

    assert_int_equal(lazy_library_load(lib, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), sentence));
}

static void test_a_library_that_is_not_there_is_named(void **state)
{
    static const char *const names[] = {"cos"};
    struct lazy_library lib = {.file = "libnone.so.9", .names = names, .count = 1, .table = &table};

    assert_fails(&lib, "libnone.so.9");
    assert_fails(&lib, "libnone.so.9");
}

static void test_a_symbol_that_is_not_there_is_named(void **state)
{
    static const char *const names[] = {"cos", "no_such_function"};
    struct lazy_library lib = {.file = "libm.so.6", .names = names, .count = 2, .table = &table};

    assert_fails(&lib, "no_such_function");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_table_is_filled_in_order),
        cmocka_unit_test(test_a_library_that_is_not_there_is_named),
        cmocka_unit_test(test_a_symbol_that_is_not_there_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
