/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/daemon/help.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/user_object.h"

static const char *const chardev_types[] = {"socket", "stdio", NULL};

static const char *const chardev_options[] = {"backend=<str>",
                                              "fd=<str>",
                                              "host=<str>",
                                              "path=<str>",
                                              "port=<str>",
                                              "server=<bool (on/off)>",
                                              "signal=<bool (on/off)>",
                                              "wait=<bool (on/off)>",
                                              NULL};

/* Whether one of the parts between commas is "help". */
static bool asks_for_help(const char *value)
{
    while (*value) {
        size_t len = strcspn(value, ",");

        if (len == 4 && memcmp(value, "help", len) == 0) {
            return true;
        }
        value += len + (value[len] == ',');
    }
    return false;
}

static void print_list(const char *const *names)
{
    for (; *names; names++) {
        printf("  %s\n", *names);
    }
}

static const struct user_object_type *find_object_type(const char *value)
{
    const struct user_object_type *type = NULL;
    size_t len;

    value += strncmp(value, "qom-type=", 9) == 0 ? 9 : 0;
    len = strcspn(value, ",");
    while ((type = user_object_next_type(type))) {
        if (strlen(type->name) == len && memcmp(type->name, value, len) == 0) {
            return type;
        }
    }
    return NULL;
}

static void print_object_help(const char *value)
{
    const struct user_object_type *type = find_object_type(value);

    if (type) {
        printf("%s options:\n", type->name);
        print_list(type->options);
        return;
    }
    printf("List of user creatable objects:\n");
    while ((type = user_object_next_type(type))) {
        printf("  %s\n", type->name);
    }
}

static void print_chardev_help(const char *value)
{
    if (strcmp(value, "help") == 0) {
        printf("Available chardev backend types:\n");
        print_list(chardev_types);
    } else {
        printf("chardev options:\n");
        print_list(chardev_options);
    }
}

bool daemon_help(const char *option, const char *value, int *ret_result, struct error *err)
{
    if (value[0] == '{' || !asks_for_help(value)) {
        return false;
    }
    *ret_result = 0;
    if (strcmp(option, "object") == 0) {
        print_object_help(value);
    } else if (strcmp(option, "chardev") == 0) {
        print_chardev_help(value);
    } else {
        *ret_result =
            error_set(err, EINVAL, "--%s %s: Help is not available for this option", option, value);
    }
    return true;
}
