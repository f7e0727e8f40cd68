/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "block/options.h"

static struct options *parse(const char *text, const char *implied_key)
{
    ERROR_AUTO(err);
    struct options *o = NULL;

    if (options_parse(text, implied_key, &o, &err) < 0) {
        fail_msg("'%s': %s", text, error_message(&err));
    }
    return o;
}

/* The tree as compact JSON must be `json`. */
static void assert_tree(struct options *o, const char *json)
{
    struct json_object *tree = options_to_json(o);

    assert_string_equal(json_object_to_json_string_ext(tree, JSON_C_TO_STRING_PLAIN), json);
    json_object_put(tree);
    options_free(o);
}

static void assert_refused(const char *text, const char *sentence)
{
    ERROR_AUTO(err);
    struct options *o = NULL;

    assert_int_equal(options_parse(text, NULL, &o, &err), -EINVAL);
    assert_null(o);
    assert_non_null(strstr(error_message(&err), sentence));
}

static void pairs_nest_at_dots(void **state)
{
    assert_tree(parse("driver=qcow2,file.driver=file,file.filename=a,,b", NULL),
                "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a,b\"}}");
    assert_tree(parse("a=,b==,c=1,", NULL), "{\"a\":\"\",\"b\":\"=\",\"c\":\"1\"}");
    assert_tree(parse("", NULL), "{}");
}

static void first_element_may_omit_its_key(void **state)
{
    assert_tree(parse("a,,b=c,x=1", "driver"), "{\"driver\":\"a,b=c\",\"x\":\"1\"}");
    assert_tree(parse("id=y,server", "driver"), "{\"id\":\"y\",\"server\":\"on\"}");
    assert_tree(parse("server,nowait", NULL), "{\"server\":\"on\",\"nowait\":\"on\"}");
}

static void strict_text_has_values(void **state)
{
    ERROR_AUTO(err);
    struct options *o = NULL;

    assert_int_equal(options_parse_strict("nbd,id=e,writable", "type", &o, &err), -EINVAL);
    assert_string_equal(error_message(&err), "Expected '=' after parameter 'writable'");
    error_clear(&err);
    assert_int_equal(options_parse_strict("unix,path=a", NULL, &o, &err), -EINVAL);
    assert_null(o);
    error_clear(&err);
    assert_int_equal(options_parse_strict("nbd,id=e,", "type", &o, &err), 0);
    assert_tree(o, "{\"type\":\"nbd\",\"id\":\"e\"}");
}

static void text_of_a_json_object_is_no_other(void **state)
{
    ERROR_AUTO(err);
    struct options *o = NULL;

    assert_int_equal(options_parse_json("driver=raw", &o, &err), -EINVAL);
    assert_null(o);
    error_clear(&err);
    assert_int_equal(options_parse_json(" {\"a.b\": 1}", &o, &err), 0);
    assert_tree(o, "{\"a\":{\"b\":1}}");
}

static void json_keys_nest_and_merge(void **state)
{
    assert_tree(parse("{\"file.driver\":\"file\",\"file\":{\"size\":5},\"list\":[{\"a.b\":1}],"
                      "\"backing\":null}",
                      NULL),
                "{\"file\":{\"driver\":\"file\",\"size\":5},\"list\":[{\"a\":{\"b\":1}}],"
                "\"backing\":null}");
    assert_tree(parse("{'driver': 'a:b', 'x': true} ", NULL), "{\"driver\":\"a:b\",\"x\":true}");
}

static void of_text_the_last_value_counts(void **state)
{
    assert_tree(parse("a=1,b=x,a=2", NULL), "{\"b\":\"x\",\"a\":\"2\"}");
    assert_tree(parse("file.filename=driver=x,key=1,file.filename=y,key=2", NULL),
                "{\"file\":{\"filename\":\"y\"},\"key\":\"2\"}");
    assert_refused("file=node,file=other,file.driver=x", "'file' has a value of its own");
}

static void duplicates_are_refused(void **state)
{
    assert_refused("file=node,file.driver=x", "'file' has a value of its own");
    assert_refused("file.driver=x,file=node", "'file' is given twice");
    assert_refused("{\"a\":{\"b\":1,\"b\":2}}", "duplicate key");
    assert_refused("{\"a\":{\"b\":1},\"a\":{}}", "duplicate key");
    assert_refused("{\"a.b\":1,\"a\":{\"b\":2}}", "'b' is given twice");
    assert_refused("{\"a\":null,\"a.b\":2}", "'a' has a value of its own");
}

/* QEMU has one option that is both. */
static void overlap_check_may_be_a_value_and_a_group(void **state)
{
    assert_tree(parse("overlap-check=all,overlap-check.template=none", NULL),
                "{\"overlap-check\":{\"=\":\"all\",\"template\":\"none\"}}");
    assert_tree(parse("overlap-check.template=none,overlap-check=all", NULL),
                "{\"overlap-check\":{\"template\":\"none\",\"=\":\"all\"}}");
    assert_tree(parse("overlap-check=all", NULL), "{\"overlap-check\":\"all\"}");
    assert_tree(parse("overlap-check=all,overlap-check=none", NULL),
                "{\"overlap-check\":\"none\"}");
    assert_refused("overlap-check=all,overlap-check.a=b,overlap-check=none", "twice");
}

static void malformed_text_is_refused(void **state)
{
    assert_refused("a..b=1", "Invalid parameter name");
    assert_refused(".a=1", "Invalid parameter name");
    assert_refused("a.=1", "Invalid parameter name");
    assert_refused("=1", "Invalid parameter name");
    assert_refused(",a=1", "Invalid parameter name");
    assert_refused("{\"a\":", "premature EOI");
    assert_refused("{\"a\":1} x", "invalid keyword 'x'");
    assert_refused("{\"a\":1} 2", "at most one JSON value");
    assert_refused("{\"a\":\"x\\u0000y\"}", "NUL");
    assert_refused("{\"a\":\"\xff\"}", "stray");
    assert_refused("{\"a\":1,}", "expecting value");
    assert_refused("{\"a\":01}", "stray '01'");
    assert_refused("{\"a\":\"\\ud800\"}", "not a valid Unicode character");
}

static char *repeat(const char *head, const char *unit, size_t count, const char *tail)
{
    size_t unit_len = strlen(unit), head_len = strlen(head);
    char *text = malloc(head_len + count * unit_len + strlen(tail) + 1);

    memcpy(text, head, head_len);
    for (size_t i = 0; i < count; i++) {
        memcpy(text + head_len + i * unit_len, unit, unit_len);
    }
    memcpy(text + head_len + count * unit_len, tail, strlen(tail) + 1);
    return text;
}

static void depth_and_size_are_bounded(void **state)
{
    const struct {
        const char *head, *unit, *tail, *sentence;
        size_t count;
    } cases[] = {
        {"", "a.", "a=1", "levels deep", 32},
        {"", "a.", "a=1", "levels deep", 500000},
        {"{\"", "a.", "a\":1}", "levels deep", 32},
        {"{\"a\":", "[", "", "nesting depth limit", 100000},
        {"{\"a.a.a.a.a.a.a.a.a\":", "{\"b.b.b.b.b.b\":", "1", "", 4},
        {"{\"a\":\"", "x", "\"}", "bytes long", 1024 * 1024},
        {"", "x", "=1", "Invalid parameter name", 256},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *text = repeat(cases[i].head, cases[i].unit, cases[i].count, cases[i].tail);

        assert_refused(text, cases[i].sentence);
        free(text);
    }
    char *deepest = repeat("", "a.", 31, "a=1");

    options_free(parse(deepest, NULL));
    free(deepest);
}

static void a_non_object_is_refused(void **state)
{
    struct json_object *list = json_object_new_array();
    struct options *o = NULL;

    assert_int_equal(options_from_json(list, &o, NULL), -EINVAL);
    assert_int_equal(options_from_json(NULL, &o, NULL), -EINVAL);
    json_object_put(list);
}

static void values_are_taken_by_type(void **state)
{
    static const char *const names[] = {"off", "on", "unmap", NULL};
    struct options AUTO_OPTIONS *o =
        parse("{\"s\":\"text\",\"b\":true,\"bs\":\"off\",\"n\":7,\"ns\":\"0x10\",\"z\":\"4k\","
              "\"zn\":512,\"e\":\"unmap\",\"big\":18446744073709551615}",
              NULL);
    char *s, *none;
    bool b, bs, bd;
    uint64_t n, ns, nd, z, zn, big;
    int e, ed;

    assert_int_equal(options_take_str(o, "s", &s, NULL), 0);
    assert_int_equal(options_take_str(o, "s", &none, NULL), 0);
    assert_int_equal(options_take_bool(o, "b", false, &b, NULL), 0);
    assert_int_equal(options_take_bool(o, "bs", true, &bs, NULL), 0);
    assert_int_equal(options_take_bool(o, "bd", true, &bd, NULL), 0);
    assert_int_equal(options_take_uint(o, "n", 0, 7, &n, NULL), 0);
    assert_int_equal(options_take_uint(o, "ns", 0, 99, &ns, NULL), 0);
    assert_int_equal(options_take_uint(o, "nd", 3, 99, &nd, NULL), 0);
    assert_int_equal(options_take_uint(o, "big", 3, UINT64_MAX, &big, NULL), 0);
    assert_int_equal(options_take_size(o, "z", 0, &z, NULL), 0);
    assert_int_equal(options_take_size(o, "zn", 0, &zn, NULL), 0);
    assert_int_equal(options_take_enum(o, "e", names, 0, &e, NULL), 0);
    assert_int_equal(options_take_enum(o, "ed", names, 1, &ed, NULL), 0);
    assert_string_equal(s, "text");
    assert_null(none);
    assert_true(b && !bs && bd);
    assert_true(n == 7 && ns == 16 && nd == 3 && z == 4096 && zn == 512 && big == UINT64_MAX);
    assert_true(e == 2 && ed == 1);
    assert_true(options_is_empty(o));
    assert_int_equal(options_check_empty(o, "driver 'x'", NULL), 0);
    free(s);
}

static void wrong_types_are_named_and_kept(void **state)
{
    static const char *const names[] = {"off", "on", NULL};
    struct options AUTO_OPTIONS *o =
        parse("{\"v\":-1,\"f\":1.5,\"u\":\"12x\",\"l\":[1],\"null\":null}", NULL);
    ERROR_AUTO(err);
    char *s = NULL;
    bool b;
    uint64_t n;
    int e;
    struct options *child;
    struct json_object *list;

    assert_int_equal(options_take_uint(o, "v", 0, 9, &n, &err), -EINVAL);
    assert_string_equal(error_message(&err),
                        "Parameter 'v' expects a number from 0 to 9; found -1");
    assert_int_equal(options_take_str(o, "v", &s, NULL), -EINVAL);
    assert_int_equal(options_take_str(o, "null", &s, NULL), -EINVAL);
    assert_int_equal(options_take_bool(o, "v", false, &b, NULL), -EINVAL);
    assert_int_equal(options_take_uint(o, "f", 0, 9, &n, NULL), -EINVAL);
    assert_int_equal(options_take_uint(o, "u", 0, 99, &n, NULL), -EINVAL);
    assert_int_equal(options_take_size(o, "v", 0, &n, NULL), -EINVAL);
    assert_int_equal(options_take_size(o, "u", 0, &n, NULL), -EINVAL);
    assert_int_equal(options_take_enum(o, "u", names, 0, &e, NULL), -EINVAL);
    assert_int_equal(options_take_child(o, "l", &child, &s, NULL), -EINVAL);
    assert_int_equal(options_take_list(o, "v", &list, NULL), -EINVAL);
    assert_true(options_has(o, "v") && options_has(o, "f") && options_has(o, "u"));
}

static void children_are_names_or_trees(void **state)
{
    struct options AUTO_OPTIONS *o = parse("file=node0,target.driver=raw", NULL);
    struct options *child = NULL, *none = NULL;
    char *name = NULL, *no_name = NULL;

    assert_int_equal(options_take_child(o, "file", &none, &name, NULL), 0);
    assert_null(none);
    assert_string_equal(name, "node0");
    free(name);
    assert_int_equal(options_take_child(o, "target", &child, &no_name, NULL), 0);
    assert_null(no_name);
    assert_tree(child, "{\"driver\":\"raw\"}");
    assert_int_equal(options_take_child(o, "backing", &none, &no_name, NULL), 0);
    assert_true(!none && !no_name && options_is_empty(o));
}

static void lists_come_from_arrays_and_numbers(void **state)
{
    struct options AUTO_OPTIONS *o = parse("bitmaps.0=a,bitmaps.1.name=b,gap.1=x", NULL);
    struct options AUTO_OPTIONS *json = parse("{\"bitmaps\":[\"a\",2]}", NULL);
    struct json_object *list;

    assert_int_equal(options_take_list(o, "bitmaps", &list, NULL), 0);
    assert_string_equal(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PLAIN),
                        "[\"a\",{\"name\":\"b\"}]");
    json_object_put(list);
    assert_int_equal(options_take_list(o, "gap", &list, NULL), -EINVAL);
    assert_int_equal(options_take_list(json, "bitmaps", &list, NULL), 0);
    assert_int_equal(json_object_array_length(list), 2);
    json_object_put(list);
    assert_int_equal(options_take_list(json, "bitmaps", &list, NULL), 0);
    assert_null(list);
}

static void what_is_left_is_named_by_its_path(void **state)
{
    struct options AUTO_OPTIONS *o = parse("cache.bogus.x=1", NULL);
    ERROR_AUTO(err);

    assert_int_equal(options_check_empty(o, "driver 'file'", &err), -EINVAL);
    assert_string_equal(error_message(&err),
                        "driver 'file' does not support the option 'cache.bogus.x'");
}

/* The tree that a command gets for arguments in JSON. */
static struct options *arguments(const char *json)
{
    struct json_object *object = json_tokener_parse(json);
    struct options *o = NULL;
    ERROR_AUTO(err);

    if (options_from_arguments(object, &o, &err) < 0) {
        fail_msg("'%s': %s", json, error_message(&err));
    }
    json_object_put(object);
    return o;
}

static void arguments_have_their_types_and_are_named_by_their_path(void **state)
{
    struct options AUTO_OPTIONS *o =
        arguments("{\"a\":{\"n\":\"1\",\"b\":\"on\",\"l\":[{\"s\":1}]}}");
    struct options AUTO_OPTIONS *a = NULL;
    struct options AUTO_OPTIONS *e = NULL;
    struct json_object *list;
    char *name;
    bool flag;
    uint64_t n;
    ERROR_AUTO(err);

    assert_int_equal(options_take_child(o, "a", &a, &name, NULL), 0);
    assert_int_equal(options_take_uint(a, "n", 0, 9, &n, &err), -EINVAL);
    assert_string_equal(error_message(&err), "Invalid parameter type for 'a.n', expected: integer");
    error_clear(&err);
    assert_int_equal(options_take_bool(a, "b", false, &flag, &err), -EINVAL);
    assert_string_equal(error_message(&err), "Invalid parameter type for 'a.b', expected: boolean");
    error_clear(&err);
    assert_int_equal(options_take_list(a, "l", &list, NULL), 0);
    assert_int_equal(options_from_element(a, "l", 0, json_object_array_get_idx(list, 0), &e, NULL),
                     0);
    assert_int_equal(options_take_str(e, "s", &name, &err), -EINVAL);
    assert_string_equal(error_message(&err),
                        "Invalid parameter type for 'a.l[0].s', expected: string");
    error_clear(&err);
    assert_int_equal(options_check_empty(e, "driver", &err), -EINVAL);
    assert_string_equal(error_message(&err), "Parameter 'a.l[0].s' is unexpected");
    json_object_put(list);
}

static void arguments_have_no_dots_in_their_keys(void **state)
{
    struct json_object *object = json_tokener_parse("{\"a\":[{},{\"b\":{\"c.d\":1}}]}");
    struct options *o = NULL;
    ERROR_AUTO(err);

    assert_int_equal(options_from_arguments(object, &o, &err), -EINVAL);
    assert_string_equal(error_message(&err), "Parameter 'a[1].b.c.d' is unexpected");
    json_object_put(object);
}

static void setting_replaces_and_defaults_do_not(void **state)
{
    struct options *o = parse("a=1,c=2", NULL), *child = parse("x=1", NULL), *copy;

    options_set_str(o, "a", "new");
    options_default_str(o, "a", "unused");
    options_default_bool(o, "b", true);
    options_set_bool(o, "b", false);
    options_set_uint(o, "n", UINT64_MAX);
    options_set_child(o, "child", child);
    options_drop(o, "c");
    copy = options_clone(o);
    options_set_str(o, "a", "changed later");
    assert_tree(copy, "{\"a\":\"new\",\"b\":false,\"n\":18446744073709551615,"
                      "\"child\":{\"x\":\"1\"}}");
    options_free(o);
}

static void null_is_told_from_absent(void **state)
{
    struct options AUTO_OPTIONS *o = parse("{\"backing\":null,\"x\":1}", NULL);

    assert_true(options_has(o, "backing") && options_is_null(o, "backing"));
    assert_false(options_is_null(o, "x") || options_is_null(o, "y") || options_has(o, "y"));
    options_drop(o, "backing");
    assert_false(options_has(o, "backing"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pairs_nest_at_dots),
        cmocka_unit_test(first_element_may_omit_its_key),
        cmocka_unit_test(strict_text_has_values),
        cmocka_unit_test(text_of_a_json_object_is_no_other),
        cmocka_unit_test(json_keys_nest_and_merge),
        cmocka_unit_test(of_text_the_last_value_counts),
        cmocka_unit_test(duplicates_are_refused),
        cmocka_unit_test(overlap_check_may_be_a_value_and_a_group),
        cmocka_unit_test(malformed_text_is_refused),
        cmocka_unit_test(depth_and_size_are_bounded),
        cmocka_unit_test(a_non_object_is_refused),
        cmocka_unit_test(values_are_taken_by_type),
        cmocka_unit_test(wrong_types_are_named_and_kept),
        cmocka_unit_test(children_are_names_or_trees),
        cmocka_unit_test(lists_come_from_arrays_and_numbers),
        cmocka_unit_test(what_is_left_is_named_by_its_path),
        cmocka_unit_test(arguments_have_their_types_and_are_named_by_their_path),
        cmocka_unit_test(arguments_have_no_dots_in_their_keys),
        cmocka_unit_test(setting_replaces_and_defaults_do_not),
        cmocka_unit_test(null_is_told_from_absent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
