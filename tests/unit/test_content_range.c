/* SPDX-License-Identifier: Apache-2.0 */
/* The header Content-Range, as servers and others send it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/checked.h"
#include "http/content_range.h"

static bool parses(const char *text, struct content_range *ret_range)
{
    return content_range_parse(text, strlen(text), ret_range);
}

static void ranges_are_parsed(void **state)
{
    struct content_range r;

    assert_true(parses(" bytes 0-0/1\r\n", &r));
    assert_true(r.is_satisfied && r.has_total && r.first == 0 && r.last == 0 && r.total == 1);
    assert_true(parses("Bytes 5-9223372036854775806/9223372036854775807", &r));
    assert_true(r.first == 5 && r.last == INT64_MAX - 1 && r.total == INT64_MAX);
    assert_true(parses("bytes 5-6/*", &r));
    assert_true(r.is_satisfied && !r.has_total && r.last == 6);
    assert_true(parses("bytes */0", &r));
    assert_true(!r.is_satisfied && r.has_total && r.total == 0);
}

static void what_is_no_range_is_refused(void **state)
{
    static const char *const texts[] = {
        "",
        "bytes",
        "bytes ",
        "bytes 1",
        "bytes 1-",
        "bytes 1-2",
        "bytes 1-2/",
        "bytes 2-1/5",
        "bytes 1-5/5",
        "bytes -1-2/5",
        "bytes +1-2/5",
        "bytes 1-2/5x",
        "bytes */*",
        "bytes */",
        "pages 1-2/5",
        "bytes 0-9223372036854775808/9223372036854775809",
        "bytes 0-18446744073709551616/18446744073709551617",
        "bytes 0-1/99999999999999999999999999999",
        "bytes 1 - 2/5",
    };
    struct content_range r = {.first = 77};

    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        if (parses(texts[i], &r)) {
            fail_msg("'%s' was taken", texts[i]);
        }
    }
    assert_int_equal(r.first, 77);
}

/* Digits past the end of the text are not a part of it. */
static void nothing_is_read_past_the_end(void **state)
{
    static const char text[] = "bytes 123-456/78999";
    const size_t size = strlen("bytes 123-456/789");
    struct content_range r;

    assert_true(content_range_parse(text, size, &r));
    assert_int_equal(r.total, 789);
    for (size_t i = 0; i < size - 2; i++) {
        assert_false(content_range_parse(text, i, &r));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_are_parsed),
        cmocka_unit_test(what_is_no_range_is_refused),
        cmocka_unit_test(nothing_is_read_past_the_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
