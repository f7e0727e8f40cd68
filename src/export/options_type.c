/* SPDX-License-Identifier: Apache-2.0 */
/* The type of the options of exports, as block-export-add and --export take them. */
#include <string.h>

#include "export/export_type.h"
#include "schema/define.h"

static const struct schema_variant *get_type_options(void)
{
    static struct schema_variant variants[EXPORT_TYPES_MAX + 1];
    const struct export_type *type;

    for (size_t i = 0; (type = export_type_at(i)); i++) {
        variants[i] = (struct schema_variant){type->name, type->options};
    }
    return variants;
}

static const char *const *get_export_type_names(void)
{
    static const char *names[EXPORT_TYPES_MAX + 1];
    const struct export_type *type;

    for (size_t i = 0; (type = export_type_at(i)); i++) {
        names[i] = type->name;
    }
    return names;
}

static const char *get_export_type_help(const char *name)
{
    const struct export_type *type;
    size_t i = 0;

    while ((type = export_type_at(i++)) && strcmp(type->name, name) != 0) {
    }
    return type ? type->help : NULL;
}

const struct schema_type export_type_names_type = {
    .kind = SCHEMA_ENUM,
    .name = "BlockExportType",
    .get_values = get_export_type_names,
};
const struct schema_type export_options_type = {
    .kind = SCHEMA_OBJECT,
    .name = "BlockExportOptions",
    .members =
        MEMBERS(REQ("type", export_type_names_type), REQ("id", schema_str),
                OPT("fixed-iothread", schema_bool, .dflt = "false",
                    .help = "no effect: an export never changes its thread"),
                OPT("iothread", schema_str,
                    .help = "id of the thread that serves all clients; default: several threads"),
                REQ("node-name", schema_str, .help = "what is exported"),
                OPT("writable", schema_bool, .dflt = "false", .help = "clients may write"),
                OPT("writethrough", schema_bool, .dflt = "false",
                    .help = "each write is on stable storage before it is answered"),
                OPT("allow-inactive", schema_bool, .dflt = "false",
                    .help = "the node may be inactive: only reads succeed then")),
    .tag = "type",
    .get_variants = get_type_options,
    .get_case_help = get_export_type_help,
};
