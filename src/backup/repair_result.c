/* SPDX-License-Identifier: Apache-2.0 */
/* What a repair found and did. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/repair.h"

void repair_result_clear(struct repair_result *r)
{
    for (size_t i = 0; i < r->count; i++) {
        free(r->items[i].problem);
    }
    free(r->items);
    free(r->path);
    *r = (struct repair_result){0};
}

int repair_result_add(struct repair_result *r, const char *id, const char *file,
                      const char *problem, bool repaired)
{
    struct repair_item *items = realloc(r->items, (r->count + 1) * sizeof(*items));
    struct repair_item *item;

    if (!items) {
        return -ENOMEM;
    }
    r->items = items;
    item = &items[r->count];
    *item = (struct repair_item){.file = file, .repaired = repaired, .problem = strdup(problem)};
    memcpy(item->id, id, strlen(id) + 1);
    if (!item->problem) {
        return -ENOMEM;
    }
    r->count++;
    r->unrepaired += !repaired;
    return 0;
}
