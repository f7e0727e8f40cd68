/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON from a stream: what is accepted, what is refused and in which words, and where reading goes
 * on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/json_read.h"
#include "base/strbuf.h"
#include "base/json_write.h"

static const struct json_limits limits = {
    .bytes = 1 << 20, .tokens = 10000, .depth = 100, .memory = 1 << 20};

/*
 * What came of a stream: each value as JSON, "!" and the message for each error; '|' behind each.
 */
static char *read_stream(const char *data, size_t size, size_t chunk)
{
    struct json_reader *reader = json_reader_new(&limits);
    struct strbuf out = STRBUF_INIT;

    for (size_t at = 0; at < size;) {
        struct json_object *o = NULL;
        ERROR_AUTO(err);
        size_t used = 0;
        int r = json_reader_feed(reader, data + at, MIN(chunk, size - at), &used, &o, &err);

        assert_in_range(used, r == 0 ? 1 : 0, MIN(chunk, size - at));
        at += used;
        if (r > 0) {
            json_write(&out, o, false);
            json_object_put(o);
        } else if (r < 0) {
            strbuf_printf(&out, "!%s", error_message(&err));
        }
        strbuf_puts(&out, r ? "|" : "");
    }
    json_reader_free(reader);
    return strbuf_take(&out);
}

/* However the text is cut, since the network cuts anywhere. */
static void expect_stream(const char *data, size_t size, const char *wanted)
{
    const size_t chunks[] = {1, 2, 3, 7, 4096};

    for (size_t i = 0; i < ARRAY_SIZE(chunks); i++) {
        char *got = read_stream(data, size, chunks[i]);

        assert_string_equal(got, wanted);
        free(got);
    }
}

#define EXPECT(text, wanted) expect_stream(text "\n", sizeof(text), wanted "|")
#define EXPECT_ERROR(text, wanted) expect_stream(text "\n", sizeof(text), "!" wanted "|")
#define EXPECT_PARSE_ERROR(text, wanted) EXPECT_ERROR(text, "JSON parse error, " wanted)

static void values_are_read_at_any_cut(void **state)
{
    EXPECT("{}", "{}");
    EXPECT(" {\"a\": 1}\n{\"b\": [true, null, false, []]}",
           "{\"a\": 1}|{\"b\": [true, null, false, []]}");
    EXPECT("{\"a\": \"}]{[\\\"\\\\\"}{}", "{\"a\": \"}]{[\\\"\\\\\"}|{}");
    EXPECT("{\"a\":\n 1\n}", "{\"a\": 1}");
    EXPECT("5 \"x\"true", "5|\"x\"|true");
}

static void single_quotes_are_quotes(void **state)
{
    EXPECT("{'a': 'it is \"x\"'}", "{\"a\": \"it is \\\"x\\\"\"}");
    EXPECT("'it\\'s'\"it's\"", "\"it's\"|\"it's\"");
}

static void integers_keep_64_bits_and_larger_ones_become_doubles(void **state)
{
    EXPECT("18446744073709551615 -9223372036854775808",
           "18446744073709551615|-9223372036854775808");
    EXPECT("18446744073709551616", "1.8446744073709552e+19");
    EXPECT("-9223372036854775809", "-9.2233720368547758e+18");
    EXPECT("-0 0 -1.5 2.5e3 1E+2", "0|0|-1.5|2500|100");
    EXPECT_PARSE_ERROR("1e400", "number '1e400' is out of range");
}

static void strings_are_decoded(void **state)
{
    EXPECT("\"\\u00e9\xC3\xA9\\ud83d\\ude00\\b\\f\\n\\r\\t\\/\"",
           "\"\\u00E9\\u00E9\\uD83D\\uDE00\\b\\f\\n\\r\\t/\"");
    EXPECT("{\"a\\u0000b\": \"c\\u0000d\", \"a\": 1}", "{\"a\": 1, \"a\\u0000b\": \"c\\u0000d\"}");
}

static void malformed_strings_are_refused(void **state)
{
    EXPECT_PARSE_ERROR("\"\\q\"", "invalid escape sequence in string");
    EXPECT_PARSE_ERROR("\"\\u12g4\"", "\\u12g4 is not a valid Unicode character");
    EXPECT_PARSE_ERROR("\"\\ud800\"", "\\ud800 is not a valid Unicode character");
    EXPECT_PARSE_ERROR("\"\\ud800\\u0041\"", "\\ud800 is not a valid Unicode character");
    EXPECT_PARSE_ERROR("\"\\udc00\"", "\\udc00 is not a valid Unicode character");
    EXPECT_PARSE_ERROR("\"\\ufffe\"", "\\ufffe is not a valid Unicode character");
    EXPECT_PARSE_ERROR("\"\\ud83f\\udfff\"", "\\ud83f\\udfff is not a valid Unicode character");
    EXPECT_PARSE_ERROR("\"\xC3\x28\"", "invalid UTF-8 sequence in string");
    EXPECT_PARSE_ERROR("\"\xED\xA0\x80\"", "invalid UTF-8 sequence in string");
    EXPECT_PARSE_ERROR("\"\xC0\x80\"", "invalid UTF-8 sequence in string");
    EXPECT_PARSE_ERROR("\"\xE0\x80\x80\"", "invalid UTF-8 sequence in string");
    EXPECT_PARSE_ERROR("\"\xF4\x90\x80\x80\"", "invalid UTF-8 sequence in string");
    EXPECT_PARSE_ERROR("\"ctl\x01\"", "stray '\"ctl\x01'");
    EXPECT_PARSE_ERROR("\"nul\0\"", "stray '\"nul'");
}

static void numbers_that_json_has_not_are_refused(void **state)
{
    EXPECT_PARSE_ERROR("{\"a\":01}", "stray '01'");
    EXPECT_PARSE_ERROR("{\"a\":-01}", "stray '-01'");
    EXPECT_PARSE_ERROR("{\"a\":+1}", "stray '+'");
    EXPECT_PARSE_ERROR("{\"a\":.5}", "stray '.'");
    EXPECT_PARSE_ERROR("{\"a\":5.}", "stray '5.}'");
    EXPECT_PARSE_ERROR("{\"a\":1e}", "stray '1e}'");
    EXPECT_PARSE_ERROR("{\"a\":1e+}", "stray '1e+}'");
    EXPECT_PARSE_ERROR("{\"a\":NaN}", "stray 'N'");
    EXPECT_PARSE_ERROR("{\"a\":0x10}", "expected separator in dict");
}

static void wrong_grammar_is_refused(void **state)
{
    EXPECT_PARSE_ERROR("nul", "invalid keyword 'nul'");
    EXPECT_PARSE_ERROR("{\"a\":1,}", "expecting value");
    EXPECT_PARSE_ERROR("[1,]", "expecting value");
    EXPECT_PARSE_ERROR("{,}", "expecting value");
    EXPECT_PARSE_ERROR("}", "expecting value");
    EXPECT_PARSE_ERROR("{\"a\":}", "expecting value");
    EXPECT_PARSE_ERROR("{\"a\" 1}", "missing : in object pair");
    EXPECT_PARSE_ERROR("{\"a\"}", "missing : in object pair");
    EXPECT_PARSE_ERROR("{1: 2}", "key is not a string in object");
    EXPECT_PARSE_ERROR("{null: 2}", "key is not a string in object");
    EXPECT_PARSE_ERROR("{[1]: 2}", "key is not a string in object");
    EXPECT_PARSE_ERROR("{a: 2}", "invalid keyword 'a'");
    EXPECT_PARSE_ERROR("{\"a\":1 \"b\":2}", "expected separator in dict");
    EXPECT_PARSE_ERROR("[1 2]", "expected separator in list");
    EXPECT_PARSE_ERROR("{/* */}", "stray '/'");
}

static void a_key_given_twice_is_refused(void **state)
{
    EXPECT_PARSE_ERROR("{\"a\":1,\"a\":2}", "duplicate key");
    EXPECT_PARSE_ERROR("{\"b\":[{\"a\":{},\"\\u0061\":{}}]}", "duplicate key");
    EXPECT_PARSE_ERROR("{\"\":1,\"\":2}", "duplicate key");
}

static void reading_goes_on_after_a_balanced_error(void **state)
{
    EXPECT("{\"a\" {\"b\": {}}}{\"c\": 1}",
           "!JSON parse error, missing : in object pair|{\"c\": 1}");
    EXPECT("[}{\"c\": 1}", "!JSON parse error, expecting value|{\"c\": 1}");
    EXPECT("nul{}", "!JSON parse error, invalid keyword 'nul'|{}");
}

/* So that nothing that stands inside of what was refused is obeyed. */
static void after_a_stray_character_the_line_is_skipped(void **state)
{
    EXPECT("{\"a\": @ {\"b\": 1}}{}\n{\"c\": 1}", "!JSON parse error, stray '@'|{\"c\": 1}");
    EXPECT("{\"a\": \"cut\n{\"c\": 1}", "!JSON parse error, stray '\"cut\n'|{\"c\": 1}");
}

static void byte_ff_starts_anew_anywhere(void **state)
{
    EXPECT("{\"half\": \n{\"c\": 1}\xFF{\"d\": 1}", "!JSON parse error, stray '\xFF'|{\"d\": 1}");
    EXPECT("{\"half\": \"x\xFF{\"d\": 1}", "!JSON parse error, stray '\"x\xFF'|{\"d\": 1}");
    EXPECT("@ skipped \xFF{\"d\": 1}", "!JSON parse error, stray '@'|{\"d\": 1}");
}

/* head, then `unit` repeatedly, then tail. */
static void expect_flood(const char *head, const char *unit, size_t times, const char *tail,
                         const char *wanted)
{
    struct strbuf s = STRBUF_INIT;
    char *got;

    strbuf_puts(&s, head);
    for (size_t i = 0; i < times; i++) {
        strbuf_puts(&s, unit);
    }
    strbuf_puts(&s, tail);
    got = read_stream(s.data, s.len, 4096);
    assert_string_equal(got, wanted);
    free(got);
    strbuf_clear(&s);
}

static void depth_is_limited(void **state)
{
    const char *wanted = "!JSON nesting depth limit exceeded|{}|";

    expect_flood("", "[", 100000, "\n{}", wanted);
    expect_flood("", "{\"a\":", limits.depth + 1, "\n{}", wanted);
}

static void depth_up_to_the_limit_is_fine(void **state)
{
    char text[2 * 100 + 1] = {0};
    struct strbuf wanted = STRBUF_INIT;

    assert_int_equal(limits.depth, 100);
    memset(text, '[', 100);
    memset(text + 100, ']', 100);
    strbuf_printf(&wanted, "%s|{}|", text);
    expect_flood(text, "", 0, "{}", strbuf_str(&wanted));
    strbuf_clear(&wanted);
}

static void a_string_that_never_ends_is_refused_in_time(void **state)
{
    const struct json_limits small = {.bytes = 100, .tokens = 10, .depth = 2, .memory = 1000};
    struct json_reader *reader = json_reader_new(&small);
    struct json_object *o = NULL;
    char text[200];
    size_t used = 0;

    memset(text, 'x', sizeof(text));
    text[0] = '"';
    assert_int_equal(json_reader_feed(reader, text, sizeof(text), &used, &o, NULL), -EINVAL);
    json_reader_free(reader);
}

static void size_is_limited_but_not_of_what_is_between_tokens(void **state)
{
    expect_flood("1", "                ", limits.bytes / 8, "{}", "1|{}|");
    expect_flood("\"", "9", limits.bytes, "\"{}\n{}", "!JSON token size limit exceeded|{}|");
    expect_flood("", "9", limits.bytes + 1, "\n{}", "!JSON token size limit exceeded|{}|");
}

static void the_number_of_tokens_is_limited(void **state)
{
    const char *wanted = "!JSON token count limit exceeded|{}|";

    expect_flood("[", "1,", limits.tokens / 2, "1]\n{}", wanted);
    expect_flood("[@\n[", "nul,", limits.tokens / 2, "1]\n{}",
                 "!JSON parse error, stray '@'|!JSON token count limit exceeded|{}|");
}

/* A short text can need much more memory than it has bytes. */
static void memory_is_limited(void **state)
{
    expect_flood("[", "{},", 2000, "1]\n{}", "!JSON memory limit exceeded|{}|");
}

static void expect_text(const char *text, const char *wanted)
{
    struct json_object *o = NULL;
    struct strbuf out = STRBUF_INIT;
    ERROR_AUTO(err);

    if (json_read_text(text, strlen(text), &limits, &o, &err) < 0) {
        strbuf_puts(&out, error_message(&err));
    } else {
        json_write(&out, o, false);
        json_object_put(o);
    }
    assert_string_equal(strbuf_str(&out), wanted);
    strbuf_clear(&out);
}

static void a_text_is_one_value(void **state)
{
    expect_text(" {'a': [1]} ", "{\"a\": [1]}");
    expect_text("12", "12");
    expect_text("{} 1", "Expecting at most one JSON value");
    expect_text("{}{}", "Expecting at most one JSON value");
    expect_text("{'a': ", "JSON parse error, premature EOI");
    expect_text("'a", "JSON parse error, premature EOI");
    expect_text("", "JSON parse error, premature EOI");
    expect_text("nul", "JSON parse error, invalid keyword 'nul'");
    expect_text("{} x", "JSON parse error, invalid keyword 'x'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_read_at_any_cut),
        cmocka_unit_test(single_quotes_are_quotes),
        cmocka_unit_test(integers_keep_64_bits_and_larger_ones_become_doubles),
        cmocka_unit_test(strings_are_decoded),
        cmocka_unit_test(malformed_strings_are_refused),
        cmocka_unit_test(numbers_that_json_has_not_are_refused),
        cmocka_unit_test(wrong_grammar_is_refused),
        cmocka_unit_test(a_key_given_twice_is_refused),
        cmocka_unit_test(reading_goes_on_after_a_balanced_error),
        cmocka_unit_test(after_a_stray_character_the_line_is_skipped),
        cmocka_unit_test(byte_ff_starts_anew_anywhere),
        cmocka_unit_test(depth_is_limited),
        cmocka_unit_test(depth_up_to_the_limit_is_fine),
        cmocka_unit_test(a_string_that_never_ends_is_refused_in_time),
        cmocka_unit_test(size_is_limited_but_not_of_what_is_between_tokens),
        cmocka_unit_test(the_number_of_tokens_is_limited),
        cmocka_unit_test(memory_is_limited),
        cmocka_unit_test(a_text_is_one_value),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
