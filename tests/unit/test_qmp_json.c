/* SPDX-License-Identifier: Apache-2.0 */
/* The text that a monitor writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/strbuf.h"
#include "base/json_write.h"

static void expect_written(const char *json, bool pretty, const char *wanted)
{
    struct json_object *o = json_tokener_parse(json);
    struct strbuf out = STRBUF_INIT;

    json_write(&out, o, pretty);
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
    expect_written("[\"\\u00e9\\u20ac\\ud83d\\ude00\\u007f\\u0001\\b\\f\\n\\t/\"]", false,
                   "[\"\\u00E9\\u20AC\\uD83D\\uDE00\\u007F\\u0001\\b\\f\\n\\t/\"]");
    expect_written("[NaN]", false, "[null]");
    expect_written("{\"a\xC0\x80\":1}", false, "{\"a\\u0000\": 1}");
}

static void bytes_that_are_no_utf8_are_replaced(void **state)
{
    struct json_object *o = json_object_new_string("a\xFF\xC3(\xED\xA0\x80\xC0\x81z");
    struct strbuf out = STRBUF_INIT;

    json_write(&out, o, false);
    assert_string_equal(strbuf_str(&out),
                        "\"a\\uFFFD\\uFFFD(\\uFFFD\\uFFFD\\uFFFD\\uFFFD\\uFFFDz\"");
    strbuf_clear(&out);
    json_object_put(o);
}

/* The order of what QEMU's programs print. */
static void members_have_the_order_of_qemu(void **state)
{
    expect_written("{\"data\":1,\"event\":2,\"timestamp\":3}", false,
                   "{\"timestamp\": 3, \"event\": 2, \"data\": 1}");
    expect_written("{\"id\":1,\"return\":{\"type\":1,\"speed\":2,\"offset\":3,\"len\":4,"
                   "\"device\":5,\"actively-synced\":6,\"auto-finalize\":7,\"auto-dismiss\":8}}",
                   false,
                   "{\"return\": {\"auto-finalize\": 7, \"device\": 5, \"auto-dismiss\": 8, "
                   "\"len\": 4, \"offset\": 3, \"speed\": 2, \"type\": 1, "
                   "\"actively-synced\": 6}, \"id\": 1}");
}

/* More members than fit on the stack of the writer. */
/* Answers are put together from such texts; the text is not escaped again. */
static void a_text_stands_for_a_value(void **state)
{
    struct json_object *o = json_object_new_object();
    struct strbuf out = STRBUF_INIT, text = STRBUF_INIT;

    strbuf_puts(&text, "[{\"a\": -9223372036854775808}, 18446744073709551615, \"\\\"\"]");
    json_object_object_add(o, "return", json_text_new(&text));
    json_object_object_add(o, "id", json_object_new_string("x"));
    json_write(&out, o, false);
    assert_string_equal(strbuf_str(&out),
                        "{\"return\": [{\"a\": -9223372036854775808}, 18446744073709551615, "
                        "\"\\\"\"], \"id\": \"x\"}");
    strbuf_clear(&out);
    json_object_put(o);
    text.failed = true;
    assert_null(json_text_new(&text));
    strbuf_clear(&text);
}

static void integers_of_all_sizes(void **state)
{
    expect_written("[0,-1,10,9223372036854775807,-9223372036854775808,18446744073709551615]", false,
                   "[0, -1, 10, 9223372036854775807, -9223372036854775808, 18446744073709551615]");
}

static void an_object_may_have_many_members(void **state)
{
    struct json_object *o = json_object_new_object(), *read;
    struct strbuf out = STRBUF_INIT;

    for (int i = 0; i < 1000; i++) {
        char key[16];

        snprintf(key, sizeof(key), "k%d", i);
        json_object_object_add(o, key, json_object_new_int(i));
    }
    json_write(&out, o, false);
    read = json_tokener_parse(strbuf_str(&out));
    assert_true(json_object_equal(o, read));
    json_object_put(read);
    json_object_put(o);
    strbuf_clear(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_written_as_qemu_does),
        cmocka_unit_test(bytes_that_are_no_utf8_are_replaced),
        cmocka_unit_test(members_have_the_order_of_qemu),
        cmocka_unit_test(an_object_may_have_many_members),
        cmocka_unit_test(a_text_stands_for_a_value),
        cmocka_unit_test(integers_of_all_sizes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
