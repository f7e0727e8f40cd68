/* SPDX-License-Identifier: Apache-2.0 */
/* Print the types of QMP with their texts, for tools/qmp-reference. */
#include <stdio.h>

#include "cli/cli.h"
#include "qmp/objects.h"
#include "qmp/table.h"

int main(void)
{
    struct json_object *schema;

    cli_register_drivers();
    qmp_register_objects();
    schema = qmp_introspect_with_texts();
    puts(json_object_to_json_string_ext(schema, JSON_C_TO_STRING_PRETTY));
    json_object_put(schema);
    return 0;
}
