/* SPDX-License-Identifier: Apache-2.0 */
/* Progress in its forms, and the pacer of rate limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/time_units.h"
#include "base/pacer.h"
#include "base/progress.h"

/* What is shown in a form while 100 pieces of 1 MiB are done. The caller frees it. */
static char *shown_in(enum progress_form form, const char *what)
{
    static char *text;
    static size_t size;
    FILE *stream = open_memstream(&text, &size);
    struct progress p;

    assert_non_null(stream);
    progress_begin(&p, stream, form, what, 100 * MiB);
    for (int i = 0; i < 100; i++) {
        progress_add(&p, MiB);
    }
    progress_end(&p, true);
    progress_end(&p, true);
    fclose(stream);
    return text;
}

static void test_percentages_from_0_to_100(void **state)
{
    char *text = shown_in(PROGRESS_PERCENT, NULL);
    int lines = 0;

    assert_int_equal(strncmp(text, "    (0.00/100%)\r    (1.00/100%)\r", 32), 0);
    for (const char *p = text; *p; p++) {
        lines += *p == '\r';
    }
    /* 0 to 100, and 100 once more at the end. */
    assert_int_equal(lines, 102);
    assert_string_equal(text + strlen(text) - 19, "    (100.00/100%)\r\n");
    free(text);
}

static void test_a_bar_in_place(void **state)
{
    char *text = shown_in(PROGRESS_BAR, "restore");

    assert_int_equal(strncmp(text, "\rrestore  [", 11), 0);
    assert_non_null(strstr(text, "100.0%  100 MiB of 100 MiB  "));
    assert_string_equal(strrchr(text, '\033'), "\033[K\n");
    free(text);
}

static void test_lines_at_the_half_and_at_the_end(void **state)
{
    char *text = shown_in(PROGRESS_LINES, "verify");
    char *second = strchr(text, '\n') + 1;

    assert_non_null(strstr(text, "]  50.0%  50 MiB of 100 MiB"));
    assert_non_null(strstr(second, "] 100.0%  100 MiB of 100 MiB"));
    assert_string_equal(strchr(second, '\n'), "\n");
    free(text);
}

static void test_an_object_at_the_end(void **state)
{
    char *text = shown_in(PROGRESS_JSON, "disk");

    assert_string_equal(text, "{\"progress\": {\"what\": \"disk\", \"done-bytes\": 104857600, "
                              "\"total-bytes\": 104857600}}\n");
    free(text);
}

static void test_nothing_is_shown_unasked(void **state)
{
    char *text = shown_in(PROGRESS_NONE, NULL);

    assert_string_equal(text, "");
    free(text);
}

static void test_a_piece_puts_off_the_next_one(void **state)
{
    struct pacer p = {.rate = 1000};

    assert_int_equal(pacer_take(&p, 500, NS_PER_SECOND), 0);
    assert_int_equal(pacer_take(&p, 2000, NS_PER_SECOND), NS_PER_SECOND / 2);
    assert_int_equal(pacer_take(&p, 0, NS_PER_SECOND), NS_PER_SECOND * 5 / 2);
    assert_int_equal(pacer_take(&p, 1, NS_PER_SECOND * 2), NS_PER_SECOND * 3 / 2);
}

static void test_unused_time_is_not_saved_up(void **state)
{
    struct pacer p = {.rate = 1000};

    assert_int_equal(pacer_take(&p, 1000, 0), 0);
    assert_int_equal(pacer_take(&p, 1000, 100 * NS_PER_SECOND), 0);
    assert_int_equal(pacer_take(&p, 1000, 100 * NS_PER_SECOND), NS_PER_SECOND);
}

static void test_a_rate_that_is_far_too_low(void **state)
{
    struct pacer p = {.rate = 1};

    for (int i = 0; i < 8; i++) {
        assert_true(pacer_take(&p, UINT64_MAX, NS_PER_SECOND) >= 0);
    }
}

static void test_no_limit(void **state)
{
    struct pacer p = {0};

    assert_int_equal(pacer_take(&p, UINT64_MAX, 0), 0);
    assert_int_equal(pacer_take(&p, UINT64_MAX, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_percentages_from_0_to_100),
        cmocka_unit_test(test_a_bar_in_place),
        cmocka_unit_test(test_lines_at_the_half_and_at_the_end),
        cmocka_unit_test(test_an_object_at_the_end),
        cmocka_unit_test(test_nothing_is_shown_unasked),
        cmocka_unit_test(test_a_piece_puts_off_the_next_one),
        cmocka_unit_test(test_unused_time_is_not_saved_up),
        cmocka_unit_test(test_a_rate_that_is_far_too_low),
        cmocka_unit_test(test_no_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
