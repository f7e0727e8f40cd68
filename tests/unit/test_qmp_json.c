/* SPDX-License-Identifier: Apache-2.0 */
/* The text that a monitor writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/strbuf.h"
#include "qmp/json_write.h"

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
    expect_written("[\"\\u00e9\\u20ac\\ud83d\\ude00\\u007f\\u0001\\b\\f\\n\\t/\"]", false,
                   "[\"\\u00E9\\u20AC\\uD83D\\uDE00\\u007F\\u0001\\b\\f\\n\\t/\"]");
    expect_written("[NaN]", false, "[null]");
    expect_written("{\"a\xC0\x80\":1}", false, "{\"a\\u0000\": 1}");
}

static void bytes_that_are_no_utf8_are_replaced(void **state)
{
    struct json_object *o = json_object_new_string("a\xFF\xC3(\xED\xA0\x80\xC0\x81z");
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
        cmocka_unit_test(text_is_written_as_qemu_does),
        cmocka_unit_test(bytes_that_are_no_utf8_are_replaced),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
