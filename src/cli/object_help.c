/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/object_help.h"

#include <stdio.h>
#include <string.h>

#include "base/strbuf.h"
#include "block/user_object.h"
#include "schema/help.h"

bool cli_asks_for_help(const char *value)
{
    if (value[0] == '{') {
        return false;
    }
    while (*value) {
        size_t len = strcspn(value, ",");

        if ((len == 4 && memcmp(value, "help", len) == 0) || (len == 1 && *value == '?')) {
            return true;
        }
        value += len + (value[len] == ',');
    }
    return false;
}

const struct schema_variant *cli_help_variant(const struct schema_type *type, const char *value)
{
    size_t tag_len = strlen(type->tag), len;

    if (strncmp(value, type->tag, tag_len) == 0 && value[tag_len] == '=') {
        value += tag_len + 1;
    }
    len = strcspn(value, ",");
    for (const struct schema_variant *v = schema_variants_of(type); v->value; v++) {
        if (strlen(v->value) == len && memcmp(v->value, value, len) == 0) {
            return v;
        }
    }
    return NULL;
}

void cli_print_object_help(const char *value)
{
    const struct schema_variant *v = cli_help_variant(&user_object_options_type, value);
    const char *const *name = schema_values_of(user_object_options_type.members[0].type);
    STRBUF_AUTO(text);

    if (v) {
        schema_help_properties(v->type, &text);
        printf("%s options:\n%s", v->value, strbuf_str(&text));
        return;
    }
    printf("List of user creatable objects:\n");
    for (; *name; name++) {
        printf("  %s\n", *name);
    }
}
