/* SPDX-License-Identifier: Apache-2.0 */
/* Which commands do not wait for others. */
#include "qmp/request_kind.h"

#include <string.h>

#include <json-c/json.h>

#include "base/checked.h"
#include "qmp/table.h"

bool qmp_allows_oob(const char *name)
{
    return strcmp(name, "yank") == 0 || strcmp(name, "query-yank") == 0 ||
           strcmp(name, "x-tidemark-give-up") == 0;
}

bool qmp_is_oob(const struct qmp_call *call, struct json_object *request)
{
    return call->oob && json_object_is_type(request, json_type_object) &&
           json_object_object_get_ex(request, "exec-oob", NULL);
}

bool qmp_only_looks(struct json_object *request)
{
    static const char *const names[] = {
        "qmp_capabilities",       "query-block-exports", "query-block-jobs",
        "query-blockstats",       "query-chardev",       "query-chardev-backends",
        "query-commands",         "query-fdsets",        "query-jobs",
        "query-nbd-server",       "query-qmp-schema",    "query-stats",
        "query-stats-schemas",    "query-version",       "x-debug-query-block-graph",
        "x-tidemark-query-stats", "query-yank",          "yank"};
    struct json_object *name;

    if (!json_object_is_type(request, json_type_object) ||
        !json_object_object_get_ex(request, "execute", &name) ||
        !json_object_is_type(name, json_type_string)) {
        return false;
    }
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (strcmp(json_object_get_string(name), names[i]) == 0) {
            return true;
        }
    }
    return false;
}
