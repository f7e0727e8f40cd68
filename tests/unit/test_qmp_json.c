/* SPDX-License-Identifier: Apache-2.0 */
/* The stream of messages that a monitor reads, and the text it writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "qmp/json_read.h"
#include "qmp/json_write.h"

/* What came of a stream: "{...}" for each object, "!" for each error, one after the other. */
static char *read_stream(const char *data, size_t size, size_t chunk)
{
    struct qmp_json_reader *reader = qmp_json_reader_new();
    struct strbuf out = STRBUF_INIT;

    for (size_t at = 0; at < size;) {
        struct json_object *o = NULL;
        ERROR_AUTO(err);
        size_t used = 0;
        int r = qmp_json_reader_feed(reader, data + at, MIN(chunk, size - at), &used, &o, &err);

        assert_in_range(used, 1, MIN(chunk, size - at));
        at += used;
        if (r > 0) {
            qmp_json_write(&out, o, false);
            json_object_put(o);
        } else if (r < 0) {
            assert_true(error_is_set(&err));
            strbuf_puts(&out, "!");
        }
    }
    qmp_json_reader_free(reader);
    return strbuf_take(&out);
}

static void expect_stream(const char *data, size_t size, const char *wanted)
{
    const size_t chunks[] = {1, 2, 3, 7, 4096};

    for (size_t i = 0; i < ARRAY_SIZE(chunks); i++) {
        char *got = read_stream(data, size, chunks[i]);

        assert_string_equal(got, wanted);
        free(got);
    }
}

#define EXPECT(text, wanted) expect_stream(text, sizeof(text) - 1, wanted)

static void objects_are_read_at_any_cut(void **state)
{
    EXPECT("{}", "{}");
    EXPECT(" {\"a\": 1}\n{\"b\": [true, null]}", "{\"a\": 1}{\"b\": [true, null]}");
    EXPECT("{\"a\": \"}]{[\\\"\\\\\"}{}", "{\"a\": \"}]{[\\\"\\\\\"}{}");
    EXPECT("{'a': 'it is \"x\"'}", "{\"a\": \"it is \\\"x\\\"\"}");
    EXPECT("{\"a\": -1.5, \"b\": 18446744073709551615, \"c\": -9223372036854775808}",
           "{\"a\": -1.5, \"b\": 18446744073709551615, \"c\": -9223372036854775808}");
    EXPECT("{\"a\":\n 1\n}", "{\"a\": 1}");
}

static void what_is_no_object_is_an_error(void **state)
{
    EXPECT("[]", "!");
    EXPECT("5\n", "!");
    EXPECT("\"x\"", "!");
    EXPECT("null\ntrue\n", "!!");
    EXPECT("nul\n{}", "!{}");
    EXPECT("}", "!");
    EXPECT("{\"a\" 1}{}", "!{}");
    EXPECT("{1: 2}{}", "!{}");
    EXPECT("{\"a\": 1]{}", "!{}");
    EXPECT("{\"a\": NaN}\n{}", "!{}");
    EXPECT("{/* */}\n{}", "!{}");
    EXPECT("{\"a\": \"\\q\"}{}", "!{}");
    EXPECT("{\"a\": \"\xC3\x28\"}\n{}", "!{}");
    EXPECT("{\"a\": \"cut\n{}", "!{}");
}

static void reading_goes_on_after_a_balanced_error(void **state)
{
    EXPECT("{\"a\" {\"b\": {}}}{\"c\": 1}", "!{\"c\": 1}");
    EXPECT("{\"half\": \n{\"c\": 1}\xFF{\"d\": 1}", "!{\"d\": 1}");
    EXPECT("{\"half\": \"\xFF{\"d\": 1}", "!{\"d\": 1}");
}

static char *repeat(const char *unit, size_t times, const char *tail)
{
    struct strbuf s = STRBUF_INIT;

    for (size_t i = 0; i < times; i++) {
        strbuf_puts(&s, unit);
    }
    strbuf_puts(&s, tail);
    return strbuf_take(&s);
}

static void expect_after_flood(const char *unit, size_t times, const char *tail, const char *wanted)
{
    char *text = repeat(unit, times, tail), *got = read_stream(text, strlen(text), 4096);

    assert_string_equal(got, wanted);
    free(got);
    free(text);
}

static void deep_nesting_is_one_error(void **state)
{
    expect_after_flood("[", 100000, "\n{}", "!{}");
    expect_after_flood("{\"a\":", 100000, "\n{}", "!{}");
    expect_after_flood("{\"a\":", QMP_JSON_DEPTH_MAX + 1, "\n{}", "!{}");
}

static void nesting_up_to_the_limit_is_fine(void **state)
{
    struct strbuf s = STRBUF_INIT;
    char *got;

    for (unsigned i = 0; i < QMP_JSON_DEPTH_MAX; i++) {
        strbuf_puts(&s, "{\"a\": ");
    }
    strbuf_puts(&s, "1");
    for (unsigned i = 0; i < QMP_JSON_DEPTH_MAX; i++) {
        strbuf_puts(&s, "}");
    }
    got = read_stream(s.data, s.len, 100);
    assert_string_equal(got, s.data);
    free(got);
    strbuf_clear(&s);
}

static void size_is_limited(void **state)
{
    expect_after_flood("                                ", QMP_JSON_BYTES_MAX / 16, "{}", "{}");
    expect_after_flood("9", QMP_JSON_BYTES_MAX + 2, "\n{}", "!{}");
}

static void expect_too_many(const char *value, size_t times)
{
    char *many = repeat(value, times, "1]}\n{}"), *got;
    struct strbuf s = STRBUF_INIT;

    strbuf_printf(&s, "{\"a\": [%s", many);
    got = read_stream(s.data, s.len, 4096);
    assert_string_equal(got, "!{}");
    free(got);
    strbuf_clear(&s);
    free(many);
}

static void many_values_in_one_message_are_an_error(void **state)
{
    expect_too_many("[],", QMP_JSON_CONTAINERS_MAX + 1);
    expect_too_many("{},", QMP_JSON_CONTAINERS_MAX + 1);
    expect_too_many("1,", QMP_JSON_COMMAS_MAX + 1);
}

static void expect_written(const char *json, bool pretty, const char *wanted)
{
    struct json_object *o = json_tokener_parse(json);
    struct strbuf out = STRBUF_INIT;

    qmp_json_write(&out, o, pretty);
    assert_string_equal(strbuf_str(&out), wanted);
    strbuf_clear(&out);
    json_object_put(o);
}

static void text_is_written_as_qemu_does(void **state)
{
    expect_written("{\"a\":[1,2.5,true,null],\"b\":{}}", false,
                   "{\"a\": [1, 2.5, true, null], \"b\": {}}");
    expect_written("{\"a\":[1],\"b\":{}}", true,
                   "{\n    \"a\": [\n        1\n    ],\n    \"b\": {\n    }\n}");
    expect_written("[\"\\u00e9\\u20ac\\ud83d\\ude00\\u007f\\u0001\\n\\t/\"]", false,
                   "[\"\\u00E9\\u20AC\\uD83D\\uDE00\\u007F\\u0001\\n\\t/\"]");
    expect_written("[NaN]", false, "[null]");
}

static void bytes_that_are_no_utf8_are_replaced(void **state)
{
    struct json_object *o = json_object_new_string("a\xFF\xC3(\xED\xA0\x80\xC0\x80z");
    struct strbuf out = STRBUF_INIT;

    qmp_json_write(&out, o, false);
    assert_string_equal(strbuf_str(&out),
                        "\"a\\uFFFD\\uFFFD(\\uFFFD\\uFFFD\\uFFFD\\uFFFD\\uFFFDz\"");
    strbuf_clear(&out);
    json_object_put(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(objects_are_read_at_any_cut),
        cmocka_unit_test(what_is_no_object_is_an_error),
        cmocka_unit_test(reading_goes_on_after_a_balanced_error),
        cmocka_unit_test(deep_nesting_is_one_error),
        cmocka_unit_test(nesting_up_to_the_limit_is_fine),
        cmocka_unit_test(size_is_limited),
        cmocka_unit_test(many_values_in_one_message_are_an_error),
        cmocka_unit_test(text_is_written_as_qemu_does),
        cmocka_unit_test(bytes_that_are_no_utf8_are_replaced),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
