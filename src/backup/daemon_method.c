/* SPDX-License-Identifier: Apache-2.0 */
/* Which method suits the program at the other end. */
#include <errno.h>
#include <string.h>

#include "backup/daemon_disk.h"

static bool names_command(struct json_object *commands, const char *name)
{
    for (size_t i = 0; i < source_length(commands); i++) {
        if (strcmp(source_string(json_object_array_get_idx(commands, i), "name"), name) == 0) {
            return true;
        }
    }
    return false;
}

static bool has_value(struct json_object *values, const char *name)
{
    for (size_t i = 0; i < source_length(values); i++) {
        const char *text = json_object_get_string(json_object_array_get_idx(values, i));

        if (text && strcmp(text, name) == 0) {
            return true;
        }
    }
    return false;
}

/* The schema has the kinds of actions as an enum, the only one with these values. */
static bool can_transact_backups(struct json_object *schema)
{
    for (size_t i = 0; i < source_length(schema); i++) {
        struct json_object *values = NULL;

        json_object_object_get_ex(json_object_array_get_idx(schema, i), "values", &values);
        if (has_value(values, "abort") && has_value(values, "blockdev-backup") &&
            has_value(values, "block-dirty-bitmap-disable") &&
            has_value(values, "block-dirty-bitmap-merge") &&
            has_value(values, "block-dirty-bitmap-remove")) {
            return true;
        }
    }
    return false;
}

static bool has_member(struct json_object *members, const char *name)
{
    for (size_t i = 0; i < source_length(members); i++) {
        if (strcmp(source_string(json_object_array_get_idx(members, i), "name"), name) == 0) {
            return true;
        }
    }
    return false;
}

/* Whether there are the filters, with a limit of time, and devices that can be moved to them. */
static bool can_insert_filters(struct json_object *schema, struct json_object *commands)
{
    bool limit = false, view = false;

    for (size_t i = 0; i < source_length(schema); i++) {
        struct json_object *o = json_object_array_get_idx(schema, i), *members = NULL;
        struct json_object *values = NULL;

        json_object_object_get_ex(o, "members", &members);
        json_object_object_get_ex(o, "values", &values);
        limit =
            limit || (has_member(members, "cbw-timeout") && has_member(members, "on-cbw-error"));
        view = view ||
               (has_value(values, "snapshot-access") && has_value(values, "copy-before-write"));
    }
    return limit && view && names_command(commands, "qom-set") &&
           names_command(commands, "query-block");
}

/* Check what QEMU can do. *ret_filters: also the method that inserts filters. */
static int co_check_qemu(struct qmp_client *qmp, struct json_object *commands, bool *ret_filters,
                         struct error *err)
{
    static const char *const needed[] = {"blockdev-add", "block-export-add", "nbd-server-start",
                                         "query-qmp-schema"};
    struct json_object *schema = NULL;
    int r = 0;

    for (size_t i = 0; r == 0 && i < sizeof(needed) / sizeof(needed[0]); i++) {
        if (!names_command(commands, needed[i])) {
            r = error_set(err, ENOTSUP, "The program at QMP socket '%s' does not know '%s'",
                          qmp_client_path(qmp), needed[i]);
        }
    }
    UNLESS_FAILED(r, qmp_client_co_execute(qmp, "query-qmp-schema", NULL, &schema, err));
    if (r == 0 && !can_transact_backups(schema)) {
        r = error_set(err, ENOTSUP,
                      "The program at QMP socket '%s' does not know backups and bitmaps in one "
                      "transaction",
                      qmp_client_path(qmp));
    }
    *ret_filters = r == 0 && can_insert_filters(schema, commands);
    json_object_put(schema);
    if (r == -ENOTSUP) {
        error_hint(err, "QEMU and qemu-storage-daemon can be backed up from version 7.2 on.");
    }
    return r;
}

int daemon_co_choose_method(struct qmp_client *qmp, bool limit,
                            const struct daemon_method **ret_method, struct error *err)
{
    struct json_object *commands = NULL;
    bool filters = false;
    int r = qmp_client_co_execute(qmp, "query-commands", NULL, &commands, err);

    if (r == 0 && names_command(commands, "blockdev-replace")) {
        *ret_method = &tidemark_method;
    } else if (r == 0) {
        r = co_check_qemu(qmp, commands, &filters, err);
        *ret_method = limit ? &qemu_filter_method : &qemu_method;
    }
    json_object_put(commands);
    return r == 0 && *ret_method == &qemu_filter_method && !filters
               ? error_set(err, ENOTSUP,
                           "'--cbw-timeout' is not supported for the program at QMP socket '%s', "
                           "which has no filters for it",
                           qmp_client_path(qmp))
               : r;
}
