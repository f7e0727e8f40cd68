/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments against the schema, and the schema as query-qmp-schema tells it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "export/export.h"
#include "export/nbd_server.h"
#include "file/file_drivers.h"
#include "qmp/reference.h"
#include "qmp/table.h"
#include "qmp/transaction.h"

struct check_case {
    const char *command;
    const char *args;  /* JSON */
    const char *error; /* NULL: accepted */
};

static const struct check_case cases[] = {
    {"query-version", "{}", NULL},
    {"query-version", "{\"x\": 1}", "Parameter 'x' is unexpected"},
    {"query-named-block-nodes", "{\"flat\": true}", NULL},
    {"query-named-block-nodes", "{\"flat\": 1}",
     "Invalid parameter type for 'flat', expected: boolean"},
    {"query-named-block-nodes", "{\"flat\": \"on\"}",
     "Invalid parameter type for 'flat', expected: boolean"},
    {"query-named-block-nodes", "{\"flat\": null}",
     "Invalid parameter type for 'flat', expected: boolean"},
    {"block-dirty-bitmap-add", "{\"node\": \"n\", \"name\": \"b\"}", NULL},
    {"block-dirty-bitmap-add", "{\"node\": \"n\"}", "Parameter 'name' is missing"},
    {"block-dirty-bitmap-add", "{\"node\": 5, \"name\": \"b\"}",
     "Invalid parameter type for 'node', expected: string"},
    {"block-dirty-bitmap-add", "{\"node\": \"n\", \"name\": \"b\", \"granularity\": -1}",
     "Parameter 'granularity' expects uint32_t"},
    {"block-dirty-bitmap-add", "{\"node\": \"n\", \"name\": \"b\", \"granularity\": 4294967296}",
     "Parameter 'granularity' expects uint32_t"},
    {"block-dirty-bitmap-add", "{\"node\": \"n\", \"name\": \"b\", \"granularity\": 4294967295}",
     NULL},
    {"block-dirty-bitmap-add", "{\"node\": \"n\", \"name\": \"b\", \"granularity\": \"64k\"}",
     "Parameter 'granularity' expects uint64"},
    {"block-dirty-bitmap-add", "{\"node\": \"n\", \"name\": \"a\\u0000b\"}",
     "A string contains a NUL character: 'a'"},
    {"block-dirty-bitmap-merge",
     "{\"node\": \"n\", \"target\": \"t\", \"bitmaps\": [\"a\", {\"node\": \"m\", \"name\": "
     "\"b\"}]}",
     NULL},
    {"block-dirty-bitmap-merge", "{\"node\": \"n\", \"target\": \"t\", \"bitmaps\": \"a\"}",
     "Invalid parameter type for 'bitmaps', expected: array"},
    {"block-dirty-bitmap-merge", "{\"node\": \"n\", \"target\": \"t\", \"bitmaps\": [\"a\", 5]}",
     "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr"},
    {"block-dirty-bitmap-merge",
     "{\"node\": \"n\", \"target\": \"t\", \"bitmaps\": [{\"node\": \"m\"}]}",
     "Parameter 'bitmaps[0].name' is missing"},
    {"block-export-add", "{\"type\": \"nbd\", \"id\": \"e\", \"node-name\": \"n\"}", NULL},
    {"block-export-add",
     "{\"type\": \"nbd\", \"id\": \"e\", \"node-name\": \"n\", \"name\": \"x\", \"bitmaps\": "
     "[\"b\"], \"writable\": true, \"description\": \"d\", \"allocation-depth\": false}",
     NULL},
    {"block-export-add", "{\"type\": \"fuse\", \"id\": \"e\", \"node-name\": \"n\"}",
     "Parameter 'type' does not accept value 'fuse'"},
    {"block-export-add", "{\"id\": \"e\", \"node-name\": \"n\"}", "Parameter 'type' is missing"},
    {"block-export-add",
     "{\"type\": \"nbd\", \"id\": \"e\", \"node-name\": \"n\", \"mountpoint\": \"m\"}",
     "Parameter 'mountpoint' is unexpected"},
    {"block-export-add",
     "{\"type\": \"nbd\", \"id\": \"e\", \"node-name\": \"n\", \"name\": false}",
     "Invalid parameter type for 'name', expected: string"},
    {"block-export-del", "{\"id\": \"e\", \"mode\": \"soft\"}",
     "Parameter 'mode' does not accept value 'soft'"},
    {"nbd-server-start", "{\"addr\": {\"type\": \"unix\", \"data\": {\"path\": \"p\"}}}", NULL},
    {"nbd-server-start", "{\"addr\": {\"type\": \"unix\", \"path\": \"p\"}}",
     "Parameter 'addr.data' is missing"},
    {"nbd-server-start", "{\"addr\": {\"type\": \"unix\", \"data\": {\"path\": \"p\", \"q\": 1}}}",
     "Parameter 'addr.data.q' is unexpected"},
    {"nbd-server-start", "{\"addr\": {\"type\": \"inet\", \"data\": {\"host\": \"h\"}}}",
     "Parameter 'addr.data.port' is missing"},
    {"nbd-server-start", "{\"addr\": 5}", "Invalid parameter type for 'addr', expected: object"},
    /* A node's own options are those of its driver. */
    {"blockdev-add", "{\"driver\": \"null-co\", \"node-name\": \"n\", \"size\": 512}", NULL},
    {"blockdev-add", "{\"node-name\": \"n\"}", "Parameter 'driver' is missing"},
    {"blockdev-add", "{\"driver\": \"d\"}", "Parameter 'driver' does not accept value 'd'"},
    {"blockdev-add", "{\"driver\": \"null-co\", \"read-only\": \"off\"}",
     "Invalid parameter type for 'read-only', expected: boolean"},
    {"blockdev-add", "{\"driver\": \"null-co\", \"size\": \"512\"}",
     "Invalid parameter type for 'size', expected: integer"},
    {"blockdev-add", "{\"driver\": \"null-co\", \"size\": 9223372036854775808}",
     "Invalid parameter type for 'size', expected: integer"},
    {"blockdev-add", "{\"driver\": \"null-co\", \"latency-ns\": \"1\"}",
     "Parameter 'latency-ns' expects uint64"},
    {"blockdev-add", "{\"driver\": \"raw\"}", "Parameter 'file' is missing"},
    {"blockdev-add", "{\"driver\": \"raw\", \"file\": null}",
     "Invalid parameter type for 'file', expected: BlockdevRef"},
    {"blockdev-add", "{\"driver\": \"raw\", \"file\": {}}", "Parameter 'file.driver' is missing"},
    {"blockdev-add", "{\"driver\": \"raw\", \"file\": {\"driver\": \"null-co\", \"x\": [1]}}",
     "Parameter 'file.x' is unexpected"},
    {"blockdev-add", "{\"driver\": \"raw\", \"file.driver\": \"null-co\"}",
     "Parameter 'file' is missing"},
    {"blockdev-add", "{\"driver\": \"raw\", \"file\": \"f\", \"cache\": {\"direct\": \"on\"}}",
     "Invalid parameter type for 'cache.direct', expected: boolean"},
    {"blockdev-add", "{\"driver\": \"raw\", \"file\": \"f\", \"discard\": \"on\"}",
     "Parameter 'discard' does not accept value 'on'"},
    {"blockdev-add", "{\"driver\": \"file\", \"filename\": \"a\\u0000b\"}",
     "A string contains a NUL character: 'a'"},
    {"blockdev-add", "{\"driver\": \"dmg\", \"file\": \"f\"}", "The format 'dmg' is not supported"},
    {"blockdev-reopen", "{\"options\": [{\"driver\": \"raw\", \"file\": 3}]}",
     "Invalid parameter type for 'file', expected: BlockdevRef"},
    {"transaction", "{\"actions\": []}", NULL},
    {"transaction", "{\"actions\": [5]}",
     "Invalid parameter type for 'actions[0]', expected: object"},
    {"transaction", "{\"actions\": [{\"type\": \"abort\", \"data\": {}}, {\"type\": \"abort\"}]}",
     "Parameter 'actions[1].data' is missing"},
    {"transaction", "{\"actions\": [{\"type\": \"abort\", \"data\": {\"x\": 1}}]}",
     "Parameter 'actions[0].data.x' is unexpected"},
    {"transaction", "{\"actions\": [{\"type\": \"abort\", \"data\": {}, \"y\": 1}]}",
     "Parameter 'actions[0].y' is unexpected"},
    {"transaction", "{\"actions\": [{\"type\": \"eject\", \"data\": {}}]}",
     "Parameter 'type' does not accept value 'eject'"},
    {"transaction",
     "{\"actions\": [{\"type\": \"block-dirty-bitmap-clear\", \"data\": {\"node\": \"n\"}}]}",
     "Parameter 'actions[0].data.name' is missing"},
    {"transaction", "{\"actions\": [], \"properties\": {\"completion-mode\": \"none\"}}",
     "Parameter 'completion-mode' does not accept value 'none'"},
};

static void expect(const struct schema_type *type, const char *args, unsigned flags,
                   const char *error)
{
    struct json_object *o = json_tokener_parse(args);
    ERROR_AUTO(err);
    int r;

    assert_non_null(o);
    r = schema_check(type, o, flags, &err);
    json_object_put(o);
    if (error) {
        assert_true(r < 0);
        assert_string_equal(error_message(&err), error);
    } else if (r != 0) {
        fail_msg("%s: %s", args, error_message(&err));
    }
}

static void arguments_are_checked(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct qmp_command *command = qmp_find_command(cases[i].command);

        assert_non_null(command);
        expect(command->args, cases[i].args, 0, cases[i].error);
    }
}

static void text_of_a_command_line_is_converted(void **state)
{
    struct json_object *o = json_tokener_parse(
        "{\"type\": \"nbd\", \"id\": \"e\", \"node-name\": \"n\", \"writable\": \"on\","
        " \"bitmaps\": {\"0\": \"a\", \"1\": {\"node\": \"m\", \"name\": \"b\"}}}");
    struct json_object *bitmaps;
    ERROR_AUTO(err);

    assert_int_equal(schema_check(&export_options_type, o, SCHEMA_CHECK_KEYVAL, &err), 0);
    assert_true(json_object_is_type(qmp_get(o, "writable"), json_type_boolean));
    assert_true(qmp_get_bool(o, "writable", false));
    bitmaps = qmp_get(o, "bitmaps");
    assert_true(json_object_is_type(bitmaps, json_type_array));
    assert_int_equal(json_object_array_length(bitmaps), 2);
    assert_string_equal(qmp_get_str(json_object_array_get_idx(bitmaps, 1), "name"), "b");
    json_object_put(o);
}

static void text_of_a_command_line_may_be_wrong(void **state)
{
    expect(&export_options_type,
           "{\"type\": \"nbd\", \"id\": \"e\", \"node-name\": \"n\", \"writable\": \"maybe\"}",
           SCHEMA_CHECK_KEYVAL, "Parameter 'writable' expects 'on' or 'off'");
    expect(&export_options_type,
           "{\"type\": \"nbd\", \"id\": \"e\", \"node-name\": \"n\", \"bitmaps\": {\"1\": \"a\"}}",
           SCHEMA_CHECK_KEYVAL, "Parameter 'bitmaps.0' missing");
    expect(&qmp_type_nbd_server_options,
           "{\"addr\": {\"type\": \"unix\", \"path\": \"p\"}, \"max-connections\": \"3x\"}",
           SCHEMA_CHECK_KEYVAL, "Parameter 'max-connections' expects integer");
    expect(&qmp_type_nbd_server_options,
           "{\"addr\": {\"type\": \"unix\", \"path\": \"p\"}, \"max-connections\": \"-3\"}",
           SCHEMA_CHECK_KEYVAL, "Parameter 'max-connections' expects uint32_t");
}

static void every_action_of_the_schema_can_run(void **state)
{
    const struct schema_variant *v = qmp_type_transaction_action.variants;
    const struct schema_type *kinds = qmp_type_transaction_action.members[0].type;
    size_t variants = 0, values = 0;

    for (; v->value; v++, variants++) {
        assert_non_null(qmp_find_action(v->value));
    }
    for (; kinds->values[values]; values++) {
    }
    assert_int_equal(variants, values);
}

static struct json_object *entry(struct json_object *schema, const char *name)
{
    for (size_t i = 0; i < json_object_array_length(schema); i++) {
        struct json_object *o = json_object_array_get_idx(schema, i);

        if (strcmp(qmp_get_str(o, "name"), name) == 0) {
            return o;
        }
    }
    return NULL;
}

static void assert_listed(struct json_object *schema, struct json_object *o, const char *key)
{
    const char *name = qmp_get_str(o, key);

    assert_non_null(name);
    if (!entry(schema, name)) {
        fail_msg("type %s is mentioned and not listed", name);
    }
}

static void assert_all_listed(struct json_object *schema, struct json_object *list, const char *key)
{
    for (size_t i = 0; list && i < json_object_array_length(list); i++) {
        assert_listed(schema, json_object_array_get_idx(list, i), key);
    }
}

static void the_schema_lists_every_type_it_mentions_once(void **state)
{
    struct json_object *schema = qmp_introspect();

    for (size_t i = 0; i < json_object_array_length(schema); i++) {
        struct json_object *o = json_object_array_get_idx(schema, i);
        const char *meta = qmp_get_str(o, "meta-type");

        assert_ptr_equal(entry(schema, qmp_get_str(o, "name")), o);
        if (strcmp(meta, "command") == 0) {
            assert_listed(schema, o, "arg-type");
            assert_listed(schema, o, "ret-type");
        } else if (strcmp(meta, "event") == 0) {
            assert_listed(schema, o, "arg-type");
        } else if (strcmp(meta, "array") == 0) {
            assert_listed(schema, o, "element-type");
        } else if (strcmp(meta, "enum") != 0) {
            assert_all_listed(schema, qmp_get(o, "members"), "type");
            assert_all_listed(schema, qmp_get(o, "variants"), "type");
        }
    }
    json_object_put(schema);
}

static void the_schema_describes_itself(void **state)
{
    const struct qmp_command *command = qmp_find_command("query-qmp-schema");
    struct json_object *schema = qmp_introspect();
    ERROR_AUTO(err);

    for (size_t i = 0; i < json_object_array_length(schema); i++) {
        if (schema_check(command->result->element, json_object_array_get_idx(schema, i), 0, &err) <
            0) {
            fail_msg("entry %zu: %s", i, error_message(&err));
        }
    }
    json_object_put(schema);
}

#define TYPES_MAX 1024

/* Types seen, in the order in which they are mentioned. */
static const struct schema_type *types[TYPES_MAX];
static size_t type_count;

/* Whether two types of one name are alike to clients: built in, lists, or one type. */
static bool are_one(const struct schema_type *a, const struct schema_type *b)
{
    return a == b || a->kind == SCHEMA_ARRAY || a->kind < SCHEMA_ENUM ||
           strcmp(a->name, b->name) != 0;
}

static void see_type(const struct schema_type *type)
{
    for (size_t i = 0; i < type_count; i++) {
        if (types[i] == type) {
            return;
        }
        if (!are_one(type, types[i])) {
            fail_msg("two types are called %s", type->name);
        }
    }
    assert_true(type_count < TYPES_MAX);
    types[type_count++] = type;
    for (const struct schema_member *m = type->members; m && m->name; m++) {
        see_type(m->type);
    }
    for (const struct schema_variant *v = schema_variants_of(type); v && v->value; v++) {
        see_type(v->type);
    }
    for (const struct schema_type *const *t = type->choice; t && *t; t++) {
        see_type(*t);
    }
    if (type->element) {
        see_type(type->element);
    }
}

/* Clients find types by name; a second type of a name would be left out. */
static void a_name_is_that_of_one_type(void **state)
{
    const struct qmp_command *c = NULL;
    const struct qmp_event *e = NULL;

    while ((c = qmp_next_command(c))) {
        see_type(c->args);
        see_type(c->result);
    }
    while ((e = qmp_next_event(e))) {
        see_type(e->data);
    }
    assert_true(type_count > 100);
}

static void every_command_and_event_has_a_text(void **state)
{
    const struct qmp_command *c = NULL;
    const struct qmp_event *e = NULL;

    while ((c = qmp_next_command(c))) {
        const struct qmp_reference *text = qmp_command_reference(c->name);

        if (!text || !text->help) {
            fail_msg("src/qmp/reference.c: no text for %s", c->name);
        }
    }
    while ((e = qmp_next_event(e))) {
        if (!qmp_event_reference(e->name)) {
            fail_msg("src/qmp/reference.c: no text for %s", e->name);
        }
    }
}

/* Once more commands were added, which stay. */
static void a_program_can_add_commands_and_replace_some(void **state)
{
    static const struct qmp_command commands[] = {
        {"eject", &schema_empty, &schema_empty, NULL},
        {"quit", &schema_empty, &schema_empty, NULL},
        {NULL, NULL, NULL, NULL},
    };
    static const struct qmp_event events[] = {{"STOP", &schema_empty}, {NULL, NULL}};
    static const struct qmp_addition addition = {commands, events};
    const struct qmp_command *c = NULL;
    struct json_object *schema;
    size_t before = 0, after = 0, quits = 0;

    while ((c = qmp_next_command(c))) {
        before++;
    }
    qmp_add(&addition);
    while ((c = qmp_next_command(c))) {
        after++;
        quits += strcmp(c->name, "quit") == 0;
    }
    assert_int_equal(after, before + 1);
    assert_int_equal(quits, 1);
    assert_ptr_equal(qmp_find_command("quit"), &commands[1]);
    assert_non_null(qmp_find_command("query-version"));
    schema = qmp_introspect();
    assert_non_null(entry(schema, "eject"));
    assert_non_null(entry(schema, "STOP"));
    assert_non_null(entry(schema, "BLOCK_EXPORT_DELETED"));
    json_object_put(schema);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arguments_are_checked),
        cmocka_unit_test(text_of_a_command_line_is_converted),
        cmocka_unit_test(text_of_a_command_line_may_be_wrong),
        cmocka_unit_test(every_action_of_the_schema_can_run),
        cmocka_unit_test(the_schema_lists_every_type_it_mentions_once),
        cmocka_unit_test(the_schema_describes_itself),
        cmocka_unit_test(a_name_is_that_of_one_type),
        cmocka_unit_test(every_command_and_event_has_a_text),
        cmocka_unit_test(a_program_can_add_commands_and_replace_some),
    };

    file_register_drivers();
    export_nbd_register_type();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
