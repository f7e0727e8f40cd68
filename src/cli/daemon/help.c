/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/daemon/help.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/strbuf.h"
#include "block/option_types.h"
#include "chardev/chardev.h"
#include "cli/object_help.h"
#include "export/export.h"
#include "qmp/table.h"
#include "schema/help.h"

static const char *const chardev_options[] = {"abstract=<bool (on/off)>",
                                              "append=<bool (on/off)>",
                                              "backend=<str>",
                                              "delay=<bool (on/off)>",
                                              "fd=<str>",
                                              "host=<str>",
                                              "input-path=<str>",
                                              "ipv4=<bool (on/off)>",
                                              "ipv6=<bool (on/off)>",
                                              "logappend=<bool (on/off)>",
                                              "logfile=<str>",
                                              "nodelay=<bool (on/off)>",
                                              "path=<str>",
                                              "port=<str>",
                                              "reconnect=<num>",
                                              "reconnect-ms=<num>",
                                              "server=<bool (on/off)>",
                                              "signal=<bool (on/off)>",
                                              "size=<size>",
                                              "tight=<bool (on/off)>",
                                              "tls-authz=<str>",
                                              "tls-creds=<str>",
                                              "to=<num>",
                                              "wait=<bool (on/off)>",
                                              NULL};

static void print_list(const char *const *names)
{
    for (; *names; names++) {
        printf("  %s\n", *names);
    }
}

static void print_members(const char *title, const struct schema_type *type)
{
    static const struct schema_type *const nodes[] = {&block_options_type, NULL};
    STRBUF_AUTO(text);

    schema_help_members(type, nodes, &text);
    if (text.len) {
        printf("%s:\n%s", title, strbuf_str(&text));
    }
}

/* What a union takes: the values of its tag, or the options of one; and those of all. */
static void print_union_help(const char *option, const char *what, const struct schema_type *type,
                             const char *value)
{
    const struct schema_variant *v = cli_help_variant(type, value);
    char title[64];

    if (v) {
        snprintf(title, sizeof(title), "%s options", v->value);
        print_members(title, v->type);
        printf("Options of all: --%s help\n", option);
        return;
    }
    printf("%s of --%s:\n", what, option);
    for (v = schema_variants_of(type); v->value; v++) {
        printf("  %-33s  - %s\n", v->value, type->get_case_help(v->value) ?: "");
    }
    print_members("Options of all", type);
    printf("Options of one: --%s %s=NAME,help\n", option, type->tag);
}

static void print_chardev_help(const char *value)
{
    if (strcmp(value, "help") == 0) {
        printf("Available chardev backend types:\n");
        print_list(chardev_type_names());
    } else {
        printf("chardev options:\n");
        print_list(chardev_options);
    }
}

bool daemon_help(const char *option, const char *value, int *ret_result, struct error *err)
{
    if (!cli_asks_for_help(value)) {
        return false;
    }
    *ret_result = 0;
    if (strcmp(option, "object") == 0) {
        cli_print_object_help(value);
    } else if (strcmp(option, "blockdev") == 0) {
        print_union_help(option, "Drivers", &block_options_type, value);
    } else if (strcmp(option, "export") == 0) {
        print_union_help(option, "Types", &export_options_type, value);
    } else if (strcmp(option, "nbd-server") == 0) {
        print_members("Options", &qmp_type_nbd_server_options);
    } else if (strcmp(option, "chardev") == 0) {
        print_chardev_help(value);
    } else {
        *ret_result =
            error_set(err, EINVAL, "--%s %s: Help is not available for this option", option, value);
    }
    return true;
}
